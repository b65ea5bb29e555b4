"""`DetectionData`: images with boxes and masks, of a COCO, Pascal VOC or YOLO dataset or the embedded digit scenes.

Needs the extra `detection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, NamedTuple, get_type_hints

import numpy as np
import torch
from PIL import Image
from pydantic import PositiveInt

from vitgraft.data.annotations import Annotations
from vitgraft.data.base import DataModule
from vitgraft.data.check_coco import CocoCheck
from vitgraft.data.coco import CocoSource, to_learn
from vitgraft.data.detection_targets import DigitObjects, Objects, ObjectSource, to_target
from vitgraft.data.detection_transforms import (
    DetectionAugmentation,
    DetectionPreprocessing,
    eval_transform,
    train_transform,
)
from vitgraft.data.digits import SceneSize
from vitgraft.data.findings import MAX_LEFT_OUT, MIN_SIDE
from vitgraft.data.loader import Samples
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError
from vitgraft.options import Fraction

__all__ = ["DetectionBatch", "DetectionData", "DetectionSamples"]


class DetectionBatch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: B times float32 (3, H, W), standardized; each has its own size.
        targets: Of each image. In training `boxes` float32 (N, 4), x0, y0, x1, y1 in pixels of the image, `labels`
            int64 (N,), 1 to C, `masks` uint8 (N, H, W) where there are masks. In evaluation `image_id`, `orig_size`
            (height, width) of the file and `objects` (`Objects`), its annotations.
        bad: "name: reason" of each unreadable image: replaced in training, left out in evaluation.
        indices: int64 (B,), of the images in their source.
    """

    images: list[torch.Tensor]
    targets: list[dict[str, Any]]
    bad: list[str]
    indices: torch.Tensor | None = None


class DetectionSamples(Samples):
    """A source of objects as a dataset of `DetectionBatch`es.

    Args:
        source: Images and objects.
        preprocessing: How they are prepared.
        augmentation: How they are varied in training; None is evaluation.
        masks: Whether training needs masks.
        seed: The run's seed.
        keep: Indices of the images that the dataset has; None is all.
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
        super().__init__(source, seed, augmentation is not None)
        self.masks = masks
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
        root: Folder or tar of a dataset in COCO's, Pascal VOC's or YOLO's layout; None is the embedded scenes of
            handwritten digits, 10 classes with masks.
        train: Split to train on: annotations/instances_{train}.json or instances_{train}2017.json below `root` ..., or
            the path of a json below it.
        val: Split to validate on.
        test: Split for `test`; None is the validation split.
        format: "coco", "voc" or "yolo"; None infers it.
        train_images: Folder of the training images below `root`, of COCO's format; None looks for it.
        val_images: Folder of the images of `val`.
        test_images: Folder of the images of `test`.
        masks: Whether training needs masks; None takes them where the dataset has them.
        keep_empty: Train on images without objects too.
        min_side: Images with a smaller side are not trained on, pixels.
        max_left_out: Largest fraction of a split's annotations that training may leave out, 0 to 1.
        max_images: Only so many images of each split, the first ones: for trials, and to see that a model can overfit
            a handful of images.
        batch_size: Images per step of each process.
        augmentation: "multiscale" (as DETR and Swin), "single" (one size) or "native" (sizes stay); None is "native"
            for digit scenes and "single" for a dataset.
        short_side: Short side in evaluation and of "single", pixels.
        max_size: Most pixels of the long side.
        short_sides: Short sides of "multiscale", pixels.
        crop_short_sides: Short sides before the crop of "multiscale".
        crop_sides: Least and largest side of that crop.
        hflip: Probability of a horizontal flip; None is 0.5, and 0 for digit scenes, as mirrored digits are none.
        vflip: Probability of a vertical flip.
        scenes: Number of digit scenes for training.
        val_scenes: Number of digit scenes for validation, of other digits.
        scene_size: Side of a scene, pixels.
        common: Options of every data module; `smoke` takes digit scenes.

    Raises:
        ValueError: Options that are not possible, all at once.
    """

    LIMITS: ClassVar[dict[str, Any]] = {
        **DataModule.LIMITS,
        **get_type_hints(DetectionAugmentation, include_extras=True),
        **dict.fromkeys(("min_side", "max_images", "short_side", "max_size", "scenes", "val_scenes"), PositiveInt),
        "scene_size": SceneSize,
        "max_left_out": Fraction,
    }

    def __init__(
        self,
        root: str | None = None,
        train: str = "train",
        val: str = "val",
        test: str | None = None,
        format: Literal["coco", "voc", "yolo"] | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
        masks: bool | None = None,
        keep_empty: bool = False,
        min_side: int = MIN_SIDE,
        max_images: int | None = None,
        max_left_out: float = MAX_LEFT_OUT,
        batch_size: int = 2,
        augmentation: Literal["multiscale", "single", "native"] | None = None,
        short_side: int = 800,
        max_size: int = 1333,
        short_sides: Sequence[int] = tuple(range(480, 801, 32)),
        crop_short_sides: Sequence[int] = (400, 500, 600),
        crop_sides: tuple[int, int] = (384, 600),
        hflip: float | None = None,
        vflip: float = 0.0,
        scenes: int = 4000,
        val_scenes: int = 500,
        scene_size: int = 96,
        **common,
    ):
        given = locals() | common
        self.check_options(given)
        super().__init__(root=root, train=train, val=val, test=test, batch_size=batch_size, **common)
        self.folders = {"train": train_images, "val": val_images, "test": test_images if test else val_images}
        self.masks, self.keep_empty, self.min_side, self.max_images = masks, keep_empty, min_side, max_images
        self.max_left_out = max_left_out
        self.format = format
        self._annotations: Annotations | None = None
        for name, digits, files in (("augmentation", "native", "single"), ("hflip", 0.0, 0.5)):
            if given[name] is None:
                given[name] = digits if root is None else files
        names = [field.name for field in fields(DetectionAugmentation)]
        self.augmentation = DetectionAugmentation(**{name: given[name] for name in names})
        self.size = (short_side, max_size)
        self.scenes = {"train": scenes, "val": val_scenes, "test": val_scenes}
        self.scene_size = scene_size

    @classmethod
    def option_errors(cls, values: dict[str, Any]) -> list[str]:
        errors = super().option_errors(values)
        short_side, max_size = values.get("short_side", 800), values.get("max_size", 1333)
        if max_size < short_side:
            errors.append(f"max_size={max_size}: at least short_side={short_side}")
        return errors

    @classmethod
    def options_of(cls, data_config: dict[str, Any]) -> dict[str, Any]:
        if data_config.get("native"):
            return {"augmentation": "native"}
        sizes = data_config.get("input_size", ())[-2:]
        return dict(zip(("short_side", "max_size"), sizes, strict=True)) | {"augmentation": "single"} if sizes else {}

    @property
    def metadata(self) -> dict[str, Any]:
        digits = {"val_scenes": self.scenes["val"], "scene_size": self.scene_size} if self.root is None else {}
        return {"max_images": self.max_images, **digits}

    @property
    def is_generated(self) -> bool:
        return self.is_smoke or self.root is None

    def _any_source(self) -> ObjectSource:
        """The training set where it is open or nothing is, else what is open."""
        split = "train" if "train" in self._sources or not self._sources else next(iter(self._sources))
        return self.source(split)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the categories, in the order of their ids; label 1 is the first."""
        return self._any_source().class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The dataset's ids of the labels 1 to C."""
        return self._any_source().category_ids

    @property
    def has_masks(self) -> bool:
        """Whether training has masks."""
        return self._any_source().has_masks if self.masks is None else self.masks

    def make_preprocessing(self) -> DetectionPreprocessing:
        native = self.is_smoke or self.augmentation.augmentation == "native"
        size = self.size
        if native and self.root is None:
            size = (self.scene_size,) * 2
        elif native and not self.is_smoke:  # the largest there are, for what needs one size, as an exported file does
            sides = np.sort(self._any_source().sizes, axis=1)
            size = tuple(sides.max(0).tolist())
        return DetectionPreprocessing(size, **self.of_model("mean", "std"), native=native)

    def open(self, split: str) -> ObjectSource:
        digits = "train" if split == "train" else "test"
        # runs of all seeds are measured on the same scenes, and the test has others than the validation
        seed = {"train": self.seed, "val": 0, "test": 1 << 20}[split]
        if self.is_smoke:
            return DigitObjects(16 if split == "train" else 6, seed, digits, 64, self.num_classes)
        if self.root is None:
            return DigitObjects(self.scenes[split], seed, digits, self.scene_size)
        annotations, folder, masks = self.annotations, self.folders[split], self.masks is not False
        if not self.is_part(split):
            name = annotations.find(self.splits[split])
            return annotations.open(name, annotations.entries(name), folder, masks)
        name = annotations.find(self.splits["train"], whole=True)
        self.check_no_val(lambda: annotations.find(self.splits["val"]) != name)
        entries = annotations.entries(name)
        if error := entries.error:
            raise DataError(f"{annotations.files.root}: {error}; vitgraft check-data lists all")
        files = [str(one.get("file_name")) if isinstance(one, dict) else "" for one in entries.lists["images"]]
        is_in = self.in_part(split, str(annotations.files.root), files, entries.strata())
        part = f" ({'training' if split == 'train' else 'validation'} part)"
        return annotations.open(name, entries.take(is_in.__getitem__, part), self.folders["train"], masks)

    @property
    def annotations(self) -> Annotations:
        """The objects of all splits in `root`.

        Raises:
            DataError: There is no dataset, or it has several formats.
        """
        if self._annotations is None:
            files = Files(self.root, self.cache_dir)
            named = [split for split in self.splits.values() if str(split).endswith(".json")]
            self._annotations = Annotations(files, self.format or ("coco" if named else None))
        return self._annotations

    def check(self, split: str) -> CocoCheck:
        source = self.source(split)
        return CocoCheck(
            source, source.files, self.max_left_out, self.min_side if split == "train" else None, self.keep_empty
        )

    def passed_over(self) -> str:
        return self.annotations.passed_over()

    def samples(self, split: str, train: bool) -> DetectionSamples:
        """The dataset of "train", "val" or "test".

        Args:
            split: Which of them.
            train: Whether it is augmented, and left without the images that nothing can be learned from.
        """
        source = self.source(split)
        keep = np.arange(len(source))
        if not train:
            return DetectionSamples(source, self.preprocessing, seed=self.seed, keep=keep[: self.max_images])
        if isinstance(source, CocoSource):
            keep = to_learn(source, self.min_side, self.keep_empty)
        augmentation = DetectionAugmentation("native", hflip=0.0) if self.is_smoke else self.augmentation
        keep = keep[: self.max_images]
        return DetectionSamples(source, self.preprocessing, augmentation, self.has_masks, self.seed, keep)

    def num_training_samples(self) -> int:
        return len(self.samples("train", True))
