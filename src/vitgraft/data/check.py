"""`vitgraft check-data`: decodes every file of some datasets, and lists all that is wrong with them at once.

Errors end a run or make its numbers wrong: a dataset that can't be opened, unreadable files, empty classes, classes
that differ between splits, images that are in two of them. Warnings are worth knowing: unusual kinds of images (they
are decoded right, see `vitgraft.data.decode`), strong imbalance, images twice in one dataset.

A `Check` is one split of a dataset; each task has its own (`ImageCheck` here, `check_coco`, `check_semantic`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from vitgraft.data.findings import FILE_ERRORS, IMBALANCE, Check, Examined, Finding, Options, Report, SetReport
from vitgraft.data.layout import layouts_of
from vitgraft.data.readers.base import ImageSource, check_same_classes
from vitgraft.data.readers.open import open_source
from vitgraft.errors import DataError, TrainingError

__all__ = ["ImageCheck", "check", "open_checks"]

SPLITS = ("train", "training", "val", "validation", "test")


class ImageCheck(Check):
    """Labelled images.

    Args:
        source: The images.
        imbalance: How many times the images of the smallest class the largest may have.
    """

    def __init__(self, source: ImageSource, imbalance: float = IMBALANCE):
        super().__init__(source.where, source)
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


def open_checks(paths: Sequence[str], options: Options) -> tuple[list[Check], list[Finding]]:
    """All splits of the datasets at some paths; what can't be opened is a finding."""
    layouts = {path: [options.format] if options.format else list(layouts_of(path)) for path in paths}
    layout = next((found[0] for found in layouts.values() if found), "images")
    findings = [_passed_over(path, found, layout) for path, found in layouts.items() if {*found} - {layout}]
    if layout == "coco":
        from vitgraft.data.check_coco import open_path  # needs the extra `detection`
    elif layout == "semantic":
        from vitgraft.data.check_semantic import open_path
    else:
        open_path = _open_images
    opened: list[Check | Finding] = [one for path in paths for one in open_path(path, options)]
    checks = [one for one in opened if isinstance(one, Check)]
    return checks, findings + [one for one in opened if isinstance(one, Finding)]


def _passed_over(path: str, found: list[str], layout: str) -> Finding:
    """Says which of the layouts of a path is not looked at."""
    others = ", ".join(name for name in found if name != layout)
    level = "warning" if layout in found else "error"
    return Finding(level, "layout", path, f"checked as {layout}, passed over: {others}; --data-format names another")


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
    with ProcessPoolExecutor(workers, initializer=_remember, initargs=(one,)) as pool:
        try:
            yield from pool.map(_examine_remembered, range(len(one)), chunksize=16)
        except BrokenProcessPool as error:
            raise TrainingError(
                f"a process that decodes images ended (killed where memory runs out, or a crash): --workers {workers}; "
                "fewer need less memory"
            ) from error


_check: Check


def _remember(one: Check) -> None:
    global _check
    _check = one


def _examine_remembered(index: int) -> Examined:
    return _check.examine(index)
