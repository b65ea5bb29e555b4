"""What an evaluation leaves behind, and what the terminal shows: the same for all tasks, from a `base.Report`."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vitgraft.atomic import atomic_write
from vitgraft.html_page import escaped, inline_image, page, table
from vitgraft.metrics.base import BACKGROUND, Report, most_confused, percent
from vitgraft.metrics.figures import png_of
from vitgraft.terminal import csv_cell, markdown_table, markdown_text, print_table, printable

__all__ = ["print_report", "report_page", "write_report"]

SHOWN_CLASSES = 20  # more classes than these: the weakest 10 in the terminal
SHOWN_NAMES = 20  # of absent classes
SHOWN_UNREADABLE = 50  # on the page
LEFT = ("", "class", "true class", "predicted as", "most confused with")  # headings of columns of text
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 1.5rem auto; padding: 0 1.2rem; color: #222;
  overflow-wrap: anywhere }
h1 { font-size: 1.4rem } h2 { font-size: 1.15rem; margin-top: 2rem } img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd;
  text-align: left } th { background: #f5f6f7 } .number { text-align: right }
"""


def write_report(
    folder: Path,
    report: Report,
    class_names: Sequence[str],
    title: str = "",
    metadata: dict[str, Any] | None = None,
    unreadable: Sequence[str] = (),
    worst: Mapping[str, bytes] = MappingProxyType({}),
) -> list[Path]:
    """Writes metrics.json, classes.csv, classes.md, report.html, and the figures and further files of the task.

    Of classification these are calibration.png and, where pairs of classes are counted, confusion.png; of segmentation
    confusion.png; of detection both of it and precision_recall.png, and COCO's results, detections.*.json.

    Args:
        folder: Made where it is missing; files of an evaluation before are replaced.
        report: What was measured.
        class_names: Of each class.
        title: Of table and figures, such as "validation, epoch 12".
        metadata: What was evaluated (model, checkpoint, data ...), for metrics.json.
        unreadable: "name: reason" of the images that could not be counted.
        worst: PNG files of the images with the most mistakes, by name.

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
    figures = {name: png_of(figure) for name, figure in report.figures(class_names, title).items()}
    texts["report.html"] = report_page(title, report, class_names, figures, unreadable, worst)
    figures |= worst
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text)
    for name, content in figures.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in (*texts, *figures)]


def report_page(
    title: str,
    report: Report | None,
    class_names: Sequence[str],
    figures: Mapping[str, bytes],
    unreadable: Sequence[str] = (),
    worst: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """One HTML file with everything inside: numbers, figures, classes.

    Args:
        title: Heading.
        report: What was measured; None: nothing yet.
        class_names: Of each class.
        figures: Content of PNG files by their names.
        unreadable: "name: reason" of the images that could not be counted.
        worst: PNG files of the images with the most mistakes, by name.
    """
    parts = [f"<h1>{escaped(title or 'Evaluation')}</h1>\n"]
    drawn = [f"<p>{inline_image(content, name)}</p>\n" for name, content in figures.items()]
    if report is None:
        return page(title, STYLE, "".join(parts + drawn))
    numbers = {**report.numbers(), "num_unreadable": len(unreadable)}
    rows = report.class_rows(class_names)
    parts.append(_html_table(*report.summary(numbers)))
    parts += [f"<p>{escaped(line)}</p>\n" for line in report.notes(numbers)]
    parts += drawn
    weakest = _weakest_first(report, [row for row in rows if row[report.count_column]])
    parts += ["<h2>Classes, the weakest first</h2>\n", _html_table(*_class_table(report, weakest))]
    parts += [f"<p>{escaped(line)}</p>\n" for line in _absent_note(report, rows, SHOWN_NAMES)]
    if pairs := _confused_table(report, rows):
        parts += ["<h2>Most confused pairs</h2>\n", _html_table(*pairs)]
    if worst:
        parts.append("<h2>Images with the most mistakes</h2>\n")
        parts += [f"<p>{inline_image(content, name)}</p>\n" for name, content in worst.items()]
    if unreadable:
        lines = "".join(f"<li>{escaped(one)}</li>\n" for one in unreadable[:SHOWN_UNREADABLE])
        more = len(unreadable) - SHOWN_UNREADABLE
        lines += f"<li>and {more} more (metrics.json)</li>\n" if more > 0 else ""
        parts.append(f"<h2>Unreadable images, left out</h2>\n<ul>\n{lines}</ul>\n")
    return page(title, STYLE, "".join(parts))


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
    if pairs := _confused_table(report, rows):
        parts += ["## Most confused pairs", _markdown_table(*pairs)]
    return "\n\n".join(parts) + "\n"


def _confused_table(report: Report, rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]] | None:
    """Headings and rows of the pairs of classes that are confused most often; None where they are not counted."""
    if report.confusion is None:
        return None
    names = [*(row["name"] for row in rows), BACKGROUND]
    pairs = most_confused(report.confusion[:, : len(report.confusion)], 25)
    cells = [[names[true], names[predicted], f"{n:,}"] for true, predicted, n in pairs]
    return ["true class", "predicted as", report.count_column], cells


def _html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return table(headings, rows, _left(headings))


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
