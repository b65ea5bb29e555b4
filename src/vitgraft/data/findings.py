"""Errors and warnings of a dataset: `Check`, what is examined in one split; `Report`, and how it is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vitgraft.data.decode import decode_image, open_image
from vitgraft.data.readers.base import ImageSource
from vitgraft.errors import DataError, ImageError, MissingSplitError
from vitgraft.terminal import markdown_text, number_of, printable

# A class with this many times the images of another one is worth a warning; ImageNet-1K's training set has 1.8.
IMBALANCE = 10.0
MAX_LEFT_OUT = 0.5
MIN_SIDE = 32  # of images with objects to train on, pixels
SHOWN = 10
_EXIF_ORIENTATION = 0x0112


@dataclass
class Finding:
    """One error or warning.

    Attributes:
        level: "error" or "warning".
        kind: Such as "unreadable", "mode", "imbalance", "classes", "duplicate", "empty class", "set".
        where: The dataset.
        message: The error in one line.
        items: The files or classes that it is about.
        stops: Whether a run does not start because of it.
        repeats: Kinds of other findings of the dataset that it repeats.
    """

    level: str
    kind: str
    where: str
    message: str
    items: list[str] = field(default_factory=list)
    stops: bool = False
    repeats: tuple[str, ...] = ()

    def line(self) -> str:
        """The finding in one line, with the first of its items."""
        return f"{self.where}: {self.message}" + "".join(f"; the first: {item}" for item in self.items[:1])


@contextmanager
def noted(findings: list[Finding], kind: str, where: str) -> Iterator[None]:
    """A dataset that can't be used becomes a finding, where training ends with a `DataError`."""
    try:
        yield
    except DataError as error:
        findings.append(Finding("error", kind, where, str(error).removeprefix(f"{where}: ")))


SPLITS_NEEDED = "splits"
HOLD_OUT = (
    "data.train and data.val name other splits; data.val_fraction=0.1 holds a tenth of the images out where there is "
    "no validation split"
)


def splits_needed(path: str, find: Callable[[str], Any], names: Sequence[str] = ("train", "val")) -> Iterator[Finding]:
    """A warning with the error that a run would end with, where a dataset lacks a split that it needs.

    Args:
        path: The dataset.
        find: Opens or finds a split, as a run does.
        names: The splits that a run takes where its recipe names no others.
    """
    for name in names:
        try:
            find(name)
        except MissingSplitError as error:
            text = str(error).removeprefix(f"{path}: ")
            yield Finding("warning", SPLITS_NEEDED, path, f"fit needs training and validation: {text}; {HOLD_OUT}")
            return


@dataclass
class SetReport:
    """The contents of one dataset.

    Attributes:
        where: Its path.
        images: Number of files.
        per_class: Number of images, pixels or objects of each class.
        counted: What `per_class` counts, "images", "pixels" or "objects".
    """

    where: str
    images: int
    per_class: dict[str, int]
    counted: str = "images"


@dataclass
class Report:
    """All datasets and findings; `ok` is whether there is no error."""

    sets: list[SetReport]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """JSON values, with every file."""
        return {"kind": "check-data", "ok": self.ok, **asdict(self)}


class Examined(NamedTuple):
    """What was found in one image and its annotation.

    Attributes:
        errors: kind -> message.
        unusual: What is not plain about the image; mostly empty.
        digest: The same for images of the same pixels; empty where it can't be read.
        sizes: (height, width) of the image upright and as it is stored.
        values: Of its label file, each with its number of pixels in `counts`.
        counts: Of the values.
        palette: Whether the label file is a palette image.
    """

    errors: dict[str, str]
    unusual: str = ""
    digest: bytes = b""
    sizes: tuple[tuple[int, int], ...] = ()
    values: np.ndarray | None = None
    counts: np.ndarray | None = None
    palette: bool = False


# kind of error -> what it is called, after the number of files, and whether it ends a run wherever it comes up
FILE_ERRORS = {
    "missing": ("image files are missing", False),
    "unreadable": ("files can't be read", False),
    "size": ("files have another size than their annotations", False),
    "colors": ("label files hold no class indices", True),
}
MOST_GONE = 0.5  # fraction of a dataset that may be missing or unreadable
GONE = {
    "missing": "copy the missing files, or take the images without a file out of the annotations",
    "unreadable": "copy these files anew, or remove them",
    "size": "annotate these files as they are now, or give them the size that they were annotated at",
}


class Check:
    """One split of a dataset.

    Args:
        where: Its name in messages.
        files: Its images; None where they were not found.

    Attributes:
        examined: Of each image that was examined, by its index: of all by `check-data`, of a sample before a run.
        pixels: How many pixels may still be decoded; None is all.
    """

    def __init__(self, where: str, files: ImageSource | None):
        self.where, self.files = where, files
        self.examined: dict[int, Examined] = {}
        self.pixels: int | None = None

    def __len__(self) -> int:
        return 0 if self.files is None else len(self.files)

    def __getitem__(self, index: int) -> Examined:
        """Decodes an image."""
        return self.examine(index)

    def examine(self, index: int, size: tuple[int, int] | None = None) -> Examined:
        """Decodes an image.

        Args:
            index: Of the image.
            size: (height, width) of its annotations, which decide whether EXIF turns it.
        """
        name = self.files.name(index)
        try:
            data = self.files.read(index)
        except ImageError as error:
            return Examined({"missing": str(error)})
        try:
            header, digest = open_image(data, name), b""
            if self.pixels is None or header.width * header.height <= self.pixels:
                image = decode_image(data, name)
                pixels = f"{image.size}".encode() + image.tobytes()
                digest = hashlib.blake2b(pixels, digest_size=16).digest()
                if self.pixels is not None:
                    self.pixels -= header.width * header.height
            elif header.format == "PNG":
                header.info.setdefault("exif", b"")  # else Pillow decodes the image, to look for an entry behind it
            sizes, unusual = (upright_size(header), header.size[::-1]), unusual_about(header, size)
        except ImageError as error:
            return Examined({"unreadable": str(error)})
        return Examined({}, unusual, digest, sizes)

    def look_further(self) -> None:
        """Examines more than a sample where that did not show that there is something to learn."""

    def file_findings(self) -> Iterator[Finding]:
        """Files that are missing or can't be read, and what is made of unusual ones, of the images examined."""
        looked = f"{len(self.examined)}" + ("" if self.has_all else f" (a sample of {len(self)})")
        items = {
            kind: [one.errors[kind] for one in self.examined.values() if kind in one.errors] for kind in FILE_ERRORS
        }
        gone = sum(len(items[kind]) for kind in GONE)
        for kind, (words, always) in FILE_ERRORS.items():
            if items[kind]:
                yield self.file_finding(kind, f"{len(items[kind])} of {looked} {words}", items[kind], gone, always)
        decoded = sum(bool(one.digest) for one in self.examined.values())
        if len(self.digests) == 1 and decoded > 2:
            text = f"nothing to learn: the {decoded} images that were decoded have the same pixels; copy the files anew"
            yield Finding("error", "nothing to learn", self.where, text, stops=True)
        unusual: dict[str, list[str]] = {}
        for index, one in self.examined.items():
            if one.unusual:
                unusual.setdefault(one.unusual, []).append(self.files.name(index))
        for kind, names in unusual.items():
            count = number_of(len(names), "images") if self.has_all else f"{len(names)} images of {looked}"
            yield self.finding("warning", "mode", f"{count}: {kind}", names)

    def file_finding(self, kind: str, message: str, items: list[str], gone: int, always: bool = False) -> Finding:
        """An error about files; it stops a run where more than `MOST_GONE` of the images examined are gone."""
        most = gone > MOST_GONE * len(self.examined) and kind in GONE
        more = f": more than half of the dataset can't be used, {GONE[kind]}" if most else ""
        return Finding("error", kind, self.where, message + more, items, stops=most or always)

    @property
    def digests(self) -> set[bytes]:
        """Of the images that were decoded."""
        return {one.digest for one in self.examined.values() if one.digest}

    @property
    def has_all(self) -> bool:
        """Whether all images are examined."""
        return len(self.examined) == len(self)

    def report(self) -> SetReport:
        """The contents; all images are examined before."""
        raise NotImplementedError

    def findings(self, first: Check) -> Iterator[Finding]:
        """Errors and warnings of the split beside others.

        Args:
            first: The first of all datasets, whose classes the others must have.
        """
        raise NotImplementedError

    def learnable(self) -> Iterator[Finding]:
        """Errors and warnings of the split by itself, beside those of single files: the same before a run."""
        raise NotImplementedError

    def finding(self, level: str, kind: str, message: str, items: Sequence[str] = ()) -> Finding:
        """One error or warning of this dataset."""
        return Finding(level, kind, self.where, message, list(items))


@dataclass(frozen=True)
class Options:
    """Options of a check.

    Args:
        format: "coco", "semantic", or one of `vitgraft.data.readers.open.FORMATS`; None infers it.
        imbalance: Images: how many times the images of the smallest class the largest may have.
        reduce_zero_label: Label maps: whether 0 is ignored; None infers it, with a warning.
        ignore_index: Label maps: the value that is ignored.
        num_classes: Label maps: None takes as many as are named in the dataset, else as fit the values.
        image_suffix: Label maps: of image names, before the ending.
        label_suffix: Label maps: of label names, before the ending.
        max_left_out: Objects: largest fraction of the annotations that may be left out.
        min_side: Objects: images with a smaller side are not trained on, pixels.
        file_column: Tables: the column of the files; None finds it.
        label_column: Tables: the column of the labels; None finds it.
        colors: Label maps: file with the class of each color.
        label_values: Label maps: value -> class.
    """

    format: str | None = None
    imbalance: float = IMBALANCE
    reduce_zero_label: bool | None = None
    ignore_index: int | None = 255
    num_classes: int | None = None
    image_suffix: str = ""
    label_suffix: str = ""
    max_left_out: float = MAX_LEFT_OUT
    min_side: int = MIN_SIDE
    file_column: str | None = None
    label_column: str | None = None
    colors: str | None = None
    label_values: Mapping[int, str] | None = None

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns of a table, as `open_source` takes them."""
        return {"file_column": self.file_column, "label_column": self.label_column}


def unusual_about(image, size: tuple[int, int] | None = None) -> str:
    """What is not plain about a file, 8-bit RGB or gray, one frame, upright, and what is made of it.

    Args:
        image: Pillow's, not decoded.
        size: (height, width) of its annotations, if there are any.
    """
    parts = []
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        parts.append("transparent (laid on white)")
    elif image.mode.startswith("I;16") or image.mode == "I":
        parts.append(f"16-bit gray{_range_of(image)}")
    elif image.mode not in ("RGB", "L", "1"):
        meaning = {"P": "palette", "CMYK": "CMYK"}
        parts.append(meaning.get(image.mode, f"mode {image.mode}"))
    elif image.mode == "RGB" and any(";16" in str(tile[3]) for tile in image.tile):
        parts.append("16-bit colors (their upper 8 bits)")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        parts.append("animated (the first frame is taken)")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        stored, upright = image.size[::-1], upright_size(image)
        if size is None or stored == upright or tuple(size) not in (stored, upright):
            parts.append("turned by EXIF (made upright)")
        elif tuple(size) == upright:
            parts.append("turned by EXIF (made upright, as which it has the size of its annotations)")
        else:
            parts.append("turned by EXIF (left as it is stored, as which it has the size of its annotations)")
    return ", ".join(parts)


def upright_size(image) -> tuple[int, int]:
    """(height, width) of a file as its EXIF entry turns it; orientations 5 to 8 exchange the sides."""
    return image.size if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5 else image.size[::-1]


def _range_of(image) -> str:
    """What is made of the values of 16-bit gray; where the upper 8 bits are nearly empty, how to go on."""
    try:
        bits = int(image.getextrema()[1]).bit_length()
    except Exception:  # a damaged file is an error of its own
        return ""
    text = " (its upper 8 bits"
    if bits <= 12:
        most = 2**bits - 1
        text += f"; values up to {most} become 0 to {most >> 8}, nearly black: multiply them by {2 ** (16 - bits)}"
    return text + ")"


def print_terminal(report: Report, out) -> None:
    """Prints a line for each dataset, then the findings with their first files."""
    from rich.markup import escape

    def line(text: str) -> None:
        out.print(printable(text), highlight=False, soft_wrap=True)

    for one in report.sets:
        counts = sorted(one.per_class.values()) or [0]
        spread = f"{counts[0]} to {counts[-1]} of each class"
        if one.counted == "pixels":
            total = max(1, sum(counts))
            spread = f"{100 * counts[0] / total:.3g} to {100 * counts[-1] / total:.3g} % of the pixels of each class"
        images, classes = number_of(one.images, "images"), number_of(len(one.per_class), "classes")
        line(escape(f"{one.where}: {images}, {classes}, {spread}"))
    for finding in sorted(report.findings, key=lambda finding: finding.level):
        style = "red" if finding.level == "error" else "yellow"
        line(f"[{style}]{finding.level}[/] {finding.kind}, {escape(finding.where)}: {escape(finding.message)}")
        for item in finding.items[:SHOWN]:
            line(escape(f"    {item}"))
        if len(finding.items) > SHOWN:
            line(f"    ... and {len(finding.items) - SHOWN} more (all of them with --format json)")
    line(_verdict(report))


def to_markdown(report: Report) -> str:
    """The report as Markdown, with every file."""
    lines = ["# Check of image data", "", "| dataset | images | classes |", "|---|---|---|"]
    lines += [f"| {one.where} | {one.images} | {len(one.per_class)} |" for one in report.sets]
    for finding in report.findings:
        lines += ["", f"## {finding.level}: {finding.kind}, {finding.where}", "", finding.message, ""]
        lines += [f"- {item}" for item in finding.items]
    return "\n".join(map(markdown_text, [*lines, "", _verdict(report), ""]))


def _verdict(report: Report) -> str:
    errors = sum(finding.level == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    return (
        "nothing is wrong"
        if not report.findings
        else f"{number_of(errors, 'errors')}, {number_of(warnings, 'warnings')}"
    )
