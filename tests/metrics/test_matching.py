"""What detections are taken for at one threshold."""

import numpy as np
import torch

from vitgraft.data.detection_targets import Objects
from vitgraft.metrics.matching import confusion_of, labeled_boxes

OBJECTS = Objects(
    [
        {"bbox": [0, 0, 10, 10], "category_id": 5},
        {"bbox": [20, 0, 10, 10], "category_id": 9},
        {"bbox": [40, 0, 10, 10], "category_id": 9},
        {"bbox": [0, 0, 100, 100], "category_id": 5, "iscrowd": 1},
    ],
    (100, 100),
    (5, 9),
)


def test_boxes_of_all_but_crowds():
    boxes, labels = labeled_boxes(OBJECTS)
    assert boxes.tolist() == [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]] and labels.tolist() == [1, 2, 2]


def test_right_wrong_class_twice_nothing_and_missed():
    boxes = torch.tensor([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [70, 70, 80, 80], [43, 0, 60, 10]])
    # the first is right, the second finds the same object again, the third is of another class, two overlap nothing
    expected = [[1, 0, 0], [1, 0, 1], [0, 3, 0]]
    assert np.array_equal(confusion_of(boxes, [1, 2, 1, 2, 2], OBJECTS, 2), expected)


def test_nothing_detected_and_nothing_there():
    none = torch.zeros(0, 4)
    assert confusion_of(none, [], OBJECTS, 2)[:, 2].tolist() == [1, 2, 0]
    empty = Objects([], (10, 10), (5, 9))
    assert confusion_of(torch.tensor([[0, 0, 5, 5]]), [2], empty, 2).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
