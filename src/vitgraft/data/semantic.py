"""Images with a class for every pixel: ADE20K's layout and pairs of folders, as files or in a tar.

| layout | train, val, test of the data module |
|---|---|
| `ROOT/images/SPLIT/NAME.jpg`, `ROOT/annotations/SPLIT/NAME.png` (ADE20K) | `SPLIT`, such as `training` |
| a folder of images and a folder of label files, below ROOT or anywhere | `[IMAGES, LABELS]` |

ROOT is a folder or a tar, and may hold one folder with all of that. An image and its labels have the same path below
their folders but for the ending; `image_suffix` and `label_suffix` stand between the common part and the ending
(Cityscapes: `_leftImg8bit`, `_gtFine_labelTrainIds`). Class names are given, or are read from `classes.txt` (line k
names class k) or ADE20K's `objectInfo150.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vitgraft.data.decode import decode_annotated
from vitgraft.data.digits import DigitScenes
from vitgraft.data.label_maps import LabelHistogram, LabelRule, decode_labels
from vitgraft.data.layout import ANNOTATIONS, IMAGES, instead_of, layout_start
from vitgraft.data.readers.base import Source
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.data.readers.tar import is_tar
from vitgraft.errors import DataError, ImageError

__all__ = ["DigitScenePixels", "Pairs", "SemanticSource", "find_pairs", "read_class_names"]

CLASS_FILES = ("classes.txt", "objectInfo150.txt")


class SemanticSource(Source):
    """Image files and label files, in pairs; `load` gives the image and its labels, uint8 (H, W): 0 to C - 1, and 255
    where a pixel is ignored.

    Args:
        images: The image files.
        labels: The label file of each.
        rule: The meaning of the labels' values.
        class_names: Of classes 0 to C - 1.
    """

    def __init__(self, images: FileSource, labels: FileSource, rule: LabelRule, class_names: Sequence[str]):
        self.images, self.labels, self.rule, self.class_names = images, labels, rule, tuple(class_names)
        self.where = images.where

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, values = self.load_values(index)
        return image, self.rule.apply(values, self.labels.name(index))

    def load_values(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An RGB image and the raw values of its label file, int32 (H, W).

        Raises:
            ImageError: One of its two files can't be read.
            DataError: The labels have colours, or another size than the image.
        """
        name, data = self.labels.name(index), self.images.read(index)
        values = decode_labels(self.labels.read(index), name)
        image = decode_annotated(data, self.images.name(index), values.shape)
        if values.shape != (image.height, image.width):
            raise DataError(
                f"{name}: labels of {values.shape[1]} x {values.shape[0]} pixels for an image of {image.width} x "
                f"{image.height} ({self.images.name(index)}); resize one of them, labels without interpolation"
            )
        return image, values

    def histogram(self, most: int) -> LabelHistogram:
        """Counts the label values of at most `most` images that lie evenly over the dataset.

        Files that can't be read are left out here: they are named where they are used.

        Raises:
            DataError: Labels with colours, or of another size than their image.
        """
        histogram = LabelHistogram(self.rule)
        count = min(most, len(self))
        for index in np.linspace(0, len(self) - 1, count).round().astype(int).tolist():
            try:
                _, values = self.load_values(index)
            except ImageError:
                continue
            histogram.add(*np.unique(values, return_counts=True), self.labels.name(index))
        return histogram


class DigitScenePixels(DigitScenes):
    """Scenes of handwritten digits: class 0 is the canvas, classes 1 to 10 are the digits' ink."""

    class_names = ("background", *DigitScenes.class_names)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        scene = self.scene(index)
        return Image.fromarray(scene.image), scene.semantic_mask % np.uint8(min(len(self.class_names), 255))


class Pairs(NamedTuple):
    """The image files and label files of a split.

    Attributes:
        where: The folder of the images.
        images: The image files that have a label file.
        labels: The label file of each.
        unpaired: Images without labels, each with the path that was looked for, without ending.
        without_image: Label files without an image.
    """

    where: str
    images: FileSource
    labels: FileSource
    unpaired: list[tuple[str, str]]
    without_image: list[str]

    def source(self, rule: LabelRule, class_names: Sequence[str]) -> SemanticSource:
        """The pairs as a source of images.

        Args:
            rule: The meaning of the labels' values.
            class_names: Of the classes.

        Raises:
            DataError: Images without labels; the message names the first of them.
        """
        if self.unpaired:
            image, expected = self.unpaired[0]
            more = f", the first is {self.without_image[0]}" if self.without_image else ""
            raise DataError(
                f"{len(self.unpaired)} of {len(self.images) + len(self.unpaired)} images have no label file, the first "
                f"is {image} (looked for {expected}.png); {len(self.without_image)} label files have no image{more}. "
                "Remove what has no partner, or set data.image_suffix and data.label_suffix where the names differ"
            )
        return SemanticSource(self.images, self.labels, rule, class_names)


def find_pairs(
    root: Files | str | Path | None,
    split: str | Sequence[str],
    image_suffix: str = "",
    label_suffix: str = "",
    cache_dir: str | Path | None = None,
) -> Pairs:
    """The pairs of a split.

    Args:
        root: Folder or tar; None where `split` is two folders.
        split: Name of a split of ADE20K's layout, or the folder of images and the folder of labels.
        image_suffix: Of image files, between the common part of their name and the ending.
        label_suffix: Of label files, between the common part of their name and the ending.
        cache_dir: Where a compressed tar is unpacked.

    Raises:
        DataError: No images there.
    """
    if not isinstance(split, str) and len(split) != 2:
        raise DataError(f"{list(split)}: two folders, that of the images and that of the labels")
    if isinstance(split, str) and root is None:
        raise DataError(f"{split!r} is the name of a split: data.root must name the folder or tar it is in")
    path = root.root if isinstance(root, Files) else root
    if isinstance(split, str) or (path is not None and is_tar(path)):
        files = root if isinstance(root, Files) else Files(root, cache_dir)
        places, folders = (files, files), tuple(split)
        if isinstance(split, str):
            start = layout_start(files) or ""
            folders = (f"{start}{IMAGES}/{split}", f"{start}{ANNOTATIONS}/{split}")
            if not files.images(folders[0]):
                there = ", ".join(files.folders(f"{start}{IMAGES}")) or ", ".join(files.folders()) or "nothing"
                instead = instead_of("semantic", files)
                raise DataError(
                    f"{files.root}: no images in {folders[0]}; there is {there}. Wanted: {IMAGES}/{split}/NAME.jpg and "
                    f"{ANNOTATIONS}/{split}/NAME.png, or two folders, [IMAGES, LABELS], instead of {split!r}"
                    f"{instead and '; '}{instead}"
                )
    else:
        places, folders = tuple(Files(Path(path or "") / folder, cache_dir) for folder in split), ("", "")
    images = _by_stem(places[0], folders[0], image_suffix)
    labels = _by_stem(places[1], folders[1], label_suffix)
    if not images:
        raise DataError(f"{places[0].root}/{folders[0]}: no images" + (f" *{image_suffix}.jpg" if image_suffix else ""))
    prefix = [f"{folder}/" if folder else "" for folder in folders]
    shown = [f"{place.root}/{start}" for place, start in zip(places, prefix, strict=True)]
    common = sorted(images.keys() & labels.keys())
    return Pairs(
        shown[0].rstrip("/"),
        FileSource(places[0], [prefix[0] + images[stem] for stem in common]),
        FileSource(places[1], [prefix[1] + labels[stem] for stem in common]),
        [(shown[0] + images[stem], shown[1] + stem + label_suffix) for stem in sorted(images.keys() - labels.keys())],
        [shown[1] + labels[stem] for stem in sorted(labels.keys() - images.keys())],
    )


def _by_stem(files: Files, folder: str, suffix: str) -> dict[str, str]:
    """The part that an image shares with its labels -> path below the folder."""
    names: dict[str, str] = {}
    for name in files.images(folder):
        stem = os.path.splitext(name)[0]
        if not stem.endswith(suffix):
            continue  # such as Cityscapes' colour images beside the labels
        stem = stem[: len(stem) - len(suffix)]
        if stem in names:
            raise DataError(f"{files.root}/{folder}: {names[stem]} and {name} are of one name; remove one")
        names[stem] = name
    return names


def read_class_names(files: Files) -> list[str] | None:
    """The names in `classes.txt` (one a line) or ADE20K's `objectInfo150.txt`; None where neither is there.

    Raises:
        DataError: Such a file is no text, or empty.
    """
    for start in dict.fromkeys(("", layout_start(files) or "")):
        for name in CLASS_FILES:
            data = files.read(start + name)
            if data is None:
                continue
            try:
                lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
            except UnicodeDecodeError as error:
                raise DataError(f"{files.root}/{start}{name}: no text in UTF-8 ({error})") from error
            names = [line for line in lines if line]
            if name == "objectInfo150.txt":  # Idx Ratio Train Val Name, with tabs between
                names = [line.split("\t")[-1].strip() for line in names[1:]]
            if not names:
                raise DataError(f"{files.root}/{start}{name}: empty; one name of a class in each line")
            return names
    return None
