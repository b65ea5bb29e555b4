"""`vitgraft figures`: the paper's figures 1 (b) and 2 (a), the second one as a measurement, as PNG and SVG."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitgraft.report.reach import SYSTEMS, draw_reach, load_photos, measure_reach, to_markdown
from vitgraft.report.tradeoff import draw_tradeoff, rows_of

__all__ = ["FIGURES", "make_figures", "measure_speeds", "read_speeds"]

FIGURES = ("tradeoff", "reach")
_ROUNDS = 5


def models_of_tables() -> list[str]:
    """The timm names of the systems of tables 1 and 2 that exist here, each once, in printed order."""
    return list(dict.fromkeys(point.model for point in rows_of("1", "2") if point.model))


def measure_speeds(report: Callable[[str], None], batch_size: int = 8) -> dict[str, Any]:
    """`vitgraft bench` over the systems of tables 1 and 2, inference in float32 on the CPU; what `bench` returns."""
    from vitgraft.report.bench import BenchConfig, bench

    config = BenchConfig(batch_size=batch_size, rounds=_ROUNDS, round_seconds=0.5, memory=False)
    return bench(models_of_tables(), config, report)


def speed_reports() -> int:
    """How often `measure_speeds` calls `report`."""
    return len(models_of_tables()) * (1 + _ROUNDS)


def read_speeds(path: Path) -> dict[str, Any]:
    """What `vitgraft bench --output` wrote.

    Raises:
        ValueError: The file holds no inference times.
    """
    try:
        record = json.loads(path.read_text())
        usable = any(row["mode"] == "infer" for row in record["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file that vitgraft bench --output wrote ({error})") from error
    if not usable:
        raise ValueError(f"{path}: holds no inference times; run vitgraft bench with --mode infer")
    return record


def _speeds(record: dict[str, Any]) -> tuple[dict[str, float], str]:
    """images/s by model, of the first dtype that was measured, and where."""
    rows = [row for row in record["results"] if row["mode"] == "infer"]
    rows = [row for row in rows if row["dtype"] == rows[0]["dtype"]]
    machine = record["machine"]
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    where = f"{machine['device_name']}{threads}, {rows[0]['dtype']}, batch {rows[0]['batch_size']}"
    return {row["model"]: row["images_per_second"]["median"] for row in rows}, where


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
        bench_record: What `bench` returned, for the speed panel; None leaves that panel out.
        photos: Folder of photos for "reach"; None takes the two that scikit-learn ships.
        seeds: Of the random start values whose reach is averaged.
        report: Told in a line what happens, for "reach" once for each system and seed.

    Returns:
        The files written: a PNG and an SVG for each figure, and reach.md with its shares.

    Raises:
        ValueError: `photos` holds no image.
    """
    images = load_photos(photos) if "reach" in which else None
    out.mkdir(parents=True, exist_ok=True)
    written = []

    def save(figure: Any, name: str) -> None:
        for path in (out / f"{name}.png", out / f"{name}.svg"):
            figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
            written.append(path)

    if "tradeoff" in which:
        save(draw_tradeoff(*_speeds(bench_record)) if bench_record else draw_tradeoff(), "tradeoff")
    if images is not None:
        results = measure_reach(images, SYSTEMS, seeds, report)
        save(draw_reach(results), "reach")
        (out / "reach.md").write_text(to_markdown(results), encoding="utf-8")
        written.append(out / "reach.md")
    return written
