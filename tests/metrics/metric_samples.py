"""Made-up predictions and labels of each task, what is measured on them, and real processes."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

from vitgraft.data.detection_targets import Objects, encode_mask
from vitgraft.metrics.classification import ClassificationMetrics
from vitgraft.metrics.detection import DetectionMetrics
from vitgraft.metrics.segmentation import SegmentationMetrics

NAMES = ["nut", "bolt", "nail"]
IDS = (3, 7, 12)
LABELS = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 255]])
PREDICTED = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 3]])


def logits_and_labels(n: int = 101, classes: int = 7, seed: int = 0):
    """Logits that are right more often than not, of classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) ** 2 * classes).long()
    logits = torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return logits, labels


def classified(logits, labels, batch: int = 16):
    """The report of classification."""
    metric = ClassificationMetrics(logits.shape[1])
    for start in range(0, len(labels), batch):
        metric.update(logits[start : start + batch], labels[start : start + batch])
    return metric.report()


def segmented(*pairs, classes: int = 4):
    """The report of pairs of predicted and labeled pixels."""
    metric = SegmentationMetrics(classes)
    for predicted, labels in pairs:
        metric.update(predicted, labels)
    return metric.report()


def detections(images: int = 12, seed: int = 0):
    """Images with objects of all sizes, crowds among them, and detections: near, far, doubled, of the wrong class."""
    rng = np.random.default_rng(seed)
    found, targets = [], []
    for number in range(images):
        size = (int(rng.integers(100, 300)), int(rng.integers(100, 300)))
        annotations, boxes, labels, masks = [], [], [], []
        for _ in range(int(rng.integers(0, 9))):
            w, h = (int(rng.integers(2, side // 2)) for side in size[::-1])
            x, y = int(rng.integers(0, size[1] - w)), int(rng.integers(0, size[0] - h))
            label = int(rng.integers(1, 3))  # no nail is anywhere
            mask = _rectangle(size, (x, y, w, h))
            mask[y : y + h // 3, x : x + w // 3] = 0
            annotations.append(
                {
                    "bbox": [x, y, w, h],
                    "category_id": IDS[label - 1],
                    "iscrowd": int(rng.random() < 0.2),
                    "area": int(mask.sum()),
                    "segmentation": encode_mask(mask),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                near = (np.array([x, y, w, h]) + rng.normal(0, 0.1, 4) * (w, h, w, h)).clip(1)
                boxes.append([near[0], near[1], near[0] + near[2], near[1] + near[3]])
                labels.append(label if rng.random() < 0.8 else int(rng.integers(1, 4)))
                masks.append(_rectangle(size, near.astype(int)))
        scores = rng.random(len(boxes))
        if len(scores) > 1:
            scores[1] = scores[0]  # ties
        found.append(
            {
                "boxes": torch.tensor(np.array(boxes).reshape(-1, 4)),
                "scores": torch.tensor(scores),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "masks": torch.tensor(np.array(masks, dtype=np.uint8).reshape(-1, *size)),
            }
        )
        targets.append({"image_id": 100 - number, "orig_size": size, "objects": Objects(annotations, size, IDS)})
    return found, targets


def _rectangle(size, box):
    mask = np.zeros(size, dtype=np.uint8)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    return mask


def detector_metric(found, targets, masks=True, names=NAMES):
    """The metric of detection after batches of 5 images."""
    metric = DetectionMetrics(names, masks)
    for start in range(0, len(found), 5):
        metric.update(found[start : start + 5], targets[start : start + 5])
    return metric


def in_processes(function, world: int, folder: Path) -> list:
    """What `function(rank, world)` returns in each of so many processes, as JSON has it."""
    mp.spawn(_process, (function, world, str(folder)), nprocs=world)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def _process(rank: int, function, world: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    Path(folder, f"{rank}.json").write_text(json.dumps(function(rank, world)))
    torch.distributed.destroy_process_group()
