"""`DetectionData`: images with boxes and masks, of a COCO set or the embedded digit scenes. Needs extra `detection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from vitgraft.data.base import DataModule
from vitgraft.data.coco import CocoSource, open_coco
from vitgraft.data.detection_targets import DigitObjects, Objects, ObjectSource, check_same_categories, to_target
from vitgraft.data.detection_transforms import (
    DetectionAugmentation,
    DetectionPreprocessing,
    eval_transform,
    train_transform,
)
from vitgraft.data.digits import SceneConfig
from vitgraft.data.samples import Samples
from vitgraft.errors import DataError

__all__ = ["DetectionBatch", "DetectionData", "DetectionSamples"]


class DetectionBatch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: B times float32 (3, H, W), standardised; each has its own size.
        targets: of each image. In training `boxes` float32 (N, 4), x0, y0, x1, y1 in pixels of the image, `labels`
            int64 (N,), 1 to C, `masks` uint8 (N, H, W) where there are masks. In evaluation `image_id`, `orig_size`
            (height, width) of the file and `objects` (`Objects`), what the set says of it.
        bad: "name: reason" of each image that can't be read: replaced in training, left out in evaluation.
        indices: int64 (B,), of the images in their source.
    """

    images: list[torch.Tensor]
    targets: list[dict[str, Any]]
    bad: list[str]
    indices: torch.Tensor | None = None


class DetectionSamples(Samples):
    """A source of objects as a dataset of `DetectionBatch`es.

    Args:
        source: images and objects.
        preprocessing: how they are made ready.
        augmentation: how they are varied in training; None is evaluation.
        masks: whether training needs masks.
        seed: the run's seed.
        keep: indices of the images that there are; None is all.
    """

    def __init__(
        self,
        source: ObjectSource,
        preprocessing: DetectionPreprocessing,
        augmentation: DetectionAugmentation | None = None,
        masks: bool = True,
        seed: int = 0,
        keep: np.ndarray | None = None,
    ):
        super().__init__(seed, augmentation is not None)
        self.source, self.masks = source, masks
        self.keep = np.arange(len(source)) if keep is None else keep
        if augmentation is None:
            self.transform = eval_transform(preprocessing)
        else:
            self.transform = train_transform(preprocessing, augmentation)

    def __len__(self) -> int:
        return len(self.keep)

    def name(self, index: int) -> str:
        return self.source.name(int(self.keep[index]))

    def load(self, index: int) -> tuple[Image.Image, Objects]:
        return self.source.load(int(self.keep[index]))

    def prepare(self, loaded: tuple[Image.Image, Objects], index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image, objects = loaded
        if self.train:
            return self.transform(image, to_target(objects, self.masks))
        number = self.source.image_id(int(self.keep[index]))
        return self.transform(image), {"image_id": number, "orig_size": objects.size, "objects": objects}

    def collate(self, samples: list[Any], indices: list[int], bad: list[str]) -> DetectionBatch:
        places = torch.from_numpy(self.keep[indices].astype(np.int64))
        return DetectionBatch([image for image, _ in samples], [target for _, target in samples], bad, places)


class DetectionData(DataModule):
    """Images with boxes and masks for training and evaluation.

    Args:
        root: folder or tar of a COCO set; None is the embedded scenes of handwritten digits, 10 classes with masks.
        train: split to train on: annotations/instances_{train}.json or instances_{train}2017.json below `root` ..., or
            the path of a json below it.
        val: split to validate on.
        test: likewise for `test`; None is the validation split.
        train_images: folder of the training images below `root`; None looks for it.
        val_images: likewise of `val`.
        test_images: likewise of `test`.
        masks: whether training needs masks; None takes them where the set has them.
        keep_empty: train on images without objects too, as is done anyway where no image has any.
        min_side: images with a smaller side are not trained on, pixels.
        max_images: only so many images of each set, the first ones: for trials, and to see that a model can learn a
            handful of images by heart.
        batch_size: images per step of each process.
        eval_batch_size: likewise in evaluation; None is `batch_size`.
        workers: loader processes for each process; they change nothing in the batches.
        seed: order and augmentation are functions of it; also which digit scenes it trains on.
        augmentation: "multiscale" (as DETR and Swin), "single" (one size) or "native" (sizes stay); None is "native"
            for digit scenes and "single" for a set.
        short_side: short side in evaluation and of "single", pixels.
        max_size: most pixels of the long side.
        short_sides: as in `DetectionAugmentation`, like all down to `vflip`.
        crop_short_sides: see there.
        crop_sides: see there.
        hflip: see there; None is 0.5, and 0 for digit scenes, as mirrored digits are none.
        vflip: see there.
        mean: of each colour, 0 to 1; None is the model's own.
        std: of each colour, 0 to 1; None is the model's own.
        scenes: number of digit scenes for training.
        val_scenes: number of digit scenes for validation, of other digits.
        scene_size: their side, pixels.
        cache_dir: folder for unpacked tars; None is ~/.cache/vitgraft.
        smoke: digit scenes instead of the real images.

    Raises:
        ValueError: options that can't be; all of them are named.
    """

    def __init__(
        self,
        root: str | None = None,
        train: str = "train",
        val: str = "val",
        test: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
        masks: bool | None = None,
        keep_empty: bool = False,
        min_side: int = 32,
        max_images: int | None = None,
        batch_size: int = 2,
        eval_batch_size: int | None = None,
        workers: int = 4,
        seed: int = 0,
        augmentation: Literal["multiscale", "single", "native"] | None = None,
        short_side: int = 800,
        max_size: int = 1333,
        short_sides: Sequence[int] = tuple(range(480, 801, 32)),
        crop_short_sides: Sequence[int] = (400, 500, 600),
        crop_sides: tuple[int, int] = (384, 600),
        hflip: float | None = None,
        vflip: float = 0.0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        scenes: int = 4000,
        val_scenes: int = 500,
        scene_size: int = 96,
        cache_dir: str | None = None,
        smoke: bool = False,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if wrong := self.problems(given):
            raise ValueError("data: " + "; ".join(wrong))
        super().__init__(batch_size, eval_batch_size, workers, seed, smoke)
        self.root, self.cache_dir = root, cache_dir
        self.splits = {"train": train, "val": val, "test": test or val}
        self.folders = {"train": train_images, "val": val_images, "test": test_images if test else val_images}
        self.has_test = test is not None
        self.masks, self.keep_empty, self.min_side, self.max_images = masks, keep_empty, min_side, max_images
        self.augmentation = DetectionAugmentation(
            augmentation or ("native" if root is None else "single"),
            tuple(short_sides),
            tuple(crop_short_sides),
            tuple(crop_sides),
            (0.5 if root is not None else 0.0) if hflip is None else hflip,
            vflip,
        )
        self.size = (short_side, max_size)
        self.model_options = {"mean": mean, "std": std}
        self.scenes = {"train": scenes, "val": val_scenes, "test": val_scenes}
        self.scene_size = scene_size
        self.num_classes: int | None = None
        self._sources: dict[str, ObjectSource] = {}
        self._preprocessing: DetectionPreprocessing | None = None

    @classmethod
    def problems(cls, values: dict[str, Any]) -> list[str]:
        """What is wrong with options, one line each, without looking at any file.

        Args:
            values: options by name; those left out are not judged.
        """
        wrong = super().problems(values) + DetectionAugmentation.problems(values)
        least = {"min_side": 1, "max_images": 1, "short_side": 1, "max_size": 1, "scenes": 1, "val_scenes": 1}
        wrong += [
            f"{name}={values[name]}: at least {low}"
            for name, low in least.items()
            if values.get(name) is not None and values[name] < low
        ]
        short_side, max_size = values.get("short_side", 800), values.get("max_size", 1333)
        if max_size < short_side:
            wrong.append(f"max_size={max_size}: at least short_side={short_side}")
        if "scene_size" in values:
            try:
                DigitObjects(1, size=values["scene_size"])
            except ValueError:
                wrong.append(f"scene_size={values['scene_size']}: a multiple of 4, {SceneConfig().size} or so")
        return wrong

    @classmethod
    def options_of(cls, data_config: dict[str, Any]) -> dict[str, Any]:
        """The options that make images ready as a checkpoint's data_config says."""
        if data_config.get("native"):
            return {"augmentation": "native"}
        sizes = data_config.get("input_size", ())[-2:]
        return dict(zip(("short_side", "max_size"), sizes, strict=True)) | {"augmentation": "single"} if sizes else {}

    @property
    def facts(self) -> dict[str, Any]:
        """What an evaluation says of its data beside the set's name."""
        digits = {"val_scenes": self.scenes["val"], "scene_size": self.scene_size} if self.root is None else {}
        return {"max_images": self.max_images, **digits}

    def smoke(self, num_classes: int | None = None) -> None:
        """Swaps in a few small digit scenes, without worker processes: for two quick steps."""
        super().smoke(num_classes)
        self.num_classes = num_classes
        self._sources, self._preprocessing = {}, None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the categories, in the order of their ids; label 1 is the first."""
        split = "train" if "train" in self._sources or not self._sources else next(iter(self._sources))
        return self.source(split).class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """What the set calls the labels 1 to C."""
        split = "train" if "train" in self._sources or not self._sources else next(iter(self._sources))
        return self.source(split).category_ids

    @property
    def has_masks(self) -> bool:
        """Whether training has masks."""
        if self.masks is not None:
            return self.masks
        return next(iter(self._sources.values()), None).has_masks if self._sources else self.source("train").has_masks

    @property
    def preprocessing(self) -> DetectionPreprocessing:
        """How images are made ready; mean and std are the model's where they were not given."""
        if self._preprocessing is None:
            config = getattr(getattr(self.trainer, "lightning_module", None), "data_config", None) or {}
            own = {name: tuple(config[name]) for name in ("mean", "std") if name in config}
            given = {name: tuple(value) for name, value in self.model_options.items() if value is not None}
            native = self.is_smoke or self.augmentation.augmentation == "native"
            size = (self.scene_size,) * 2 if self.root is None and native else self.size
            self._preprocessing = DetectionPreprocessing(size, **own | given, native=native)
        return self._preprocessing

    def source(self, split: str) -> ObjectSource:
        """The images of "train", "val" or "test"; opened once.

        Raises:
            DataError: nothing there, or it can't be used.
        """
        if split not in self._sources:
            self._sources[split] = self._open(split)
        return self._sources[split]

    def _open(self, split: str) -> ObjectSource:
        digits = "train" if split == "train" else "test"
        # runs of all seeds are measured on the same scenes, and the test has others than the validation
        seed = {"train": self.seed, "val": 0, "test": 1 << 20}[split]
        if self.is_smoke:
            return DigitObjects(16 if split == "train" else 6, seed, digits, 64, self.num_classes)
        if self.root is None:
            return DigitObjects(self.scenes[split], seed, digits, self.scene_size)
        source = open_coco(self.root, self.splits[split], self.folders[split], self.cache_dir)
        if notice := source.notice():
            print(notice)
        return source

    def samples(self, split: str, train: bool) -> DetectionSamples:
        """The dataset of "train", "val" or "test".

        Args:
            split: which of them.
            train: whether it is augmented, and left without the images that nothing can be learned from.
        """
        source = self.source(split)
        first = np.arange(len(source))[: self.max_images]
        if not train:
            return DetectionSamples(source, self.preprocessing, seed=self.seed, keep=first)
        keep = self._to_learn(source) if isinstance(source, CocoSource) else None
        keep = (first if keep is None else keep)[: self.max_images]
        augmentation = DetectionAugmentation("native", hflip=0.0) if self.is_smoke else self.augmentation
        return DetectionSamples(source, self.preprocessing, augmentation, self.has_masks, self.seed, keep)

    def _to_learn(self, source: CocoSource) -> np.ndarray:
        """Indices of the images to train on."""
        keep = source.to_learn(self.min_side, self.keep_empty)
        if not len(keep):  # background alone can be learned too
            keep = source.to_learn(self.min_side, True)
        if not len(keep):
            raise DataError(
                f"{source.where()}: no image to train on: of {len(source)} none has sides of at least {self.min_side} "
                "pixels (min_side)"
            )
        return keep

    def setup(self, stage: str) -> None:
        """Opens what a stage needs: "fit", "validate" or "test".

        Raises:
            DataError: it is not there, or training and validation differ in their categories.
        """
        if stage == "fit":
            check_same_categories(self.source("train"), self.source("val"))
            self.samples("train", True)  # that there is something to learn from shows here
            source = self.source("train")
            if isinstance(source, CocoSource) and not source.counts[:, 0].any():
                print(f"{source.where()}: none of {len(source)} images has an object: training on background alone")
        else:
            self.source({"validate": "val"}.get(stage, stage))
        if stage == "test" and not self.has_test and not self.is_smoke and self.root is not None:
            print(f"no test set is named (data.test): this measures the validation set, {self.splits['val']!r}")
