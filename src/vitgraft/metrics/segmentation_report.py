"""What an evaluation of segmentation leaves behind: metrics.json, a table of the classes; what the terminal shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.metrics.figures import confusion_figure, save_figure
from vitgraft.metrics.report_writer import as_csv, as_json, percent, replace_text
from vitgraft.metrics.segmentation import SegmentationReport
from vitgraft.terminal import print_whole

__all__ = ["class_rows", "print_report", "write_report"]

WORDS = {
    "num_images": "images",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_class_accuracy": "mean of the classes' accuracies",
    "num_pixels": "labelled pixels",
    "num_ignored": "ignored pixels, left out",
    "num_absent": "classes absent from the set, left out",
    "num_nonfinite": "pixels without finite scores, counted as wrong",
    "num_unreadable": "unreadable images, left out",
}
SHARES = ("miou", "pixel_accuracy", "mean_class_accuracy")
QUIET = ("num_ignored", "num_absent", "num_nonfinite", "num_unreadable")  # not shown where 0
COLUMNS = ("class", "name", "pixels", "share", "iou", "accuracy", "precision", "taken_for", "taken_for_share")


def write_report(
    folder: Path,
    report: SegmentationReport,
    class_names: Sequence[str],
    title: str = "",
    facts: dict[str, Any] | None = None,
    unreadable: Sequence[str] = (),
) -> list[Path]:
    """Writes metrics.json, classes.csv, classes.md and confusion.png.

    Args:
        folder: made where it is missing; files of an evaluation before are replaced.
        report: what was measured.
        class_names: of each class.
        title: of table and picture, such as "validation, epoch 12".
        facts: what was evaluated (model, checkpoint, data ...), for metrics.json.
        unreadable: "name: reason" of the images that could not be counted.

    Returns:
        The files.

    Raises:
        OSError: the folder can't be written.
        MissingExtraError: matplotlib is not installed.
        ValueError: not as many names as classes.
    """
    if len(class_names) != report.num_classes:
        raise ValueError(f"{len(class_names)} class names for {report.num_classes} classes")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {**report.numbers(), "num_unreadable": len(unreadable)}
    places = report.confusion.nonzero()
    counts = report.to_dict()
    # mostly zeros: [true, predicted, pixels] of the others; predicted = number of classes: scores not finite
    counts["confusion"] = [list(map(int, triple)) for triple in zip(*places, report.confusion[places], strict=True)]
    values = {
        "kind": "segmentation evaluation",
        **(facts or {}),
        "metrics": numbers,
        "absent_classes": [class_names[number] for number in report.absent],
        "unreadable": list(unreadable),
        "class_names": list(class_names),
        "counts": counts,
    }
    rows = class_rows(report, class_names)
    texts = {
        "metrics.json": as_json(values),
        "classes.csv": as_csv(rows, COLUMNS),
        "classes.md": _markdown(rows, numbers, title),
    }
    for name, text in texts.items():
        replace_text(folder / name, text)
    figure = confusion_figure(report.confusion[:, :-1], class_names, title, "pixels")
    save_figure(figure, folder / "confusion.png")
    return [folder / name for name in (*texts, "confusion.png")]


def class_rows(report: SegmentationReport, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each class, in their order; shares are 0 to 1, None where there is nothing to divide.

    `share` is of the labelled pixels; `taken_for` is the class that pixels of this one were taken for most often.
    """
    pixels, total = report.class_pixels, max(1, int(report.confusion.sum()))
    measures = {"iou": report.class_iou, "accuracy": report.class_accuracy, "precision": report.class_precision}
    rows = []
    for i, name in enumerate(class_names):
        row = dict.fromkeys(COLUMNS)
        row |= {"class": i, "name": name, "pixels": int(pixels[i]), "share": float(pixels[i] / total)}
        row |= {what: float(values[i]) for what, values in measures.items() if not np.isnan(values[i])}
        wrong = report.confusion[i, :-1].copy()
        wrong[i] = 0
        if wrong.any():
            row["taken_for"] = class_names[int(wrong.argmax())]
            row["taken_for_share"] = float(wrong.max() / pixels[i])
        rows.append(row)
    return rows


def print_report(
    console, report: SegmentationReport, class_names: Sequence[str], title: str, unreadable: int = 0
) -> None:
    """Shows the numbers and the classes, the ten weakest where there are many.

    Args:
        console: of rich.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, show_header=False, show_edge=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in {**report.numbers(), "num_unreadable": unreadable}.items():
        if value or name not in QUIET:
            table.add_row(WORDS[name], _shown(name, value))
    print_whole(console, table)

    rows = [row for row in class_rows(report, class_names) if row["pixels"]]
    few = len(rows) <= 20
    if not few:
        rows = sorted(rows, key=lambda row: row["iou"])[:10]
    classes = Table(
        title="classes" if few else f"the 10 weakest of {report.num_classes} classes (all: classes.csv)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for heading in ("class", "pixels", "IoU", "accuracy", "precision", "most often taken for"):
        classes.add_column(heading, justify="left" if heading in ("class", "most often taken for") else "right")
    for row in rows:
        taken = f"{escape(row['taken_for'])} {row['taken_for_share']:.1%}" if row["taken_for"] else ""
        cells = (percent(row[what]) for what in ("share", "iou", "accuracy", "precision"))
        classes.add_row(escape(row["name"]), *cells, taken)
    console.print()
    print_whole(console, classes)
    if report.absent:
        names = [class_names[number] for number in report.absent]
        more = f" and {len(names) - 20} more (classes.csv)" if len(names) > 20 else ""
        text = f"absent from the set, left out of the means: {', '.join(names[:20])}{more}"
        console.print(escape(text), highlight=False, soft_wrap=True)


def _markdown(rows: list[dict[str, Any]], numbers: dict[str, Any], title: str) -> str:
    lines = [f"# {title or 'Evaluation'}", "", "| | |", "|---|---:|"]
    lines += [
        f"| {WORDS[name]} | {_shown(name, value)} |" for name, value in numbers.items() if value or name not in QUIET
    ]
    lines += ["", "## Classes, the weakest first", ""]
    lines += ["| class | pixels | IoU | accuracy | precision | most often taken for | |"]
    lines += ["|---|---:|---:|---:|---:|---|---:|"]
    there = [row for row in rows if row["pixels"]]
    for row in sorted(there, key=lambda row: row["iou"]):
        cells = [row["name"], *(percent(row[what]) for what in ("share", "iou", "accuracy", "precision"))]
        cells += [row["taken_for"] or "", percent(row["taken_for_share"]) if row["taken_for"] else ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    absent = [row["name"] for row in rows if not row["pixels"]]
    if absent:
        lines += ["", f"Absent from the set, left out of the means: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def _shown(name: str, value: float) -> str:
    return percent(value, 2) if name in SHARES else f"{value:,}"
