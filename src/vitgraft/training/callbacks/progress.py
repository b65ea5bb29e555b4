"""Where a run stands, read from Lightning's counters."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = ["position", "update_follows"]


def position(trainer: "pl.Trainer") -> tuple[int, int]:
    """(epoch, batch) at which training starts or resumes, both counted from 0.

    `batch` batches of the epoch have been trained already; it is the length of the epoch where only its validation is
    left. Right from the moment that a checkpoint has been restored, so also in `train_dataloader()`, when Lightning's
    `current_epoch` still lags behind.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    inside = epochs.ready > epochs.processed
    return epochs.processed, loop.epoch_loop.batch_progress.current.processed if inside else 0


def update_follows(trainer: "pl.Trainer", batch_idx: int) -> bool:
    """Whether the optimizer steps after batch `batch_idx` (from 0), that is, whether no gradients are left waiting."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or batch_idx + 1 >= trainer.num_training_batches
