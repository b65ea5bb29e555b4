"""What a run tolerates and what stops it: non-finite losses, unreadable images, changed data, full memory."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pydantic import validate_call

from vitgraft.errors import TrainingError
from vitgraft.options import WholeNumber
from vitgraft.terminal import warn
from vitgraft.training.run_folder import check_data

__all__ = ["Guards", "advice_on_memory", "is_out_of_memory", "lost_process"]

SHOWN = 8
IN_A_ROW = 10  # skipped updates with none between them that was made: a run that has diverged
COUNTS = ("skipped", "updates", "in_a_row", "unreadable")  # resumed with the run
ADVICE = (
    "A lower learning rate, longer warm-up, gradient clipping (trainer.gradient_clip_val) or bf16-mixed instead of "
    "16-mixed may help"
)


class Guards(pl.Callback):
    """Skips updates whose loss or gradient is not finite, counts unreadable images, and ends the run past a limit.

    All processes agree, once an update, so that all skip the same updates and all stop. With accumulated gradients one
    bad batch spoils its update. The count of skipped updates starts anew every epoch, that of those in a row does not;
    unreadable images count once each, over the whole run. All counts are resumed with the run.

    A run has diverged, and stops by a TrainingError, when more than `max_skipped` (or 10, if that is less) updates in a
    row are skipped, more than half of an epoch's (if not one alone), or the last one of the run.

    Args:
        max_skipped: Updates of an epoch that may be skipped.
        max_unreadable: Images that may be unreadable.
        allow_changed_data: Resume on other images than the run began with; not an exact resume.
    """

    @validate_call
    def __init__(
        self, max_skipped: WholeNumber = 10, max_unreadable: WholeNumber = 100, allow_changed_data: bool = False
    ):
        self.max_skipped, self.max_unreadable = max_skipped, max_unreadable
        self.allow_changed_data = allow_changed_data
        self.skipped = self.updates = 0  # of this epoch; those that were tried
        self.in_a_row = 0  # skipped since the last one that was made, over epochs
        self.unreadable: dict[str, str] = {}  # name -> reason, of this process
        self._batch: Any = None
        self._loss: torch.Tensor | None = None
        self._suspects: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)  # older checkpoints have fewer counts

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares the data with the data that the run in the folder began with, once it is opened.

        Raises:
            RunFolderError: It is other data.
        """
        source = getattr(trainer.datamodule, "source", None)
        if stage == "fit" and callable(source):
            check_data(trainer.default_root_dir, source, self.allow_changed_data)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.skipped = self.updates = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops a run that skipped most of an epoch, before the epoch is saved.

        Raises:
            TrainingError: It did.
        """
        if self.skipped > 1 and 2 * self.skipped > self.updates:
            raise TrainingError(
                f"{self.skipped} of the {self.updates} updates of epoch {trainer.current_epoch} were skipped, their "
                f"loss or gradient not finite: the run has diverged. {ADVICE}"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Does not let a run that was diverging at its end pass for a success.

        Raises:
            TrainingError: Its last update was skipped.
        """
        if self.in_a_row:
            last = "update" if self.in_a_row == 1 else f"{self.in_a_row} updates"
            raise TrainingError(
                f"the last {last} of the run, to step {trainer.global_step}, had a loss or gradient that is not finite "
                f"and had to be skipped. {ADVICE}"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        self._note_unreadable(getattr(batch, "bad", ()))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._note_unreadable(getattr(batch, "bad", ()))

    on_test_batch_start = on_validation_batch_start

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self._loss = loss.detach()
        if trainer.accumulate_grad_batches > 1 and not torch.isfinite(self._loss):
            # named now, as the update comes later, when the batch is another one
            self._suspects += self._samples(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Takes the gradients away where they are not finite: every optimizer of PyTorch and timm then does nothing."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = torch.isfinite(self._loss)
        # a loss scaler looks for infinite gradients itself, and they are part of its work
        if grads and getattr(trainer.precision_plugin, "scaler", None) is None:
            # of the own part of gradients that are spread over processes (FSDP); the processes agree below
            own_parts = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]
            finite &= torch.isfinite(torch.nn.utils.get_total_norm(own_parts)).to(finite.device)
        own = bool(self._suspects) or not bool(finite)
        skip, unreadable = self._agree(trainer, own)
        self.updates += 1
        if skip:
            self._skip(trainer, optimizer, own)
        else:
            self.in_a_row = 0
        self._suspects = []
        if unreadable > self.max_unreadable:
            listed = "\n  ".join(f"{name}: {reason}" for name, reason in list(self.unreadable.items())[:20])
            raise TrainingError(
                f"{unreadable} images can't be read, more than max_unreadable={self.max_unreadable}:\n  {listed}\n"
                "`vitgraft check-data` lists all of them"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Adds advice to an error that memory ran out."""
        if is_out_of_memory(exception):
            batch = getattr(trainer.datamodule, "batch_size", None) or _size(self._batch)
            exception.add_note(advice_on_memory(batch, trainer.accumulate_grad_batches))

    def _skip(self, trainer: pl.Trainer, optimizer: torch.optim.Optimizer, own: bool) -> None:
        optimizer.zero_grad()
        self.skipped += 1
        self.in_a_row += 1
        kind, samples = "the loss of another process", ""
        if own:
            value = float(self._loss)
            kind = "the gradient" if math.isfinite(value) and not self._suspects else f"the loss ({value})"
            samples = f". Samples: {_some(self._suspects or self._samples(trainer))}"
        message = f"step {trainer.global_step} (epoch {trainer.current_epoch}): {kind} is not finite, "
        message += f"the update is skipped{samples}"
        if own:
            warn(message)
        limit = min(self.max_skipped, IN_A_ROW)
        if self.skipped > self.max_skipped:
            reason = f"{self.skipped} of this epoch to be skipped, more than max_skipped={self.max_skipped}."
        elif self.in_a_row > limit:
            reason = f"{self.in_a_row} in a row to be skipped, more than {limit}: the run has diverged."
        else:
            return
        raise TrainingError(f"{message}.\nThat is update {reason} {ADVICE}")

    def _agree(self, trainer: pl.Trainer, own: bool) -> tuple[bool, int]:
        """(whether any process skips, unreadable images of all)"""
        if trainer.world_size == 1:
            return own, len(self.unreadable)
        counts = torch.tensor([int(own), len(self.unreadable)], device=trainer.strategy.root_device)
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        return bool(counts[0]), int(counts[1])

    def _note_unreadable(self, bad: Any) -> None:
        for text in bad:
            name, _, reason = str(text).partition(": ")
            if name not in self.unreadable:
                self.unreadable[name] = reason
                warn(f"unreadable image {name}: {reason} ({len(self.unreadable)} so far)")

    def _samples(self, trainer: pl.Trainer) -> list[str]:
        """Names of the batch's samples; of those alone whose pixels are not finite, where that is the cause."""
        batch = self._batch
        indices = getattr(batch, "indices", None)
        if indices is None:
            return []
        images = getattr(batch, "images", None)
        if images is not None and len(images) == len(indices) and images[0].is_floating_point():
            broken = torch.tensor([not bool(torch.isfinite(image).all()) for image in images])
            if broken.any():
                indices = indices[broken.to(indices.device)]
        source = getattr(trainer.datamodule, "source", None)
        name = source("train").name if callable(source) else str
        return [name(i) for i in indices.tolist()]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on an accelerator or for the CPU's allocator."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def lost_process(error: BaseException) -> str | None:
    """What to print where another process of the run ended; None where the error is of something else."""
    text = str(error)
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text
    if not isinstance(error, RuntimeError) or not lost:
        return None
    return (
        "another process of this run ended or does not answer; its own lines say why, and where there are none it was "
        "killed, as the system does where memory runs out. The run continues from its last save by --resume\n"
        f"({text.splitlines()[0][:200]})"
    )


def advice_on_memory(batch_size: int | None, accumulate: int = 1) -> str:
    """What to try after an error that memory ran out.

    Args:
        batch_size: Images per process; None if unknown.
        accumulate: Batches per update so far.
    """
    if not batch_size or batch_size < 2:
        return (
            "out of memory with a batch of 1: try --model.grad_checkpointing true, --trainer.precision bf16-mixed, "
            "smaller images or a smaller model"
        )
    smaller = batch_size // 2
    smaller -= smaller % 8 if smaller > 8 else 0
    steps = math.ceil(batch_size * accumulate / smaller)
    before, after = batch_size * accumulate, smaller * steps
    total = "the same" if before == after else f"{after} instead of {before}"
    return (
        f"out of memory with a batch of {batch_size} images: try --data.batch_size {smaller} "
        f"--trainer.accumulate_grad_batches {steps} (images per update and process: {total}). "
        "--model.grad_checkpointing true or --trainer.precision bf16-mixed also save memory"
    )


def _size(batch: Any) -> int | None:
    images = getattr(batch, "images", None)
    if images is None and isinstance(batch, tuple | list) and batch:
        images = batch[0]
    return len(images) if isinstance(images, torch.Tensor | list) else None


def _some(names: list[str]) -> str:
    if not names:
        return "unknown (the batch does not name them)"
    more = f" and {len(names) - SHOWN} more of the batch" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
