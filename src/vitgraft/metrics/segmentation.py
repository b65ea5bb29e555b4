"""Mean IoU and pixel accuracy of a segmentation model, and both by class.

Only one matrix of whole-number counts is kept, so the result does not depend on the order of the images, on their
batches, or on how they are distributed to processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitgraft.metrics.base import CountReport, ReportingMetric, fraction, fractions, mean_of_present
from vitgraft.metrics.figures import confusion_figure

__all__ = ["SegmentationMetrics", "SegmentationReport", "predicted_classes"]

NO_CLASS = -1


@dataclass(frozen=True)
class SegmentationReport(CountReport):
    """What was measured on a dataset. Fractions are 0 to 1; counts are of pixels but for `num_images`.

    A class without one labeled pixel in the dataset is *absent*: it is left out of the means, also where it was
    predicted (mmsegmentation would count it as 0 there). All 150 classes of ADE20K are in its validation set.

    Attributes:
        confusion: int64 (C, C + 1): rows are the true classes, columns the predicted ones, the last one pixels whose
            scores are not finite, which are wrong.
        num_images: Images that were counted.
        num_ignored: Pixels that were left out, as their label is to be ignored.
    """

    confusion: np.ndarray
    num_images: int
    num_ignored: int = 0

    kind = "segmentation evaluation"
    labels: ClassVar = {
        "num_images": "images",
        "miou": "mean IoU",
        "pixel_accuracy": "pixel accuracy",
        "mean_class_accuracy": "mean class accuracy",
        "num_pixels": "labeled pixels",
        "num_ignored": "ignored pixels, left out",
        "num_absent": "classes absent from the dataset, left out",
        "num_nonfinite": "pixels without finite scores, counted as wrong",
        "num_unreadable": "unreadable images, left out",
    }
    hidden_at_zero = frozenset({"num_ignored", "num_absent", "num_nonfinite", "num_unreadable"})
    count_column = "pixels"
    weakest_by = "iou"
    headings: ClassVar = {
        "pixel_fraction": "pixels",
        "iou": "IoU",
        "accuracy": "accuracy",
        "precision": "precision",
        "most_confused_with": "most confused with",
    }

    @property
    def class_counts(self) -> np.ndarray:
        """int64 (C,): labeled pixels of each class."""
        return self.confusion.sum(1)

    @property
    def class_hits(self) -> np.ndarray:
        """int64 (C,): the correct ones among them."""
        return self.confusion.diagonal()

    @property
    def class_iou(self) -> np.ndarray:
        """float64 (C,): intersection over union of each class, summed over the dataset; nan where it is absent."""
        union = self.class_counts + self.confusion[:, :-1].sum(0) - self.class_hits
        return fractions(self.class_hits, union, self.class_counts > 0)

    @property
    def miou(self) -> float:
        """Mean of the classes' IoU, absent classes left out."""
        return mean_of_present(self.class_iou)

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of the labeled pixels that is correct."""
        return fraction(self.class_hits.sum(), self.num_pixels)

    @property
    def num_pixels(self) -> int:
        """Labeled pixels."""
        return int(self.confusion.sum())

    @property
    def num_absent(self) -> int:
        """Classes without a labeled pixel."""
        return int((self.class_counts == 0).sum())

    @property
    def num_nonfinite(self) -> int:
        """Labeled pixels whose scores are not finite."""
        return int(self.confusion[:, -1].sum())

    def class_columns(self) -> dict[str, np.ndarray | None]:
        """Pixels, IoU, accuracy and precision of each class."""
        return {
            "pixels": self.class_counts,
            "pixel_fraction": self.class_counts / max(1, self.num_pixels),
            "iou": self.class_iou,
            "accuracy": self.class_accuracy,
            "precision": self.class_precision,
        }

    def figures(self, class_names: Sequence[str], title: str) -> dict[str, Any]:
        """The confusion matrix."""
        return {"confusion.png": confusion_figure(self.confusion[:, :-1], class_names, title, "pixels")}


class SegmentationMetrics(ReportingMetric):
    """Counts predicted against labeled pixels; a torchmetrics metric: processes are added up where it is computed.

    torchmetrics' own confusion matrix and Jaccard index give the same counts (the tests compare them), but under
    deterministic algorithms they allocate pixels x C x C numbers for each image (48 GB at 512 x 512 and 150 classes).

    Args:
        num_classes: C, classes of the model.
        **kwargs: Of torchmetrics.Metric.
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: at least 1")
        self.num_classes = num_classes
        for name, size in (("pairs", num_classes * (num_classes + 1)), ("images", 1), ("ignored", 1)):
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Counts an image, or a batch of images of one size.

        Args:
            predicted: Whole numbers, (H, W) or (B, H, W). What is not 0 to C - 1 is a wrong prediction.
            labels: Whole numbers of the same shape. What is not 0 to C - 1 (255) is left out.

        Raises:
            ValueError: The shapes differ, or are not those of images.
        """
        if predicted.shape != labels.shape or labels.ndim not in (2, 3):
            raise ValueError(
                f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)}: expected the same (H, W) or "
                "(B, H, W); predictions are resized to the labels' size"
            )
        if predicted.is_floating_point():
            raise ValueError(f"predicted in {predicted.dtype}: expected classes, as `predicted_classes` gives them")
        classes = self.num_classes
        self.images += len(labels) if labels.ndim == 3 else 1
        labels, predicted = labels.reshape(-1).long(), predicted.reshape(-1).long()
        counted = (labels >= 0) & (labels < classes)
        self.ignored += (~counted).sum()
        labels, predicted = labels[counted], predicted[counted]
        predicted = torch.where((predicted < 0) | (predicted >= classes), classes, predicted)
        self.pairs += torch.bincount(labels * (classes + 1) + predicted, minlength=len(self.pairs))

    def _report(self) -> SegmentationReport:
        pairs = self.pairs.cpu().numpy().reshape(self.num_classes, self.num_classes + 1).copy()
        return SegmentationReport(pairs, int(self.images), int(self.ignored))


def predicted_classes(scores: Tensor) -> Tensor:
    """The class with the highest score of each pixel; -1 where a score is not a number.

    Args:
        scores: (B, C, H, W), logits or probabilities.

    Returns:
        int64 (B, H, W).
    """
    best, classes = scores.max(1)  # nan is larger than any number to torch
    return torch.where(best.isfinite(), classes, NO_CLASS)
