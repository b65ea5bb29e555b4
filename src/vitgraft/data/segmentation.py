"""`SegmentationData`: everything between images with label maps and the batches that a trainer takes.

Needs the `train` extra; `SegmentationSamples` alone does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitgraft.data.base import DataModule
from vitgraft.data.digits import SceneConfig
from vitgraft.data.generated import GeneratedPixels
from vitgraft.data.label_maps import LabelRule, check_histogram
from vitgraft.data.samples import Samples
from vitgraft.data.segmentation_transforms import (
    EvalTransform,
    SegmentationAugmentation,
    SegmentationPreprocessing,
    TrainTransform,
)
from vitgraft.data.semantic import DigitScenePixels, Files, PixelSource, SemanticSource, open_semantic, read_class_names
from vitgraft.errors import DataError

__all__ = ["SegmentationBatch", "SegmentationData", "SegmentationSamples", "scene_config"]

LOOKED_AT = 64  # label files of a set whose values are counted before a run
FIELDS = {field.name for field in fields(SegmentationPreprocessing)}


class SegmentationBatch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: training: float32 (B, 3, h, w). Evaluation: a list of B float32 (3, H, W), as each image has its size.
        labels: training: int64 (B, h, w). Evaluation: a list of B int64 (H', W'), of the label files' own sizes.
            255 marks pixels that are ignored; all of a crop may be.
        indices: int64 (B,), of the images in their source.
        bad: "name: reason" of each image that was to be in the batch and can't be read. In training the next readable
            image took its place; in evaluation it is left out, so B may be smaller, even 0.
    """

    images: Tensor | list[Tensor]
    labels: Tensor | list[Tensor]
    indices: Tensor
    bad: list[str]


class SegmentationSamples(Samples):
    """Images with labels, transformed.

    Args:
        source: where they are.
        transform: (RGB image, uint8 (H, W)) -> (float32 (3, h, w), int64 (h', w')).
        seed: see `Samples`.
        train: see `Samples`; batches are stacked then.
    """

    def __init__(self, source: PixelSource, transform: Any, seed: int = 0, train: bool = False):
        super().__init__(seed, train)
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        return self.source.load(index)

    def prepare(self, loaded: tuple[Image.Image, np.ndarray], index: int) -> tuple[Tensor, Tensor]:
        return self.transform(*loaded)

    def collate(self, samples: list[tuple[Tensor, Tensor]], indices: list[int], bad: list[str]) -> SegmentationBatch:
        images, labels = [image for image, _ in samples], [label for _, label in samples]
        places = torch.tensor(indices, dtype=torch.int64)
        if self.train:
            return SegmentationBatch(torch.stack(images), torch.stack(labels), places, bad)
        return SegmentationBatch(images, labels, places, bad)


def scene_config(size: int) -> SceneConfig:
    """Digit scenes of so many pixels a side, with the proportions of the usual 64."""

    def scaled(low: int, high: int) -> tuple[int, int]:
        return low * size // 64, high * size // 64

    return SceneConfig(size=size, large=scaled(26, 32), small=scaled(11, 14))


class SegmentationData(DataModule):
    """Images with a class for every pixel, for training and evaluation; without `root`, scenes of digits.

    The values of some label files are counted before a run: values that can't be are an error that names file and
    value. While it runs, files that can't be read are left out and named; label files of another size than their image,
    with colours, or with values that can't be, end it: `vitgraft check-data` finds all of them beforehand.

    Args:
        root: folder or tar in ADE20K's layout, or the folder that pairs are named from. None: digit scenes.
        train: split of `root` to train on, or two folders, that of the images and that of the label files.
        val: likewise for validation.
        test: likewise for `test`; None is the validation set.
        reduce_zero_label: whether the value 0 of label files is no class and ignored, and 1 to C are the classes. To be
            said where there is a `root`: the files alone do not tell.
        ignore_index: value of label files that is ignored; None: there is none.
        num_classes: how many classes there must be; None takes what the class names are.
        class_names: of the classes; None reads `classes.txt` or `objectInfo150.txt` in `root`.
        image_suffix: what image files have behind the name that they share with their labels.
        label_suffix: likewise for label files.
        batch_size: images per step of each process.
        eval_batch_size: images at a time in evaluation.
        workers: loader processes for each process; they change nothing in the batches.
        seed: order and augmentation are functions of it; also which digit scenes it trains on.
        crop_size: side of the square training crops, or (height, width), in pixels; None is the model's input size.
        short_side: images are resized so that the shorter side has so many pixels (training: times a random factor);
            None: they keep their size.
        long_side: unless the longer side would have more than this.
        antialias: as in `SegmentationPreprocessing`, like mean and std.
        mean: of each colour, 0 to 1; None is the model's own.
        std: of each colour, 0 to 1; None is the model's own.
        scale: as in `SegmentationAugmentation`, like all down to `photometric`.
        cat_max_ratio: see there.
        hflip: see there.
        photometric: see there.
        scenes: digit scenes to train on.
        val_scenes: digit scenes to validate and test on, made of other scans.
        scene_size: side of a scene, pixels.
        cache_dir: folder for unpacked tars; None is ~/.cache/vitgraft.
        smoke: generated images instead of the real ones.

    Raises:
        ValueError: options that can't be; all of them are named.
    """

    def __init__(
        self,
        root: str | None = None,
        train: str | list[str] = "training",
        val: str | list[str] = "validation",
        test: str | list[str] | None = None,
        reduce_zero_label: bool | None = None,
        ignore_index: int | None = 255,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        image_suffix: str = "",
        label_suffix: str = "",
        batch_size: int = 16,
        eval_batch_size: int = 1,
        workers: int = 4,
        seed: int = 0,
        crop_size: int | tuple[int, int] | None = None,
        short_side: int | None = None,
        long_side: int | None = None,
        antialias: bool = True,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
        scenes: int = 4000,
        val_scenes: int = 500,
        scene_size: int = 64,
        cache_dir: str | None = None,
        smoke: bool = False,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if wrong := self.problems(given):
            raise ValueError("data: " + "; ".join(wrong))
        super().__init__(batch_size, eval_batch_size, workers, seed, smoke)
        self.root = root
        self.splits = {"train": train, "val": val, "test": test or val}
        self.has_test = test is not None
        self.reduce_zero_label, self.ignore_index = reduce_zero_label, ignore_index
        self.num_classes, self.given_names = num_classes, class_names
        self.suffixes = (image_suffix, label_suffix)
        self.crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.resizing = {"short_side": short_side, "long_side": long_side, "antialias": antialias}
        self.colours = {name: tuple(value) for name, value in (("mean", mean), ("std", std)) if value is not None}
        self.augmentation = SegmentationAugmentation(tuple(scale), cat_max_ratio, hflip, photometric)
        self.scenes = {"train": scenes, "val": val_scenes, "test": val_scenes}
        self.scene_config = scene_config(scene_size)
        self.cache_dir = cache_dir
        self._files: Files | None = None
        self._names: tuple[str, ...] | None = None
        self._sources: dict[str, PixelSource] = {}
        self._preprocessing: SegmentationPreprocessing | None = None

    @classmethod
    def problems(cls, values: dict[str, Any]) -> list[str]:
        """What is wrong with options, one line each, without looking at any file.

        Args:
            values: options by name; those left out are not judged.
        """
        wrong = super().problems(values)
        for name in ("short_side", "long_side", "scenes", "val_scenes"):
            value = values.get(name)
            if value is not None and value < 1:
                wrong.append(f"{name}={value}: at least 1")
        size = values.get("crop_size")
        if size is not None and min([size] if isinstance(size, int) else size) < 1:
            wrong.append(f"crop_size={size}: at least 1 pixel")
        for name in ("train", "val", "test"):
            split = values.get(name)
            if isinstance(split, list | tuple) and len(split) != 2:
                wrong.append(f"{name}={list(split)}: two folders, that of the images and that of the label files")
        if (
            values.get("root") is None
            and values.get("reduce_zero_label") is None
            and any(isinstance(values.get(name), list | tuple) for name in ("train", "val"))
        ) or (values.get("root") is not None and values.get("reduce_zero_label") is None):
            wrong.append(
                "reduce_zero_label: say true (0 is ignored, 1 to C are the classes: ADE20K) or false (0 to C - 1 are)"
            )
        names, classes = values.get("class_names"), values.get("num_classes")
        if names and classes and len(names) != classes:
            wrong.append(f"num_classes={classes}: {len(names)} class_names are given")
        try:
            if values.get("scene_size") is not None:
                scene_config(values["scene_size"])
        except ValueError as error:
            wrong.append(f"scene_size={values['scene_size']}: {error}")
        try:
            classes = classes or (len(names) if names else 1)
            LabelRule(classes, bool(values.get("reduce_zero_label")), values.get("ignore_index"))
        except ValueError as error:
            wrong.append(str(error))
        own = {field.name for field in fields(SegmentationAugmentation)}
        return wrong + SegmentationAugmentation.problems({name: values[name] for name in own & values.keys()})

    @classmethod
    def options_of(cls, data_config: dict[str, Any]) -> dict[str, Any]:
        """The options that make images ready as a checkpoint's data_config says."""
        names = ("short_side", "long_side", "antialias")
        return {name: data_config[name] for name in names if name in data_config}

    @property
    def facts(self) -> dict[str, Any]:
        """What an evaluation says of its data beside the set's name."""
        if not self.is_digits:
            return {}
        return {"val_scenes": self.scenes["val"], "scene_size": self.scene_config.size}

    def smoke(self, num_classes: int | None = None) -> None:
        """Swaps in generated images, in small batches and without worker processes: for two quick steps."""
        super().smoke(num_classes)
        self.num_classes = num_classes or self.num_classes
        self._sources, self._names = {}, None

    @property
    def is_digits(self) -> bool:
        """Whether the images are scenes of digits."""
        return self.root is None and isinstance(self.splits["train"], str) and isinstance(self.splits["val"], str)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of classes 0 to C - 1.

        Raises:
            DataError: they are neither given nor in a file, or not as many as `num_classes`.
        """
        if self._names is None:
            self._names = tuple(self._find_names())
            if self.num_classes is not None and len(self._names) != self.num_classes:
                raise DataError(
                    f"num_classes={self.num_classes}: the data has {len(self._names)} classes "
                    f"({', '.join(self._names[:4])}, ...)"
                )
        return self._names

    def _find_names(self) -> Sequence[str]:
        numbered = [f"class_{number}" for number in range(self.num_classes or 0)]
        if self.is_smoke:
            return self.given_names or numbered or [f"class_{number}" for number in range(11)]
        if self.is_digits:
            return ("background", *self.scene_config.class_names)
        found = self.given_names or (read_class_names(self.files) if self.root is not None else None) or numbered
        if not found:
            raise DataError(
                f"{self.root}: which classes there are is not said: put classes.txt there with a name in each line, or "
                "give data.class_names or data.num_classes"
            )
        return found

    @property
    def files(self) -> Files:
        """What lies in `root`; listed once."""
        if self._files is None:
            self._files = Files(self.root, self.cache_dir)
        return self._files

    @property
    def preprocessing(self) -> SegmentationPreprocessing:
        """What the model expects of its images; known once the trainer has a model, or all of it was given."""
        if self._preprocessing is None:
            config = getattr(getattr(self.trainer, "lightning_module", None), "data_config", None) or {}
            own = {name: tuple(config[name]) for name in ("mean", "std") if name in config}
            size = self.crop_size or config.get("input_size", (224, 224))[-2:]
            self._preprocessing = SegmentationPreprocessing(
                **{**own, **self.colours, **self.resizing, "input_size": tuple(size)}
            )
        return self._preprocessing

    def source(self, split: str) -> PixelSource:
        """The images of "train", "val" or "test"; opened once.

        Raises:
            DataError: nothing there, images without labels, or not the classes that were said.
        """
        if split not in self._sources:
            self._sources[split] = self._open(split)
        return self._sources[split]

    def _open(self, split: str) -> PixelSource:
        if self.is_smoke:
            size = tuple(min(side, 128) for side in self.preprocessing.input_size)
            return GeneratedPixels(64 if split == "train" else 4, len(self.class_names), size)
        if self.is_digits:
            # runs of all seeds are measured on the same scenes
            digits, seed = ("train", self.seed) if split == "train" else ("test", 0)
            return DigitScenePixels(self.scenes[split], digits, seed, self.scene_config)
        names = self.class_names
        rule = LabelRule(len(names), bool(self.reduce_zero_label), self.ignore_index)
        files = None if self.root is None else self.files
        return open_semantic(self.root, self.splits[split], rule, names, *self.suffixes, files, self.cache_dir)

    def prepare_data(self) -> None:
        """Unpacks a compressed tar once for each machine."""
        if self.root is not None and not self.is_smoke:
            _ = self.files

    def setup(self, stage: str) -> None:
        """Opens what a stage needs, "fit", "validate" or "test", and counts the values of some label files.

        Raises:
            DataError: it is not there, or its labels can't be.
        """
        for split in ("train", "val") if stage == "fit" else ({"validate": "val"}.get(stage, stage),):
            source = self.source(split)
            if isinstance(source, SemanticSource):
                notes = check_histogram(source.histogram(LOOKED_AT), source.rule, source.where())
                if self._process()[1] == 0:
                    print(*notes, sep="\n", end="\n" if notes else "")
        if stage == "test" and not self.has_test and not self.is_smoke and not self.is_digits:
            print(f"no test set is named (data.test): this measures the validation set, {self.splits['val']!r}")

    def samples(self, split: str, train: bool) -> SegmentationSamples:
        """The dataset of "train", "val" or "test".

        Args:
            split: which of them.
            train: whether it is augmented.
        """
        if train:
            transform: Any = TrainTransform(self.preprocessing, self.augmentation)
        else:
            transform = EvalTransform(self.preprocessing)
        return SegmentationSamples(self.source(split), transform, self.seed, train)
