"""Pictures of an evaluation: which classes are taken for which, and how far confidences can be believed."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitgraft.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitgraft.metrics.classification import EvaluationReport

__all__ = ["confusion_figure", "most_confused", "reliability_figure", "save_figure"]

ANNOTATED = 20  # up to so many classes each cell carries its number
NAMED = 60  # up to so many each row carries its name; beyond, neighbouring classes share a row
GROUPS = 100
LONGEST_NAME = 22


def save_figure(figure: "Figure", path: Path, dpi: int = 110) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=dpi, facecolor="white", bbox_inches="tight")


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The pairs (true, predicted, samples) of different classes that were confused most often, at most `count`."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [(int(i // len(wrong)), int(i % len(wrong))) for i in order]
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def confusion_figure(
    confusion: np.ndarray, class_names: "list[str] | tuple[str, ...]", title: str = "", noun: str = "samples"
) -> "Figure":
    """Confusion matrix, each row divided by its number of samples.

    With up to 20 classes every cell says its percentage, with up to 60 every row its name. Of more classes, neighbours
    are put together to at most 100 rows (class lists are mostly sorted so that neighbours are alike: ImageNet's follows
    WordNet), and the pairs that are confused most often stand beside the matrix by name.

    Args:
        confusion: (C, C) counts, rows are the true classes.
        class_names: of each class.
        title: of the picture.
        noun: what was counted.
    """
    figure_of = figure_class()
    classes = len(confusion)
    groups = _groups(classes)
    summed = np.add.reduceat(np.add.reduceat(confusion, groups, axis=0), groups, axis=1)
    totals = summed.sum(1, keepdims=True)
    shares = np.divide(summed, totals, out=np.zeros(summed.shape), where=totals > 0)

    with_pairs = classes > ANNOTATED
    side = float(np.clip(1.8 + 0.45 * len(shares), 5.5, 9.5)) if len(shares) <= ANNOTATED else 9.5
    figure = figure_of(figsize=(side * (1.85 if with_pairs else 1.0), side), layout="constrained")
    if with_pairs:
        axes, beside = figure.subplots(1, 2, width_ratios=(1.45, 1))
        _draw_pairs(beside, confusion, class_names, noun)
    else:
        axes = figure.subplots()
    # the square root shows a per cent of confusion beside a diagonal near 100
    shown = axes.imshow(np.sqrt(shares), cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class (each row is 100 %)")
    _name_rows(axes, groups, classes, class_names)
    if classes <= ANNOTATED:
        for i, j in np.argwhere(summed > 0):
            color = "white" if shares[i, j] > 0.2 else "black"
            text = _percent(shares[i, j])
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8 if classes <= 12 else 6.5)
    else:
        bar = figure.colorbar(shown, ax=axes, shrink=0.6, ticks=np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]))
        bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
        bar.set_label("share of the true class" + ("es of the row" if len(groups) < classes else ""))
    accuracy = np.trace(confusion) / max(1, confusion.sum())
    head = f"{title}: " if title else ""
    note = f", rows of {-(-classes // len(groups))} neighbouring classes" if len(groups) < classes else ""
    figure.suptitle(f"{head}{confusion.sum():,} {noun}, {classes} classes, {accuracy:.1%} right{note}", fontsize=11)
    return figure


def reliability_figure(report: "EvaluationReport", title: str = "") -> "Figure":
    """Accuracy against confidence by bins, the gap between them, and how many samples there are of each confidence."""
    figure = figure_class()(figsize=(5.4, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    bins = len(report.bin_counts)
    edges, width = np.arange(bins) / bins, 1 / bins
    filled = report.bin_counts > 0
    left, accuracy, confidence = edges[filled], report.bin_accuracy[filled], report.bin_confidence[filled]
    bar = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    upper.bar(left, accuracy, color="#3b6ea8", label="accuracy", **bar)
    over = confidence > accuracy
    for mask, color, text in (
        (over, "#d1495b", "confidence above accuracy"),
        (~over, "#66a182", "accuracy above confidence"),
    ):
        if mask.any():
            low, high = np.minimum(accuracy, confidence)[mask], np.maximum(accuracy, confidence)[mask]
            upper.bar(left[mask], high - low, bottom=low, color=color, alpha=0.75, label=text, **bar)
    upper.plot([0, 1], [0, 1], "--", color="#444444", linewidth=1, label="as confident as right")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    head = f"{title}: " if title else ""
    upper.set_title(
        f"{head}ECE {report.ece:.2%}, accuracy {report.top1:.1%}, mean confidence {report.mean_confidence:.1%}",
        fontsize=10,
    )
    upper.legend(framealpha=0.85, edgecolor="none", fontsize=9, loc="upper left")
    lower.bar(edges, report.bin_counts / max(1, report.bin_counts.sum()), color="#9a9a9a", **bar)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="share of samples")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def figure_class() -> "type[Figure]":
    """matplotlib's Figure itself: unlike pyplot it touches no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    return Figure


def _groups(classes: int) -> np.ndarray:
    """First class of each row of the picture."""
    size = 1 if classes <= NAMED else -(-classes // GROUPS)
    return np.arange(0, classes, size)


def _name_rows(axes: "Axes", groups: np.ndarray, classes: int, names: "list[str] | tuple[str, ...]") -> None:
    rows = len(groups)
    step = 1 if classes <= NAMED else -(-rows // 25)
    ticks = np.arange(0, rows, step)
    labels = [shortened(names[groups[tick]]) for tick in ticks]
    size = 9 if rows <= 12 else 7.5 if rows <= 30 else 6.5
    axes.set_yticks(ticks, labels, fontsize=size)
    level = rows * max(map(len, labels)) < 60
    axes.set_xticks(ticks, labels, fontsize=size, rotation=0 if level else 90)


def _draw_pairs(axes: "Axes", confusion: np.ndarray, names: "list[str] | tuple[str, ...]", noun: str) -> None:
    """Horizontal bars: the 25 pairs that are confused most often, as shares of their true classes."""
    pairs = most_confused(confusion, 25)
    totals = confusion.sum(1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("most often taken for another class", fontsize=11)
    if not pairs:
        axes.text(0.5, 0.5, "nothing was confused", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    places = np.arange(len(pairs))
    axes.barh(places, [n for _, _, n in pairs], color="#d1495b", alpha=0.8)
    for place, (true, _, n) in zip(places, pairs, strict=True):
        axes.text(n, place, f" {_percent(n / totals[true])} %", va="center", fontsize=7.5, color="#444444")
    texts = [f"{shortened(names[true])}  →  {shortened(names[predicted])}" for true, predicted, _ in pairs]
    axes.set_yticks(places, texts, fontsize=7.5)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"{noun} (and their share of the true class)")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def shortened(name: str, length: int = LONGEST_NAME) -> str:
    """A class name that fits beside a picture: its first synonym, cut where it is still too long."""
    name = name.split(",")[0].strip() or name
    # matplotlib would set what stands between two dollar signs as mathematics
    return (name if len(name) <= length else name[: length - 1] + "…").replace("$", r"\$")


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.005 else "<1"
