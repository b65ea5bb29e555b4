"""mIoU and its company against numbers that are written out, torchmetrics', and one confusion matrix over processes."""

import csv
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torchmetrics.classification import MulticlassJaccardIndex

from vitgraft.metrics.segmentation import SegmentationMetrics, SegmentationReport, predicted_classes
from vitgraft.metrics.segmentation_report import class_rows, print_report, write_report

LABELS = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 255]])
PREDICTED = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 3]])


def measured(*pairs, classes=4):
    metric = SegmentationMetrics(classes)
    for predicted, labels in pairs:
        metric.update(predicted, labels)
    return metric.report()


def test_a_confusion_matrix_that_is_written_out():
    report = measured((PREDICTED, LABELS))
    assert report.confusion.tolist() == [
        [1, 1, 0, 0, 0],
        [0, 2, 0, 0, 0],
        [1, 0, 2, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    # class 0: 1 of 1 + 1 + 1 pixels; class 1: 2 of 3; class 2: 2 of 3; class 3 is absent
    assert np.allclose(report.class_iou[:3], [1 / 3, 2 / 3, 2 / 3]) and np.isnan(report.class_iou[3])
    assert report.absent == [3]
    numbers = report.numbers()
    assert numbers["miou"] == pytest.approx((1 / 3 + 2 / 3 + 2 / 3) / 3)
    assert numbers["pixel_accuracy"] == pytest.approx(5 / 7)
    assert numbers["mean_class_accuracy"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    assert (numbers["num_images"], numbers["num_pixels"], numbers["num_ignored"]) == (1, 7, 1)
    assert np.allclose(report.class_precision, [1 / 2, 2 / 3, 1, np.nan], equal_nan=True)


def test_sums_over_the_set_come_before_the_mean():
    one = (torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1]]))
    two = (torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))
    report = measured(one, two, classes=2)
    assert report.miou == pytest.approx((3 / 4 + 2 / 3) / 2)  # not the mean of the images' 0.375 and 1
    assert report.num_images == 2


def test_ground_truth_fed_back_is_one_and_an_absent_class_stays_out():
    labels = torch.randint(0, 7, (3, 20, 30), generator=torch.Generator().manual_seed(0))
    labels[0, :5] = 255
    report = measured((labels, labels), classes=9)
    assert report.miou == 1.0 and report.pixel_accuracy == 1.0 and report.absent == [7, 8]
    predicted = labels.clone()
    predicted[0, :5] = 8  # where there is no label, anything may be predicted
    assert measured((predicted, labels), classes=9).miou == 1.0


def test_equal_to_torchmetrics_in_any_batches():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (6, 16, 16), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, labels.roll(1, 0))
    labels[2, 3:7] = 255
    theirs = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    theirs.update(predicted, labels)
    whole = measured((predicted, labels), classes=5)
    single = measured(*zip(predicted, labels, strict=True), classes=5)
    assert np.array_equal(whole.confusion, single.confusion) and whole.num_images == single.num_images == 6
    assert np.allclose(whole.class_iou, theirs.compute().numpy(), atol=1e-6)


def test_processes_are_added_up():
    parts = [SegmentationMetrics(4) for _ in range(3)]  # the last one has no image
    parts[0].update(PREDICTED, LABELS)
    parts[1].update(LABELS.clamp(max=3), LABELS)
    total = SegmentationMetrics(4)
    for name in ("pairs", "images", "ignored"):
        setattr(total, name, sum(getattr(part, name) for part in parts))
        assert total._reductions[name] is not None
    whole = measured((PREDICTED, LABELS), (LABELS.clamp(max=3), LABELS))
    assert np.array_equal(total.report().confusion, whole.confusion) and total.report().num_images == 2
    assert total.report().num_ignored == 2


def test_scores_that_are_not_finite_are_wrong():
    scores = torch.zeros(1, 3, 1, 4)
    scores[0, 1, 0, 0] = 1
    scores[0, 2, 0, 1] = float("nan")
    scores[0, 0, 0, 2] = float("inf")
    scores[0, :, 0, 3] = torch.tensor([-float("inf"), -1, -2])
    predicted = predicted_classes(scores)
    assert predicted.tolist() == [[[1, -1, -1, 1]]]
    report = measured((predicted[0], torch.tensor([[1, 1, 1, 1]])), classes=3)
    assert report.numbers()["num_nonfinite"] == 2 and report.pixel_accuracy == 0.5 and report.miou == 0.5


def test_nothing_counted_is_not_a_number():
    report = measured((torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255)))
    assert np.isnan(report.miou) and np.isnan(report.pixel_accuracy) and report.absent == [0, 1, 2, 3]


def test_wrong_shapes_and_types():
    metric = SegmentationMetrics(3)
    with pytest.raises(ValueError, match=r"\(2, 3\) and labels \(3, 2\)"):
        metric.update(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="expected classes"):
        metric.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))


def test_report_files(tmp_path):
    names = ["road", "car | van", "sky", "boat"]
    report = measured((PREDICTED, LABELS))
    files = write_report(tmp_path / "val", report, names, "validation", {"model": "m"}, ["a.jpg: empty"])
    assert sorted(path.name for path in files) == ["classes.csv", "classes.md", "confusion.png", "metrics.json"]
    values = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert values["metrics"]["miou"] == pytest.approx(5 / 9) and values["absent_classes"] == ["boat"]
    assert values["metrics"]["num_unreadable"] == 1 and values["unreadable"] == ["a.jpg: empty"]
    assert [2, 0, 1] in values["counts"]["confusion"]
    rows = list(csv.DictReader((tmp_path / "val" / "classes.csv").open()))
    assert [row["name"] for row in rows] == names and rows[3]["iou"] == "" and float(rows[1]["iou"]) == 2 / 3
    text = (tmp_path / "val" / "classes.md").read_text()
    assert "car \\| van" in text and "Absent from the set, left out of the means: boat." in text
    again = SegmentationReport.from_dict(report.to_dict())
    assert np.array_equal(again.confusion, report.confusion) and again.num_ignored == 1


def test_report_in_the_terminal():
    console = Console(record=True, width=100)
    print_report(console, measured((PREDICTED, LABELS)), ["road", "car", "sky", "[boat]"], "validation", 2)
    text = console.export_text()
    assert "55.56 %" in text and "mean IoU" in text and "absent from the set, left out of the means: [boat]" in text
    assert "unreadable images, left out" in text
    rows = class_rows(measured((PREDICTED, LABELS)), ["a", "b", "c", "d"])
    assert rows[0]["taken_for"] == "b" and rows[3]["iou"] is None
