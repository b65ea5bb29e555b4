"""Label files of semantic segmentation: what their pixel values mean, and whether a set's values can be what is said.

A label file is an image with a whole number for each pixel: 8-bit or 16-bit grey, or a palette image, whose indices
count (the colours only show them). The tasks see classes 0 to C - 1 and 255 for pixels that are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from vitgraft.data.decode import open_image
from vitgraft.errors import DataError, ImageError

__all__ = ["IGNORE", "LabelHistogram", "LabelRule", "check_histogram", "decode_labels"]

IGNORE = 255
MOST_CLASSES = 255
_INDEX_MODES = ("L", "P", "1", "I;16", "I;16B", "I;16L", "I")


@dataclass(frozen=True)
class LabelRule:
    """What the values of label files mean.

    Args:
        num_classes: C, at most 255.
        reduce_zero_label: whether 0 is no class: 0 is ignored, 1 to C become 0 to C - 1 (ADE20K's numbering). Without
            it 0 to C - 1 are the classes.
        ignore_index: value in the files that is ignored; None: there is none.

    Raises:
        ValueError: too many classes, or an `ignore_index` that is a class.
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
        """Which of some values of label files can be, bool of the same shape."""
        first, last = self.class_values
        good = (values >= first) & (values <= last)
        if self.reduce_zero_label:
            good |= values == 0
        return good if self.ignore_index is None else good | (values == self.ignore_index)

    def apply(self, values: np.ndarray, name: str) -> np.ndarray:
        """Values of a label file, (H, W), as uint8 (H, W): classes 0 to C - 1, and 255.

        Raises:
            DataError: a value that is neither a class nor ignored; the message names file and value.
        """
        first, last = self.class_values
        inside = (values >= first) & (values <= last)
        labels = np.where(inside, values - first, IGNORE).astype(np.uint8)
        if not inside.all():
            rest = values[~inside]
            wrong = rest[~self.allowed(rest)]
            if len(wrong):
                raise DataError(f"{name}: {self.describe_wrong(wrong)}")
        return labels

    def describe_wrong(self, wrong: np.ndarray) -> str:
        """What is said of pixels with values that can't be."""
        values, counts = np.unique(wrong, return_counts=True)
        shown = ", ".join(f"{value} ({count:,} pixels)" for value, count in zip(values[:6], counts[:6], strict=True))
        more = f" and {len(values) - 6} more" if len(values) > 6 else ""
        return f"label value {shown}{more}; {self.expected()}"

    def expected(self) -> str:
        """Which values there may be, in words."""
        first, last = self.class_values
        zero = "0 is ignored (reduce_zero_label=true), " if self.reduce_zero_label else ""
        ignored = "" if self.ignore_index is None else f", {self.ignore_index} is ignored (ignore_index)"
        return f"{zero}{first} to {last} are the {self.num_classes} classes{ignored}"


def decode_labels(data: bytes, name: str) -> np.ndarray:
    """A label file's values, int32 (H, W).

    Args:
        data: the file's content.
        name: what to call the file in an error.

    Raises:
        ImageError: the file is empty, broken, cut short or too large: it can't be read.
        DataError: it is no label file: colours instead of indices, or JPEG, which changes values.
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

    Attributes:
        files: number of files counted.
        pixels: value -> pixels with it.
        first_file: value -> the first file with it.
        only_ignored: files without a pixel of any class.
        wrong: value that can't be -> all files with it.
    """

    files: int = 0
    pixels: dict[int, int] = field(default_factory=dict)
    first_file: dict[int, str] = field(default_factory=dict)
    only_ignored: list[str] = field(default_factory=list)
    wrong: dict[int, list[str]] = field(default_factory=dict)

    def add(self, values: np.ndarray, name: str, rule: LabelRule) -> None:
        """Counts a file's values, (H, W)."""
        self.add_counts(*np.unique(values, return_counts=True), name, rule)

    def add_counts(self, found: np.ndarray, counts: np.ndarray, name: str, rule: LabelRule) -> None:
        """Counts a file by its values and how many pixels have each."""
        first, last = rule.class_values
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            self.pixels[value] = self.pixels.get(value, 0) + count
            self.first_file.setdefault(value, name)
        for value in found[~rule.allowed(found)].tolist():
            self.wrong.setdefault(value, []).append(name)
        if not ((found >= first) & (found <= last)).any():
            self.only_ignored.append(name)
        self.files += 1

    def classes(self, rule: LabelRule) -> np.ndarray:
        """int64 (C,): pixels of each class."""
        first, last = rule.class_values
        return np.array([self.pixels.get(value, 0) for value in range(first, last + 1)], dtype=np.int64)

    def describe(self, most: int = 12) -> str:
        """The values with their shares, the most frequent first."""
        total = sum(self.pixels.values())
        ordered = sorted(self.pixels.items(), key=lambda item: -item[1])
        shares = [f"{value}: {100 * count / total:.3g} %" for value, count in ordered[:most]]
        return ", ".join(shares) + (f", {len(ordered) - most} more" if len(ordered) > most else "")


def check_histogram(histogram: LabelHistogram, rule: LabelRule, where: str) -> list[str]:
    """Whether a set's label values can be what `rule` says.

    Args:
        histogram: of some or all label files.
        rule: what the values mean.
        where: what to call the set.

    Returns:
        What one should know, though it can be: lines for the user.

    Raises:
        DataError: values that can't be, with the first file of each; or no pixel of any class.
    """
    looked = f"{histogram.files} label files of {where}"
    if histogram.wrong:
        files = [f"{value} in {names[0]}" for value, names in sorted(histogram.wrong.items())]
        shown = "; ".join(files[:6]) + (f"; {len(files) - 6} more values" if len(files) > 6 else "")
        raise DataError(
            f"label values that can't be: {shown}. {rule.expected().capitalize()}. "
            f"In the {looked}: {histogram.describe()}.{_repair(histogram, rule)}"
        )
    classes = histogram.classes(rule)
    if histogram.files and not classes.any():
        raise DataError(
            f"{where}: not one pixel of a class in {histogram.files} label files, all are ignored "
            f"({histogram.describe()}). {rule.expected().capitalize()}: check reduce_zero_label and ignore_index"
        )
    notes = []
    zeros, total = histogram.pixels.get(0, 0), sum(histogram.pixels.values())
    if rule.reduce_zero_label and total and not classes[-1] and zeros > 0.2 * total:
        notes.append(
            f"{where}: value {rule.class_values[1]} (the last class) is in none of the {histogram.files} label files "
            f"looked at, and 0 has {100 * zeros / total:.0f} % of the pixels, which are ignored: if 0 is a class, "
            "reduce_zero_label must be false"
        )
    if histogram.only_ignored:
        names = histogram.only_ignored
        notes.append(f"{where}: {len(names)} of {histogram.files} label files have ignored pixels only: {names[0]} ...")
    return notes


def _repair(histogram: LabelHistogram, rule: LabelRule) -> str:
    """Which other reading of the values would fit them."""
    values = np.array(sorted(histogram.pixels))
    others: Iterable[tuple[bool, int | None]] = (
        (reduce, ignored) for ignored in (rule.ignore_index, 255, 0) for reduce in (True, False)
    )
    for reduce, ignored in others:
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
