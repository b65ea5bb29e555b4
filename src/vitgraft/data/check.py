"""`vitgraft check-data`: walks sets of images, decodes every file, and says what is wrong with them.

Errors are what makes a run fail or its numbers wrong: a set that can't be opened, unreadable files, empty classes,
classes that differ between sets, images that are in two sets. Warnings are what one should know of: odd kinds of images
(they are decoded right, see `vitgraft.data.decode`), strong imbalance, images twice in one set.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.data.decode import decode_image, open_image
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
    """One thing that is wrong with a set.

    Attributes:
        level: "error" or "warning".
        kind: such as "unreadable", "mode", "imbalance", "classes", "duplicate", "empty class", "set".
        where: the set.
        message: what is wrong, in one line.
        items: the files or classes that it is about.
    """

    level: str
    kind: str
    where: str
    message: str
    items: list[str] = field(default_factory=list)


@dataclass
class SetReport:
    """What a set holds.

    Attributes:
        where: its path.
        images: number of files.
        per_class: number of images (or pixels) of each class.
        counted: what `per_class` counts, "images" or "pixels".
    """

    where: str
    images: int
    per_class: dict[str, int]
    counted: str = "images"


@dataclass
class Report:
    """All sets and findings; `ok` is whether there is no error."""

    sets: list[SetReport]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """JSON values, with every file."""
        return {"kind": "check-data", "ok": self.ok, **asdict(self)}


def open_sets(
    paths: Sequence[str], format: str | None = None, cache_dir: str | None = None
) -> tuple[list[ImageSource], list[Finding]]:
    """The sets at some paths; a folder of splits is all its splits. What can't be opened is a finding."""
    sources, findings = [], []
    for path, split in itertools.chain(*map(_splits, paths)):
        try:
            sources.append(open_source(path, split, format, cache_dir=cache_dir, allow_empty=True))
        except DataError as error:
            findings.append(Finding("error", "set", f"{path}/{split}" if split else path, str(error)))
    return sources, findings


def _splits(path: str) -> Iterator[tuple[str, str | None]]:
    """(path, split) of each set at a path."""
    root = Path(path)
    names = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
    stems = {name.split(".")[0].split("-")[0] for name in names if not name.startswith(".")}
    found = [split for split in SPLITS if split in stems]
    yield from ((path, split) for split in found) if found else [(path, None)]


def check_sources(
    sources: Sequence[ImageSource],
    workers: int = 1,
    imbalance: float = IMBALANCE,
    step: Callable[[str], None] = lambda text: None,
) -> Report:
    """Decodes every image of the sets and compares the sets; the first one is what the classes should be.

    Args:
        sources: the sets.
        workers: processes that decode.
        imbalance: how many times the images of the smallest class the largest may have.
        step: told of each image, for a progress bar.
    """
    sets, findings = [], []
    seen: dict[bytes, tuple[int, int]] = {}
    for number, source in enumerate(sources):
        counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
        per_class = dict(zip(source.class_names, counts, strict=True))
        sets.append(SetReport(source.where(), len(source), per_class))
        findings += _check_classes(source, per_class, imbalance)
        if number:
            try:
                check_same_classes(sources[0], source)
            except DataError as error:
                findings.append(Finding("error", "classes", source.where(), str(error)))
        findings += _check_images(source, number, sources, seen, workers, step)
    return Report(sets, findings)


def _check_classes(source: ImageSource, per_class: dict[str, int], imbalance: float) -> Iterator[Finding]:
    empty = [name for name, count in per_class.items() if not count]
    if empty:
        yield Finding("error", "empty class", source.where(), f"{len(empty)} classes without images", empty)
    filled = {name: count for name, count in per_class.items() if count}
    if not filled:
        return
    least, most = min(filled, key=filled.get), max(filled, key=filled.get)
    if filled[most] > imbalance * filled[least]:
        message = (
            f"{most} has {filled[most] / filled[least]:.1f} times the images of {least} "
            f"({filled[most]} and {filled[least]})"
        )
        yield Finding("warning", "imbalance", source.where(), message, [least, most])


def _check_images(source, number: int, sources, seen: dict, workers: int, step) -> Iterator[Finding]:
    unreadable, odd, twice, between = [], {}, [], {}
    for index, (error, kind, digest) in enumerate(_examine_all(source, workers)):
        step(source.name(index))
        if error is not None:
            unreadable.append(error)
            continue
        if kind:
            odd.setdefault(kind, []).append(source.name(index))
        other, place = seen.setdefault(digest, (number, index))
        pair = f"{source.name(index)} = {sources[other].name(place)}"
        if other != number:
            between.setdefault(other, []).append(pair)
        elif place != index:
            twice.append(pair)
    where = source.where()
    if unreadable:
        yield Finding("error", "unreadable", where, f"{len(unreadable)} of {len(source)} files", unreadable)
    for other, pairs in between.items():
        message = f"{len(pairs)} images are in {sources[other].where()} too (same pixels)"
        yield Finding("error", "duplicate", where, message, pairs)
    if twice:
        yield Finding("warning", "duplicate", where, f"{len(twice)} images are twice in the set (same pixels)", twice)
    for kind, names in odd.items():
        yield Finding("warning", "mode", where, f"{len(names)} images: {kind}", names)


def _examine_all(source: ImageSource, workers: int) -> Iterator[tuple[str | None, str, bytes]]:
    if workers <= 1:
        yield from (_examine(source, index) for index in range(len(source)))
        return
    with multiprocessing.Pool(workers, _remember, (source,)) as pool:
        yield from pool.imap(_examine_remembered, range(len(source)), chunksize=32)


_source: ImageSource | None = None


def _remember(source: ImageSource) -> None:
    global _source
    _source = source


def _examine_remembered(index: int) -> tuple[str | None, str, bytes]:
    return _examine(_source, index)


def _examine(source: ImageSource, index: int) -> tuple[str | None, str, bytes]:
    """("name: reason" or None, what is odd about the image or "", digest of its pixels)"""
    try:
        data = source.read(index)
        image = decode_image(data, source.name(index))
        kind = oddness(open_image(data, source.name(index)))
    except ImageError as error:
        return str(error), "", b""
    return None, kind, digest_of(image)


def digest_of(image) -> bytes:
    """The same for images of the same size and pixels."""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def oddness(image) -> str:
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
    """The report for people: a line for each set, then the findings with their first files."""
    from rich.markup import escape

    for one in report.sets:
        counts = sorted(one.per_class.values()) or [0]
        spread = f"{counts[0]} to {counts[-1]} of each class"
        if one.counted == "pixels":
            total = max(1, sum(counts))
            spread = f"{100 * counts[0] / total:.2g} to {100 * counts[-1] / total:.2g} % of the pixels of each class"
        line = f"{one.where}: {one.images} images, {len(one.per_class)} classes, {spread}"
        out.print(escape(line), highlight=False, soft_wrap=True)
    for finding in sorted(report.findings, key=lambda finding: finding.level):
        style = "red" if finding.level == "error" else "yellow"
        head = f"[{style}]{finding.level}[/] {finding.kind}, {escape(finding.where)}: {escape(finding.message)}"
        out.print(head, highlight=False, soft_wrap=True)
        for item in finding.items[:SHOWN]:
            out.print(escape(f"    {item}"), highlight=False, soft_wrap=True)
        if len(finding.items) > SHOWN:
            out.print(
                f"    ... and {len(finding.items) - SHOWN} more (all of them with --format json)", highlight=False
            )
    out.print(_verdict(report), highlight=False)


def to_markdown(report: Report) -> str:
    """The report as Markdown, with every file."""
    lines = ["# Check of image data", "", "| set | images | classes |", "|---|---|---|"]
    lines += [f"| {one.where} | {one.images} | {len(one.per_class)} |" for one in report.sets]
    for finding in report.findings:
        lines += ["", f"## {finding.level}: {finding.kind}, {finding.where}", "", finding.message, ""]
        lines += [f"- {item}" for item in finding.items]
    return "\n".join([*lines, "", _verdict(report), ""])


def _verdict(report: Report) -> str:
    errors = sum(finding.level == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    return "nothing is wrong" if not report.findings else f"{errors} errors, {warnings} warnings"
