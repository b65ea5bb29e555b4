"""Accuracy of a classifier in all, by class and by pair of classes, and its calibration.

Only whole-number counts are kept, so the result does not depend on the order of the samples, on their batches, or on
how they are distributed to processes: also unequally, and a process may have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitgraft.metrics.base import CountReport, ReportingMetric, fraction, fractions
from vitgraft.metrics.figures import confusion_figure, reliability_figure

__all__ = ["ClassificationMetrics", "ClassificationReport"]

BINS = 15  # of confidence, equally wide: Guo et al. 2017, "On Calibration of Modern Neural Networks", table 1
TOP = 5
MAX_CONFUSION_CLASSES = 4096  # 134 MB of counts; ImageNet-21K would take 3.8 GB
# Confidences and losses are summed as whole multiples of these: sums are exact, and a GPU without float64 can do them
CONFIDENCE_UNIT = 2.0**-30
LOSS_UNIT = 2.0**-24
MAX_LOSS = 2.0**20  # of one sample: the sum of 500,000 of them still fits


@dataclass(frozen=True)
class ClassificationReport(CountReport):
    """What was measured on a dataset. Fractions are 0 to 1; counts are whole numbers.

    Attributes:
        num_samples: Samples that were counted.
        loss: Mean cross-entropy.
        class_counts: int64 (C,), samples of each class.
        class_hits: int64 (C,), those whose most probable class is correct.
        class_hits5: int64 (C,), those with the correct class among the five most probable.
        confusion: int64 (C, C), rows are the true classes, columns the predicted ones; None for very many classes.
        bin_counts: int64 (bins,), samples by confidence, the probability of the predicted class.
        bin_hits: int64 (bins,), the correct ones among them.
        bin_confidences: float64 (bins,), sum of their confidences.
        num_nonfinite: Samples whose logits are not finite: counted as wrong, left out of loss and calibration.
        num_unlabeled: Samples without a label, or with one that the model has no class for: not counted at all.
    """

    num_samples: int
    loss: float
    class_counts: np.ndarray
    class_hits: np.ndarray
    class_hits5: np.ndarray
    confusion: np.ndarray | None
    bin_counts: np.ndarray
    bin_hits: np.ndarray
    bin_confidences: np.ndarray
    num_nonfinite: int = 0
    num_unlabeled: int = 0

    kind = "evaluation"
    labels: ClassVar = {
        "num_samples": "samples",
        "top1": "top-1 accuracy",
        "top5": "top-5 accuracy",
        "mean_class_accuracy": "mean class accuracy",
        "loss": "loss (cross-entropy)",
        "ece": "expected calibration error (15 bins)",
        "mean_confidence": "mean confidence",
        "num_nonfinite": "samples without finite logits, counted as wrong",
        "num_unlabeled": "samples without a label, left out",
        "num_unreadable": "unreadable images, left out",
    }
    hidden_at_zero = frozenset({"num_nonfinite", "num_unlabeled", "num_unreadable"})
    count_column = "samples"
    weakest_by = "accuracy"
    headings: ClassVar = {
        "samples": "samples",
        "accuracy": "accuracy",
        "precision": "precision",
        "most_confused_with": "most confused with",
    }

    @property
    def top1(self) -> float:
        """Fraction of the samples whose most probable class is correct."""
        return fraction(self.class_hits.sum(), self.num_samples)

    @property
    def top5(self) -> float | None:
        """Fraction of the samples with the correct class among the five most probable; None where there are no more."""
        return fraction(self.class_hits5.sum(), self.num_samples) if self.num_classes > TOP else None

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance between accuracy and mean confidence of a sample's bin."""
        return fraction(np.abs(self.bin_hits - self.bin_confidences).sum(), self.bin_counts.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the predicted class: above top-1, the model is over-confident."""
        return fraction(self.bin_confidences.sum(), self.bin_counts.sum())

    def class_columns(self) -> dict[str, np.ndarray | None]:
        """Samples, accuracies and precision of each class."""
        return {
            "samples": self.class_counts,
            "correct": self.class_hits,
            "accuracy": self.class_accuracy,
            "accuracy_top5": fractions(self.class_hits5, self.class_counts) if self.num_classes > TOP else None,
            "precision": self.class_precision,
        }

    def figures(self, class_names: Sequence[str], title: str) -> dict[str, Any]:
        """Calibration, and the confusion matrix where pairs of classes are counted."""
        text = f"ECE {self.ece:.2%}, accuracy {self.top1:.1%}, mean confidence {self.mean_confidence:.1%}"
        text = f"{title}: {text}" if title else text
        made = {"calibration.png": reliability_figure(self.bin_counts, self.bin_hits, self.bin_confidences, text)}
        if self.confusion is not None:
            made["confusion.png"] = confusion_figure(self.confusion, class_names, title)
        return made


class ClassificationMetrics(ReportingMetric):
    """Counts logits against labels; a torchmetrics metric, so processes are added up where `compute` is called.

    torchmetrics' own metrics give the same numbers (the tests compare them), but its calibration error keeps the
    confidence of every sample and no bins, its accuracy by class makes C x C temporary counts in each batch, and they
    have no place for logits that are not finite.

    Args:
        num_classes: Classes of the model. Pairs of classes are counted up to 4096.
        **kwargs: Of torchmetrics.Metric.
    """

    def __init__(self, num_classes: int, **kwargs: Any):
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: at least 1")
        self.num_classes = num_classes
        self.counts_pairs = num_classes <= MAX_CONFUSION_CLASSES
        sizes = {"class_counts": num_classes, "class_hits": num_classes, "class_hits5": num_classes}
        sizes |= {"bin_counts": BINS, "bin_hits": BINS, "bin_confidences": BINS}
        sizes |= {"loss_sum": 1, "nonfinite": 1, "unlabeled": 1}
        if self.counts_pairs:
            sizes["pairs"] = num_classes * num_classes
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch.

        Args:
            logits: (B, C), any float type.
            labels: int64 (B,). What is not 0 to C - 1 has no label, and is left out.

        Raises:
            ValueError: The shapes do not belong together.
        """
        if logits.shape != (len(labels), self.num_classes):
            raise ValueError(
                f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: "
                f"expected (B, {self.num_classes}) and (B,)"
            )
        labeled = (labels >= 0) & (labels < self.num_classes)
        self.unlabeled += (~labeled).sum()
        logits, labels = logits[labeled].float(), labels[labeled]
        if not len(labels):
            return
        finite = logits.logsumexp(1).isfinite()  # -inf may mask a class
        self.nonfinite += (~finite).sum()
        logits = torch.where(finite[:, None], logits, torch.zeros_like(logits))  # counted as wrong below
        best = logits.topk(min(TOP, self.num_classes), dim=1).indices
        right = (best == labels[:, None]) & finite[:, None]
        confidence = logits.softmax(1).gather(1, best[:, :1]).squeeze(1)
        loss = F.cross_entropy(logits, labels, reduction="none").clamp(max=MAX_LOSS)
        hit = right[:, 0].long()

        self._add("class_counts", labels, torch.ones_like(labels))
        self._add("class_hits", labels, hit)
        self._add("class_hits5", labels, right.any(1).long())
        # (0, 1/bins], (1/bins, 2/bins] ... as Guo et al.
        place = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        self._add("bin_counts", place, finite.long())
        self._add("bin_hits", place, hit)
        self._add("bin_confidences", place, (confidence / CONFIDENCE_UNIT).round().long() * finite)
        self.loss_sum += ((loss / LOSS_UNIT).round().long() * finite).sum()
        if self.counts_pairs:
            # logits that are not finite predict no class: any but the correct one
            wrong = (labels + 1) % self.num_classes
            predicted = torch.where(finite, best[:, 0], wrong)
            self._add("pairs", labels * self.num_classes + predicted, torch.ones_like(labels))

    def _add(self, state: str, places: Tensor, values: Tensor) -> None:
        getattr(self, state).scatter_add_(0, places, values)

    def _report(self) -> ClassificationReport:
        counts = {name: getattr(self, name).cpu().numpy().copy() for name in self._defaults}
        nonfinite, samples = int(counts["nonfinite"][0]), int(counts["class_counts"].sum())
        pairs = counts.get("pairs")
        return ClassificationReport(
            num_samples=samples,
            loss=fraction(counts["loss_sum"][0] * LOSS_UNIT, samples - nonfinite),
            class_counts=counts["class_counts"],
            class_hits=counts["class_hits"],
            class_hits5=counts["class_hits5"],
            confusion=None if pairs is None else pairs.reshape(self.num_classes, self.num_classes),
            bin_counts=counts["bin_counts"],
            bin_hits=counts["bin_hits"],
            bin_confidences=counts["bin_confidences"] * CONFIDENCE_UNIT,
            num_nonfinite=nonfinite,
            num_unlabeled=int(counts["unlabeled"][0]),
        )
