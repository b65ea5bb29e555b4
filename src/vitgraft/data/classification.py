"""`ImageData`: everything between a path and the batches that a trainer takes. Needs the `train` extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from vitgraft.data.base import DataModule
from vitgraft.data.generated import GeneratedSource
from vitgraft.data.images import ImageDataset
from vitgraft.data.loader import Loader
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.open import FORMATS, check_same_classes, open_files, open_source
from vitgraft.data.readers.tar import is_tar
from vitgraft.data.transforms import (
    Augmentation,
    Preprocessing,
    eval_transform,
    model_preprocessing,
    train_transform,
)
from vitgraft.errors import DataError

# three draws of a sample: facebookresearch/deit samplers.py
REPEATS = 3
FIELDS = {field.name for field in fields(Preprocessing)}


class ImageData(DataModule):
    """Labelled images for training and evaluation.

    Args:
        root: folder with the splits, tar, shard pattern or URL; `vitgraft.data.readers.open.open_source` says what is
            found.
        train: split of `root` to train on, or a path of its own: with a slash, a shard pattern, or the name of a tar.
        val: split of `root` to validate on, or a path of its own.
        test: likewise for `test`; None is the validation split.
        predict: files, folders or a tar for `predict`.
        format: "folder", "tar", "shards", "imagenet-val" or "huggingface", where it is not to be found out.
        num_classes: how many classes there must be; None takes what is found.
        class_names: names of the labels, for shards that carry numbers only.
        batch_size: images per step of each process.
        eval_batch_size: likewise in evaluation; None is `batch_size`.
        workers: loader processes for each process; they change nothing in the batches.
        seed: order and augmentation are functions of it.
        input_size: side of the square images, or (height, width), in pixels; None is the model's own.
        mean: of each colour, 0 to 1; None is the model's own.
        std: of each colour, 0 to 1; None is the model's own.
        interpolation: of the resize in evaluation; None is the model's own.
        crop_pct: share of the resized side that evaluation keeps; None is the model's own.
        scale: as in `Augmentation`, like all down to `recount`.
        ratio: see there.
        hflip: see there.
        vflip: see there.
        color_jitter: see there.
        auto_augment: see there.
        train_interpolation: see there.
        train_crop_mode: see there.
        reprob: see there.
        remode: see there.
        recount: see there.
        repeated_aug: DeiT's repeated augmentation, three draws of a sample in a row.
        cache: keep decoded images in memory; for small sets of small images.
        cache_dir: folder for unpacked tars, indices and downloaded shards; None is ~/.cache/vitgraft.
        cache_gb: most that downloaded shards may take there.
        smoke: generated images instead of the real ones.

    Raises:
        ValueError: options that can't be; all of them are named.
    """

    def __init__(
        self,
        root: str | None = None,
        train: str = "train",
        val: str = "val",
        test: str | None = None,
        predict: list[str] | None = None,
        format: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        workers: int = 4,
        seed: int = 0,
        input_size: int | tuple[int, int] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str | None = None,
        crop_pct: float | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 1.3333333333333333),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float | None = 0.4,
        auto_augment: str | None = None,
        train_interpolation: str = "random",
        train_crop_mode: str = "rrc",
        reprob: float = 0.0,
        remode: str = "pixel",
        recount: int = 1,
        repeated_aug: bool = False,
        cache: bool = False,
        cache_dir: str | None = None,
        cache_gb: float = 64.0,
        smoke: bool = False,
    ):
        super().__init__(batch_size, eval_batch_size, workers, seed, smoke)
        if wrong := self.problems({name: value for name, value in locals().items() if name != "self"}):
            raise ValueError("data: " + "; ".join(wrong))
        self.root, self.format, self.num_classes, self.given_names = root, format, num_classes, class_names
        self.splits = {"train": train, "val": val, "test": test or val}
        self.has_test = test is not None
        self.predict = predict
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else input_size
        self.model_options = {"mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct}
        self.augmentation = Augmentation(
            scale=tuple(scale),
            ratio=tuple(ratio),
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            train_interpolation=train_interpolation,
            train_crop_mode=train_crop_mode,
            reprob=reprob,
            remode=remode,
            recount=recount,
        )
        self.repeats = REPEATS if repeated_aug else 1
        self.cache, self.cache_dir, self.cache_gb = cache, cache_dir, cache_gb
        self._sources: dict[str, ImageSource] = {}
        self._preprocessing: Preprocessing | None = None

    @classmethod
    def problems(cls, values: dict[str, Any]) -> list[str]:
        """What is wrong with options, one line each, without looking at any file.

        Args:
            values: options by name; those left out are not judged.
        """
        wrong = super().problems(values)
        size = values.get("input_size")
        if size is not None and min([size] if isinstance(size, int) else size) < 1:
            wrong.append(f"input_size={size}: at least 1 pixel")
        if (given := values.get("format")) is not None and given not in FORMATS:
            wrong.append(f"format={given!r}: one of {', '.join(FORMATS)}")
        if (crop := values.get("crop_pct")) is not None and not 0 < crop <= 1:
            wrong.append(f"crop_pct={crop}: over 0, at most 1")
        if (cache_gb := values.get("cache_gb")) is not None and cache_gb <= 0:
            wrong.append(f"cache_gb={cache_gb}: over 0")
        names = {field.name for field in fields(Augmentation)}
        return wrong + Augmentation.problems({name: value for name, value in values.items() if name in names})

    def smoke(self, num_classes: int | None = None) -> None:
        """Swaps in generated images, in small batches and without worker processes: for two quick steps."""
        super().smoke(num_classes)
        self.num_classes = num_classes or self.num_classes
        self.cache = False
        self._sources = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label; opens the training set, or the validation set where there is no training."""
        try:
            return self.source("train").class_names
        except DataError as error:
            try:
                return self.source("val").class_names
            except DataError:
                raise error from None

    @property
    def preprocessing(self) -> Preprocessing:
        """What the model expects of its images; known once the trainer has a model, or all of it was given."""
        if self._preprocessing is None:
            given = {name: value for name, value in self.model_options.items() if value is not None}
            # the model itself is built after the data is set up, it may take its number of classes from here
            config = getattr(getattr(self.trainer, "lightning_module", None), "data_config", None) or {}
            own = {name: value for name, value in config.items() if name in FIELDS}
            size = self.input_size or config.get("input_size", (224, 224))[-2:]
            self._preprocessing = Preprocessing(**own | given | {"input_size": tuple(size)})
        return self._preprocessing

    def use_model(self, model: torch.nn.Module) -> None:
        """Takes from a timm model what was not given: input size, mean, std, interpolation, crop."""
        self._preprocessing = model_preprocessing(model, self.input_size, **self.model_options)

    def source(self, split: str) -> ImageSource:
        """The images of "train", "val", "test" or "predict"; opened once.

        Raises:
            DataError: nothing there, or another number of classes than `num_classes`.
        """
        if split not in self._sources:
            self._sources[split] = self._open(split)
        return self._sources[split]

    def _open(self, split: str) -> ImageSource:
        if split == "predict":
            if not self.predict:
                raise DataError("predict: no files were named (data.predict)")
            return open_files(self.predict)
        if self.is_smoke:
            length = 64 if split == "train" else 10
            return GeneratedSource(length * self.repeats, self.num_classes or 10, self.preprocessing.input_size)
        given = self.splits[split]
        # "train" is the split even where the working folder has a folder of that name
        own_path = any(mark in given for mark in ("/", "\\", "{", "hf:")) or is_tar(given)
        if self.root is None and not own_path:
            raise DataError("data.root: name the folder, tar or shards with the images")
        source = open_source(
            given if own_path else self.root,
            None if own_path else given,
            self.format,
            self.given_names,
            self.cache_dir,
            self.cache_gb,
        )
        if self.num_classes is not None and len(source.class_names) != self.num_classes:
            raise DataError(
                f"num_classes={self.num_classes}: {source.where()} has {len(source.class_names)} classes "
                f"({', '.join(source.class_names[:4])}, ...)"
            )
        return source

    def prepare_data(self) -> None:
        """Unpacks and indexes once for each machine what needs it."""
        if not self.is_smoke and self.root is not None:
            for split in ("train", "val"):
                try:
                    self.source(split)
                except DataError:
                    continue  # what is needed is asked for in `setup`, and fails there

    def setup(self, stage: str) -> None:
        """Opens what a stage needs: "fit", "validate", "test" or "predict".

        Raises:
            DataError: it is not there, or training and validation differ in their classes.
        """
        if stage == "fit":
            check_same_classes(self.source("train"), self.source("val"))
        else:
            self.source({"validate": "val"}.get(stage, stage))
        if stage == "test" and not self.has_test and not self.is_smoke:
            print(f"no test set is named (data.test): this measures the validation set, {self.splits['val']!r}")

    def samples(self, split: str, train: bool) -> ImageDataset:
        """The labelled images of "train", "val", "test" or "predict"."""
        if train:
            transform = train_transform(self.preprocessing, self.augmentation)
        else:
            transform = eval_transform(self.preprocessing)
        return ImageDataset(self.source(split), transform, self.seed, train, self.cache)

    @property
    def blocks(self) -> Sequence[int] | None:
        """Sizes of the training set's shards."""
        return self.source("train").blocks

    def num_training_samples(self) -> int:
        """Training images."""
        return len(self.source("train"))

    def predict_dataloader(self) -> Loader:
        """What `predict` names, or the test set; in order, each sample once over all processes."""
        return self._eval_loader("predict" if self.predict else "test")
