"""Label maps, images with a class for every pixel: pairs of image and label files, and the meaning of pixel values.

| layout | train, val, test of the data module |
|---|---|
| `ROOT/images/SPLIT/NAME.jpg`, `ROOT/annotations/SPLIT/NAME.png` (ADE20K) | `SPLIT`, such as `training` |
| a folder of images and a folder of label files, below ROOT or anywhere | `[IMAGES, LABELS]` |

ROOT is a folder or a tar, and may hold one folder with all of that. An image and its labels have the same path below
their folders but for the ending; `image_suffix` and `label_suffix` stand between the common part and the ending
(Cityscapes: `_leftImg8bit`, `_gtFine_labelTrainIds`). Class names are given, or are read from `classes.txt` (line k
names class k) or ADE20K's `objectInfo150.txt`.

A label file is an image with a whole number for each pixel: 8-bit or 16-bit gray, or a palette image, whose indices
count (the colors only show them). Or an image with a color for each class, by a table of colors (`label_table.py`).
The tasks see classes 0 to C - 1 and 255 for pixels that are ignored.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from vitgraft.data.decode import decode_annotated, open_image
from vitgraft.data.findings import Finding
from vitgraft.data.layout import (
    ANNOTATIONS,
    IMAGES,
    FolderPair,
    instead_of,
    layout_start,
    passed_over,
    semantic_splits,
)
from vitgraft.data.readers.base import ImageSource, Source, of_split
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.data.readers.tar import is_tar
from vitgraft.data.split import Part
from vitgraft.errors import DataError, ImageError, MissingSplitError
from vitgraft.terminal import number_of

__all__ = [
    "IGNORE", "LabelHistogram", "LabelRule", "Pairs", "SemanticSource", "decode_labels", "find_pairs",
    "read_class_names", "read_pixels", "unknown_classes",
]  # fmt: skip

CLASS_FILES = ("classes.txt", "objectInfo150.txt")
IGNORE = 255
MOST_CLASSES = 255
FAR_APART = 4  # so many times as many numbers as values are between the least and the largest: these count no classes
SHOWN = 8  # values in a message
_INDEX_MODES = ("L", "P", "1", "I;16", "I;16B", "I;16L", "I")


@dataclass(frozen=True)
class LabelRule:
    """The meaning of the values of label files.

    Args:
        num_classes: C, at most 255.
        reduce_zero_label: Whether 0 is no class: 0 is ignored, 1 to C become 0 to C - 1 (ADE20K's numbering). Without
            it 0 to C - 1 are the classes.
        ignore_index: Value in the files that is ignored; None: there is none.

    Raises:
        ValueError: Too many classes, or an `ignore_index` that is a class.
    """

    num_classes: int
    reduce_zero_label: bool = False
    ignore_index: int | None = 255

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= MOST_CLASSES:
            raise ValueError(f"num_classes={self.num_classes}: 1 to {MOST_CLASSES}; 255 marks ignored pixels")
        first, last = self.class_values
        if self.ignore_index is not None and first <= self.ignore_index <= last:
            raise ValueError(
                f"ignore_index={self.ignore_index} is the value of a class (the classes are {first} to {last}, "
                f"reduce_zero_label={self.reduce_zero_label}); 255, or null where nothing is ignored"
            )

    @property
    def class_values(self) -> tuple[int, int]:
        """The files' values of the first and the last class."""
        first = int(self.reduce_zero_label)
        return first, first + self.num_classes - 1

    def allowed(self, values: np.ndarray) -> np.ndarray:
        """Which of some values of label files are possible, bool of the same shape."""
        first, last = self.class_values
        good = (values >= first) & (values <= last)
        if self.reduce_zero_label:
            good |= values == 0
        return good if self.ignore_index is None else good | (values == self.ignore_index)

    def apply(self, values: np.ndarray, name: str) -> np.ndarray:
        """Values of a label file, (H, W), as uint8 (H, W): classes 0 to C - 1, and 255.

        Raises:
            DataError: A value that is neither a class nor ignored; the message names file and value.
        """
        first, last = self.class_values
        inside = (values >= first) & (values <= last)
        labels = np.where(inside, values - first, IGNORE).astype(np.uint8)
        if not inside.all():
            rest = values[~inside]
            wrong = rest[~self.allowed(rest)]
            if len(wrong):
                counted = count_values(*np.unique(wrong, return_counts=True), self.shown)
                raise DataError(f"{name}: label value {counted}; {self.expected()}")
        return labels

    # what the values are called
    noun: ClassVar[str] = "values"

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """The values of a label file, int32 (H, W), as of `decode_labels`."""
        return decode_labels(data, name)

    def shown(self, value: int) -> str:
        """A value in messages."""
        return str(value)

    def repair(self, values: np.ndarray) -> str:
        """What would fit some values of label files, in a sentence; may be empty."""
        largest = [int(values.max())] if len(values) > 2 else []
        for ignored, reduce in itertools.product((self.ignore_index, 255, 0, *largest), (True, False)):
            try:
                other = LabelRule(self.num_classes, reduce, ignored)
            except ValueError:
                continue
            if other.allowed(values).all():
                return f" reduce_zero_label={str(reduce).lower()} with ignore_index={ignored} would fit these values"
        most = int(values[values < 250].max(initial=-1))
        if most >= self.class_values[1]:
            need = most + 1 - int(self.reduce_zero_label)
            return f" With this numbering there would have to be {need} classes"
        return ""

    def expected(self) -> str:
        """The values that there may be, in words."""
        first, last = self.class_values
        zero = "0 is ignored (reduce_zero_label=true), " if self.reduce_zero_label else ""
        ignored = "" if self.ignore_index is None else f", {self.ignore_index} is ignored (ignore_index)"
        return f"{zero}{first} to {last} are the {self.num_classes} classes{ignored}"


def count_values(values: np.ndarray, counts: np.ndarray, show: Callable[[int], str] = str, most: int = SHOWN) -> str:
    """Values with their numbers of pixels, the first few."""
    pairs = zip(values[:most].tolist(), counts[:most].tolist(), strict=True)
    shown = ", ".join(f"{show(value)} ({count:,} pixels)" for value, count in pairs)
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """A label file's values, int32 (H, W).

    Args:
        data: The file's content.
        name: The file's name in errors.

    Raises:
        ImageError: The file is empty, broken, cut short or too large: it can't be read.
        DataError: It is no label file: colors instead of indices, or JPEG, which changes values.
    """
    image = open_image(data, name)
    if image.mode not in _INDEX_MODES:
        gray = image.mode in ("RGB", "RGBA", "LA") and _is_gray(image, name)
        hint = (
            "its color channels are all the same: save one of them"
            if gray
            else "set data.colors to a table with the class of each color, or convert each color to the number of "
            "its class and save one channel (PNG, 8-bit gray or palette)"
        )
        raise DataError(f"{name}: a label file in {image.mode}, not one class index for each pixel; {hint}")
    return read_pixels(image, name).astype(np.int32)


def read_pixels(image: Image.Image, name: str, mode: str | None = None) -> np.ndarray:
    """The pixels of a label file.

    Args:
        image: Its header.
        name: The file's name in errors.
        mode: Pillow's mode that they are converted to; None leaves them.

    Raises:
        ImageError: The file can't be read.
        DataError: It is a JPEG.
    """
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"{name}: a label file in JPEG, whose compression changes the values; use PNG")
    try:
        image.load()
        return np.asarray(image if mode is None else image.convert(mode))
    except Exception as error:  # Pillow's plugins let many kinds through, see vitgraft.data.decode
        raise ImageError(name, str(error) or type(error).__name__) from error


def _is_gray(image, name: str) -> bool:
    try:
        pixels = np.asarray(image.convert("RGB"))
    except Exception as error:
        raise ImageError(name, str(error) or type(error).__name__) from error
    return bool((pixels == pixels[..., :1]).all())


@dataclass
class LabelHistogram:
    """How often values occur in label files.

    Args:
        rule: The meaning of the values.

    Attributes:
        files: Number of files counted.
        pixels: value -> pixels with it.
        only_ignored: Files without a pixel of any class.
        wrong: Each file with values that are not possible, and these values.
    """

    rule: LabelRule
    files: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    only_ignored: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, values: np.ndarray, counts: np.ndarray, name: str) -> None:
        """Counts a file by its different values and how many pixels have each."""
        first, last = self.rule.class_values
        self.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        bad = ~self.rule.allowed(values)
        if bad.any():
            self.wrong.append(f"{name}: {count_values(values[bad], counts[bad], self.rule.shown)}")
        elif not ((values >= first) & (values <= last)).any():
            self.only_ignored.append(name)
        self.files += 1

    def classes(self) -> np.ndarray:
        """int64 (C,): pixels of each class."""
        first, last = self.rule.class_values
        return np.array([self.pixels[value] for value in range(first, last + 1)], dtype=np.int64)

    def describe(self, most: int = 12) -> str:
        """The values with their fractions, sorted by descending frequency."""
        total, ordered = self.pixels.total(), self.pixels.most_common()
        shown = [f"{self.rule.shown(value)}: {100 * count / total:.3g} %" for value, count in ordered[:most]]
        return ", ".join(shown) + (f", {len(ordered) - most} more" if len(ordered) > most else "")

    def hint(self) -> str:
        """What leads on where few values lie far apart, as those of a mask do, 0 and 255; else empty."""
        values = sorted(self.pixels)
        inside = [value for value in values if value != self.rule.ignore_index]
        inside = inside if len(inside) > 1 else values
        gaps = [value - before for before, value in itertools.pairwise(inside)]
        far_apart = 2 * sum(gap > 1 for gap in gaps) > len(gaps) and sum(gaps) + 1 >= FAR_APART * len(inside)
        if self.rule.noun != LabelRule.noun or not far_apart:
            return ""
        shown = [*map(str, inside[:SHOWN]), *([f"{len(inside) - SHOWN} more"] if len(inside) > SHOWN else [])]
        ignored = f", and {inside[-1]} is ignored (ignore_index)" if inside[-1] == self.rule.ignore_index else ""
        names = ["background", "object"] if inside[0] == 0 and len(inside) == 2 else [f"class_{n}" for n in inside]
        mapping = ", ".join(f"{value}: {name}" for value, name in zip(inside[:SHOWN], names, strict=False))
        object_of = f"if {inside[1]} is your object, save it as 1, name two classes"
        numbers = f"if each is a class, save them as 0 to {len(inside) - 1}, name {len(inside)} classes"
        return (
            f"the only values are {', '.join(shown[:-1])} and {shown[-1]}{ignored}: "
            f"{object_of if names[0] == 'background' else numbers} and set reduce_zero_label to false; or leave the "
            f"files and set data.label_values='{{{mapping}{', ...' * (len(inside) > SHOWN)}}}'"
        )

    def findings(self, where: str) -> Iterator[Finding]:
        """Errors and warnings of a dataset's label values, for training and for `vitgraft check-data`.

        Args:
            where: The dataset.
        """
        rule, classes = self.rule, self.classes()
        if self.wrong:
            message = number_of(len(self.wrong), f"label files have {rule.noun} that are no class")
            message += f"; {rule.expected()}. In all {self.files}: {self.describe()}.{_repair(self)}"
            yield Finding("error", "values", where, message, self.wrong, stops=True)
        if self.files and not classes.any():
            message = (
                f"not one pixel of a class in {self.files} label files, all are ignored ({self.describe()}). "
                f"{rule.expected().capitalize()}: {self.hint() or 'check reduce_zero_label and ignore_index'}"
            )
            yield Finding("error", "ignored", where, message, stops=True)
            return
        zeros, total = self.pixels[0], self.pixels.total()
        if rule.reduce_zero_label and total and not classes[-1] and zeros > 0.2 * total:
            message = (
                f"value {rule.class_values[1]} (the last class) is in none of {self.files} label files, and 0 has "
                f"{100 * zeros / total:.0f} % of the pixels, which are ignored: if 0 is a class, reduce_zero_label "
                "must be false"
            )
            yield Finding("warning", "numbering", where, message)
        if self.only_ignored:
            message = number_of(len(self.only_ignored), "label files have ignored pixels only")
            yield Finding("warning", "ignored", where, message, self.only_ignored)


def _repair(histogram: LabelHistogram) -> str:
    """Another reading of the values that would fit them."""
    if hint := histogram.hint():
        return f" {hint[0].upper()}{hint[1:]}"
    return histogram.rule.repair(np.array(sorted(histogram.pixels)))


class SemanticSource(Source):
    """Image files and label files, in pairs; `load` gives the image and its labels, uint8 (H, W): 0 to C - 1, and 255
    where a pixel is ignored.

    Args:
        images: The image files.
        labels: The label file of each.
        rule: The meaning of the labels' values.
        class_names: Of classes 0 to C - 1.
    """

    def __init__(self, images: ImageSource, labels: ImageSource, rule: LabelRule, class_names: Sequence[str]):
        self.images, self.labels, self.rule, self.class_names = images, labels, rule, tuple(class_names)
        self.where = images.where

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def contents(self, paths: Sequence[bytes]) -> dict[str, Iterable[bytes]]:
        labels = self.labels.contents(self.labels.paths())
        return {"files": self.images.contents(paths)["files"], "annotations": labels["files"]}

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, values = self.load_values(index)
        return image, self.rule.apply(values, self.labels.name(index))

    def load_labels(self, index: int) -> np.ndarray:
        """The labels of an image alone, without reading it.

        Raises:
            ImageError: Their file can't be read.
            DataError: They have colours, or values that are no class.
        """
        name = self.labels.name(index)
        return self.rule.apply(self.rule.decode(self.labels.read(index), name), name)

    def load_values(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An RGB image and the values of its label file, int32 (H, W), as of the rule's `decode`.

        Raises:
            ImageError: One of its two files can't be read.
            DataError: The labels have colors, or another size than the image.
        """
        name, data = self.labels.name(index), self.images.read(index)
        values = self.rule.decode(self.labels.read(index), name)
        image = decode_annotated(data, self.images.name(index), values.shape)
        if values.shape != (image.height, image.width):
            raise DataError(
                f"{name}: labels of {values.shape[1]} x {values.shape[0]} pixels for an image of {image.width} x "
                f"{image.height} ({self.images.name(index)}); resize one of them, labels without interpolation"
            )
        return image, values


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
    images: ImageSource
    labels: ImageSource
    unpaired: list[tuple[str, str]]
    without_image: list[str]

    def take(self, is_in: np.ndarray, part: str, rest: bool = False) -> Pairs:
        """Some of the pairs.

        Args:
            is_in: Of each pair, bool (N,).
            part: What they are, in brackets.
            rest: Whether files without a partner belong to them.
        """
        images, labels = Part(self.images, is_in, ""), Part(self.labels, is_in, "")
        alone = (self.unpaired, self.without_image) if rest else ([], [])
        return Pairs(f"{self.where}{part}", images, labels, *alone)

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
            more = number_of(len(self.without_image), f"label files have no image{more}")
            raise DataError(
                f"{len(self.unpaired)} of {len(self.images) + len(self.unpaired)} images have no label file, the first "
                f"is {image} (looked for {expected}.png); {more}. "
                "Remove what has no partner, or set data.image_suffix and data.label_suffix where the names differ"
            )
        return SemanticSource(self.images, self.labels, rule, class_names)


def find_pairs(
    root: Files | str | Path | None,
    split: str | Sequence[str],
    image_suffix: str = "",
    label_suffix: str = "",
    cache_dir: str | Path | None = None,
    whole: bool = False,
) -> Pairs:
    """The pairs of a split.

    Args:
        root: Folder or tar; None where `split` is two folders.
        split: Name of a split of ADE20K's layout, or the folder of images and the folder of labels.
        image_suffix: Of image files, between the common part of their name and the ending.
        label_suffix: Of label files, between the common part of their name and the ending.
        cache_dir: Where a compressed tar is unpacked.
        whole: Whether a dataset without splits will do, of which a part is taken.

    Raises:
        MissingSplitError: The dataset does not have the split.
        DataError: No images there.
    """
    stems = split.stems if isinstance(split, FolderPair) else None
    if not isinstance(split, str | FolderPair) and len(split) != 2:
        raise DataError(f"{list(split)}: two folders, that of the images and that of the labels")
    if isinstance(split, str) and root is None:
        raise MissingSplitError(f"{split!r} is the name of a split: data.root must name the folder or tar it is in")
    path = root.root if isinstance(root, Files) else root
    if isinstance(split, str | FolderPair) or (path is not None and is_tar(path)):
        files = root if isinstance(root, Files) else Files(root, cache_dir)
        places, folders = (files, files), tuple(split)[:2]
        if isinstance(split, str):
            splits, start = semantic_splits(files), layout_start(files) or ""
            own = of_split(split, splits)
            own = "" if own is None and whole and [*splits] == [""] else own
            pair = FolderPair(f"{start}{IMAGES}/{split}", f"{start}{ANNOTATIONS}/{split}")
            *folders, stems = pair if own is None else splits[own]
            if not files.images(folders[0]):
                there = ", ".join(files.folders(f"{start}{IMAGES}")) or ", ".join(files.folders()) or "nothing"
                more = [instead_of("semantic", files), passed_over(files)]
                if "" in splits:
                    more.insert(0, f"name both folders: data.train=[{','.join(splits[''][:2])}], and data.val likewise")
                raise MissingSplitError(
                    f"{files.root}: no images in {folders[0]}; there is {there}. Wanted: {IMAGES}/{split}/NAME.jpg and "
                    f"{ANNOTATIONS}/{split}/NAME.png, or two folders, [IMAGES, LABELS], instead of {split!r}"
                    + "".join(f"; {text}" for text in more if text)
                )
    else:
        places, folders = tuple(Files(Path(path or "") / folder, cache_dir) for folder in split), ("", "")
    images = _by_stem(places[0], folders[0], image_suffix)
    labels = _by_stem(places[1], folders[1], label_suffix)
    if stems is not None:
        images, labels = ({stem: one[stem] for stem in stems if stem in one} for one in (images, labels))
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
            continue  # such as Cityscapes' color images beside the labels
        stem = stem[: len(stem) - len(suffix)]
        if stem in names:
            raise DataError(f"{files.root}/{folder}: {names[stem]} and {name} are of one name; remove one")
        names[stem] = name
    return names


def unknown_classes(where: object) -> str:
    """The error of label maps whose classes are neither named nor numbered."""
    return (
        f"{where}: the classes are unknown: put classes.txt there with a name in each line, or set data.class_names, "
        "data.num_classes or, for values that are no row of numbers, data.label_values (--num-classes, --label-values)"
    )


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
            if len(names) > MOST_CLASSES:
                raise DataError(
                    f"{files.root}/{start}{name}: {len(names)} classes, at most {MOST_CLASSES} are possible"
                )
            return names
    return None
