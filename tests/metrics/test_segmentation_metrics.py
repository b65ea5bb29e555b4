"""mIoU and the other numbers against values that are written out, and against torchmetrics."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from metric_samples import LABELS, PREDICTED, segmented
from torchmetrics.classification import MulticlassJaccardIndex

from vitgraft.metrics.segmentation import SegmentationMetrics, predicted_classes


def test_a_confusion_matrix_that_is_written_out():
    report = segmented((PREDICTED, LABELS))
    assert report.confusion.tolist() == [
        [1, 1, 0, 0, 0],
        [0, 2, 0, 0, 0],
        [1, 0, 2, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    # class 0: 1 of 1 + 1 + 1 pixels; class 1: 2 of 3; class 2: 2 of 3; class 3 is absent
    assert np.allclose(report.class_iou[:3], [1 / 3, 2 / 3, 2 / 3]) and np.isnan(report.class_iou[3])
    numbers = report.numbers()
    assert numbers["miou"] == pytest.approx((1 / 3 + 2 / 3 + 2 / 3) / 3)
    assert numbers["pixel_accuracy"] == pytest.approx(5 / 7)
    assert numbers["mean_class_accuracy"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    assert (numbers["num_images"], numbers["num_pixels"], numbers["num_ignored"]) == (1, 7, 1)
    assert np.allclose(report.class_precision, [1 / 2, 2 / 3, 1, np.nan], equal_nan=True)


def test_sums_over_the_dataset_come_before_the_mean():
    one = (torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1]]))
    two = (torch.tensor([[1, 1]]), torch.tensor([[1, 1]]))
    report = segmented(one, two, classes=2)
    assert report.miou == pytest.approx((3 / 4 + 2 / 3) / 2)  # not the mean of the images' 0.375 and 1
    assert report.num_images == 2


def test_ground_truth_fed_back_is_one_and_an_absent_class_stays_out():
    labels = torch.randint(0, 7, (3, 20, 30), generator=torch.Generator().manual_seed(0))
    labels[0, :5] = 255
    report = segmented((labels, labels), classes=9)
    assert report.miou == 1.0 and report.pixel_accuracy == 1.0 and report.numbers()["num_absent"] == 2
    predicted = labels.clone()
    predicted[0, :5] = 8  # where there is no label, anything may be predicted
    assert segmented((predicted, labels), classes=9).miou == 1.0


def test_equal_to_torchmetrics_in_any_batches():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (6, 16, 16), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, labels.roll(1, 0))
    labels[2, 3:7] = 255
    theirs = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    theirs.update(predicted, labels)
    whole = segmented((predicted, labels), classes=5)
    single = segmented(*zip(predicted, labels, strict=True), classes=5)
    assert np.array_equal(whole.confusion, single.confusion) and whole.num_images == single.num_images == 6
    assert np.allclose(whole.class_iou, theirs.compute().numpy(), atol=1e-6)


def test_scores_that_are_not_finite_are_incorrect():
    scores = torch.zeros(1, 3, 1, 4)
    scores[0, 1, 0, 0] = 1
    scores[0, 2, 0, 1] = float("nan")
    scores[0, 0, 0, 2] = float("inf")
    scores[0, :, 0, 3] = torch.tensor([-float("inf"), -1, -2])
    predicted = predicted_classes(scores)
    assert predicted.tolist() == [[[1, -1, -1, 1]]]
    report = segmented((predicted[0], torch.tensor([[1, 1, 1, 1]])), classes=3)
    assert report.numbers()["num_nonfinite"] == 2 and report.pixel_accuracy == 0.5 and report.miou == 0.5


def test_nothing_counted_is_not_a_number():
    report = segmented((torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255)))
    assert np.isnan(report.miou) and np.isnan(report.pixel_accuracy) and report.numbers()["num_absent"] == 4


def test_shapes_and_types_that_are_refused():
    metric = SegmentationMetrics(3)
    with pytest.raises(ValueError, match=r"\(2, 3\) and labels \(3, 2\)"):
        metric.update(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="expected classes"):
        metric.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))
