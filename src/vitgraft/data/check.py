"""`vitgraft check-data`: decodes every file of some datasets, and lists all that is wrong with them at once.

Errors end a run or make its numbers wrong: a dataset that can't be opened, unreadable files, empty classes, classes
that differ between splits, images that are in two of them. Warnings are worth knowing: unusual kinds of images (they
are decoded right, see `vitgraft.data.decode`), strong imbalance, images twice in one dataset.

A `Check` is one split of a dataset; each task has its own (`ImageCheck` here, `check_coco`, `check_semantic`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from vitgraft.data.findings import (
    IMBALANCE,
    SPLITS_NEEDED,
    Check,
    Finding,
    Options,
    Report,
    SetReport,
    noted,
    splits_needed,
)
from vitgraft.data.layout import OBJECT_FORMATS, layouts_of, passed_over
from vitgraft.data.learnable import class_findings, common_classes
from vitgraft.data.loader import worker_failure
from vitgraft.data.readers.base import SPLITS, ImageSource, check_same_classes, number_as, of_split
from vitgraft.data.readers.folder_or_tar import Files, splits_in_tar
from vitgraft.data.readers.open import open_source
from vitgraft.data.readers.table import table_splits, tables_of
from vitgraft.data.readers.tar import is_tar
from vitgraft.errors import TrainingError
from vitgraft.terminal import number_of

__all__ = ["ImageCheck", "check", "open_checks"]


class ImageCheck(Check):
    """Labeled images.

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

    def look_further(self) -> None:
        """Of a class whose images examined can't be read, the others until one can."""
        for label in self._unread_labels():
            for index in np.flatnonzero(self.files.labels == label).tolist():
                if index not in self.examined:
                    self.examined[index] = self[index]
                if not self.examined[index].errors:
                    break

    def _unread_labels(self) -> list[int]:
        """The labels of which images were examined, and none could be read."""
        labels = self.files.labels
        good = {int(labels[index]) for index, one in self.examined.items() if not one.errors}
        return sorted({int(labels[index]) for index in self.examined} - good)

    def learnable(self) -> Iterator[Finding]:
        per_class = self.report().per_class
        absent = self.files.absent
        if empty := [name for name, count in per_class.items() if not count and name not in absent]:
            yield self.finding("error", "empty class", number_of(len(empty), "classes without images"), empty)
        if absent:
            text = "classes of the training images have none here: their accuracy is not measured"
            yield self.finding("warning", "absent class", number_of(len(absent), text), absent)
        names = self.files.class_names
        if unread := [names[label] for label in self._unread_labels()]:
            text = number_of(
                len(unread), "classes of which no image can be read: copy their files anew, or remove the classes"
            )
            yield Finding("error", "unreadable class", self.where, text, unread, stops=True)
        yield from class_findings(self.where, per_class, "images", "each class is a folder, CLASS/IMAGE.jpg")
        filled = {name: count for name, count in per_class.items() if count}
        if filled:
            least, most = min(filled, key=filled.get), max(filled, key=filled.get)
            if filled[most] > self.imbalance * filled[least]:
                message = (
                    f"{most} has {filled[most] / filled[least]:.1f} times the images of {least} "
                    f"({filled[most]} and {filled[least]})"
                )
                yield self.finding("warning", "imbalance", message, [least, most])

    def findings(self, first: ImageCheck) -> Iterator[Finding]:
        differences: list[Finding] = []
        with noted(differences, "classes", self.where):
            check_same_classes(first.files, self.files)
        yield from differences


def open_checks(paths: Sequence[str], options: Options) -> tuple[list[Check], list[Finding]]:
    """All splits of the datasets at some paths; what can't be opened is a finding."""
    layouts = {path: [options.format] if options.format else list(layouts_of(path)) for path in paths}
    layout = next((found[0] for found in layouts.values() if found), "images")
    findings = [_passed_over(path, found, layout) for path, found in layouts.items() if {*found} - {layout}]
    if layout in OBJECT_FORMATS:
        from vitgraft.data.check_coco import open_path  # needs the extra `detection`
    elif layout == "semantic":
        from vitgraft.data.check_semantic import open_path
    else:
        open_path = _open_images
    checks = [one for path in paths for one in open_path(path, options, findings)]
    if len(paths) > 1:  # each may be a split
        findings = [finding for finding in findings if finding.kind != SPLITS_NEEDED]
    for one in checks[1:]:
        if isinstance(one, ImageCheck):
            number_as(checks[0].files, one.files)
    return checks, findings


def _passed_over(path: str, found: list[str], layout: str) -> Finding:
    """The layouts of a path that are not checked."""
    others = ", ".join(name for name in found if name != layout)
    level = "warning" if layout in found else "error"
    return Finding(level, "layout", path, f"checked as {layout}, passed over: {others}; --data-format names another")


def _open_images(path: str, options: Options, findings: list[Finding]) -> Iterator[Check]:
    root = Path(path)
    names = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
    stems = sorted({name.split(".")[0].split("-")[0] for name in names if not name.startswith(".")})
    splits = [stem for alike in SPLITS for stem in stems if stem.lower() in alike]
    tables: list[str] = []
    with noted(findings, "set", path):
        if root.is_file() and is_tar(root):
            splits = splits_in_tar(Files(root))
        if root.is_dir() and options.format in (None, "table") and (tables := tables_of(Files(root))):
            splits = list(table_splits(tables)) or [names[0] for names in SPLITS]
    checks: list[ImageCheck] = []
    missing: list[Finding] = []
    for split in splits or [None]:
        with noted(missing, "set", f"{path}/{split}" if split else path):
            source = open_source(path, split, options.format, allow_empty=True, **options.columns)
            checks.append(ImageCheck(source, options.imbalance))
            checks[-1].where += f" ({split})" if split and is_tar(source.where) and root.is_file() else ""
    if tables and not checks:  # a table without splits
        missing = []
        with noted(missing, "set", path):
            checks.append(ImageCheck(open_source(path, None, options.format, **options.columns), options.imbalance))
    used = [table for one in checks for table in getattr(one.files, "tables", ())]
    if root.is_dir() and (more := passed_over(Files(root), used)):
        findings.append(Finding("warning", "passed over", path, more))
    # of a table with a column of splits, those that it lacks are no error
    findings += [] if tables and checks and not table_splits(tables) else missing
    if checks and root.exists():
        known = [names[0] for names in SPLITS if of_split(names[0], splits)]
        lacking = [name for name in ("train", "val") if name not in known]
        findings += splits_needed(
            path, lambda name: open_source(path, name, options.format, **options.columns), lacking
        )
    yield from checks


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
        # 16 at a time: to send the result of a small image by itself takes longer than to decode it
        batches = DataLoader(one, 16, num_workers=workers if workers > 1 else 0, collate_fn=list)
        try:
            for index, examined in enumerate(itertools.chain.from_iterable(batches)):
                step(one.files.name(index))
                one.examined[index] = examined
        except RuntimeError as error:
            reason = worker_failure(error)
            if reason is None:
                raise
            raise TrainingError(f"--workers {workers}: {reason}") from error
        findings += _findings_of_files(checks, number, seen)
    if checks and hasattr(checks[0], "infer_rule"):
        findings += checks[0].infer_rule(checks)
    for one in checks:
        findings += [*one.learnable(), *one.findings(checks[0])]
        if one is not checks[0]:
            findings += common_classes(checks[0], one)
    return Report([one.report() for one in checks], findings)


def _findings_of_files(checks: Sequence[Check], number: int, seen: dict[bytes, tuple[int, int]]) -> Iterator[Finding]:
    one = checks[number]
    pairs: dict[int, list[str]] = {}
    for index, examined in one.examined.items():
        other, place = seen.setdefault(examined.digest, (number, index)) if examined.digest else (number, index)
        if (other, place) != (number, index):
            pairs.setdefault(other, []).append(f"{one.files.name(index)} = {checks[other].files.name(place)}")
    yield from one.file_findings()
    for other, items in pairs.items():
        if other == number:
            message = number_of(len(items), "images are twice in the dataset (same pixels)")
            yield one.finding("warning", "duplicate", message, items)
        else:
            message = number_of(len(items), f"images are in {checks[other].where} too (same pixels)")
            yield one.finding("error", "duplicate", message, items)
