"""What an evaluation of detection leaves behind: numbers, a table of the classes, a picture, COCO's results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.metrics.detection import DetectionReport
from vitgraft.metrics.figures import figure_class, save_figure
from vitgraft.metrics.report_writer import as_csv, as_json, percent, replace_text
from vitgraft.terminal import print_whole

__all__ = ["print_report", "write_report"]

COUNTS = {
    "num_images": "images",
    "num_objects": "objects",
    "num_crowds": "crowd regions",
    "num_detections": "detections",
    "num_nonfinite": "detections that are not finite, left out",
    "num_unreadable": "unreadable images, left out",
}
QUIET = ("num_crowds", "num_nonfinite", "num_unreadable")  # not shown where 0
MEASURES = {
    "ap": "AP (IoU 0.50 to 0.95)",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small (below 32 x 32 pixels)",
    "ap_medium": "AP medium",
    "ap_large": "AP large (96 x 96 pixels and above)",
    "ar1": "AR, 1 detection an image",
    "ar10": "AR, 10 detections",
    "ar100": "AR, 100 detections",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
COLUMNS = ("class", "name", "objects", "detections", "box_ap", "box_ap50", "box_ar")
MASK_COLUMNS = ("mask_ap", "mask_ap50", "mask_ar")


def write_report(
    folder: Path,
    report: DetectionReport,
    class_names: Sequence[str],
    title: str = "",
    facts: dict[str, Any] | None = None,
    unreadable: Sequence[str] = (),
) -> list[Path]:
    """Writes metrics.json, classes.csv, classes.md, precision_recall.png and COCO's detections.*.json.

    The detections lie in two files, detections.bbox.json and detections.segm.json: COCO's own code would take the areas
    of boxes for those of masks in a file with both.

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
    if len(class_names) != len(report.classes):
        raise ValueError(f"{len(class_names)} class names for {len(report.classes)} classes")
    folder.mkdir(parents=True, exist_ok=True)
    columns = _columns(report)
    values = {
        "kind": "detection evaluation",
        **(facts or {}),
        "metrics": {**report.numbers(), "num_unreadable": len(unreadable)},
        "unreadable": list(unreadable),
        "class_names": list(class_names),
        "classes": {name: [row[name] for row in report.classes] for name in columns[2:]},
    }
    texts = {
        "metrics.json": as_json(values),
        "classes.csv": as_csv(report.classes, columns),
        "classes.md": _markdown(report, title),
    }
    for kind, detections in report.detections.items():
        texts[f"detections.{kind}.json"] = json.dumps(detections, separators=(",", ":")) + "\n"
    for name, text in texts.items():
        replace_text(folder / name, text)
    save_figure(_figure(report, title), folder / "precision_recall.png")
    return [folder / name for name in (*texts, "precision_recall.png")]


def print_report(console, report: DetectionReport, class_names: Sequence[str], title: str, unreadable: int = 0) -> None:
    """Shows the numbers and the classes, the ten weakest where there are many.

    Args:
        console: of rich.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    kinds = list(report.curves)
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for row in _measures(report):
        table.add_row(*row)
    print_whole(console, table)
    numbers = {**report.numbers(), "num_unreadable": unreadable}
    shown = [f"{numbers[name]:,} {words}" for name, words in COUNTS.items() if numbers[name] or name not in QUIET]
    console.print(", ".join(shown), highlight=False, soft_wrap=True)

    rows = [row for row in report.classes if row["objects"]]
    few = len(rows) <= 20
    if not few:
        rows = sorted(rows, key=_weakness)[:10]
    classes = Table(
        title="classes" if few else f"the 10 weakest of {len(report.classes)} classes (all: classes.csv)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    classes.add_column("class")
    shown_columns = _columns(report)[2:]
    for name in shown_columns:
        classes.add_column(_heading(name), justify="right")
    for row in rows:
        classes.add_row(escape(row["name"]), *(_shown(row[name]) for name in shown_columns))
    console.print()
    print_whole(console, classes)


def _columns(report: DetectionReport) -> tuple[str, ...]:
    return COLUMNS + (MASK_COLUMNS if "mask" in report.curves else ())


def _heading(column: str) -> str:
    return column.replace("_", " ").replace("ap", "AP").replace("ar", "AR") if "_a" in column else column


def _measures(report: DetectionReport) -> list[list[str]]:
    """The words and the values for boxes and masks of COCO's twelve."""
    return [
        [words, *(_shown(report.values[f"{kind}_{name}"], 2) for kind in report.curves)]
        for name, words in MEASURES.items()
    ]


def _shown(value: float | None, digits: int = 1) -> str:
    return f"{value:,}" if isinstance(value, int) else percent(value, digits)


def _weakness(row: dict[str, Any]) -> float:
    return 2.0 if row["box_ap"] is None else row["box_ap"]


def _markdown(report: DetectionReport, title: str) -> str:
    kinds = list(report.curves)
    lines = [f"# {title or 'Evaluation'}", "", f"| | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    lines += [f"| {' | '.join(row)} |" for row in _measures(report)]
    numbers = report.numbers()
    lines += ["", ", ".join(f"{numbers[name]:,} {words}" for name, words in COUNTS.items() if numbers.get(name)) + "."]
    columns = _columns(report)[2:]
    lines += ["", "## Classes, the weakest first", ""]
    lines += [f"| class | {' | '.join(map(_heading, columns))} |", "|---|" + "---:|" * len(columns)]
    for row in sorted(report.classes, key=_weakness):
        cells = [row["name"].replace("|", "\\|"), *(_shown(row[name]) for name in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(report: DetectionReport, title: str):
    """Precision against recall, mean of the classes, at IoU 0.5, 0.75 and 0.9; boxes and masks side by side."""
    figure = figure_class()(figsize=(4.6 * len(report.curves), 4.2))
    recalls = np.linspace(0, 1, 101)
    for number, (kind, curves) in enumerate(report.curves.items()):
        axes = figure.add_subplot(1, len(report.curves), number + 1)
        for place, colour in ((0, "#1b6ca8"), (5, "#d1771b"), (8, "#7a3b8f")):
            iou = 0.5 + 0.05 * place
            axes.plot(
                recalls, curves[place], color=colour, label=f"IoU {iou:.2f}: AP {100 * curves[place].mean():.1f} %"
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"{kind}, mean of the classes")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.tight_layout()
    return figure
