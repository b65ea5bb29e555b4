"""Label files of semantic segmentation: the meaning of their pixel values, and whether a dataset's values fit it.

A label file is an image with a whole number for each pixel: 8-bit or 16-bit grey, or a palette image, whose indices
count (the colours only show them). The tasks see classes 0 to C - 1 and 255 for pixels that are ignored.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from vitgraft.data.decode import open_image
from vitgraft.data.findings import Finding
from vitgraft.errors import DataError, ImageError

__all__ = ["IGNORE", "LabelHistogram", "LabelRule", "count_values", "decode_labels"]

IGNORE = 255
MOST_CLASSES = 255
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
                counted = count_values(*np.unique(wrong, return_counts=True))
                raise DataError(f"{name}: label value {counted}; {self.expected()}")
        return labels

    def expected(self) -> str:
        """The values that there may be, in words."""
        first, last = self.class_values
        zero = "0 is ignored (reduce_zero_label=true), " if self.reduce_zero_label else ""
        ignored = "" if self.ignore_index is None else f", {self.ignore_index} is ignored (ignore_index)"
        return f"{zero}{first} to {last} are the {self.num_classes} classes{ignored}"


def count_values(values: np.ndarray, counts: np.ndarray, most: int = 8) -> str:
    """Values with their numbers of pixels, the first few."""
    shown = ", ".join(f"{value} ({count:,} pixels)" for value, count in zip(values[:most], counts[:most], strict=True))
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """A label file's values, int32 (H, W).

    Args:
        data: The file's content.
        name: The file's name in errors.

    Raises:
        ImageError: The file is empty, broken, cut short or too large: it can't be read.
        DataError: It is no label file: colours instead of indices, or JPEG, which changes values.
    """
    image = open_image(data, name)
    if image.mode not in _INDEX_MODES:
        grey = image.mode in ("RGB", "RGBA", "LA") and _is_grey(image, name)
        hint = (
            "its colour channels are all the same: save one of them"
            if grey
            else "convert each colour to the number of its class and save one channel (PNG, 8-bit grey or palette)"
        )
        raise DataError(f"{name}: a label file in {image.mode}, not one class index for each pixel; {hint}")
    if image.format in ("JPEG", "MPO"):
        raise DataError(f"{name}: a label file in JPEG, whose compression changes the values; use PNG")
    try:
        image.load()
        values = np.asarray(image)
    except Exception as error:  # Pillow's plugins let many kinds through, see vitgraft.data.decode
        raise ImageError(name, str(error) or type(error).__name__) from error
    return values.astype(np.int32)


def _is_grey(image, name: str) -> bool:
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
            self.wrong.append(f"{name}: {count_values(values[bad], counts[bad])}")
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
        shown = [f"{value}: {100 * count / total:.3g} %" for value, count in ordered[:most]]
        return ", ".join(shown) + (f", {len(ordered) - most} more" if len(ordered) > most else "")

    def findings(self, where: str) -> Iterator[Finding]:
        """Errors and warnings of a dataset's label values, for training and for `vitgraft check-data`.

        Args:
            where: The dataset.
        """
        rule, classes = self.rule, self.classes()
        if self.wrong:
            message = (
                f"{len(self.wrong)} label files have values that are no class; {rule.expected()}. In all "
                f"{self.files}: {self.describe()}.{_repair(self)}"
            )
            yield Finding("error", "values", where, message, self.wrong)
        if self.files and not classes.any():
            message = (
                f"not one pixel of a class in {self.files} label files, all are ignored ({self.describe()}). "
                f"{rule.expected().capitalize()}: check reduce_zero_label and ignore_index"
            )
            yield Finding("error", "ignored", where, message)
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
            message = f"{len(self.only_ignored)} label files have ignored pixels only"
            yield Finding("warning", "ignored", where, message, self.only_ignored)


def _repair(histogram: LabelHistogram) -> str:
    """Another reading of the values that would fit them."""
    rule, values = histogram.rule, np.array(sorted(histogram.pixels))
    for ignored, reduce in itertools.product((rule.ignore_index, 255, 0), (True, False)):
        try:
            other = LabelRule(rule.num_classes, reduce, ignored)
        except ValueError:
            continue
        if other.allowed(values).all():
            return f" reduce_zero_label={str(reduce).lower()} with ignore_index={ignored} would fit these values"
    most = int(values[values < 250].max(initial=-1))
    if most >= rule.class_values[1]:
        need = most + 1 - int(rule.reduce_zero_label)
        return f" With this numbering there would have to be {need} classes"
    return ""
