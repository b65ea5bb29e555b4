"""Figures of an evaluation: confusion matrix, calibration, precision against recall."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitgraft.errors import MissingExtraError
from vitgraft.metrics.base import fractions, most_confused
from vitgraft.terminal import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_figure", "figure_class", "png_of", "precision_recall_figure", "reliability_figure"]

ANNOTATED = 20  # up to so many classes each cell has its number
NAMED = 60  # up to so many each row has its name; beyond, neighboring classes share a row
GROUPS = 100
LONGEST_NAME = 22


def png_of(figure: "Figure", dpi: int = 110) -> bytes:
    """A figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, facecolor="white", bbox_inches="tight")
    return file.getvalue()


def confusion_figure(
    confusion: np.ndarray, class_names: Sequence[str], title: str = "", noun: str = "samples"
) -> "Figure":
    """Confusion matrix, each row divided by its number of samples.

    With up to 20 classes every cell has its percentage, with up to 60 every row its name. Of more classes, neighbors
    are summed to at most 100 rows (class lists are mostly sorted so that neighbors are alike: ImageNet's follows
    WordNet), and the pairs that are confused most often stand beside the matrix by name.

    Args:
        confusion: (C, C) counts, rows are the true classes.
        class_names: Of each class.
        title: Of the figure.
        noun: What was counted.
    """
    classes = len(confusion)
    size = 1 if classes <= NAMED else -(-classes // GROUPS)
    starts = np.arange(0, classes, size)
    summed = np.add.reduceat(np.add.reduceat(confusion, starts, axis=0), starts, axis=1)
    totals = summed.sum(1, keepdims=True)
    rows = np.divide(summed, totals, out=np.zeros(summed.shape), where=totals > 0)

    with_pairs = classes > ANNOTATED
    side = 9.5 if with_pairs else max(5.5, 1.8 + 0.45 * classes)
    figure = figure_class()(figsize=(side * (1.85 if with_pairs else 1.0), side), layout="constrained")
    if with_pairs:
        axes, beside = figure.subplots(1, 2, width_ratios=(1.45, 1))
        _draw_pairs(beside, confusion, class_names, noun)
    else:
        axes = figure.subplots()
    # the square root shows a per cent of confusion beside a diagonal near 100
    image = axes.imshow(np.sqrt(rows), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class (each row is 100 %)")
    ticks = np.arange(0, len(rows), 1 if classes <= NAMED else 4)
    names = [shortened(class_names[starts[tick]]) for tick in ticks]
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set_xticks(ticks, names, fontsize=7, rotation=90)
    if not with_pairs:
        for i, j in np.argwhere(summed > 0):
            color = "white" if rows[i, j] > 0.2 else "black"
            axes.text(j, i, _percent(rows[i, j]), ha="center", va="center", color=color, fontsize=7)
    else:
        bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]))
        bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
        bar.set_label("fraction of the true class")
    accuracy = np.trace(confusion) / max(1, confusion.sum())
    note = f", {size} neighboring classes a row" if size > 1 else ""
    text = f"{confusion.sum():,} {noun}, {classes} classes, {accuracy:.1%} correct{note}"
    figure.suptitle(f"{title}: {text}" if title else text, fontsize=11)
    return figure


def _draw_pairs(axes: "Axes", confusion: np.ndarray, names: Sequence[str], noun: str) -> None:
    """Horizontal bars: the 25 pairs that are confused most often, with fractions of their true classes."""
    pairs, totals = most_confused(confusion, 25), confusion.sum(1)
    labels = [f"{shortened(names[true])}  →  {shortened(names[predicted])}" for true, predicted, _ in pairs]
    bars = axes.barh(range(len(pairs)), [n for *_, n in pairs], color="#d1495b", alpha=0.8)
    axes.bar_label(bars, [f"{_percent(n / totals[true])} %" for true, _, n in pairs], fontsize=7.5, padding=3)
    axes.set_yticks(range(len(pairs)), labels, fontsize=7.5)
    axes.set(title="most confused pairs", xlabel=f"{noun} (and their fraction of the true class)")
    axes.invert_yaxis()


def reliability_figure(counts: np.ndarray, correct: np.ndarray, confidences: np.ndarray, title: str = "") -> "Figure":
    """Accuracy against confidence by bins, the gap between them, and how many samples there are of each confidence.

    Args:
        counts: (bins,) samples.
        correct: (bins,) the correct ones.
        confidences: (bins,) sum of their confidences.
        title: Of the figure.
    """
    figure = figure_class()(figsize=(5.4, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    edges = np.arange(len(counts)) / len(counts)
    accuracy, confidence = fractions(correct, counts), fractions(confidences, counts)
    bar = {"width": 1 / len(counts), "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    upper.bar(edges, accuracy, color="#3b6ea8", label="accuracy", **bar)
    for mask, color, text in (
        (confidence > accuracy, "#d1495b", "confidence above accuracy"),
        (confidence <= accuracy, "#66a182", "accuracy above confidence"),
    ):
        if mask.any():
            gap, low = np.abs(accuracy - confidence)[mask], np.minimum(accuracy, confidence)[mask]
            upper.bar(edges[mask], gap, bottom=low, color=color, alpha=0.75, label=text, **bar)
    upper.plot([0, 1], [0, 1], "--", color="#444444", linewidth=1, label="perfectly calibrated")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(title, fontsize=10)
    upper.legend(framealpha=0.85, fontsize=9, loc="upper left")
    lower.bar(edges, counts / max(1, counts.sum()), color="#9a9a9a", **bar)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="fraction of samples")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def precision_recall_figure(curves: Mapping[str, np.ndarray], title: str = "") -> "Figure":
    """Precision against recall, mean of the classes, at IoU 0.5, 0.75 and 0.9; boxes and masks side by side.

    Args:
        curves: Of "box" and "mask" precision (10 IoUs, 101 recalls).
        title: Of the figure.
    """
    figure = figure_class()(figsize=(4.6 * len(curves), 4.2), layout="constrained")
    for axes, (kind, precision) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for index in (0, 5, 8):
            label = f"IoU {0.5 + 0.05 * index:.2f}: AP {precision[index].mean():.1%}"
            axes.plot(np.linspace(0, 1, 101), precision[index], label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"{kind}, mean of the classes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    return figure


def figure_class() -> "type[Figure]":
    """matplotlib's Figure itself: unlike pyplot it touches no window and no global state.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    return Figure


def shortened(name: str, length: int = LONGEST_NAME) -> str:
    """A class name that fits beside a figure: its first synonym, cut where it is still too long."""
    # matplotlib would set what stands between two dollar signs as mathematics
    return short_name(name, length).replace("$", r"\$")


def _percent(value: float) -> str:
    return f"{100 * value:.0f}" if value >= 0.005 else "<1"
