"""Files and figures of an evaluation, and what the terminal shows: of all tasks by one writer."""

import csv
import io
import json

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("faster_coco_eval")
from metric_samples import (
    IDS,
    LABELS,
    NAMES,
    PREDICTED,
    classified,
    detections,
    detector_metric,
    logits_and_labels,
    segmented,
)
from PIL import Image

from vitgraft.metrics.base import most_confused
from vitgraft.metrics.classification import ClassificationMetrics
from vitgraft.metrics.figures import confusion_figure, reliability_figure
from vitgraft.metrics.report_writer import print_report, write_report
from vitgraft.terminal import console


def names(classes: int) -> list[str]:
    return [f"class {i}" for i in range(classes)]


def classification(classes: int = 8, n: int = 400):
    return classified(*logits_and_labels(n, classes))


def written(folder, report, class_names):
    """The files of a report by name, and metrics.json."""
    files = write_report(folder, report, class_names, "validation", {"model": "some_vit"}, ["a.png: truncated"])
    assert sorted(files) == sorted(folder.iterdir())
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 300
    values = json.loads((folder / "metrics.json").read_text())
    assert values["model"] == "some_vit" and values["class_names"] == class_names
    assert values["metrics"]["num_unreadable"] == 1 and values["unreadable"] == ["a.png: truncated"]
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["name"] for row in rows] == class_names
    return {path.name for path in files}, values, rows


def printed(report, class_names, title="validation", unreadable=0):
    out = console(file=io.StringIO(), width=200)
    print_report(out, report, class_names, title, unreadable)
    return out.file.getvalue()


def test_files_of_classification(tmp_path):
    logits, labels = logits_and_labels(400, 8)
    report = classified(logits, labels.clamp(max=6))
    files, values, rows = written(tmp_path / "val", report, names(8))
    assert files == {"metrics.json", "classes.csv", "classes.md", "confusion.png", "calibration.png", "report.html"}
    assert values["metrics"]["top1"] == report.top1 and values["absent_classes"] == ["class 7"]
    assert values["counts"]["class_counts"] == report.class_counts.tolist()
    confusion = np.zeros((8, 8), dtype=int)
    for true, predicted, count in values["counts"]["confusion"]:
        confusion[true, predicted] = count
    assert np.array_equal(confusion, report.confusion)
    assert [int(row["samples"]) for row in rows] == report.class_counts.tolist()
    assert float(rows[2]["accuracy"]) == report.class_accuracy[2]
    assert rows[7]["accuracy"] == ""  # no samples: nothing, not 0
    assert f"| top-1 accuracy | {100 * report.top1:.2f} % |" in (tmp_path / "val" / "classes.md").read_text()


def test_files_of_segmentation(tmp_path):
    report = segmented((PREDICTED, LABELS))
    class_names = ["road", "car | van", "sky", "boat"]
    files, values, rows = written(tmp_path, report, class_names)
    assert files == {"metrics.json", "classes.csv", "classes.md", "confusion.png", "report.html"}
    assert values["metrics"]["miou"] == pytest.approx(5 / 9) and values["absent_classes"] == ["boat"]
    assert [2, 0, 1] in values["counts"]["confusion"]
    assert rows[3]["iou"] == "" and float(rows[1]["iou"]) == 2 / 3
    assert rows[0]["most_confused_with"] == "car | van" and rows[1]["most_confused_with"] == ""
    text = (tmp_path / "classes.md").read_text()
    assert "car \\| van" in text and "left out of the means: boat" in text
    text = printed(report, ["road", "car", "sky", "[boat]"], unreadable=2)
    assert "55.56 %" in text and "mean IoU" in text and "left out of the means: [boat]" in text
    assert "unreadable images, left out" in text


def test_files_of_detection(tmp_path):
    report = detector_metric(*detections(10)).report()
    files, values, rows = written(tmp_path, report, NAMES)
    results = {"detections.bbox.json", "detections.segm.json"}
    assert files == {
        "metrics.json",
        "classes.csv",
        "classes.md",
        "precision_recall.png",
        "confusion.png",
        "report.html",
        *results,
    }
    assert values["metrics"]["box_ap"] == report.values["box_ap"] and values["absent_classes"] == ["nail"]
    assert values["confusion"] == report.confusion.tolist() and report.confusion[:3].sum() == report.num_objects
    assert values["classes"]["mask_ap"] == [row["mask_ap"] for row in report.classes]
    assert float(rows[0]["mask_ap"]) == report.classes[0]["mask_ap"]
    assert rows[2]["box_ap"] == "" and "| nail | 0 |" in (tmp_path / "classes.md").read_text()
    # other tools can read them: pycocotools' loadRes wants exactly these names
    for kind, part in (("bbox", "bbox"), ("segm", "segmentation")):
        found = json.loads((tmp_path / f"detections.{kind}.json").read_text())
        assert set(found[0]) == {"image_id", "category_id", "score", part}
        assert {one["category_id"] for one in found} <= set(IDS)
    assert isinstance(found[0]["segmentation"]["counts"], str)
    text = printed(report, NAMES, unreadable=1)
    assert "AP small" in text and f"{100 * report.values['box_ap50']:.2f} %" in text and "bolt" in text
    assert "1 unreadable images" in text


def test_an_empty_dataset_is_written_without_nan(tmp_path):
    write_report(tmp_path, ClassificationMetrics(8).report(), names(8))
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text and json.loads(text)["metrics"]["top1"] is None


def test_names_must_fit(tmp_path):
    with pytest.raises(ValueError, match="7 class names for 8 classes"):
        write_report(tmp_path / "new", classification(8), names(7))
    assert not (tmp_path / "new").exists()


def test_most_confused_by_hand():
    confusion = np.array([[5, 2, 0], [4, 9, 1], [0, 0, 3]])
    assert most_confused(confusion, 10) == [(1, 0, 4), (0, 1, 2), (1, 2, 1)]
    assert most_confused(confusion, 1) == [(1, 0, 4)]
    assert most_confused(np.eye(3, dtype=int), 5) == []


def test_rows_name_what_a_class_is_confused_with():
    report = classification()
    row = report.class_rows(names(8))[3]
    wrong = report.confusion[3].copy()
    wrong[3] = 0
    assert row["most_confused_with"] == f"class {wrong.argmax()}"
    assert row["confused_fraction"] == wrong.max() / report.class_counts[3]
    assert row["precision"] == report.confusion[3, 3] / report.confusion[:, 3].sum()


@pytest.mark.parametrize("classes, rows", [(2, 2), (20, 20), (60, 60), (61, 61), (1003, 92)])
def test_confusion_figure_of_any_number_of_classes(classes, rows):
    confusion = torch.randint(0, 2, (classes, classes), generator=torch.Generator().manual_seed(0)).numpy()
    figure = confusion_figure(confusion, names(classes))
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (rows, rows)
    # every sample is in the figure: rows that have any sum to 1 (the color is the square root)
    sums = (np.asarray(drawn) ** 2).sum(1)
    assert sums.max() > 0.99 and np.allclose(sums[sums > 0], 1)
    assert len(figure.axes) == (3 if classes > 20 else 1)  # the matrix, the most confused pairs, the color bar


def test_reliability_figure_draws_the_accuracy_of_each_bin():
    counts, correct = np.array([0, 4, 10]), np.array([0, 1, 9])
    bars = reliability_figure(counts, correct, np.array([0, 2.0, 8.5])).axes[0].containers[0]
    assert [bar.get_height() for bar in bars][1:] == [0.25, 0.9]


def test_names_with_special_characters(tmp_path):
    special = ["$a$", "[bold]", "a|b", "<i>", "é", "x", "y", "z"]
    write_report(tmp_path, classification(), special)
    text = printed(classification(), special, "test [1]")
    assert "[bold]" in text and "test [1]" in text and "top-1 accuracy" in text


def test_table_shows_the_weakest_of_many_classes():
    report = classification(100, 2000)
    weakest = int(np.nanargmin(report.class_accuracy))
    text = printed(report, names(100))
    assert "the 10 weakest of 100 classes" in text and f"class {weakest} " in text
