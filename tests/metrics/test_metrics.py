"""The numbers of an evaluation against formulas written out, against torchmetrics, and over real processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from vitgraft.metrics.classification import ClassificationMetrics, EvaluationReport

SOURCE = Path(__file__).resolve().parents[2] / "src"


def sample(n: int = 101, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right more often than not, of classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) ** 2 * classes).long()
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return logits, labels


def measured(logits: torch.Tensor, labels: torch.Tensor, batch: int = 16, **options) -> EvaluationReport:
    metrics = ClassificationMetrics(logits.shape[1], **options)
    for start in range(0, len(labels), batch):
        metrics.update(logits[start : start + batch], labels[start : start + batch])
    return metrics.report()


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
    logits, labels = sample()
    report = measured(logits, labels, batch)
    expected = written_out(logits, labels)
    numbers = report.numbers()
    assert numbers["num_samples"] == 101
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, abs=2e-7), name
    assert 0.3 < report.top1 < 0.9  # the sample is neither trivial nor hopeless


def test_numbers_equal_torchmetrics():
    logits, labels = sample(500, 12)
    report = measured(logits, labels)
    for average, value in (("micro", report.top1), ("macro", report.mean_class_accuracy)):
        assert value == pytest.approx(float(MulticlassAccuracy(12, average=average)(logits, labels)), abs=1e-6)
    assert report.top5 == pytest.approx(float(MulticlassAccuracy(12, 5, average="micro")(logits, labels)), abs=1e-6)
    calibration = MulticlassCalibrationError(12, n_bins=15)(logits.softmax(1), labels)
    assert report.ece == pytest.approx(float(calibration), abs=1e-6)
    assert np.array_equal(report.confusion, MulticlassConfusionMatrix(12)(logits, labels).numpy())
    assert report.confusion.sum(1).tolist() == report.class_counts.tolist()
    assert np.diag(report.confusion).tolist() == report.class_hits.tolist()


def test_batches_and_order_change_nothing():
    logits, labels = sample()
    order = torch.randperm(101, generator=torch.Generator().manual_seed(1))
    assert measured(logits, labels).to_dict() == measured(logits[order], labels[order], 7).to_dict()


def test_perfect_and_certain_is_calibrated():
    labels = torch.arange(8)
    report = measured(100 * torch.eye(8), labels)
    assert (report.top1, report.ece, report.loss) == (1.0, 0.0, 0.0)
    assert report.bin_counts.tolist() == [0] * 14 + [8]  # confidence 1.0 lies in the last bin
    report = measured(100 * torch.eye(8), (labels + 1) % 8)
    assert (report.top1, report.ece) == (0.0, 1.0)


def test_few_classes_have_no_top5():
    report = measured(*sample(20, 3))
    assert report.top5 is None
    metrics = ClassificationMetrics(3)
    metrics.update(*sample(20, 3))
    assert sorted(metrics.compute()) == ["ece", "loss", "mean_class_accuracy", "top1"]
    assert measured(*sample(20, 6)).top5 is not None


def test_class_without_samples():
    logits, labels = sample(50, 7)
    labels = labels.clamp(max=5)
    report = measured(logits, labels)
    assert math.isnan(report.class_accuracy[6])
    assert report.mean_class_accuracy == pytest.approx(np.mean(report.class_accuracy[:6]))


def test_logits_that_are_no_numbers_are_wrong_and_counted():
    logits, labels = sample(40)
    logits[3] = math.nan
    logits[5, 2] = math.inf
    report = measured(logits, labels)
    assert report.num_nonfinite == 2
    assert report.num_samples == 40
    assert math.isfinite(report.loss) and math.isfinite(report.ece)
    rest = torch.tensor([i for i in range(40) if i not in (3, 5)])
    alone = measured(logits[rest], labels[rest])
    assert report.class_hits.sum() == alone.class_hits.sum()
    assert report.loss == alone.loss and report.ece == alone.ece


def test_masked_classes_are_no_fault():
    logits, labels = sample(40, 7)
    logits[:, 6] = -math.inf
    report = measured(logits, labels.clamp(max=5))
    assert report.num_nonfinite == 0
    assert report.to_dict()["class_hits"] == measured(logits.nan_to_num(), labels.clamp(max=5)).class_hits.tolist()


def test_labels_that_are_none_are_left_out():
    logits, labels = sample(40)
    labels[::10] = -1
    labels[1] = 7
    report = measured(logits, labels)
    assert report.num_unlabelled == 5
    assert report.num_samples == 35


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 7\)"):
        ClassificationMetrics(7).update(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))


def test_no_pairs_for_very_many_classes():
    logits, labels = sample(10, 5000)
    report = measured(logits, labels)
    assert report.confusion is None and report.class_precision is None
    assert report.num_samples == 10


def test_half_precision_logits():
    logits, labels = sample()
    half = logits.bfloat16()
    assert measured(half, labels).to_dict() == measured(half.float(), labels).to_dict()


def test_report_survives_json():
    report = measured(*sample())
    again = EvaluationReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict()
    assert again.numbers() == report.numbers()


WORKER = """
import json, os, sys
import torch, torch.distributed as dist
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_metrics import sample
from vitgraft.metrics.classification import ClassificationMetrics
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[3]), world_size=int(sys.argv[4]))
rank, world = dist.get_rank(), dist.get_world_size()
found = []
for n in json.loads(sys.argv[5]):
    logits, labels = sample(n)
    mine = range(rank, len(labels), world)
    metrics = ClassificationMetrics(7)
    for start in range(0, len(mine), 16):
        batch = list(mine)[start:start + 16]
        metrics.update(logits[batch], labels[batch])
    values = {name: float(value) for name, value in metrics.compute().items()}
    report = metrics.report().to_dict()
    again = metrics.report().to_dict()
    found.append({"values": values, "report": report, "same": report == again})
print(json.dumps(found))
dist.destroy_process_group()
"""


def in_processes(tmp_path: Path, world: int, sizes: list[int]) -> list[list[dict]]:
    """What each of so many gloo processes measures on sets of such sizes, shared out one by one."""
    script = tmp_path / f"worker{world}.py"
    script.write_text(WORKER)
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), __file__, str(tmp_path / f"store{world}")]
    running = [
        subprocess.Popen([*words, str(rank), str(world), json.dumps(sizes)], env=env, stdout=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * world
    return [json.loads(text.splitlines()[-1]) for text in outputs]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    sizes = [101, 1]  # a rest; and a process that has nothing at all
    (alone,) = in_processes(tmp_path, 1, sizes)
    first, second = in_processes(tmp_path, 2, sizes)
    for n, one, a, b in zip(sizes, alone, first, second, strict=True):
        assert one["report"]["num_samples"] == n
        assert a == b == one
        assert one["same"]
