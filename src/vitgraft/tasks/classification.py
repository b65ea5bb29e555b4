"""Training a classifier through pytorch-lightning: timm's optimisers and schedules, torchmetrics' accuracy.

This module needs the `train` extra and is imported by what trains, never by `import vitgraft`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from vitgraft.errors import MissingExtraError

try:
    import pytorch_lightning as pl
    from torchmetrics.classification import MulticlassAccuracy
except ImportError as error:
    raise MissingExtraError("pytorch-lightning", "train") from error

__all__ = ["Classification"]


class Classification(pl.LightningModule):
    """A classifier and how it is trained: AdamW, linear warm-up and cosine decay per step, cross entropy.

    Logs `train/loss` every step, and `val/loss` and `val/acc` (top-1, 0 to 1) at every validation.

    Args:
        model: Images (B, 3, H, W) -> logits (B, num_classes).
        num_classes: Number of classes.
        total_steps: Optimiser steps of the whole run, at which the learning rate reaches 0.
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        weight_decay: On all but vectors and what the model's `no_weight_decay` names.
        betas: AdamW's.
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        total_steps: int,
        lr: float = 1e-3,
        warmup_steps: int = 0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.model = model
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.label_smoothing = label_smoothing
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, num_classes)"""
        return self.model(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross entropy of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Loss and accuracy over the whole set, each sample counted once."""
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val/acc", self.accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> dict[str, Any]:
        """timm's AdamW (no decay on vectors) and its cosine schedule, stepped per update."""
        optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=self.lr, weight_decay=self.weight_decay, betas=self.betas
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=self.total_steps,
            warmup_epochs=self.warmup_steps,
            warmup_lr=0.0,
            min_lr=0.0,
            warmup_prefix=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """timm's schedulers take the number of the update, here counted as their epochs."""
        scheduler.step(self.global_step)
