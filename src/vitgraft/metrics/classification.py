"""What a classifier reaches on a set: accuracy in all, by class and by pair of classes, and calibration.

All that is kept while a set goes by are whole-number counts, so the result does not depend on the order of the samples,
on how they lie in batches, or on how they are shared out to processes: also unequally, and a process may have none.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitgraft.errors import MissingExtraError

try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError("torchmetrics", "train") from error

__all__ = ["ClassificationMetrics", "EvaluationReport"]

BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", table 1
TOP = 5
MOST_CONFUSION_CLASSES = 4096  # 134 MB of counts; ImageNet-21K would take 3.8 GB
# Confidences and losses are summed as whole multiples of these: sums are exact, and a GPU without float64 can do them
CONFIDENCE_UNIT = 2.0**-30
LOSS_UNIT = 2.0**-24
MOST_LOSS = 2.0**20  # of one sample: the sum of 500,000 of them still fits


@dataclass(frozen=True)
class EvaluationReport:
    """What was measured on a whole set. Shares are 0 to 1; counts are whole numbers.

    Attributes:
        num_samples: Samples that were counted.
        loss: Mean cross-entropy.
        class_counts: int64 (C,), samples of each class.
        class_hits: int64 (C,), those whose most probable class is right.
        class_hits5: int64 (C,), those with the right class among the five most probable.
        confusion: int64 (C, C), rows are the true classes, columns the predicted ones; None for very many classes.
        bin_counts: int64 (bins,), samples by confidence, the probability of the predicted class.
        bin_hits: int64 (bins,), the right ones among them.
        bin_confidences: float64 (bins,), sum of their confidences.
        num_nonfinite: Samples whose logits are not finite: wrong ones, left out of loss and calibration.
        num_unlabelled: Samples without a label, or with one that the model has no class for: not counted at all.
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
    num_unlabelled: int = 0

    @property
    def num_classes(self) -> int:
        """Classes of the model."""
        return len(self.class_counts)

    @property
    def top1(self) -> float:
        """Share of the samples whose most probable class is right."""
        return _share(self.class_hits.sum(), self.num_samples)

    @property
    def top5(self) -> float | None:
        """Share of the samples with the right class among the five most probable; None where there are no more."""
        return _share(self.class_hits5.sum(), self.num_samples) if self.num_classes > TOP else None

    @property
    def class_accuracy(self) -> np.ndarray:
        """float64 (C,): share of each class's samples that is right (its recall); nan for a class without samples."""
        return _shares(self.class_hits, self.class_counts)

    @property
    def class_precision(self) -> np.ndarray | None:
        """float64 (C,): share of what was predicted as the class that is of it; nan where nothing was."""
        return None if self.confusion is None else _shares(self.class_hits, self.confusion.sum(0))

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have samples: large classes count no more than small ones."""
        return float(np.nanmean(self.class_accuracy)) if self.class_counts.any() else float("nan")

    @property
    def bin_accuracy(self) -> np.ndarray:
        """float64 (bins,): accuracy of the samples of each bin of confidence; nan for an empty one."""
        return _shares(self.bin_hits, self.bin_counts)

    @property
    def bin_confidence(self) -> np.ndarray:
        """float64 (bins,): their mean confidence; nan for an empty one."""
        return _shares(self.bin_confidences, self.bin_counts)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over the samples of |accuracy - mean confidence| of their bin."""
        return _share(np.abs(self.bin_hits - self.bin_confidences).sum(), self.bin_counts.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean probability of the predicted class: above top-1, the model is over-confident."""
        return _share(self.bin_confidences.sum(), self.bin_counts.sum())

    def numbers(self) -> dict[str, float | int | None]:
        """The numbers of the whole set, by name."""
        return {
            "num_samples": self.num_samples,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class_accuracy": self.mean_class_accuracy,
            "loss": self.loss,
            "ece": self.ece,
            "mean_confidence": self.mean_confidence,
            "num_nonfinite": self.num_nonfinite,
            "num_unlabelled": self.num_unlabelled,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain lists and numbers; `from_dict` reads it again."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EvaluationReport":
        """What `to_dict` returned, as a report."""
        read = {name: np.asarray(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**read)


class ClassificationMetrics(Metric):
    """Counts logits against labels; a torchmetrics metric, so processes are added up where `compute` is called.

    Args:
        num_classes: Classes of the model.
        bins: Bins of confidence, equally wide, for the calibration error.
        confusion: Whether pairs of classes are counted; None: up to 4096 classes.
        **kwargs: Of torchmetrics.Metric.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, num_classes: int, bins: int = BINS, confusion: bool | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if num_classes < 1 or bins < 1:
            raise ValueError(f"num_classes={num_classes}, bins={bins}: at least 1")
        self.num_classes, self.bins = num_classes, bins
        self.counts_pairs = num_classes <= MOST_CONFUSION_CLASSES if confusion is None else confusion
        sizes = {"class_counts": num_classes, "class_hits": num_classes, "class_hits5": num_classes}
        sizes |= {"bin_counts": bins, "bin_hits": bins, "bin_confidences": bins}
        sizes |= {"loss_sum": 1, "nonfinite": 1, "unlabelled": 1}
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
        labelled = (labels >= 0) & (labels < self.num_classes)
        self.unlabelled += (~labelled).sum()
        logits, labels = logits[labelled].float(), labels[labelled]
        if not len(labels):
            return
        finite = logits.logsumexp(1).isfinite()  # -inf may mask a class
        self.nonfinite += (~finite).sum()
        logits = torch.where(finite[:, None], logits, torch.zeros_like(logits))  # counted as wrong below
        best = logits.topk(min(TOP, self.num_classes), dim=1).indices
        right = (best == labels[:, None]) & finite[:, None]
        confidence = logits.softmax(1).gather(1, best[:, :1]).squeeze(1)
        loss = F.cross_entropy(logits, labels, reduction="none").clamp(max=MOST_LOSS)
        hit = right[:, 0].long()

        self._add("class_counts", labels, torch.ones_like(labels))
        self._add("class_hits", labels, hit)
        self._add("class_hits5", labels, right.any(1).long())
        # (0, 1/bins], (1/bins, 2/bins] ... as Guo et al.
        place = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        self._add("bin_counts", place, finite.long())
        self._add("bin_hits", place, hit)
        self._add("bin_confidences", place, (confidence / CONFIDENCE_UNIT).round().long() * finite)
        self.loss_sum += ((loss / LOSS_UNIT).round().long() * finite).sum()
        if self.counts_pairs:
            # which class logits that are no numbers mean can't be said: any but the right one
            wrong = (labels + 1) % self.num_classes
            predicted = torch.where(finite, best[:, 0], wrong)
            self._add("pairs", labels * self.num_classes + predicted, torch.ones_like(labels))

    def _add(self, state: str, places: Tensor, values: Tensor) -> None:
        getattr(self, state).scatter_add_(0, places, values)

    def compute(self) -> dict[str, Tensor]:
        """The numbers of the whole set, over all processes: top1, top5 (of more than five classes), ece, loss."""
        numbers = self._report().numbers()
        shown = ("top1", "top5", "mean_class_accuracy", "ece", "loss")
        return {name: torch.tensor(float(numbers[name])) for name in shown if numbers[name] is not None}

    def report(self) -> EvaluationReport:
        """Everything that was counted, over all processes; all of them must call it."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            process_group=self.process_group,
            distributed_available=self.distributed_available_fn,
        ):
            return self._report()

    def _report(self) -> EvaluationReport:
        counts = {name: getattr(self, name).cpu().numpy().copy() for name in self._defaults}
        nonfinite, samples = int(counts["nonfinite"][0]), int(counts["class_counts"].sum())
        pairs = counts.get("pairs")
        return EvaluationReport(
            num_samples=samples,
            loss=_share(counts["loss_sum"][0] * LOSS_UNIT, samples - nonfinite),
            class_counts=counts["class_counts"],
            class_hits=counts["class_hits"],
            class_hits5=counts["class_hits5"],
            confusion=None if pairs is None else pairs.reshape(self.num_classes, self.num_classes),
            bin_counts=counts["bin_counts"],
            bin_hits=counts["bin_hits"],
            bin_confidences=counts["bin_confidences"] * CONFIDENCE_UNIT,
            num_nonfinite=nonfinite,
            num_unlabelled=int(counts["unlabelled"][0]),
        )


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
