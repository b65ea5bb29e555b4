"""Training a classifier: timm's models, mixup and losses."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch import nn

from vitgraft.errors import RecipeError
from vitgraft.metrics.classification import ClassificationMetrics
from vitgraft.metrics.draw import resized, with_legend
from vitgraft.options import BelowOne, Count, Fraction, Model, NonNegative, WholeNumber
from vitgraft.tasks.base import Mistake, Task
from vitgraft.tasks.losses import ClassWeights, cross_entropy, focal_loss
from vitgraft.terminal import short_name
from vitgraft.weights.create import build_model

__all__ = ["Classification"]


class Classification(Task):
    """A classifier and how it is trained.

    Logs `val/acc` (top-1), `val/acc5`, `val/acc_class` (mean of the classes), `val/ece` and `val/loss`.

    Args:
        model: Name of a timm model (vitgraft's are among them), or a module: images (B, 3, H, W) -> logits.
        num_classes: None takes those of the data.
        loss: "cross_entropy", "focal" (less weight for what is learned already), or "bce" (binary for each class, as in
            DeiT III).
        focal_gamma: Exponent of the focal loss; 0 is the cross-entropy.
        class_weights: A weight for each class, on its part of the loss, which stays a mean over the images;
            "balanced": images / (classes x images of the class) of the training set. None: all are alike.
        smoothing: Fraction of the target that is spread over all classes.
        bce_target_thresh: Targets above it become 1 (loss "bce").
        mixup: Alpha of mixup's Beta distribution; 0: off.
        cutmix: Alpha of cutmix's Beta distribution; 0: off.
        mixup_prob: Fraction of batches that are mixed.
        mixup_switch_prob: Fraction of cutmix where both are on.
        mixup_mode: One lambda per "batch", "pair" or "elem".
        mixup_off_epoch: Epoch from which nothing is mixed any more; 0: never.
        **kwargs: Of `Task`: the model's other options, optimizer, schedule, seed.
    """

    LOGGED: ClassVar = {"acc": "top1", "acc5": "top5", "acc_class": "mean_class_accuracy", "ece": "ece", "loss": "loss"}
    MAIN = "acc"
    DATA = "vitgraft.data.classification.ImageData"

    def __init__(
        self,
        model: Model,
        num_classes: Count | None = None,
        loss: Literal["cross_entropy", "focal", "bce"] = "cross_entropy",
        focal_gamma: NonNegative = 2.0,
        class_weights: ClassWeights | None = None,
        smoothing: BelowOne = 0.0,
        bce_target_thresh: Fraction | None = None,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        mixup_prob: Fraction = 1.0,
        mixup_switch_prob: Fraction = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
        mixup_off_epoch: WholeNumber = 0,
        **kwargs,
    ):
        super().__init__(model, num_classes, **kwargs)

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> list[str]:
        """As `Task.conflicts`; not every loss takes weights, or targets of several classes."""
        found = super().conflicts(values)
        if values.get("loss") == "focal":
            soft = [name for name in ("mixup", "cutmix", "smoothing") if (values.get(name) or 0) > 0]
            found += [f"{name}={values[name]}: not with loss='focal', which takes one class an image" for name in soft]
        if values.get("class_weights") is not None and values.get("loss") == "bce":
            found.append("class_weights: not with loss='bce', in which each class has a loss of its own; leave one out")
        return found

    def build(self, pretrained: bool = False, device: str | None = None) -> nn.Module:
        """The named timm model, grafted."""
        h = self.hparams
        return build_model(h.model, h.num_classes, h.model_kwargs, h.graft, pretrained, device)

    def take(self, model: nn.Module) -> None:
        """Takes the model, and makes what mixes its images."""
        super().take(model)
        h = self.hparams
        self.mix = None
        if h.mixup > 0 or h.cutmix > 0:
            self.mix = Mixup(
                mixup_alpha=h.mixup,
                cutmix_alpha=h.cutmix,
                prob=h.mixup_prob,
                switch_prob=h.mixup_switch_prob,
                mode=h.mixup_mode,
                label_smoothing=h.smoothing,
                num_classes=h.num_classes,
            )
        if h.loss == "bce":
            self.bce = BinaryCrossEntropy(0.0 if self.mix else h.smoothing, h.bce_target_thresh)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of logits (B, K) and labels (B,) or, mixed, probabilities (B, K), which are smoothed already."""
        if self.hparams.loss == "bce":
            return self.bce(logits, targets)
        if self.hparams.loss == "focal":
            return focal_loss(logits, targets, self.class_weights, self.hparams.focal_gamma)
        return cross_entropy(logits, targets, self.class_weights, 0.0 if self.mix else self.hparams.smoothing)

    def setup(self, stage: str) -> None:
        """As `Task.setup`; mixup needs an even batch."""
        size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", 0)
        if stage == "fit" and (self.hparams.mixup > 0 or self.hparams.cutmix > 0) and size % 2:
            raise RecipeError(
                f"batch_size={size}: mixup and cutmix mix pairs; give an even number of images per process"
            )
        super().setup(stage)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Loss of one batch (images, labels, ...)."""
        images, labels = batch[0], batch[1]
        self.before_step(batch_idx)
        if self.mix is not None:
            self.mix.mixup_enabled = not (0 < self.hparams.mixup_off_epoch <= self.current_epoch)
            images, labels = self.mix(images, labels)
        loss = self.loss(self(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def make_metric(self) -> ClassificationMetrics:
        """Accuracy in all, by class and by pair of classes, and calibration."""
        return ClassificationMetrics(self.hparams.num_classes)

    def evaluate(self, model: nn.Module, metric: ClassificationMetrics, batch: Sequence[Any]) -> list[Mistake]:
        """Counts (images, labels, ...); unreadable images are left out of a batch, which may then be empty.

        A mistake is as large as the cross entropy of the sample.
        """
        images, labels = batch[0], batch[1]
        if not len(labels):
            return []
        logits = model(images)
        metric.update(logits, labels)
        probabilities = logits.float().softmax(1)
        best, classes = probabilities.max(1)
        right = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        wrong = (classes != labels) & (labels >= 0)
        rows = torch.stack((-right.log() * wrong, labels, right, classes, best), 1).tolist()
        return [(row[0], row[1:]) for row in rows]

    def draw_mistake(self, loaded: Image.Image, predicted: Sequence[float], title: str) -> Image.Image:
        """The image with the probabilities of the true and of the predicted class beside it."""
        true, right, wrong, best = predicted
        named = [("true", int(true), right), ("predicted", int(wrong), best)]
        rows = [(None, f"{word}: {short_name(self.class_names[i], 26)}", f"{p:.1%}") for word, i, p in named]
        return with_legend(resized(loaded), rows, title)

    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Probabilities (B, num_classes)."""
        return self(batch[0]).softmax(1)
