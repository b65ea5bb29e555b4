"""`vitgraft check-data`: decodes every file of some datasets, and lists all that is wrong with them at once.

Errors end a run or make its numbers wrong: a dataset that can't be opened, unreadable files, empty classes, classes
that differ between splits, images that are in two of them. Warnings are worth knowing: unusual kinds of images (they
are decoded right, see `vitgraft.data.decode`), strong imbalance, images twice in one dataset.

A `Check` is one split of a dataset; each task has its own (`ImageCheck` here, `check_coco`, `check_semantic`).
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitgraft.data.decode import decode_image, open_image
from vitgraft.data.layout import layout_of
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.open import check_same_classes, open_source
from vitgraft.errors import DataError, ImageError

SPLITS = ("train", "training", "val", "validation", "test")
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


class ImageCheck(Check):
    """Labelled images.

    Args:
        source: The images.
        imbalance: How many times the images of the smallest class the largest may have.
    """

    def __init__(self, source: ImageSource, imbalance: float = IMBALANCE):
        super().__init__(source.where(), source)
        self.imbalance = imbalance

    def report(self) -> SetReport:
        counts = np.bincount(self.files.labels, minlength=len(self.files.class_names)).tolist()
        return SetReport(self.where, len(self), dict(zip(self.files.class_names, counts, strict=True)))

    def findings(self, first: ImageCheck) -> Iterator[Finding]:
        per_class = self.report().per_class
        if empty := [name for name, count in per_class.items() if not count]:
            yield self.finding("error", "empty class", f"{len(empty)} classes without images", empty)
        filled = {name: count for name, count in per_class.items() if count}
        if filled:
            least, most = min(filled, key=filled.get), max(filled, key=filled.get)
            if filled[most] > self.imbalance * filled[least]:
                message = (
                    f"{most} has {filled[most] / filled[least]:.1f} times the images of {least} "
                    f"({filled[most]} and {filled[least]})"
                )
                yield self.finding("warning", "imbalance", message, [least, most])
        try:
            check_same_classes(first.files, self.files)
        except DataError as error:
            yield self.finding("error", "classes", str(error))


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


def open_checks(paths: Sequence[str], options: Options) -> tuple[list[Check], list[Finding]]:
    """All splits of the datasets at some paths; what can't be opened is a finding."""
    layouts = {layout_of(path) for path in paths} if options.format is None else {options.format}
    layout = layouts.pop() if len(layouts) == 1 else "images"
    if layout == "coco":
        from vitgraft.data.check_coco import open_path  # needs the extra `detection`
    elif layout == "semantic":
        from vitgraft.data.check_semantic import open_path
    else:
        open_path = _open_images
    opened: list[Check | Finding] = [one for path in paths for one in open_path(path, options)]
    checks = [one for one in opened if isinstance(one, Check)]
    return checks, [one for one in opened if isinstance(one, Finding)]


def _open_images(path: str, options: Options) -> Iterator[Check | Finding]:
    root = Path(path)
    names = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
    stems = {name.split(".")[0].split("-")[0] for name in names if not name.startswith(".")}
    for split in [split for split in SPLITS if split in stems] or [None]:
        try:
            yield ImageCheck(open_source(path, split, options.format, allow_empty=True), options.imbalance)
        except DataError as error:
            yield Finding("error", "set", f"{path}/{split}" if split else path, str(error))


def check(checks: Sequence[Check], workers: int = 1, step: Callable[[str], None] = lambda text: None) -> Report:
    """Decodes every image and compares the datasets; the classes of the first one are the reference.

    Args:
        checks: As `open_checks` gives them.
        workers: Processes that decode.
        step: Called with each image's name, for a progress bar.
    """
    findings: list[Finding] = []
    seen: dict[bytes, tuple[int, int]] = {}
    for number, one in enumerate(checks):
        for index, examined in enumerate(_examine_all(one, workers)):
            step(one.files.name(index))
            one.examined.append(examined)
        findings += _findings_of_files(checks, number, seen)
    if checks and hasattr(checks[0], "infer_rule"):
        findings += checks[0].infer_rule(checks)
    for one in checks:
        findings += one.findings(checks[0])
    return Report([one.report() for one in checks], findings)


def _findings_of_files(checks: Sequence[Check], number: int, seen: dict[bytes, tuple[int, int]]) -> Iterator[Finding]:
    one = checks[number]
    unusual: dict[str, list[str]] = {}
    pairs: dict[int, list[str]] = {}
    for index, examined in enumerate(one.examined):
        if examined.unusual:
            unusual.setdefault(examined.unusual, []).append(one.files.name(index))
        other, place = seen.setdefault(examined.digest, (number, index)) if examined.digest else (number, index)
        if (other, place) != (number, index):
            pairs.setdefault(other, []).append(f"{one.files.name(index)} = {checks[other].files.name(place)}")
    for kind, words in FILE_ERRORS.items():
        if items := [examined.errors[kind] for examined in one.examined if kind in examined.errors]:
            yield one.finding("error", kind, f"{len(items)} of {len(one)} {words}", items)
    for other, items in pairs.items():
        if other == number:
            message = f"{len(items)} images are twice in the dataset (same pixels)"
            yield one.finding("warning", "duplicate", message, items)
        else:
            message = f"{len(items)} images are in {checks[other].where} too (same pixels)"
            yield one.finding("error", "duplicate", message, items)
    for kind, names in unusual.items():
        yield one.finding("warning", "mode", f"{len(names)} images: {kind}", names)


def _examine_all(one: Check, workers: int) -> Iterator[Examined]:
    if workers <= 1:
        yield from map(one.examine, range(len(one)))
        return
    with multiprocessing.Pool(workers, _remember, (one,)) as pool:
        yield from pool.imap(_examine_remembered, range(len(one)), chunksize=16)


_check: Check


def _remember(one: Check) -> None:
    global _check
    _check = one


def _examine_remembered(index: int) -> Examined:
    return _check.examine(index)


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
        out.print(text, highlight=False, soft_wrap=True)

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
    return "\n".join([*lines, "", _verdict(report), ""])


def _verdict(report: Report) -> str:
    errors = sum(finding.level == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    return "nothing is wrong" if not report.findings else f"{errors} errors, {warnings} warnings"
