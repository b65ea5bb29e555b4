"""Which objects detections belong to at one threshold: for confusions and for the images with most mistakes.

Average precision is not computed from these: COCO's own code has its own matches for every threshold.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from vitgraft.data.detection_targets import Objects

__all__ = ["IOU", "SCORE", "confusion_of", "labeled_boxes"]

SCORE = 0.5  # detections below are no mistakes, as they would not be shown
IOU = 0.5


def labeled_boxes(objects: Objects) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4), x0, y0, x1, y1 in pixels, and labels (N,), 1 to C, of the objects of an image but for crowds."""
    single = [one for one in objects.annotations if not one.get("iscrowd")]
    boxes = torch.tensor([one["bbox"] for one in single], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([objects.category_ids.index(one["category_id"]) + 1 for one in single], dtype=torch.int64)
    return box_convert(boxes, "xywh", "xyxy"), labels


def confusion_of(boxes: Tensor, labels: Sequence[int], objects: Objects, num_classes: int) -> np.ndarray:
    """What the detections of one image were taken for.

    In their order, each takes the free object of any class that it overlaps most, with an IoU of at least 0.5.

    Args:
        boxes: (N, 4), x0, y0, x1, y1 in pixels, by descending score.
        labels: N, 1 to C.
        objects: Of the image.
        num_classes: C.

    Returns:
        int64 (C + 1, C + 1): rows are the true classes, columns the detected ones; the last row has detections
        of nothing, the last column objects that were missed.
    """
    truth, true_labels = labeled_boxes(objects)
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    overlaps = box_iou(boxes.double().cpu(), truth)
    free = torch.ones(len(truth), dtype=torch.bool)
    for row, label in zip(overlaps, labels, strict=True):
        row = row * free
        true = num_classes
        if len(row) and row.max() >= IOU:
            place = int(row.argmax())
            free[place] = False
            true = int(true_labels[place]) - 1
        counts[true, label - 1] += 1
    for label in true_labels[free].tolist():
        counts[label - 1, num_classes] += 1
    return counts
