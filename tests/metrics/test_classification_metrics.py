"""The numbers of an evaluation against formulas written out, torchmetrics, and timm's own path from the images on."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config

pytest.importorskip("torchmetrics")
from metric_samples import classified, logits_and_labels
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from vitgraft.data.images import ImageDataset
from vitgraft.data.readers.open import open_source
from vitgraft.data.sampling import EvalOrder
from vitgraft.data.transforms import eval_transform, model_preprocessing
from vitgraft.metrics.classification import ClassificationMetrics


def written_out(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> dict[str, float]:
    """The same numbers, one sample at a time, in plain Python."""
    n, top1, top5, loss = len(labels), 0, 0, 0.0
    by_class: dict[int, list[bool]] = {}
    in_bin: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        probabilities = [math.exp(value) / total for value in row]
        order = sorted(range(len(row)), key=lambda i: -row[i])
        hit = order[0] == label
        top1 += hit
        top5 += label in order[:5]
        loss -= math.log(probabilities[label])
        by_class.setdefault(label, []).append(hit)
        confidence = probabilities[order[0]]
        in_bin.setdefault(math.ceil(confidence * bins), []).append((confidence, hit))
    ece = sum(abs(sum(hit for _, hit in pairs) - sum(c for c, _ in pairs)) for pairs in in_bin.values()) / n
    return {
        "top1": top1 / n,
        "top5": top5 / n,
        "loss": loss / n,
        "mean_class_accuracy": sum(sum(hits) / len(hits) for hits in by_class.values()) / len(by_class),
        "ece": ece,
    }


@pytest.mark.parametrize("batch", [1, 16, 101])
def test_numbers_equal_the_formulas(batch):
    logits, labels = logits_and_labels()
    report = classified(logits, labels, batch)
    expected = written_out(logits, labels)
    numbers = report.numbers()
    assert numbers["num_samples"] == 101
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, abs=2e-7), name
    assert 0.3 < report.top1 < 0.9  # the sample is neither trivial nor hopeless


def test_numbers_equal_torchmetrics():
    logits, labels = logits_and_labels(500, 12)
    report = classified(logits, labels)
    for average, value in (("micro", report.top1), ("macro", report.mean_class_accuracy)):
        assert value == pytest.approx(float(MulticlassAccuracy(12, average=average)(logits, labels)), abs=1e-6)
    assert report.top5 == pytest.approx(float(MulticlassAccuracy(12, 5, average="micro")(logits, labels)), abs=1e-6)
    calibration = MulticlassCalibrationError(12, n_bins=15)(logits.softmax(1), labels)
    assert report.ece == pytest.approx(float(calibration), abs=1e-6)
    assert np.array_equal(report.confusion, MulticlassConfusionMatrix(12)(logits, labels).numpy())
    assert report.confusion.sum(1).tolist() == report.class_counts.tolist()
    assert np.diag(report.confusion).tolist() == report.class_hits.tolist()


def test_images_and_top1_are_those_of_timm(class_folders):
    """As its validate.py calls it, without the GPU prefetcher."""
    root = class_folders / "val"
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3).eval()
    torch.nn.init.normal_(model.head.weight)
    config = resolve_model_data_config(model)
    batches = list(create_loader(create_dataset("", root=str(root)), batch_size=4, use_prefetcher=False, **config))
    pixels, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    dataset = ImageDataset(open_source(root), eval_transform(model_preprocessing(model)))
    own = [dataset.__getitems__(indices) for indices in EvalOrder(len(dataset), 4)]
    assert torch.equal(torch.cat([batch.images for batch in own]), pixels)
    assert torch.equal(torch.cat([batch.labels for batch in own]), labels)
    metric = ClassificationMetrics(3)
    with torch.no_grad():
        (top1,) = timm.utils.accuracy(model(pixels), labels, topk=(1,))
        for batch in own:
            metric.update(model(batch.images), batch.labels)
    report = metric.report()
    assert report.num_samples == 9 and 0 < report.top1 < 1
    assert 100 * report.top1 == pytest.approx(float(top1), abs=1e-4)


def test_batches_and_order_change_nothing():
    logits, labels = logits_and_labels()
    order = torch.randperm(101, generator=torch.Generator().manual_seed(1))
    assert classified(logits, labels).details() == classified(logits[order], labels[order], 7).details()


def test_perfect_and_certain_is_calibrated():
    labels = torch.arange(8)
    report = classified(100 * torch.eye(8), labels)
    assert (report.top1, report.ece, report.loss) == (1.0, 0.0, 0.0)
    assert report.bin_counts.tolist() == [0] * 14 + [8]  # confidence 1.0 lies in the last bin
    report = classified(100 * torch.eye(8), (labels + 1) % 8)
    assert (report.top1, report.ece) == (0.0, 1.0)


def test_few_classes_have_no_top5():
    report = classified(*logits_and_labels(20, 3))
    assert report.top5 is None
    metrics = ClassificationMetrics(3)
    metrics.update(*logits_and_labels(20, 3))
    computed = metrics.compute()
    assert "top5" not in computed and {"top1", "mean_class_accuracy", "ece", "loss"} <= set(computed)
    assert classified(*logits_and_labels(20, 6)).top5 is not None


def test_class_without_samples():
    logits, labels = logits_and_labels(50, 7)
    labels = labels.clamp(max=5)
    report = classified(logits, labels)
    assert math.isnan(report.class_accuracy[6])
    assert report.mean_class_accuracy == pytest.approx(np.mean(report.class_accuracy[:6]))


def test_logits_that_are_not_finite_are_incorrect_and_counted():
    logits, labels = logits_and_labels(40)
    logits[3] = math.nan
    logits[5, 2] = math.inf
    report = classified(logits, labels)
    assert report.num_nonfinite == 2
    assert report.num_samples == 40
    assert math.isfinite(report.loss) and math.isfinite(report.ece)
    rest = torch.tensor([i for i in range(40) if i not in (3, 5)])
    alone = classified(logits[rest], labels[rest])
    assert report.class_hits.sum() == alone.class_hits.sum()
    assert report.loss == alone.loss and report.ece == alone.ece


def test_masked_classes_are_no_fault():
    logits, labels = logits_and_labels(40, 7)
    logits[:, 6] = -math.inf
    report = classified(logits, labels.clamp(max=5))
    assert report.num_nonfinite == 0
    assert report.class_hits.tolist() == classified(logits.nan_to_num(), labels.clamp(max=5)).class_hits.tolist()


def test_labels_that_are_none_are_left_out():
    logits, labels = logits_and_labels(40)
    labels[::10] = -1
    labels[1] = 7
    report = classified(logits, labels)
    assert report.num_unlabeled == 5
    assert report.num_samples == 35


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 7\)"):
        ClassificationMetrics(7).update(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))


def test_no_pairs_for_very_many_classes():
    logits, labels = logits_and_labels(10, 5000)
    report = classified(logits, labels)
    assert report.confusion is None and report.class_precision is None
    assert report.num_samples == 10


def test_half_precision_logits():
    logits, labels = logits_and_labels()
    half = logits.bfloat16()
    assert classified(half, labels).details() == classified(half.float(), labels).details()
