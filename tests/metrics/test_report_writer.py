"""Files and pictures of an evaluation."""

import csv
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")
from PIL import Image

from vitgraft.metrics.classification import ClassificationMetrics
from vitgraft.metrics.figures import confusion_figure, most_confused, reliability_figure
from vitgraft.metrics.report_writer import class_rows, print_report, read_metrics, unused_stem, write_report


def report_of(classes: int, n: int = 400, only: int | None = None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(only or classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1.5
    metrics = ClassificationMetrics(classes)
    metrics.update(logits, labels)
    return metrics.report()


def names(classes: int) -> list[str]:
    return [f"class {i}" for i in range(classes)]


def test_all_files_and_what_they_say(tmp_path):
    report = report_of(8, only=7)
    written = write_report(
        tmp_path / "val", report, names(8), "validation", {"model": "some_vit"}, ["a.png: truncated"]
    )
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "val").iterdir())
    assert {path.name for path in written} == {
        "metrics.json", "classes.csv", "classes.md", "confusion.png", "calibration.png",
    }  # fmt: skip
    values = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert values["model"] == "some_vit"
    assert values["metrics"]["top1"] == report.top1
    assert values["metrics"]["num_unreadable"] == 1 and values["unreadable"] == ["a.png: truncated"]
    rows = list(csv.DictReader((tmp_path / "val" / "classes.csv").open()))
    assert [int(row["samples"]) for row in rows] == report.class_counts.tolist()
    assert float(rows[2]["accuracy"]) == report.class_accuracy[2]
    assert rows[7]["accuracy"] == ""  # no samples: nothing, not 0
    for name in ("confusion.png", "calibration.png"):
        with Image.open(tmp_path / "val" / name) as image:
            image.load()
            assert min(image.size) > 300
    text = (tmp_path / "val" / "classes.md").read_text()
    assert f"| top-1 accuracy | {100 * report.top1:.2f} % |" in text


def test_metrics_json_reads_back_whole(tmp_path):
    report = report_of(8)
    write_report(tmp_path, report, names(8))
    again, values = read_metrics(tmp_path / "metrics.json")
    assert again.to_dict() == report.to_dict()
    assert again.numbers() == report.numbers()
    assert values["kind"] == "evaluation"


def test_an_empty_set_is_written_without_nan(tmp_path):
    empty = ClassificationMetrics(8)._report()
    write_report(tmp_path, empty, names(8))
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text and json.loads(text)["metrics"]["top1"] is None
    assert math.isnan(read_metrics(tmp_path / "metrics.json")[0].top1)


def test_names_must_fit(tmp_path):
    with pytest.raises(ValueError, match="7 class names for 8 classes"):
        write_report(tmp_path / "new", report_of(8), names(7))
    assert not (tmp_path / "new").exists()


def test_most_confused_by_hand():
    confusion = np.array([[5, 2, 0], [4, 9, 1], [0, 0, 3]])
    assert most_confused(confusion, 10) == [(1, 0, 4), (0, 1, 2), (1, 2, 1)]
    assert most_confused(confusion, 1) == [(1, 0, 4)]
    assert most_confused(np.eye(3, dtype=int), 5) == []


def test_rows_name_what_a_class_is_taken_for():
    report = report_of(8)
    row = class_rows(report, names(8))[3]
    wrong = report.confusion[3].copy()
    wrong[3] = 0
    assert row["taken_for"] == f"class {wrong.argmax()}"
    assert row["precision"] == report.confusion[3, 3] / report.confusion[:, 3].sum()


@pytest.mark.parametrize("classes, rows", [(2, 2), (10, 10), (60, 60), (61, 61), (1000, 100), (1003, 92)])
def test_confusion_picture_of_any_number_of_classes(classes, rows):
    report = report_of(classes, n=3 * classes)
    figure = confusion_figure(report.confusion, names(classes))
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (rows, rows)
    # every sample is in the picture: rows that have any sum to 1 (the colour is the square root)
    sums = (np.asarray(drawn) ** 2).sum(1)
    assert np.allclose(sums[sums > 0], 1)
    assert ("most often taken" in figure.axes[1].get_title()) if classes > 20 else len(figure.axes) == 1


def test_reliability_picture_draws_the_accuracy_of_each_bin():
    report = report_of(10)
    bars = reliability_figure(report).axes[0].containers[0]
    filled = report.bin_counts > 0
    assert [bar.get_height() for bar in bars] == pytest.approx(report.bin_accuracy[filled].tolist())


def test_names_with_dollars_and_brackets(tmp_path):
    rich = pytest.importorskip("rich.console")
    special = ["$a$", "[bold]", "a|b", "<i>", "é", "x", "y", "z"]
    write_report(tmp_path, report_of(8), special)
    out = rich.Console(width=100, record=True, file=(tmp_path / "out.txt").open("w"))
    print_report(out, report_of(8), special, "test [1]")
    text = out.export_text()
    assert "[bold]" in text and "test [1]" in text and "top-1 accuracy" in text


def test_table_shows_the_weakest_of_many_classes(tmp_path):
    rich = pytest.importorskip("rich.console")
    report = report_of(100, n=2000)
    out = rich.Console(width=100, record=True, file=(tmp_path / "out.txt").open("w"))
    print_report(out, report, names(100), "validation")
    weakest = int(np.nanargmin(report.class_accuracy))
    text = out.export_text()
    assert "the 10 weakest of 100 classes" in text and f"class {weakest} " in text


def test_no_two_files_of_one_name():
    """Endings and folders differ, a name may look like a numbered one, and some systems do not tell A from a."""
    used: set[str] = set()
    names = ["x/a.jpg", "x/a.png", "x/a_2.jpg", "y/a.jpg", "x/A.jpg", "b.tif"]
    assert [unused_stem(name, used) for name in names] == ["a", "a_2", "a_2_2", "a_3", "A_4", "b"]
