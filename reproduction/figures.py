"""`python -m reproduction figures`: the paper's figures 1 (b) and 2 (a), the second one measured, as PNG and SVG."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reproduction.receptive_field import (
    SYSTEMS,
    draw_receptive_fields,
    load_photos,
    measure_receptive_fields,
    to_markdown,
    to_record,
)
from reproduction.speed import speeds_of
from reproduction.tradeoff import draw_tradeoff
from vitgraft.terminal import write_json

__all__ = ["FIGURES", "TRADEOFF_TABLES", "make_figures"]

FIGURES = ("tradeoff", "receptive_field")
TRADEOFF_TABLES = ("1", "2")
"""The paper's tables whose systems figure 1 (b) shows."""


def make_figures(
    out: Path,
    which: Sequence[str] = FIGURES,
    bench_record: dict[str, Any] | None = None,
    photos: Path | None = None,
    seeds: Sequence[int] = (0,),
    report: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draws the figures into a folder.

    Args:
        out: Folder; made where it is missing.
        which: Of `FIGURES`.
        bench_record: Result of `bench`, for the speed panel; None leaves that panel out.
        photos: Folder of photos for "receptive_field"; None takes the two that scikit-learn ships.
        seeds: Of the random weights over which receptive fields are averaged.
        report: Gets a line about each piece of work, for "receptive_field" one for each system and seed.

    Returns:
        The files written: a PNG and an SVG for each figure, receptive_field.json with the areas, and figures.md, a page
        of all figures that are in the folder.

    Raises:
        DataError, ImageError: `photos` holds no image, or one that cannot be read.
    """
    images = load_photos(photos) if "receptive_field" in which else None
    out.mkdir(parents=True, exist_ok=True)
    written = []

    def save(figure: Any, name: str) -> None:
        for path in (out / f"{name}.png", out / f"{name}.svg"):
            figure.savefig(path, dpi=90, metadata={"Date": None} if path.suffix == ".svg" else None)
            written.append(path)

    if "tradeoff" in which:
        speeds, where = speeds_of(bench_record) if bench_record else ({}, "")
        medians = {name: speed.median for (task, name), speed in speeds.items() if task == "classification"}
        save(draw_tradeoff(medians, where), "tradeoff")
    if images is not None:
        results = measure_receptive_fields(images, SYSTEMS, seeds, report)
        save(draw_receptive_fields(results), "receptive_field")
        written.append(out / "receptive_field.json")
        write_json(written[-1], to_record(results, len(images), seeds))
    (out / "figures.md").write_text(page(out), encoding="utf-8")
    return [*written, out / "figures.md"]


def page(folder: Path) -> str:
    """Markdown of the figures that a folder holds, with the areas of receptive_field.json as a table."""
    parts = ["# The paper's figures\n\nMade by `python -m reproduction figures`, which writes PNG and SVG.\n"]
    if (folder / "tradeoff.png").exists():
        parts.append(TRADEOFF_TEXT)
    if (folder / "receptive_field.json").exists():
        record = json.loads((folder / "receptive_field.json").read_text(encoding="utf-8"))
        parts.append(FIELD_TEXT.format(table=to_markdown(record), **record))
    return "\n".join(parts)


TRADEOFF_TEXT = """\
## Figure 1 (b): accuracy against cost

Stars are grafted models, arrows start at their backbones. Accuracies and MAC are the paper's; below them stand
images/s as measured here (`--bench`; in the repository `results/bench_tables.json`), where they were.

![accuracy against MAC, and images/s against MAC](tradeoff.png)
"""

FIELD_TEXT = """\
## Figure 2 (a), measured: receptive fields

The gradient of a stage's center token with respect to the input, averaged over {photos} photos and {seeds_text} of
random weights, 224 x 224 (`python -m reproduction figures receptive_field --photos DIR --seeds ...`). In each cell
the fraction of the image with any gradient at all (theoretical receptive field, "sees" in the figure), and the
fraction where it is above 0.1 % of its largest value (effective receptive field, "reaches"). Grafts change what a
token sees at once; the size of the effective receptive field depends on the weights, here random ones, and with
grafts it is not always larger.

{table}
![gradient of the center token with respect to the input](receptive_field.png)
"""
