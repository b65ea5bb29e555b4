"""`DataModule`: from datasets to the batches that a trainer takes, for all tasks. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vitgraft.data.loader import Loader
from vitgraft.data.samples import Samples
from vitgraft.data.sampling import EvalOrder, TrainOrder
from vitgraft.errors import MissingExtraError

try:
    import pytorch_lightning as pl
except ImportError as error:
    raise MissingExtraError("pytorch-lightning", "train") from error

__all__ = ["DataModule"]


class DataModule(pl.LightningDataModule):
    """Loaders whose batches are functions of (seed, epoch, step): the number of workers changes nothing, a resumed
    run goes on at the batch where it stopped, and an evaluation has every sample once over all processes.

    Data of its own gives `samples`, `class_names` and `smoke`.

    Args:
        batch_size: images per step of each process.
        eval_batch_size: likewise in evaluation; None is `batch_size`.
        workers: loader processes for each process.
        seed: order and augmentation are functions of it.
        smoke: generated images instead of the real ones.

    Raises:
        ValueError: options that can't be; all of them are named.
    """

    # where an order is more than a permutation of the samples
    repeats = 1

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        workers: int = 4,
        seed: int = 0,
        smoke: bool = False,
    ):
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.workers, self.seed = workers, seed
        self.is_smoke = smoke
        self._loaders: list[Loader] = []

    @classmethod
    def problems(cls, values: dict[str, Any]) -> list[str]:
        """What is wrong with options, one line each, without looking at any file.

        Args:
            values: options by name; those left out are not judged.
        """
        wrong = []
        for name, least in {"batch_size": 1, "eval_batch_size": 1, "workers": 0, "num_classes": 1, "seed": 0}.items():
            value = values.get(name)
            if value is not None and value < least:
                wrong.append(f"{name}={value}: at least {least}")
        return wrong

    @classmethod
    def options_of(cls, data_config: dict[str, Any]) -> dict[str, Any]:
        """The options that make images ready as a checkpoint's data_config says."""
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """What an evaluation says of its data beside the set's name."""
        return {}

    # what data gives

    def samples(self, split: str, train: bool) -> Samples:
        """The dataset of "train", "val", "test" or "predict".

        Args:
            split: which of them.
            train: whether it is augmented.
        """
        raise NotImplementedError

    @property
    def class_names(self) -> Sequence[str]:
        """The name of each label."""
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[int] | None:
        """Sizes of the shards that the training samples lie in; None where any order is as fast."""
        return None

    def smoke(self, num_classes: int | None = None) -> None:
        """Swaps in generated images, in small batches and without worker processes: for two quick steps."""
        self.is_smoke = True
        self.batch_size, self.eval_batch_size = min(self.batch_size, 4), min(self.eval_batch_size, 4)
        self.workers = 0

    # loaders

    def train_dataloader(self) -> Loader:
        """Batches of an epoch from where the trainer stands."""
        return self._loader(self.samples("train", True), self.train_order(), self._position)

    def train_order(self, world_size: int | None = None) -> TrainOrder:
        """Which samples make up which batch of this process.

        Args:
            world_size: of so many processes instead of the trainer's.
        """
        mine, rank = self._process()
        return TrainOrder(
            self.num_training_samples(),
            self.seed,
            self.batch_size,
            world_size or mine,
            rank if world_size is None else 0,
            self.repeats,
            self.blocks,
        )

    def num_training_samples(self) -> int:
        """Samples that an epoch draws from."""
        return len(self.samples("train", True))

    def steps_per_epoch(self, world_size: int | None = None, accumulate: int = 1) -> int:
        """Optimiser steps of an epoch, with gradients of `accumulate` batches in each; the last may have fewer."""
        return -(-len(self.train_order(world_size)) // accumulate)

    def val_dataloader(self) -> Loader:
        """The validation set, each sample once over all processes."""
        return self._eval_loader("val")

    def test_dataloader(self) -> Loader:
        """The test set, each sample once over all processes."""
        return self._eval_loader("test")

    def teardown(self, stage: str) -> None:
        """Ends worker processes."""
        for loader in self._loaders:
            loader.shut_down()
        self._loaders = []

    def _eval_loader(self, split: str) -> Loader:
        samples = self.samples(split, False)
        return self._loader(samples, EvalOrder(len(samples), self.eval_batch_size, *self._process()), None)

    def _loader(self, samples: Samples, order: TrainOrder | EvalOrder, position) -> Loader:
        on_gpu = torch.cuda.is_available() and (
            self.trainer is None or self.trainer.strategy.root_device.type == "cuda"
        )
        loader = Loader(samples, order, self.workers, on_gpu, position if self.trainer is not None else None)
        self._loaders.append(loader)
        return loader

    def _process(self) -> tuple[int, int]:
        """Number of processes, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _position(self) -> tuple[int, int]:
        """Where the trainer stands: the epoch, and the number that it gives to the next batch.

        Read when the first batch is asked for: a loader is made before Lightning has settled, after a restart, whether
        the batch or the epoch that it saved in was finished.
        """
        loop = self.trainer.fit_loop
        epoch = 0 if self.trainer.overfit_batches else loop.epoch_progress.current.processed
        return epoch, loop.epoch_loop.batch_progress.current.ready
