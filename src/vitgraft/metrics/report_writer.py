"""What an evaluation leaves behind: metrics.json, a table of the classes, two pictures; what the terminal shows."""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.atomic import atomic_write
from vitgraft.metrics.classification import EvaluationReport
from vitgraft.metrics.figures import confusion_figure, most_confused, reliability_figure, save_figure
from vitgraft.terminal import print_whole

__all__ = [
    "as_csv",
    "as_json",
    "class_rows",
    "percent",
    "print_report",
    "read_metrics",
    "replace_text",
    "unused_stem",
    "write_report",
]

WORDS = {
    "num_samples": "samples",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_class_accuracy": "mean of the classes' accuracies",
    "loss": "loss (cross-entropy)",
    "ece": "expected calibration error (15 bins)",
    "mean_confidence": "mean confidence",
    "num_nonfinite": "samples without finite logits",
    "num_unlabelled": "samples without a label, left out",
    "num_unreadable": "unreadable images, left out",
}
SHARES = ("top1", "top5", "mean_class_accuracy", "ece", "mean_confidence")
COLUMNS = (
    "class",
    "name",
    "samples",
    "right",
    "accuracy",
    "accuracy_top5",
    "precision",
    "taken_for",
    "taken_for_share",
)


def write_report(
    folder: Path,
    report: EvaluationReport,
    class_names: Sequence[str],
    title: str = "",
    facts: dict[str, Any] | None = None,
    unreadable: Sequence[str] = (),
) -> list[Path]:
    """Writes metrics.json, classes.csv, classes.md, confusion.png (where pairs were counted) and calibration.png.

    Args:
        folder: made where it is missing; files of an evaluation before are replaced.
        report: what was measured.
        class_names: of each class.
        title: of the pictures, such as "validation, epoch 12".
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
    counts = report.to_dict()
    if report.confusion is not None:  # mostly zeros: [true, predicted, samples] of the others
        places = report.confusion.nonzero()
        counts["confusion"] = [list(map(int, triple)) for triple in zip(*places, report.confusion[places], strict=True)]
    values = {
        "kind": "evaluation",
        **(facts or {}),
        "metrics": numbers,
        "unreadable": list(unreadable),
        "class_names": list(class_names),
        "counts": counts,
    }
    rows = class_rows(report, class_names)
    texts = {
        "metrics.json": as_json(values),
        "classes.csv": as_csv(rows, COLUMNS),
        "classes.md": _markdown(rows, report, title),
    }
    written = []
    for name, text in texts.items():
        written.append(folder / name)
        replace_text(folder / name, text)
    figures = {"calibration.png": reliability_figure(report, title)}
    if report.confusion is not None:
        figures["confusion.png"] = confusion_figure(report.confusion, class_names, title)
    for name, figure in figures.items():
        written.append(folder / name)
        save_figure(figure, folder / name)
    return written


def read_metrics(path: Path) -> tuple[EvaluationReport, dict[str, Any]]:
    """A metrics.json as the report that was written, and all its values."""
    values = json.loads(path.read_text(encoding="utf-8"))
    counts = dict(values["counts"])
    if counts["confusion"] is not None:
        confusion = np.zeros((len(values["class_names"]),) * 2, dtype=np.int64)
        for true, predicted, samples in counts["confusion"]:
            confusion[true, predicted] = samples
        counts["confusion"] = confusion.tolist()
    if counts["loss"] is None:
        counts["loss"] = float("nan")
    return EvaluationReport.from_dict(counts), values


def class_rows(report: EvaluationReport, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each class, in their order; shares are 0 to 1, None where there is nothing to divide.

    `taken_for` is the class that samples of this one were taken for most often, where any were.
    """
    accuracy, precision = report.class_accuracy, report.class_precision
    rows = []
    for i, name in enumerate(class_names):
        samples = int(report.class_counts[i])
        row = dict.fromkeys(COLUMNS)
        row |= {"class": i, "name": name, "samples": samples, "right": int(report.class_hits[i])}
        if samples:
            row["accuracy"] = float(accuracy[i])
            row["accuracy_top5"] = float(report.class_hits5[i] / samples) if report.num_classes > 5 else None
        if precision is not None and not math.isnan(precision[i]):
            row["precision"] = float(precision[i])
        if report.confusion is not None and samples:
            wrong = report.confusion[i].copy()
            wrong[i] = 0
            if wrong.any():
                row["taken_for"] = class_names[int(wrong.argmax())]
                row["taken_for_share"] = float(wrong.max() / samples)
        rows.append(row)
    return rows


def print_report(
    console, report: EvaluationReport, class_names: Sequence[str], title: str, unreadable: int = 0
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
        if value is None or ((name.startswith("num_un") or name == "num_nonfinite") and not value):
            continue
        table.add_row(WORDS[name], _shown(name, value))
    print_whole(console, table)

    rows = [row for row in class_rows(report, class_names) if row["samples"]]
    few = len(rows) <= 20
    if not few:
        rows = sorted(rows, key=lambda row: row["accuracy"])[:10]
    classes = Table(
        title="classes" if few else f"the 10 weakest of {report.num_classes} classes (all: classes.csv)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for heading in ("class", "samples", "accuracy", "precision", "most often taken for"):
        classes.add_column(heading, justify="left" if heading in ("class", "most often taken for") else "right")
    for row in rows:
        taken = f"{escape(row['taken_for'])} {row['taken_for_share']:.1%}" if row["taken_for"] else ""
        cells = (percent(row["accuracy"]), percent(row["precision"]), taken)
        classes.add_row(escape(row["name"]), f"{row['samples']:,}", *cells)
    console.print()
    print_whole(console, classes)


def _markdown(rows: list[dict[str, Any]], report: EvaluationReport, title: str) -> str:
    lines = [f"# {title or 'Evaluation'}", "", "| | |", "|---|---:|"]
    lines += [
        f"| {WORDS[name]} | {_shown(name, value)} |" for name, value in report.numbers().items() if value is not None
    ]
    lines += ["", "## Classes, the weakest first", ""]
    lines += ["| class | samples | accuracy | precision | most often taken for | |", "|---|---:|---:|---:|---|---:|"]
    for row in sorted(rows, key=lambda row: 2.0 if row["accuracy"] is None else row["accuracy"]):
        cells = [row["name"], f"{row['samples']:,}", percent(row["accuracy"]), percent(row["precision"])]
        cells += [row["taken_for"] or "", percent(row["taken_for_share"]) if row["taken_for"] else ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if report.confusion is not None:
        names = [row["name"].replace("|", "\\|") for row in rows]
        lines += ["", "## Confused most often", "", "| true class | taken for | samples |", "|---|---|---:|"]
        lines += [f"| {names[true]} | {names[other]} | {n} |" for true, other, n in most_confused(report.confusion, 25)]
    return "\n".join(lines) + "\n"


def as_json(values: dict[str, Any]) -> str:
    """JSON with one line for each value, however long, of the outer two levels; nan is null."""

    def lines(mapping: dict[str, Any], indent: str) -> str:
        inner = []
        for name, value in mapping.items():
            text = lines(value, indent + " ") if isinstance(value, dict) else json.dumps(value, ensure_ascii=False)
            inner.append(f"{indent} {json.dumps(name)}: {text}")
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"

    return lines(_without_nan(values), "") + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def as_csv(rows: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a CSV file's text, with a line of headings."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def unused_stem(name: str, used: set[str]) -> str:
    """A file name without ending for what is written about image file `name`; images of several folders and endings
    may share one, and some systems do not tell A from a.

    Args:
        name: The image's path.
        used: Names given so far, to which this one is added.
    """
    plain = stem = os.path.splitext(os.path.basename(name))[0]
    number = 1
    while stem.casefold() in used:
        number += 1
        stem = f"{plain}_{number}"
    used.add(stem.casefold())
    return stem


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with atomic_write(path) as file:
        file.write(text)


def _shown(name: str, value: float) -> str:
    if name in SHARES:
        return percent(value, 2)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 in per cent; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"
