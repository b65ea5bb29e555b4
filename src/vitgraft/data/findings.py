"""Errors and warnings of a dataset: `Check`, what is examined in one split; `Report`, and how it is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vitgraft.data.decode import decode_image, open_image
from vitgraft.data.readers.base import ImageSource
from vitgraft.errors import ImageError
from vitgraft.terminal import markdown_text, printable

# A class with this many times the images of another one is worth a warning; ImageNet-1K's training set has 1.8.
IMBALANCE = 10.0
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
    """

    level: str
    kind: str
    where: str
    message: str
    items: list[str] = field(default_factory=list)


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
    """

    errors: dict[str, str]
    unusual: str = ""
    digest: bytes = b""
    sizes: tuple[tuple[int, int], ...] = ()
    values: np.ndarray | None = None
    counts: np.ndarray | None = None


# kind of error -> what it is called, after the number of files
FILE_ERRORS = {
    "missing": "image files are missing",
    "unreadable": "files can't be read",
    "size": "files have another size than their annotations",
    "colours": "label files hold no class indices",
}


class Check:
    """One split of a dataset.

    Args:
        where: Its name in messages.
        files: Its images; None where they were not found.
    """

    def __init__(self, where: str, files: ImageSource | None):
        self.where, self.files = where, files
        self.examined: list[Examined] = []

    def __len__(self) -> int:
        return 0 if self.files is None else len(self.files)

    def examine(self, index: int) -> Examined:
        """Decodes an image."""
        name = self.files.name(index)
        try:
            data = self.files.read(index)
        except ImageError as error:
            return Examined({"missing": str(error)})
        try:
            image, header = decode_image(data, name), open_image(data, name)
            unusual = unusual_about(header)
        except ImageError as error:
            return Examined({"unreadable": str(error)})
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
        return Examined({}, unusual, digest, (image.size[::-1], header.size[::-1]))

    def report(self) -> SetReport:
        """The contents; all images are examined before."""
        raise NotImplementedError

    def findings(self, first: Check) -> Iterator[Finding]:
        """Errors and warnings beyond those of single files.

        Args:
            first: The first of all datasets, whose classes the others must have.
        """
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
    """

    format: str | None = None
    imbalance: float = IMBALANCE
    reduce_zero_label: bool | None = None
    ignore_index: int | None = 255
    num_classes: int | None = None
    image_suffix: str = ""
    label_suffix: str = ""


def unusual_about(image) -> str:
    """What is not plain about a file: 8-bit RGB or grey, one frame, upright."""
    parts = []
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        parts.append("transparent (laid on white)")
    elif image.mode not in ("RGB", "L", "1"):
        meaning = {"P": "palette", "CMYK": "CMYK", "I;16": "16-bit grey", "I": "16-bit grey"}
        parts.append(meaning.get(image.mode, f"mode {image.mode}"))
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        parts.append("animated (the first frame is taken)")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        parts.append("turned by EXIF (made upright)")
    return ", ".join(parts)


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
            spread = f"{100 * counts[0] / total:.2g} to {100 * counts[-1] / total:.2g} % of the pixels of each class"
        line(escape(f"{one.where}: {one.images} images, {len(one.per_class)} classes, {spread}"))
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
    return "nothing is wrong" if not report.findings else f"{errors} errors, {warnings} warnings"
