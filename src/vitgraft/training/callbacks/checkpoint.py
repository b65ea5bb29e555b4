"""Saves a run for exact resume: at the end of an epoch, every N updates, and on signals.

`Checkpoints` takes the place of Lightning's ModelCheckpoint. What it saves is consistent by choice of the moment:
between two updates, never with gradients waiting, and in a validation only marked so that it is done again.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pydantic import validate_call
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from vitgraft.atomic import check_writable
from vitgraft.errors import CheckpointError, TrainingError
from vitgraft.options import WholeNumber
from vitgraft.terminal import note, warn
from vitgraft.weights import files as checkpoint_files

__all__ = ["Checkpoints", "Interrupted", "VerifiedCheckpointIO"]

PREFIX = "model."
STATE = ("best_score", "best_step", "validations_since_best")
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(SystemExit):
    """A signal ended the run, after it was saved. The exit code is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class VerifiedCheckpointIO(TorchCheckpointIO):
    """How Lightning's strategies write and read checkpoints: whole or not at all, and verified.

    In the file, weights have the model's own names, so that timm loads it too: `model.` is taken off on saving and put
    back on loading, and what the task has beside the model is under `task_state`.

    Args:
        plain_names: Whether weights have the model's own names. Not for strategies that read files themselves (FSDP).
    """

    def __init__(self, plain_names: bool = True) -> None:
        super().__init__()
        self.plain_names = plain_names
        self._read_back = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file whole, or leaves the one that is there.

        Raises:
            TrainingError: No space, or the folder can't be written.
            CheckpointError: The run's own options can't be read back without running code.
        """
        checkpoint_files.write(with_plain_names(checkpoint) if self.plain_names else checkpoint, path)
        if not self._read_back:  # once in a run: what can't be read is better known at the start than at the end
            checkpoint_files.read_checkpoint(path, finite=False)  # losses that are not finite are the guards' business
            self._read_back = True

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Reads the file or, where it is damaged, the one before it; always as tensors and plain values alone.

        Raises:
            CheckpointError: Damaged, with none before it, or refused.
        """
        map_location = "cpu" if callable(map_location) else map_location
        content, _ = checkpoint_files.read_or_previous(path, map_location, rank_zero_only(warn))
        return with_task_names(content)


def with_plain_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with `state_dict` under the model's own names; other tensors of the task under `task_state`."""
    weights = checkpoint.get("state_dict", {})
    if "task_state" in checkpoint or not any(name.startswith(PREFIX) for name in weights):
        return checkpoint
    plain = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    rest = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    return {**checkpoint, "state_dict": plain, "task_state": rest}


def with_task_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `with_plain_names`; other checkpoints stay as they are."""
    if "task_state" not in checkpoint:
        return checkpoint
    if not isinstance(checkpoint["task_state"], dict):
        raise CheckpointError(f"task_state is {checkpoint['task_state']!r:.40}, not a mapping of tensors")
    named = {PREFIX + name: value for name, value in checkpoint["state_dict"].items()}
    rest = {key: value for key, value in checkpoint.items() if key != "task_state"}
    return {**rest, "state_dict": {**named, **checkpoint["task_state"]}}


class Checkpoints(pl.callbacks.Checkpoint):
    """Keeps `last.ckpt`, the file that it replaced (`last-previous.ckpt`), and `best.ckpt` in the run's folder.

    `last` is written at the end of every epoch (after its validation), every `every_n_steps` updates, and on SIGTERM,
    SIGUSR1 and Ctrl-C, which end the run once the current update is done (a second Ctrl-C ends it at once, unsaved).
    A run resumed from any of these files ends with the weights of the uninterrupted one, bit for bit on a CPU.

    Args:
        folder: None takes the trainer's `default_root_dir`.
        monitor: The metric that `best` is the best of; None takes the task's main one (`val/acc`, `val/mIoU`), of the
            averaged weights where they are evaluated (`val/acc_ema`), and no `best` where there is neither.
        mode: Whether a larger ("max") or smaller ("min") value is better.
        every_n_steps: Updates between two saves inside an epoch; 0: at its end only.
        early_stopping: Validations without a new best after which the run ends, at the end of the epoch; 0: never. The
            learning rate still follows the schedule of all epochs.
        handle_signals: Save on SIGTERM, SIGUSR1 and Ctrl-C.
        enabled: Whether anything is saved at all.
    """

    @validate_call
    def __init__(
        self,
        folder: str | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        every_n_steps: WholeNumber = 0,
        early_stopping: WholeNumber = 0,
        handle_signals: bool = True,
        enabled: bool = True,
    ):
        super().__init__()
        self.folder, self.monitor, self.mode = folder, monitor, mode
        self.every_n_steps, self.early_stopping, self.enabled = every_n_steps, early_stopping, enabled
        self.handle_signals = handle_signals and enabled
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.validations_since_best = 0
        self._improved = False
        self._validation_pending = False
        self._flush_loggers = False
        self._signal = self._leaving = 0
        self._handlers: dict[int, Any] = {}

    # Lightning's interface of checkpoint callbacks

    @property
    def last_model_path(self) -> str:
        """last.ckpt"""
        return str(Path(self.folder or ".") / "last.ckpt")

    @property
    def best_model_path(self) -> str:
        """best.ckpt, or "" while there is none."""
        return str(Path(self.folder or ".") / "best.ckpt") if self.best_score is not None else ""

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict.get(name, getattr(self, name)))

    # when to save

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses a folder that can't be written, before anything is trained.

        Raises:
            RunFolderError: It can't be written.
        """
        if not isinstance(trainer.strategy.checkpoint_io, VerifiedCheckpointIO):
            reads_itself = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
            trainer.strategy.checkpoint_io = VerifiedCheckpointIO(plain_names=not reads_itself)
        if getattr(trainer.strategy, "_save_distributed_checkpoint", False) and self.enabled:
            raise TrainingError(
                "trainer.strategy: give save_distributed_checkpoint: false, so that a checkpoint is one file that can "
                "be checked and exported"
            )
        self.folder = self.folder or trainer.default_root_dir
        self.enabled = self.enabled and not trainer.fast_dev_run
        if stage == "fit" and trainer.is_global_zero and self.enabled:
            check_writable(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _begin_next_epoch(trainer)
        self._stop_early(trainer)  # a resumed run that had been stopped
        # after Lightning's own handlers, which in a batch of several processes wait for each other inside the handler
        if self.handle_signals and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        # what belongs to the saved steps is logged after the save, but must not be lost with what comes later
        if self._flush_loggers:
            self._flush_loggers = False
            for logger in trainer.loggers:
                logger.save()
        self._leave(trainer, self._leaving)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.enabled or not _update_follows(trainer, batch_idx):
            return
        if batch_idx + 1 >= trainer.num_training_batches or _validation_follows(trainer, batch_idx):
            return  # saved after the validation, or at the end of the epoch
        number = self._agreed_signal(trainer)
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if number or due:
            self._save(trainer)
        self._leaving = number  # before the next batch, when the metrics of this one have been logged

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._in_fit(trainer):
            # after resuming, the mark of `on_save_checkpoint` is still counted
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
            self._interrupt_validation(trainer, self._agreed_signal(trainer))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        # several processes may have unequal numbers of batches, so they can't agree here
        if self._in_fit(trainer) and trainer.world_size == 1:
            self._interrupt_validation(trainer, self._signal)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._in_fit(trainer):
            return
        self._note_best(trainer)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._leaving = self._agreed_signal(trainer)
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.enabled:
            return
        if not trainer.enable_validation:
            self._note_best(trainer)
        self._stop_early(trainer)
        self._save(trainer)  # a signal ends the run after the next update, when the epoch's metrics have been logged

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    # how

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Marks a validation under way as not begun. In this form Lightning does the whole of it after resuming."""
        if self._validation_pending:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def _save(self, trainer: pl.Trainer) -> None:
        last = Path(self.last_model_path)
        if self._improved:
            # best before last: killed between them, the run repeats the steps since `last` and writes `best` again
            best = Path(self.best_model_path)
            trainer.save_checkpoint(best, weights_only=False)
            if trainer.is_global_zero:
                checkpoint_files.copy(best, last)
            trainer.strategy.barrier("vitgraft.Checkpoints")
        else:
            trainer.save_checkpoint(last, weights_only=False)
        self._improved, self._flush_loggers = False, True

    def _note_best(self, trainer: pl.Trainer) -> None:
        """Notes whether the metrics of the validation that has just ended are the best so far."""
        metrics = trainer.callback_metrics
        main = f"val/{getattr(trainer.lightning_module, 'MAIN', None) or 'acc'}"
        name = self.monitor or next((name for name in (f"{main}_ema", main) if name in metrics), None)
        if name is None:
            return
        if name not in metrics:
            raise TrainingError(f"monitor={name!r}: no such metric; there are {', '.join(sorted(metrics))}")
        self.validations_since_best += 1
        score = float(metrics[name])
        best = self.best_score
        if score != score:
            rank_zero_only(note)(
                f"step {trainer.global_step}: {name} is nan, there was nothing to measure it on; no best.ckpt from it"
            )
        elif best is None or (score > best if self.mode == "max" else score < best):
            self.best_score, self.best_step, self._improved = score, trainer.global_step, True
            self.validations_since_best = 0

    def _stop_early(self, trainer: pl.Trainer) -> None:
        epochs = trainer.fit_loop.epoch_progress.current.processed
        if not 0 < self.early_stopping <= self.validations_since_best or epochs < (trainer.min_epochs or 0):
            return
        trainer.should_stop = True
        best = "none so far" if self.best_score is None else f"{self.best_score:.4g} at step {self.best_step}"
        rank_zero_only(note)(
            f"early stopping after {epochs} epochs: nothing better in {self.validations_since_best} validations (best: "
            f"{best}; checkpoints.early_stopping: {self.early_stopping})"
        )

    def _interrupt_validation(self, trainer: pl.Trainer, number: int) -> None:
        if number:
            self._validation_pending = True
            self._save(trainer)
            self._leave(trainer, number)

    def _in_fit(self, trainer: pl.Trainer) -> bool:
        return self.enabled and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

    # signals

    def _receive(self, number: int, frame: Any) -> None:
        if self._signal and number == signal.SIGINT:
            raise Interrupted(number)
        self._signal = number
        if number == signal.SIGINT:
            os.write(2, b"\nsaving after this update; Ctrl-C again to end at once, unsaved\n")

    def _agreed_signal(self, trainer: pl.Trainer) -> int:
        """The signal that some process received, the same in all."""
        if trainer.world_size == 1 or not self.handle_signals:
            return self._signal
        found = torch.tensor(self._signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(found, reduce_op="max"))

    def _leave(self, trainer: pl.Trainer, number: int) -> None:
        if not number:
            return
        name = signal.Signals(number).name
        if trainer.is_global_zero:
            note(f"{name}: saved {self.last_model_path} at step {trainer.global_step}; --resume continues from it")
        raise Interrupted(number)

    def _restore_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        self._handlers = {}


def _begin_next_epoch(trainer: pl.Trainer) -> None:
    """Puts the loops right after resuming at the end of an epoch.

    With `max_steps`, Lightning 2.6 takes any resumed run for one inside an epoch: it ends the finished epoch a second
    time and trains one epoch less. Without `max_steps` it does what this does.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.processed == epochs.completed + 1:
        loop.epoch_progress.increment_completed()
        loops = [loop]
        while loops:
            loop = loops.pop()
            loop._restarting = False
            loop.reset_restart_stage()
            loops += [child for child in vars(loop).values() if isinstance(child, _Loop)]


def _update_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this batch, that is, whether no gradients are left waiting."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or batch_idx + 1 >= trainer.num_training_batches


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch inside an epoch (`val_check_interval`)."""
    if not trainer.enable_validation:
        return False
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if every in (None, float("inf")):
        return False
    if epochs is None:
        return (trainer.fit_loop.total_batch_idx + 1) % every == 0
    return (trainer.current_epoch + 1) % epochs == 0 and (batch_idx + 1) % every == 0
