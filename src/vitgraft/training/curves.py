"""Learning curves of a run, from its metrics.csv: loss, validation metrics and learning rate against the epoch."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitgraft.metrics.figures import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "curves_figure", "read_log"]

Curve = tuple[np.ndarray, np.ndarray]
"""Updates that were made, (N,), and the values that were logged after them, (N,)."""

MOST_POINTS = 400  # of a curve; of more, neighbors are averaged
EMA = "_ema"
LABELS = {"train/loss": "training, by step", "train/loss_epoch": "training, epoch", "val/loss": "validation"}


def read_log(path: Path) -> dict[str, Curve]:
    """The curves in a metrics.csv by the names of its columns; what is no number is left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = _number(row.pop("step", None))
            if step is None:
                continue
            for name, text in row.items():
                value = _number(text)
                if name is not None and name != "epoch" and value is not None:
                    found.setdefault(name, []).append((step + 1, value))
    return {name: tuple(np.array(points).T) for name, points in found.items()}


def curves_figure(curves: Mapping[str, Curve], updates_per_epoch: float | None = None, title: str = "") -> "Figure":
    """Losses, validation metrics and learning rate, one below the other, over one axis of epochs.

    Args:
        curves: By the names under which they were logged: `train/...`, `val/...`, `lr`. Those of averaged weights,
            which end with `_ema`, are dashed.
        updates_per_epoch: What turns updates into epochs; None: the axis has updates.
        title: Of the figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    losses = [name for name in curves if name.startswith(("train/", "val/")) and _is_loss(name)]
    metrics = [name for name in curves if name.startswith("val/") and not _is_loss(name)]
    panels = [
        (label, names)
        for label, names in (
            ("loss", sorted(losses, key=lambda name: (not name.startswith("train/loss"), name))),
            ("validation", metrics),
            ("learning rate", [name for name in curves if name == "lr"]),
        )
        if names
    ]
    figure = figure_class()(figsize=(8.5, 0.8 + 2.5 * max(1, len(panels))), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize="medium")
    if not panels:
        return figure
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, names) in zip(every, panels, strict=True):
        _draw(axes, {name: curves[name] for name in names}, updates_per_epoch or 1.0)
        axes.set(ylabel=label)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    every[-1].set(xlabel="update" if updates_per_epoch is None else "epoch")
    every[-1].set_xlim(left=0)
    return figure


def _draw(axes: "Axes", curves: Mapping[str, Curve], updates_per_epoch: float) -> None:
    """Curves of one panel. A name has its color with and without averaged weights."""
    plain = list(dict.fromkeys(name.removesuffix(EMA) for name in curves))
    for name, curve in curves.items():
        steps, values = _averaged(curve)
        # of every step behind its mean of the epoch, and the parts of a loss behind their sum
        is_thin = (name == "train/loss" and "train/loss_epoch" in curves) or (
            name.startswith("train/loss_") and name != "train/loss_epoch"
        )
        axes.plot(
            steps / updates_per_epoch,
            values,
            "--" if name.endswith(EMA) else "-",
            color=f"C{plain.index(name.removesuffix(EMA)) % 10}",
            linewidth=0.8 if is_thin else 1.6,
            alpha=0.6 if is_thin else 1.0,
            marker="o" if len(steps) <= 30 and not is_thin else None,
            markersize=3,
            label=f"{_label(name)}  {values[-1]:.4g}".replace("$", r"\$"),
        )


def _label(name: str) -> str:
    texts = {
        "train/loss": "training, by step",
        "train/loss_epoch": "training, mean of the epoch",
        "val/loss": "validation",
    }
    plain = name.removesuffix(EMA)
    text = texts.get(plain, plain.removeprefix("val/").removeprefix("train/"))
    return f"{text} (averaged weights)" if name.endswith(EMA) else text


def _is_loss(name: str) -> bool:
    return "loss" in name.rpartition("/")[2]


def _averaged(curve: Curve) -> Curve:
    """At most `MOST_POINTS` points, means of neighbors."""
    if len(curve[0]) <= MOST_POINTS:
        return curve
    starts = np.linspace(0, len(curve[0]), MOST_POINTS, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(curve[0])))
    return tuple(np.add.reduceat(one, starts) / counts for one in curve)


def _number(text: str | Sequence[str] | None) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None
