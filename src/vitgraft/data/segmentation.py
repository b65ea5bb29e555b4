"""`SegmentationData`: images with label maps, from a path to the batches that a trainer takes.

Needs the `train` extra.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, get_type_hints

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor

from vitgraft.data.base import DataModule
from vitgraft.data.check_semantic import PairCheck
from vitgraft.data.digits import DigitScenePixels, SceneSize
from vitgraft.data.findings import Options
from vitgraft.data.label_maps import LabelRule, Pairs, find_pairs, read_class_names, unknown_classes
from vitgraft.data.label_table import TableRule, paths_of_colors, read_colors, rule_of_values
from vitgraft.data.layout import passed_over
from vitgraft.data.loader import Batch, Samples
from vitgraft.data.readers.base import Source
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.data.segmentation_transforms import (
    EvalTransform,
    SegmentationAugmentation,
    SegmentationPreprocessing,
    TrainTransform,
)
from vitgraft.errors import DataError, ImageError
from vitgraft.options import Sizes

__all__ = ["SegmentationData", "SegmentationSamples"]


class SegmentationSamples(Samples):
    """Images with labels, transformed.

    Args:
        source: Images and labels.
        transform: (RGB image, uint8 (H, W)) -> (float32 (3, h, w), int64 (h', w')).
        seed: The run's seed; the augmentation of a draw is a function of it and of the draw.
        train: Whether an unreadable image is replaced (training, whose batches are stacked) or left out (evaluation).
    """

    def __init__(self, source: Source, transform: Any, seed: int = 0, train: bool = False):
        super().__init__(source, seed, train)
        self.transform = transform

    def prepare(self, loaded: tuple[Image.Image, np.ndarray], index: int) -> tuple[Tensor, Tensor]:
        return self.transform(*loaded)

    def collate(self, samples: list[tuple[Tensor, Tensor]], indices: list[int], bad: list[str]) -> Batch:
        images, labels = [image for image, _ in samples], [label for _, label in samples]
        places = torch.tensor(indices, dtype=torch.int64)
        if self.train:
            return Batch(torch.stack(images), torch.stack(labels), places, bad)
        return Batch(images, labels, places, bad)


class SegmentationData(DataModule):
    """Images with a class for every pixel, for training and evaluation; without `root`, scenes of digits.

    The values of some label files are counted before a run: values that are not possible are an error that names file
    and value. While it runs, files that can't be read are left out and named; label files of another size than their
    image, with colors, or with impossible values end it: `vitgraft check-data` finds all of them beforehand.

    Args:
        root: Folder or tar in ADE20K's layout, or the folder that pairs are named from. None: digit scenes.
        train: Split of `root` to train on, or two folders, that of the images and that of the label files.
        val: Split of `root` to validate on, or two folders.
        test: Split of `root` for `test`, or two folders; None is the validation set.
        reduce_zero_label: Whether the value 0 of label files is no class and ignored, and 1 to C are the classes. Must
            be set where there is a `root`: it cannot be inferred from the files alone.
        ignore_index: Value of label files that is ignored; None: there is none.
        colors: Table of the colors of label files and their classes, a path here or below `root`: CSV with red, green,
            blue, name, or CVAT's labelmap.txt. Takes the place of `reduce_zero_label` and `class_names`.
        label_values: Value of label files -> name of its class, such as {0: background, 255: object}; the name ignore
            is no class. Likewise.
        num_classes: How many classes there must be; None takes the number of class names.
        class_names: Of the classes; None reads `classes.txt` or `objectInfo150.txt` in `root`.
        image_suffix: Of image files, behind the name that they share with their labels.
        label_suffix: Of label files, behind the name that they share with their images.
        batch_size: Images per step of each process.
        eval_batch_size: Images at a time in evaluation.
        crop_size: Side of the square training crops, or (height, width), in pixels; None is the model's input size.
        short_side: Images are resized so that the shorter side has so many pixels (training: times a random factor);
            None: they keep their size.
        long_side: Unless the longer side would have more than this.
        antialias: Whether shrinking averages pixels.
        scale: Smallest and largest factor on the evaluation's size.
        cat_max_ratio: Largest fraction of the labeled pixels of a crop that one class may have; 1: any crop will do.
        hflip: Probability of a horizontal flip.
        photometric: Whether brightness, contrast, saturation and hue are varied.
        scenes: Digit scenes to train on.
        val_scenes: Digit scenes to validate and test on, made of other scans.
        scene_size: Side of a scene, pixels.
        common: Options of every data module; `smoke` takes digit scenes.

    Raises:
        ValueError: Options that are not possible, all at once.
    """

    LIMITS: ClassVar[dict[str, Any]] = {
        **DataModule.LIMITS,
        **get_type_hints(SegmentationAugmentation, include_extras=True),
        **dict.fromkeys(("short_side", "long_side", "scenes", "val_scenes"), PositiveInt),
        "crop_size": Sizes,
        "scene_size": SceneSize,
    }

    def __init__(
        self,
        root: str | None = None,
        train: str | list[str] = "training",
        val: str | list[str] = "validation",
        test: str | list[str] | None = None,
        reduce_zero_label: bool | None = None,
        ignore_index: int | None = 255,
        colors: str | None = None,
        label_values: dict[int, str] | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        image_suffix: str = "",
        label_suffix: str = "",
        batch_size: int = 16,
        eval_batch_size: int = 1,
        crop_size: int | tuple[int, int] | None = None,
        short_side: int | None = None,
        long_side: int | None = None,
        antialias: bool = True,
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
        scenes: int = 4000,
        val_scenes: int = 500,
        scene_size: int = 64,
        **common,
    ):
        self.check_options(locals() | common)
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        super().__init__(root=root, train=train, val=val, test=test, **sizes, **common)
        self.num_classes, self.given_names = num_classes, class_names
        self.reduce_zero_label, self.ignore_index = reduce_zero_label, ignore_index
        self.colors, self.label_values = colors, label_values
        self.suffixes = (image_suffix, label_suffix)
        self.crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.resizing = {"short_side": short_side, "long_side": long_side, "antialias": antialias}
        self.augmentation = SegmentationAugmentation(tuple(scale), cat_max_ratio, hflip, photometric)
        self.scenes = {"train": scenes, "val": val_scenes, "test": val_scenes}
        self.scene_size = scene_size
        self._files: Files | None = None
        self._pairs: dict[str, Pairs] = {}
        self._table: TableRule | None = None
        self._names: tuple[str, ...] | None = None

    @classmethod
    def option_errors(cls, values: dict[str, Any]) -> list[str]:
        errors = super().option_errors(values)
        pairs = {name: values[name] for name in ("train", "val", "test") if isinstance(values.get(name), list | tuple)}
        for name, folders in pairs.items():
            if len(folders) != 2:
                errors.append(f"{name}={list(folders)}: two folders, that of the images and that of the label files")
        has_files = values.get("root") is not None or "train" in pairs or "val" in pairs
        tables = [name for name in ("colors", "label_values") if values.get(name)]
        if len(tables) > 1:
            errors.append("colors: either this or label_values")
        for name in ("reduce_zero_label", "class_names") if tables else ():
            if values.get(name):
                errors.append(f"{name}={values[name]}: {tables[0]} names the classes, leave it out")
        if has_files and values.get("reduce_zero_label") is None and not tables:
            errors.append(
                "reduce_zero_label: set true (0 is ignored, 1 to C are the classes: ADE20K) or false (0 to C - 1 are); "
                "or colors, or label_values"
            )
        names, classes = values.get("class_names"), values.get("num_classes")
        if names and classes and len(names) != classes:
            errors.append(f"num_classes={classes}: {len(names)} class_names are given")
        try:
            count = classes or (len(names) if names else 1)
            LabelRule(count, bool(values.get("reduce_zero_label")), values.get("ignore_index"))
        except ValueError as error:
            errors.append(str(error))
        return errors

    @classmethod
    def options_of(cls, data_config: dict[str, Any]) -> dict[str, Any]:
        names = ("short_side", "long_side", "antialias")
        return {name: data_config[name] for name in names if name in data_config}

    @property
    def metadata(self) -> dict[str, Any]:
        return {"val_scenes": self.scenes["val"], "scene_size": self.scene_size} if self.is_digits else {}

    def smoke(self, num_classes: int | None = None) -> None:
        super().smoke(num_classes)
        self._names = None

    @property
    def is_digits(self) -> bool:
        """Whether the images are scenes of digits."""
        return self.root is None and isinstance(self.splits["train"], str) and isinstance(self.splits["val"], str)

    @property
    def is_generated(self) -> bool:
        return self.is_smoke or self.is_digits

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of classes 0 to C - 1.

        Raises:
            DataError: They are neither given nor in a file, or not as many as `num_classes`.
        """
        if self._names is None:
            self._names = tuple(self._find_names())
            if self.num_classes is not None and len(self._names) != self.num_classes:
                raise DataError(
                    f"num_classes={self.num_classes}: the data has {len(self._names)} classes "
                    f"({', '.join(self._names[:4])}, ...)"
                )
        return self._names

    @staticmethod
    def _numbered(count: int) -> tuple[str, ...]:
        """Names of classes that have none."""
        return tuple(f"class_{number}" for number in range(count))

    def _find_names(self) -> Sequence[str]:
        numbered = self._numbered(self.num_classes or (11 if self.is_smoke else 0))
        if self.is_smoke:
            return self.given_names or numbered
        if self.is_digits:
            return DigitScenePixels.class_names
        if self.table is not None:
            return self.table.class_names
        found = self.given_names or (read_class_names(self.files) if self.root is not None else None) or numbered
        if not found:
            raise DataError("; ".join(filter(None, [unknown_classes(self.root), self.passed_over()])))
        return found

    @property
    def table(self) -> TableRule | None:
        """The classes by `colors` or `label_values`.

        Raises:
            DataError: The table can't be used.
        """
        if self._table is None and self.colors is not None:
            self._table = read_colors(self.colors, None if self.root is None else self.files)
        elif self._table is None and self.label_values:
            self._table = rule_of_values(self.label_values)
        return self._table

    @property
    def files(self) -> Files:
        """The files in `root`; listed once."""
        if self._files is None:
            self._files = Files(self.root, self.cache_dir)
        return self._files

    def make_preprocessing(self) -> SegmentationPreprocessing:
        size = self.crop_size or self.model_config.get("input_size", (224, 224))[-2:]
        return SegmentationPreprocessing(**self.of_model("mean", "std"), **self.resizing, input_size=tuple(size))

    def open(self, split: str) -> Source:
        # runs of all seeds are measured on the same scenes
        digits, seed = ("train", self.seed) if split == "train" else ("test", 0)
        if self.is_smoke:
            return DigitScenePixels(64 if split == "train" else 4, seed, digits, num_classes=len(self.class_names))
        if self.is_digits:
            return DigitScenePixels(self.scenes[split], seed, digits, self.scene_size)
        names = self.class_names
        try:
            rule = self.table or LabelRule(len(names), bool(self.reduce_zero_label), self.ignore_index)
        except ValueError as error:  # the names are in a file
            raise DataError(f"data.{error}") from error
        self._pairs[split] = self._part(split) if self.is_part(split) else self._find(split)
        return self._pairs[split].source(rule, names)

    def _find(self, split: str, whole: bool = False) -> Pairs:
        root = None if self.root is None else self.files
        return find_pairs(root, self.splits[split], *self.suffixes, self.cache_dir, whole)

    def _part(self, split: str) -> Pairs:
        """Some of the training pairs. Classes would have to be counted in all label files: the strata are folders."""
        pairs = self._find("train", whole=True)
        if pairs.unpaired:
            return pairs  # which is an error of its own
        self.check_no_val(lambda: self._find("val").where != pairs.where)
        names = [pairs.images.name(index) for index in range(len(pairs.images))]
        is_in = self.in_part(split, pairs.where, names, [os.path.dirname(name) for name in names])
        part = f" ({'training' if split == 'train' else 'validation'} part)"
        return pairs.take(is_in, part, rest=split == "train")

    def prepare_data(self) -> None:
        """Unpacks a compressed tar once for each machine."""
        if self.root is not None and not self.is_smoke:
            _ = self.files

    def check(self, split: str) -> PairCheck:
        names = None if self.class_names == self._numbered(len(self.class_names)) else list(self.class_names)
        check = PairCheck(self._pairs[split], names, Options())
        check.rule = self.source(split).rule
        return check

    def passed_over(self) -> str:
        return passed_over(self.files, paths_of_colors(self.colors, self.files)) if self.root is not None else ""

    def class_counts(self) -> np.ndarray:
        source, classes = self.source("train"), len(self.class_names)

        def count(index: int) -> np.ndarray:
            try:
                labels = source.load_labels(index)
            except ImageError:  # named, and replaced by another, when it is trained on
                return np.zeros(classes, dtype=np.int64)
            return np.bincount(labels.reshape(-1), minlength=256)[:classes]

        with ThreadPoolExecutor() as threads:
            return sum(threads.map(count, range(len(source))))

    def samples(self, split: str, train: bool) -> SegmentationSamples:
        if train:
            transform: Any = TrainTransform(self.preprocessing, self.augmentation)
        else:
            transform = EvalTransform(self.preprocessing)
        return SegmentationSamples(self.source(split), transform, self.seed, train)
