"""`ImageData`: labeled images, from a path to the batches that a trainer takes. Needs the `train` extra."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import numpy as np
from pydantic import Field

from vitgraft.data.base import DataModule
from vitgraft.data.check import ImageCheck
from vitgraft.data.images import ImageDataset
from vitgraft.data.layout import instead_of, passed_over
from vitgraft.data.readers.base import SPLITS, ImageSource, check_same_classes, number_as, of_split
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.data.readers.generated import GeneratedSource
from vitgraft.data.readers.open import FORMATS, open_source
from vitgraft.data.readers.table import TABLES, is_table
from vitgraft.data.readers.tar import is_tar
from vitgraft.data.split import Part, same_images
from vitgraft.data.transforms import Augmentation, Preprocessing, eval_transform, train_transform
from vitgraft.errors import DataError, MissingSplitError
from vitgraft.options import Positive, Sizes

# three draws of a sample: facebookresearch/deit samplers.py
REPEATS = 3


class ImageData(DataModule):
    """Labeled images for training and evaluation.

    Args:
        root: Folder with the splits, tar, shard pattern or URL; what lies there is inferred.
        train: Split of `root` to train on, a table in it, or a path of its own: with a slash, a shard pattern, or the
            name of a tar.
        val: Split of `root` to validate on, or a path of its own.
        test: Split of `root` for `test`, or a path of its own; None is the validation split.
        format: "folder", "tar", "table", "shards", "imagenet-val" or "huggingface"; None infers it.
        file_column: Of a table (CSV, Parquet), the column of the files; None finds it.
        label_column: Of a table, the column of the labels; None finds it.
        num_classes: How many classes there must be; None takes those of the data.
        class_names: Names of the labels, for shards and tables that carry numbers only.
        input_size: Side of the square images, or (height, width), in pixels; None is the model's own.
        interpolation: Of the resize in evaluation; None is the model's own.
        crop_pct: Fraction of the resized side that evaluation keeps; None is the model's own.
        scale: Smallest and largest fraction of the area that the random crop takes.
        ratio: Smallest and largest width / height of the random crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Range of brightness, contrast and saturation; unused while `auto_augment` is on.
        auto_augment: timm's text for AutoAugment, RandAugment or AugMix, such as "rand-m9-mstd0.5-inc1".
        train_interpolation: "bicubic", "bilinear", or "random" for one of both by chance.
        train_crop_mode: "rrc" random resized crop, timm's "rkrc" and "rkrr", or "pad": zeros around, no resize.
        reprob: Probability of random erasing.
        remode: "pixel", "rand" or "const": what is put into erased regions.
        recount: Most regions that are erased.
        repeated_aug: DeiT's repeated augmentation, three draws of a sample in a row.
        sampler: "balanced" draws every class equally often in an epoch of as many images, those of a rare class several
            times; None draws every image once.
        cache: Keep decoded images in memory; for small datasets of small images.
        cache_gb: Limit of downloaded shards in `cache_dir`.
        common: Options of every data module.

    Raises:
        ValueError: Options that are not possible, all at once.
    """

    LIMITS: ClassVar[dict[str, Any]] = {
        **DataModule.LIMITS,
        **get_type_hints(Augmentation, include_extras=True),
        "input_size": Sizes,
        "format": Literal[FORMATS],
        "sampler": Literal["balanced"],
        "crop_pct": Annotated[float, Field(gt=0, le=1)],
        "cache_gb": Positive,
    }

    def __init__(
        self,
        root: str | None = None,
        train: str = "train",
        val: str = "val",
        test: str | None = None,
        format: str | None = None,
        file_column: str | None = None,
        label_column: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        input_size: int | tuple[int, int] | None = None,
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
        sampler: str | None = None,
        cache: bool = False,
        cache_gb: float = 64.0,
        **common,
    ):
        given = locals() | common
        self.check_options(given)
        super().__init__(root=root, train=train, val=val, test=test, **common)
        self.num_classes, self.given_names = num_classes, class_names
        self.format = format
        self.columns = (file_column, label_column)
        self._whole: ImageSource | None = None
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else input_size
        self.model_options |= {"interpolation": interpolation, "crop_pct": crop_pct}
        self.augmentation = Augmentation(**{field.name: given[field.name] for field in fields(Augmentation)})
        self.repeats = REPEATS if repeated_aug else 1
        self.is_balanced = sampler == "balanced"
        self.cache, self.cache_gb = cache, cache_gb

    def smoke(self, num_classes: int | None = None) -> None:
        super().smoke(num_classes)
        self.cache = False

    def make_preprocessing(self) -> Preprocessing:
        size = self.input_size or self.model_config.get("input_size", (224, 224))[-2:]
        own = self.of_model(*(field.name for field in fields(Preprocessing)))
        return Preprocessing(**own | {"input_size": tuple(size)})

    def open(self, split: str) -> ImageSource:
        if self.is_smoke:
            length = 64 if split == "train" else 10
            return GeneratedSource(length * self.repeats, self.num_classes or 10, self.preprocessing.input_size)
        if self.is_part(split):
            whole = self._open_whole()
            names = [whole.name(index) for index in range(len(whole))]
            is_in = self.in_part(split, whole.where, names, whole.labels.tolist())
            source: ImageSource = Part(whole, is_in, f" ({'training' if split == 'train' else 'validation'} part)")
        else:
            source = self._open(self.splits[split])
            if split != "train" and (train := self._training()) is not None:
                number_as(train, source)
                check_same_classes(train, source)
        if self.num_classes is not None and len(source.class_names) != self.num_classes:
            raise DataError(
                f"num_classes={self.num_classes}: {source.where} has {len(source.class_names)} classes "
                f"({', '.join(source.class_names[:4])}, ...)"
            )
        return source

    def _training(self) -> ImageSource | None:
        """The training images; None where an evaluation has none, which compares its classes with the model's."""
        try:
            return self.source("train")
        except DataError:
            return None

    def _open(self, split: str | None) -> ImageSource:
        """The images of a split of `root`, of all of it, or at a path.

        Args:
            split: The split, the path; None is all.
        """
        given = split or ""
        # "train" is the split even where the working folder has a folder of that name
        own_path = any(mark in given for mark in ("/", "\\", "{", "hf:")) or is_tar(given) or is_table(given)
        if self.root is None and not own_path:
            raise DataError("data.root: name the folder, tar or shards with the images")
        where, inside = (given, None) if own_path else (self.root, split)
        if own_path and is_table(given) and self.root is not None and not Path(given).is_file():
            where = str(Path(self.root) / given)
        if self.format is None and (instead := instead_of("images", where, self.cache_dir)):
            raise DataError(f"{where}: {instead}; data.format=folder takes the class folders in it")
        try:
            source = open_source(
                where, inside, self.format, self.given_names, self.cache_dir, self.cache_gb, False, *self.columns
            )
        except DataError as error:
            more = "" if any(ending in str(error) for ending in TABLES) else self.passed_over()
            raise type(error)(f"{error}; {more}" if more else str(error)) from error
        return source

    def _open_whole(self) -> ImageSource:
        """The training images before a part of them is held out: of the split, or all where there are no splits."""
        if self._whole is None:
            try:
                whole = self._open(self.splits["train"])
            except MissingSplitError:
                if self.root is None or not Path(self.root).exists() or _has_splits(self.root):
                    raise
                whole = self._open(None)
            if whole.blocks is not None:
                raise DataError("data.val_fraction: shards can't be split, name some of them as data.val")
            self.check_no_val(lambda: not same_images(self._open(self.splits["val"]), whole))
            self._whole = whole
        return self._whole

    def check(self, split: str) -> ImageCheck:
        return ImageCheck(self.source(split))

    def passed_over(self) -> str:
        if self.root is None or not Path(self.root).is_dir():
            return ""
        sources = [getattr(source, "source", source) for source in self._sources.values()]  # of parts, the whole
        return passed_over(Files(self.root), [table for one in sources for table in getattr(one, "tables", ())])

    def prepare_data(self) -> None:
        """Unpacks and indexes once for each machine what needs it."""
        if not self.is_smoke and self.root is not None:
            for split in ("train", "val"):
                try:
                    self.source(split)
                except DataError:
                    continue  # what is needed is asked for in `setup`, and fails there

    def class_counts(self) -> np.ndarray:
        source = self.source("train")
        return np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))

    def samples(self, split: str, train: bool) -> ImageDataset:
        if train:
            transform = train_transform(self.preprocessing, self.augmentation)
        else:
            transform = eval_transform(self.preprocessing)
        return ImageDataset(self.source(split), transform, self.seed, train, self.cache)


def _has_splits(root: str) -> bool:
    """Whether a folder or tar has folders that are named as splits."""
    return any(of_split(names[0], Files(root).folders()) for names in SPLITS)
