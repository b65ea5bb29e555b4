"""`DataModule`: from datasets to the batches that a trainer takes, for all tasks. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from vitgraft.data.findings import HOLD_OUT, Check, Finding
from vitgraft.data.learnable import common_classes, look, show_and_stop
from vitgraft.data.loader import TIMEOUT, Loader, Samples
from vitgraft.data.readers.base import Source, check_same_classes
from vitgraft.data.sampling import EvalOrder, TrainOrder
from vitgraft.data.split import RECORD, hold_out, read_record, same_images, write_record
from vitgraft.errors import DataError, MissingExtraError, MissingSplitError
from vitgraft.options import value_errors

try:
    import pytorch_lightning as pl
except ImportError as error:
    raise MissingExtraError("pytorch-lightning", "train") from error

__all__ = ["DataModule"]


class DataModule(pl.LightningDataModule):
    """Loaders whose batches are functions of (seed, epoch, step): the number of workers changes nothing, a resumed
    run continues at the batch where it stopped, and an evaluation has every sample once over all processes.

    Subclasses define `open`, `samples` and `make_preprocessing`.

    Args:
        root: Where the dataset is.
        train: Split to train on.
        val: Split to validate on.
        test: Split for `test`; None is the validation split.
        val_fraction: Fraction of the training images that is held out for validation, where the dataset has no
            validation split: stratified by class, a function of the seed and the names of the images, written to
            split.json in the run's folder, which decides when the run is resumed or evaluated.
        mean: Per channel, 0 to 1; None is the model's own.
        std: Per channel, 0 to 1; None is the model's own.
        batch_size: Images per step of each process.
        eval_batch_size: Images per step of each process in evaluation; None is `batch_size`.
        workers: Loader processes of each process; they change nothing in the batches.
        timeout: Seconds to wait for a batch of the loader processes before the run ends; 0 waits for ever.
        seed: Order and augmentation are functions of it; also which digit scenes are trained on.
        cache_dir: Folder for unpacked tars, indices and downloaded shards; None is ~/.cache/vitgraft.
        smoke: Generated images instead of the real ones.
    """

    # what options may be, beyond their types
    LIMITS: ClassVar[dict[str, Any]] = {
        "batch_size": PositiveInt,
        "eval_batch_size": PositiveInt,
        "workers": NonNegativeInt,
        "timeout": NonNegativeInt,
        "seed": NonNegativeInt,
        "num_classes": PositiveInt,
        "val_fraction": Annotated[float, Field(gt=0, lt=1)],
    }
    # how often a sample is drawn in a row
    repeats = 1
    # whether every class is drawn equally often
    is_balanced = False

    def __init__(
        self,
        root: str | None = None,
        train: str | list[str] = "train",
        val: str | list[str] = "val",
        test: str | list[str] | None = None,
        val_fraction: float | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        workers: int = 4,
        timeout: int = TIMEOUT,
        seed: int = 0,
        cache_dir: str | None = None,
        smoke: bool = False,
    ):
        super().__init__()
        self.root, self.cache_dir = root, cache_dir
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.workers, self.timeout, self.seed = workers, timeout, seed
        self.is_smoke = smoke
        self.model_options = {"mean": mean, "std": std}
        self.num_classes: int | None = None
        self.splits = {"train": train, "val": val, "test": test or val}
        self.has_test = test is not None
        self.val_fraction = val_fraction
        self._held_out: tuple[list[str], np.ndarray] | None = None
        self._sources: dict[str, Source] = {}
        self._preprocessing: Any = None
        self._loaders: list[Loader] = []

    @classmethod
    def option_errors(cls, values: dict[str, Any]) -> list[str]:
        """Errors of options, one line each, without looking at any file.

        Args:
            values: Options by name; those left out are not judged.
        """
        given = {name: kind for name, kind in cls.LIMITS.items() if values.get(name) is not None}
        return [line for name, kind in given.items() for line in value_errors(name, values[name], kind)]

    @classmethod
    def check_options(cls, values: dict[str, Any]) -> None:
        """Refuses options that are not possible.

        Raises:
            ValueError: All of them at once.
        """
        if errors := cls.option_errors(values):
            raise ValueError("data: " + "; ".join(errors))

    @classmethod
    def options_of(cls, data_config: dict[str, Any]) -> dict[str, Any]:
        """The options that prepare images as a checkpoint's data_config asks for."""
        return {}

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the data for an evaluation's report, beside the dataset's name."""
        return {}

    # what subclasses define

    def open(self, split: str) -> Source:
        """Opens the images of "train", "val" or "test".

        Raises:
            DataError: They are not there, or can't be used.
        """
        raise NotImplementedError

    def samples(self, split: str, train: bool) -> Samples:
        """The dataset of a split.

        Args:
            split: "train", "val" or "test".
            train: Whether it is augmented.
        """
        raise NotImplementedError

    def check(self, split: str) -> Check | None:
        """What is examined of a split before a run, as `vitgraft check-data` does; None is nothing."""
        return None

    def passed_over(self) -> str:
        """Annotations in `root` that are not read, in a sentence; may be empty."""
        return ""

    def findings(self, splits: Sequence[str]) -> list[Finding]:
        """Errors and warnings of splits, by their annotations and a sample of their images.

        Args:
            splits: "train", "val", "test".
        """
        found = []
        if more := self.passed_over():
            found.append(Finding("warning", "passed over", str(self.root), more))
        checks = [check for split in splits if (check := self.check(split)) is not None]
        for check in checks:
            look(check)
            found += [*check.file_findings(), *check.learnable()]
        for other in checks[1:]:
            found += common_classes(checks[0], other)
            same = other.files and same_images(checks[0].files, other.files)
            if same or (len(other.digests) > 1 and other.digests <= checks[0].digests):
                text = f"the images are those of training: what is measured on them is no validation. {HOLD_OUT}"
                found.append(Finding("warning", "same images", other.where, text))
        return found

    def check_pair(self, train: Source, val: Source) -> None:
        """Checks that training and validation fit each other.

        Raises:
            DataError: They have different classes.
        """
        check_same_classes(train, val)

    def make_preprocessing(self) -> Any:
        """How images are prepared, by the options and `of_model`."""
        raise NotImplementedError

    # datasets

    @property
    def preprocessing(self) -> Any:
        """How images are prepared; known once the trainer has a model, or all of it was given."""
        if self._preprocessing is None:
            self._preprocessing = self.make_preprocessing()
        return self._preprocessing

    def of_model(self, *names: str) -> dict[str, Any]:
        """Values of the model's data_config, and of the options of these names that were given instead.

        The model itself is built after the data is set up, since it may take its number of classes from here.
        """
        own = {name: self.model_config[name] for name in names if name in self.model_config}
        given = {name: value for name, value in self.model_options.items() if value is not None}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in (own | given).items()}

    def source(self, split: str) -> Source:
        """The images of a split; opened once.

        Raises:
            DataError: They are not there, or can't be used.
        """
        if split not in self._sources:
            try:
                self._sources[split] = self.open(split)
            except MissingSplitError as error:
                if split == "test" or self.val_fraction is not None:
                    raise
                raise MissingSplitError(f"{error}; {HOLD_OUT}") from error
        return self._sources[split]

    # a validation part of the training images

    def is_part(self, split: str) -> bool:
        """Whether a split is a part of the training images, by `val_fraction`."""
        of_training = split in ("train", "val") or (split == "test" and not self.has_test)
        return self.val_fraction is not None and of_training and not self.is_generated

    def check_no_val(self, has_val: Callable[[], bool]) -> None:
        """Refuses `val_fraction` where there are validation images already.

        Args:
            has_val: Whether the split `val` is there and another than `train`.

        Raises:
            DataError: There are.
        """
        try:
            if not has_val():
                return
        except MissingSplitError:
            return
        except DataError:
            pass  # it is there, and damaged
        raise DataError(
            f"data.val_fraction={self.val_fraction}: there is a validation split already, {self.splits['val']!r}: "
            "leave the option out (or null)"
        )

    def in_part(self, split: str, where: str, names: Sequence[str], strata: Sequence[Any]) -> np.ndarray:
        """Which of all training images are in a split that is a part of them, bool (N,).

        Those that the run's folder names are held out, where it was evaluated or begun with the same options; of a new
        run, those of `hold_out`.

        Args:
            split: "train", "val" or "test".
            where: The dataset, which names begin with.
            names: Of the images.
            strata: Of each image.

        Raises:
            DataError: The run's record is of other images or options, or nothing is left of one of both parts.
        """
        if self._held_out is None:
            start = where.rstrip("/") + "/"
            names = [name.removeprefix(start) for name in names]
            record = {} if self._run_folder is None else read_record(self._run_folder)
            is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
            fraction = record.get("val_fraction")
            if is_fit and (fraction, record.get("seed")) != (self.val_fraction, self.seed):
                record = {}  # of a run that never began
            if record and fraction != self.val_fraction:
                raise DataError(
                    f"data.val_fraction={self.val_fraction}: the run held out {fraction} ({self._run_folder}/{RECORD})"
                )
            if record:
                held = np.isin(names, record["val"])
            else:
                held = hold_out(names, strata, self.val_fraction, self.seed)
            if record and not held.any():
                raise DataError(
                    f"{where}: has none of the {len(record['val'])} validation images of the run "
                    f"({self._run_folder}/{RECORD}): give the run's own data as data.root, or for other data "
                    "data.val_fraction=null and data.val"
                )
            if not held.any() or held.all():
                raise DataError(
                    f"data.val_fraction={self.val_fraction}: nothing is left of {len(names)} images for one part"
                )
            self._held_out = names, held
        return ~self._held_out[1] if split == "train" else self._held_out[1]

    @property
    def _run_folder(self) -> Path | None:
        """The folder of the trainer's run."""
        folder = None if self.trainer is None else Path(self.trainer.default_root_dir)
        return folder if folder is not None and (folder / "run.json").is_file() else None

    @property
    def is_generated(self) -> bool:
        """Whether there are no files: `smoke`, or digit scenes."""
        return self.is_smoke

    @property
    def class_names(self) -> Sequence[str]:
        """The name of each label; opens the training set, or the validation set where there is no training."""
        try:
            return self.source("train").class_names
        except DataError as error:
            try:
                return self.source("val").class_names
            except DataError:
                raise error from None

    def setup(self, stage: str) -> None:
        """Opens what a stage needs: "fit", "validate" or "test".

        Raises:
            DataError: It is not there, there is nothing to learn, or training and validation do not fit each other.
        """
        splits = ("train", "val") if stage == "fit" else ({"validate": "val"}.get(stage, stage),)
        for split in splits:
            self.source(split)
        if stage == "fit" and self._held_out is not None and self._run_folder is not None and not self._process()[1]:
            write_record(self._run_folder, self.val_fraction, self.seed, *self._held_out)
        if not self.is_generated:
            show_and_stop(self.findings(splits), self._process()[1] == 0)
        if stage == "fit":
            self.check_pair(self.source("train"), self.source("val"))
        if stage == "test" and not self.has_test and not self.is_generated:
            val = f"the fraction {self.val_fraction}" if self.is_part("val") else repr(self.splits["val"])
            print(f"data.test is not set: this measures the validation set, {val}")

    def smoke(self, num_classes: int | None = None) -> None:
        """Swaps in generated images, in small batches and without worker processes: for two quick steps."""
        self.is_smoke = True
        self.batch_size, self.eval_batch_size = min(self.batch_size, 4), min(self.eval_batch_size, 4)
        self.workers = 0
        self.num_classes = num_classes or self.num_classes
        self._sources, self._preprocessing = {}, None

    @property
    def model_config(self) -> dict[str, Any]:
        """The data_config of the trainer's model, where there is one."""
        return getattr(getattr(self.trainer, "lightning_module", None), "data_config", None) or {}

    # loaders

    def train_dataloader(self) -> Loader:
        """Batches of an epoch from the trainer's position."""
        return self._loader(self.samples("train", True), self.train_order(), self._position)

    def train_order(self, world_size: int | None = None) -> TrainOrder:
        """Which samples make up which batch of this process.

        Args:
            world_size: Number of processes instead of the trainer's.
        """
        mine, rank = self._process()
        rank = rank if world_size is None else 0
        source = self.source("train")
        blocks, labels = getattr(source, "blocks", None), source.labels if self.is_balanced else None
        if blocks is not None and labels is not None:
            raise DataError("data.sampler=balanced: shards are read in their order; unpack them, or give null")
        length, processes = self.num_training_samples(), world_size or mine
        return TrainOrder(
            length, self.seed, self.batch_size, processes, rank, self.repeats, blocks=blocks, labels=labels
        )

    def num_training_samples(self) -> int:
        """Samples of an epoch."""
        return len(self.source("train"))

    def class_counts(self) -> np.ndarray:
        """How often each class is in the training set, int64 (classes,): images, or pixels of label maps.

        Raises:
            NotImplementedError: They are not counted in data of this kind.
        """
        raise NotImplementedError

    def steps_per_epoch(self, world_size: int | None = None, accumulate: int = 1) -> int:
        """Optimizer steps of an epoch, with gradients of `accumulate` batches in each; the last may have fewer."""
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
        world_size, rank = self._process()
        if len(samples) < world_size:  # Lightning stops in the processes without a batch, the others wait for them
            raise DataError(
                f"the {split} set has {len(samples)} images, fewer than the {world_size} processes "
                f"(trainer.devices x trainer.num_nodes): at most {len(samples)} processes"
            )
        return self._loader(samples, EvalOrder(len(samples), self.eval_batch_size, world_size, rank), None)

    def _loader(self, samples: Samples, order: TrainOrder | EvalOrder, position) -> Loader:
        on_gpu = torch.cuda.is_available() and (
            self.trainer is None or self.trainer.strategy.root_device.type == "cuda"
        )
        position = position if self.trainer is not None else None
        loader = Loader(samples, order, self.workers, on_gpu, position, self.timeout)
        self._loaders.append(loader)
        return loader

    def _process(self) -> tuple[int, int]:
        """Number of processes, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _position(self) -> tuple[int, int]:
        """The trainer's epoch, and the number that it gives to the next batch.

        Read when the first batch is asked for: a loader is made before Lightning has settled, after a restart, whether
        the batch or the epoch that it saved in was finished.
        """
        loop = self.trainer.fit_loop
        epoch = 0 if self.trainer.overfit_batches else loop.epoch_progress.current.processed
        return epoch, loop.epoch_loop.batch_progress.current.ready
