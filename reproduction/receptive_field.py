"""Figure 2 (a) of the paper as a measurement: receptive fields of a center token, stage by stage, on real photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vitgraft
from vitgraft.data.decode import decode_image
from vitgraft.data.readers.open import open_files
from vitgraft.terminal import markdown_table
from vitgraft.tools.receptive_field import effective_receptive_fields, erf_area

__all__ = [
    "SYSTEMS",
    "StageField",
    "build",
    "draw_receptive_fields",
    "load_photos",
    "measure_receptive_fields",
    "to_markdown",
    "to_record",
]

SYSTEMS = ("Swin-T", "Swin-T + GrafT", "DeiT-T, windows", "DeiT-T, full attention", "DeiT-T + GrafT")
"""What is compared; the DeiTs are without class token, as the grafted one is."""

_SWIN, _DEIT = "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224"
THRESHOLD = 0.001


@dataclass(frozen=True)
class StageField:
    """The effective receptive field (H, W) of the center token after one stage, averaged over photos and seeds."""

    system: str
    stage: str
    field: torch.Tensor

    @property
    def theoretical(self) -> float:
        """Fraction of the image with any gradient at all."""
        return erf_area(self.field, 0.0)

    @property
    def effective(self) -> float:
        """Fraction of the image where the gradient is above 0.1 % of the largest."""
        return erf_area(self.field, THRESHOLD)


def build(system: str, seed: int = 0) -> nn.Module:
    """One of `SYSTEMS` at 224 x 224 with random weights of the seed.

    Raises:
        ValueError: Unknown system.
    """
    import timm

    if system not in SYSTEMS:
        raise ValueError(f"system={system!r}: choose one of {', '.join(SYSTEMS)}")
    torch.manual_seed(seed)
    if system == "Swin-T":
        return timm.create_model(_SWIN)
    if system.endswith("+ GrafT"):
        return timm.create_model(f"graft_{_SWIN if 'Swin' in system else _DEIT}")
    model = timm.create_model(_DEIT, class_token=False, global_pool="avg")
    if system == "DeiT-T, windows":
        return vitgraft.graft(model, blocks=(), backbone_attention="window", window_size=7)
    return model


def stages_of(model: nn.Module) -> dict[str, nn.Module]:
    """Where the field is read: the last block of each Swin stage, or every third block of a DeiT."""
    if hasattr(model, "layers"):
        return {f"stage {i + 1}": stage.blocks[-1] for i, stage in enumerate(model.layers)}
    return {f"block {i + 1}": model.blocks[i] for i in range(2, len(model.blocks), 3)}


def load_photos(folder: str | Path | None = None, size: int = 224) -> torch.Tensor:
    """Center crops (N, 3, size, size) of a folder's photos, normalized as ImageNet; None: scikit-learn's two photos.

    Raises:
        DataError, ImageError: The folder holds no image, or one that cannot be read.
    """
    from PIL import Image
    from timm.data import create_transform

    if folder is None:
        from sklearn.datasets import load_sample_images

        images = [Image.fromarray(array) for array in load_sample_images().images]
    else:
        source = open_files([folder])
        images = [decode_image(source.read(number), source.name(number)) for number in range(len(source))]
    transform = create_transform(size, is_training=False, crop_pct=1.0, interpolation="bicubic")
    return torch.stack([transform(image) for image in images])


def measure_receptive_fields(
    photos: torch.Tensor, systems: Sequence[str] = SYSTEMS, seeds: Sequence[int] = (0,), report: Any = None
) -> list[StageField]:
    """The field of every stage of every system, each photo and seed with its largest value 1, then averaged.

    Args:
        photos: (N, 3, 224, 224).
        systems: Of `SYSTEMS`.
        seeds: Of the random weights, one model each.
        report: Gets a line for each system and seed.
    """
    results = []
    for system in systems:
        sums: dict[str, torch.Tensor] = {}
        for seed in seeds:
            if report:
                report(f"{system}, seed {seed}")
            model = build(system, seed)
            stages = stages_of(model)
            for photo in photos:
                fields = effective_receptive_fields(model, list(stages.values()), photo[None])
                for stage, field in zip(stages, fields, strict=True):
                    sums[stage] = sums.get(stage, 0) + field
        results += [StageField(system, stage, total / (len(seeds) * len(photos))) for stage, total in sums.items()]
    return results


def draw_receptive_fields(results: Sequence[StageField]) -> Any:
    """One row for each system, one column for each stage.

    Brightness is the logarithm of the gradient, a mean over 4 x 4 pixels; gray is none.

    Returns:
        A matplotlib figure.
    """
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    systems = list(dict.fromkeys(one.system for one in results))
    columns = max(sum(one.system == system for one in results) for system in systems)
    figure = Figure(figsize=(2.3 * columns + 1.6, 2.55 * len(systems)), layout="constrained")
    axes = figure.subplots(len(systems), columns, squeeze=False)
    image = None
    for row, system in zip(axes, systems, strict=True):
        for ax, one in zip(row, (one for one in results if one.system == system), strict=True):
            cells = torch.nn.functional.avg_pool2d(one.field[None], 4)[0]  # patches of Swin: less noise, small files
            seen = np.ma.masked_less_equal(cells.numpy(), 0)
            image = ax.imshow(seen, norm=LogNorm(1e-8, 1), cmap="magma")
            ax.set_facecolor("#c8d4dc")  # outside the theoretical receptive field
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(f"{one.stage}: sees {one.theoretical:.0%}, reaches {one.effective:.0%}", fontsize=8)
        row[0].set_ylabel(system, fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.02)
    bar.set_label("|gradient| of the center token, largest = 1; gray: none", fontsize=8)
    return figure


def to_record(results: Sequence[StageField], photos: int, seeds: Sequence[int]) -> dict[str, Any]:
    """The areas as JSON values."""
    rows = [
        {"system": one.system, "stage": one.stage}
        | {"theoretical": round(one.theoretical, 5), "effective": round(one.effective, 5)}
        for one in results
    ]
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return {"kind": "receptive_field", "photos": photos, "seeds": list(seeds), "seeds_text": count, "rows": rows}


def to_markdown(record: dict[str, Any]) -> str:
    """The areas of `to_record` as a Markdown table, one row for each system."""
    cells: dict[str, list[str]] = {}
    for row in record["rows"]:
        text = f"{row['stage']}: {row['theoretical']:.1%} / {row['effective']:.1%}"
        cells.setdefault(row["system"], []).append(text)
    headings = ["system", *(f"depth {number} of 4" for number in range(1, 5))]
    return markdown_table(headings, ([system, *texts] for system, texts in cells.items()))
