"""What a segmentation model reaches on a set: mean IoU, pixel accuracy, and both by class.

All that is kept while a set goes by is one matrix of whole-number counts, so the result does not depend on the order of
the images, on how they lie in batches, or on how they are shared out to processes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitgraft.errors import MissingExtraError

try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError("torchmetrics", "train") from error

__all__ = ["SegmentationMetrics", "SegmentationReport", "predicted_classes"]

NO_CLASS = -1


@dataclass(frozen=True)
class SegmentationReport:
    """What was measured on a whole set. Shares are 0 to 1; counts are whole numbers of pixels but for `num_images`.

    A class without one labelled pixel in the set is *absent*: it is left out of the means, also where it was predicted
    (mmsegmentation would count it as 0 there). All 150 classes of ADE20K are in its validation set.

    Attributes:
        confusion: int64 (C, C + 1): rows are the true classes, columns the predicted ones, the last one pixels whose
            scores are not finite: wrong ones.
        num_images: Images that were counted.
        num_ignored: Pixels that were left out, their label being to be ignored.
    """

    confusion: np.ndarray
    num_images: int
    num_ignored: int = 0

    @property
    def num_classes(self) -> int:
        """Classes of the model."""
        return len(self.confusion)

    @property
    def class_pixels(self) -> np.ndarray:
        """int64 (C,): labelled pixels of each class."""
        return self.confusion.sum(1)

    @property
    def class_predicted(self) -> np.ndarray:
        """int64 (C,): pixels that were predicted as each class, where there is a label."""
        return self.confusion[:, :-1].sum(0)

    @property
    def class_intersection(self) -> np.ndarray:
        """int64 (C,): pixels of each class that were predicted as it."""
        return self.confusion[:, :-1].diagonal()

    @property
    def class_iou(self) -> np.ndarray:
        """float64 (C,): intersection over union of each class, summed over the set; nan where it is absent."""
        union = self.class_pixels + self.class_predicted - self.class_intersection
        return _shares(self.class_intersection, union, self.class_pixels > 0)

    @property
    def class_accuracy(self) -> np.ndarray:
        """float64 (C,): share of each class's pixels that is right (recall); nan where it is absent."""
        return _shares(self.class_intersection, self.class_pixels, self.class_pixels > 0)

    @property
    def class_precision(self) -> np.ndarray:
        """float64 (C,): share of what was predicted as each class that is of it; nan where nothing was."""
        return _shares(self.class_intersection, self.class_predicted, self.class_predicted > 0)

    @property
    def absent(self) -> list[int]:
        """The classes without a labelled pixel in the set."""
        return np.flatnonzero(self.class_pixels == 0).tolist()

    @property
    def miou(self) -> float:
        """Mean of the classes' IoU, absent classes left out."""
        return _mean(self.class_iou)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the classes' accuracies, absent classes left out."""
        return _mean(self.class_accuracy)

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that is right."""
        pixels = int(self.confusion.sum())
        return float(self.class_intersection.sum() / pixels) if pixels else float("nan")

    def numbers(self) -> dict[str, float | int | None]:
        """The numbers of the whole set, by name."""
        return {
            "num_images": self.num_images,
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "num_pixels": int(self.confusion.sum()),
            "num_ignored": self.num_ignored,
            "num_absent": len(self.absent),
            "num_nonfinite": int(self.confusion[:, -1].sum()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain lists and numbers; `from_dict` reads it again."""
        return {**asdict(self), "confusion": self.confusion.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SegmentationReport":
        """What `to_dict` returned, as a report."""
        return cls(**{**values, "confusion": np.asarray(values["confusion"], dtype=np.int64)})


class SegmentationMetrics(Metric):
    """Counts predicted against labelled pixels; a torchmetrics metric: processes are added up where it is computed.

    Args:
        num_classes: C, classes of the model.
        **kwargs: Of torchmetrics.Metric.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

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
            predicted: whole numbers, (H, W) or (B, H, W). What is not 0 to C - 1 is a wrong prediction.
            labels: whole numbers of the same shape. What is not 0 to C - 1 (255) is left out.

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

    def compute(self) -> dict[str, Tensor]:
        """miou, pixel_accuracy and mean_class_accuracy of the whole set, over all processes."""
        numbers = self._report().numbers()
        return {name: torch.tensor(numbers[name]) for name in ("miou", "pixel_accuracy", "mean_class_accuracy")}

    def report(self) -> SegmentationReport:
        """Everything that was counted, over all processes; all of them must call it."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            process_group=self.process_group,
            distributed_available=self.distributed_available_fn,
        ):
            return self._report()

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


def _shares(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=where)


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
