"""Two processes measure what one does, bit for bit, each sample once."""

import json

import pytest

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")
from metric_samples import LABELS, PREDICTED, classified, detections, detector_metric, in_processes, logits_and_labels

from vitgraft.metrics.classification import ClassificationMetrics
from vitgraft.metrics.segmentation import SegmentationMetrics


def measured(rank: int, world: int) -> list:
    """Numbers and counts of all three tasks; a second time the same, as the first leaves the states as they were."""
    results = []
    for n in (101, 1):  # does not divide; a process that has nothing
        logits, labels = logits_and_labels(n)
        metric = ClassificationMetrics(7)
        if rank < n:
            metric.update(logits[rank::world], labels[rank::world])
        results += [{name: float(value) for name, value in metric.compute().items()}]
        results += [metric.report().details(), metric.report().details()]

    metric = SegmentationMetrics(4)
    for predicted in (PREDICTED, LABELS.clamp(max=3))[rank::world]:
        metric.update(predicted, LABELS)
    results += [metric.report().details(), metric.report().numbers()]

    found, targets = detections(9)
    mine = range(9) if world == 1 else [[0, 1, 2, 3, 4, 5, 6], [4, 7, 8]][rank]  # image 4 is padding of a sampler
    metric = detector_metric([found[i] for i in mine], [targets[i] for i in mine])
    results += [metric.report().numbers(), metric.report().classes]
    results += [{name: float(value) for name, value in metric.compute().items()}]
    return results


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    alone = json.loads(json.dumps(measured(0, 1)))
    assert alone[1]["counts"]["num_samples"] == 101 and alone[1] == alone[2]
    assert alone[1] == json.loads(json.dumps(classified(*logits_and_labels()).details()))
    assert in_processes(measured, 2, tmp_path) == [alone, alone]
