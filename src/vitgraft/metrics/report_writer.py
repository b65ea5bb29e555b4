"""What an evaluation leaves behind, and what the terminal shows: the same for all tasks, from a `base.Report`."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitgraft.atomic import atomic_write
from vitgraft.metrics.base import Report, most_confused, percent
from vitgraft.metrics.figures import save_figure
from vitgraft.terminal import csv_cell, markdown_table, markdown_text, print_table, printable

__all__ = ["print_report", "write_report"]

SHOWN_CLASSES = 20  # more classes than these: the weakest 10 in the terminal
SHOWN_NAMES = 20  # of absent classes
LEFT = ("", "class", "true class", "predicted as", "most confused with")  # headings of columns of text


def write_report(
    folder: Path,
    report: Report,
    class_names: Sequence[str],
    title: str = "",
    metadata: dict[str, Any] | None = None,
    unreadable: Sequence[str] = (),
) -> list[Path]:
    """Writes metrics.json, classes.csv, classes.md, and the figures and further files of the task.

    Of classification these are calibration.png and, where pairs of classes are counted, confusion.png; of segmentation
    confusion.png; of detection precision_recall.png and COCO's results, detections.*.json.

    Args:
        folder: Made where it is missing; files of an evaluation before are replaced.
        report: What was measured.
        class_names: Of each class.
        title: Of table and figures, such as "validation, epoch 12".
        metadata: What was evaluated (model, checkpoint, data ...), for metrics.json.
        unreadable: "name: reason" of the images that could not be counted.

    Returns:
        The files.

    Raises:
        OSError: The folder can't be written.
        MissingExtraError: matplotlib is not installed.
        ValueError: Not as many names as classes.
    """
    if len(class_names) != report.num_classes:
        raise ValueError(f"{len(class_names)} class names for {report.num_classes} classes")
    folder.mkdir(parents=True, exist_ok=True)
    rows = report.class_rows(class_names)
    numbers = {**report.numbers(), "num_unreadable": len(unreadable)}
    values = {
        "kind": report.kind,
        **(metadata or {}),
        "metrics": numbers,
        "absent_classes": _absent(report, rows),
        "unreadable": list(unreadable),
        "class_names": list(class_names),
        **report.details(),
    }
    texts = {
        "metrics.json": json.dumps(_without_nan(values), indent=1, ensure_ascii=False) + "\n",
        "classes.csv": _csv(rows),
        "classes.md": _markdown(report, rows, numbers, title),
        **report.files(),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)
    figures = report.figures(class_names, title)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [folder / name for name in (*texts, *figures)]


def print_report(console: Any, report: Report, class_names: Sequence[str], title: str, unreadable: int = 0) -> None:
    """Shows the numbers and the classes, the ten weakest where there are many.

    Args:
        console: Of rich.
        report: What was measured.
        class_names: Of each class.
        title: Of the table of numbers.
        unreadable: Number of images that could not be counted.
    """
    numbers = {**report.numbers(), "num_unreadable": unreadable}
    _print_table(console, title, *report.summary(numbers))
    rows = report.class_rows(class_names)
    present = [row for row in rows if row[report.count_column]]
    heading = "classes"
    if len(present) > SHOWN_CLASSES:
        present = _weakest_first(report, present)[:10]
        heading = f"the 10 weakest of {report.num_classes} classes (all: classes.csv)"
    for line in report.notes(numbers):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    console.print()
    _print_table(console, heading, *_class_table(report, present))
    for line in _absent_note(report, rows, SHOWN_NAMES):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _print_table(console: Any, title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print_table(console, headings, rows, _left(headings), title=title)


def _left(headings: Sequence[str]) -> set[int]:
    """The columns of text, which are flush left."""
    return {number for number, heading in enumerate(headings) if heading in LEFT}


def _markdown(report: Report, rows: list[dict[str, Any]], numbers: dict[str, Any], title: str) -> str:
    heading = f"# {markdown_text(title or 'Evaluation')}"
    parts = [heading, _markdown_table(*report.summary(numbers)), *map(markdown_text, report.notes(numbers))]
    parts += ["## Classes, the weakest first", _markdown_table(*_class_table(report, _weakest_first(report, rows)))]
    parts += map(markdown_text, _absent_note(report, rows, len(rows)))
    if report.confusion is not None:
        pairs = most_confused(report.confusion[:, : report.num_classes], 25)
        cells = [[rows[true]["name"], rows[predicted]["name"], f"{n:,}"] for true, predicted, n in pairs]
        table = _markdown_table(["true class", "predicted as", report.count_column], cells)
        parts += ["## Most confused pairs", table]
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_table(headings, rows, _left(headings)).rstrip("\n")


def _class_table(report: Report, rows: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of classes."""
    headings = ["class", *report.headings.values()]
    cells = [[row["name"], *(_cell(row, column) for column in report.headings)] for row in rows]
    return headings, cells


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "most_confused_with":
        return f"{value} {percent(row['confused_fraction'])}" if value else ""
    return f"{value:,}" if isinstance(value, int) else percent(value)


def _weakest_first(report: Report, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: math.inf if row[report.weakest_by] is None else row[report.weakest_by])


def _absent(report: Report, rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows if not row[report.count_column]]


def _absent_note(report: Report, rows: list[dict[str, Any]], count: int) -> list[str]:
    """A line that names the absent classes, at most `count` of them; no line where there are none."""
    names = _absent(report, rows)
    more = f" and {len(names) - count} more (classes.csv)" if len(names) > count else ""
    return [f"absent from the dataset, left out of the means: {', '.join(names[:count])}{more}"] if names else []


def _without_nan(value: Any) -> Any:
    """nan, which is no JSON, is null."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()
