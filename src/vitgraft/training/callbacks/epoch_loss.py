"""The mean training loss of an epoch, right also in an epoch that was interrupted.

Lightning's own epoch means restart at zero when a run is resumed inside an epoch: no checkpoint has its sums.
"""

from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["EpochLoss"]

KEY = "epoch_loss"


class EpochLoss(pl.Callback):
    """Logs `train/loss_epoch`, the mean over the batches of the epoch and all processes."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None  # (loss, batches) of this process
        self._restored: list[list[float]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        dtype = torch.float32 if pl_module.device.type == "mps" else torch.float64
        self._sum = torch.zeros(2, dtype=dtype, device=pl_module.device)
        if self._restored is not None:
            if len(self._restored) == trainer.world_size:
                self._sum += torch.tensor(self._restored[trainer.global_rank], dtype=dtype, device=pl_module.device)
            self._restored = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if loss is not None:
            self._sum[0] += loss.detach().to(self._sum.dtype) * trainer.accumulate_grad_batches
            self._sum[1] += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total, batches = self._of_all(pl_module).sum(dim=0)
        if batches > 0:
            # reduced already; the same value in all processes
            pl_module.log("train/loss_epoch", (total / batches).float(), sync_dist=False)
        self._sum.zero_()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._sum is not None:
            checkpoint[KEY] = self._of_all(pl_module).tolist()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint.get(KEY)

    def _of_all(self, pl_module: pl.LightningModule) -> torch.Tensor:
        """(processes, 2)"""
        return pl_module.all_gather(self._sum).reshape(-1, 2)
