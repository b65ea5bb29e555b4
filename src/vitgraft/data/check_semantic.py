"""`vitgraft check-data` for semantic segmentation: every pair is decoded, and all that is wrong is listed at once.

Errors are what ends a run or makes its numbers wrong: images without labels, files that can't be read (a run leaves
them out), labels of another size than their image, with colours instead of indices, with values that are no class,
sets with ignored pixels only, images that are in two sets. Warnings are what one should know of: label files without an
image or with ignored pixels only, classes without a pixel in a set, images twice in a set, odd kinds of images.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitgraft.data.check import Finding, Report, SetReport, digest_of, oddness
from vitgraft.data.decode import decode_annotated, decode_image, open_image
from vitgraft.data.label_maps import LabelHistogram, LabelRule, check_histogram, decode_labels
from vitgraft.data.readers.base import ImageSource, is_image_name
from vitgraft.data.readers.tar import is_tar
from vitgraft.data.semantic import ANNOTATIONS, IMAGES, Files, find_pairs, read_class_names
from vitgraft.errors import DataError, ImageError

__all__ = ["Pairs", "check_pairs", "is_semantic", "open_pairs"]


@dataclass
class Pairs:
    """The pairs of one set.

    Attributes:
        where: its images' folder.
        images: the image files.
        labels: the label file of each.
        class_names: from a file beside them; None: there is none.
    """

    where: str
    images: ImageSource
    labels: ImageSource
    class_names: list[str] | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class _Pair:
    """What was found in a pair: "kind" -> message, its label values with their counts, digest and oddness."""

    problems: dict[str, str] = field(default_factory=dict)
    values: np.ndarray | None = None
    counts: np.ndarray | None = None
    digest: bytes = b""
    odd: str = ""


def is_semantic(path: str | Path) -> bool:
    """Whether a folder or tar is in ADE20K's layout: label images below `annotations` beside `images`."""
    root = Path(path)
    if is_tar(root):
        try:
            files = Files(root)
        except DataError:
            return False  # the check of image sets says what is wrong with it
        return bool(files.below(f"{files.start()}{IMAGES}") and files.below(f"{files.start()}{ANNOTATIONS}"))
    if not root.is_dir():
        return False
    for start in (root, *(entry for entry in root.iterdir() if entry.is_dir())):
        if (start / IMAGES).is_dir() and (start / ANNOTATIONS).is_dir():
            walked = os.walk(start / ANNOTATIONS, followlinks=True)  # COCO has JSON files there
            return any(is_image_name(name) for _, _, names in walked for name in names)
    return False


def open_pairs(path: str, image_suffix: str = "", label_suffix: str = "") -> tuple[list[Pairs], list[Finding]]:
    """All splits of a folder or tar in ADE20K's layout; what has no partner or can't be opened is a finding.

    Args:
        path: the folder or tar.
        image_suffix: see `vitgraft.data.semantic`.
        label_suffix: see there.
    """
    try:
        files = Files(path)
        names = read_class_names(files)
    except DataError as error:
        return [], [Finding("error", "set", path, str(error))]
    sets, findings = [], []
    splits = sorted({split for kind in (IMAGES, ANNOTATIONS) for split in files.folders(f"{files.start()}{kind}")})
    if not splits:
        findings.append(Finding("error", "set", path, f"no splits: wanted {IMAGES}/SPLIT and {ANNOTATIONS}/SPLIT"))
    for split in splits:
        where = f"{path}/{IMAGES}/{split}"
        try:
            (images, labels), unpaired, without_image = find_pairs(path, split, image_suffix, label_suffix, files)
        except DataError as error:
            findings.append(Finding("error", "set", where, str(error)))
            continue
        if unpaired:
            items = [f"{image}: no {expected}.png" for image, expected in unpaired]
            findings.append(
                Finding(
                    "error",
                    "missing",
                    where,
                    f"{len(items)} {'image has' if len(items) == 1 else 'images have'} no label file",
                    items,
                )
            )
        if without_image:
            message = f"{len(without_image)} label files have no image"
            findings.append(Finding("warning", "missing", where, message, without_image))
        sets.append(Pairs(where, images, labels, names))
    return sets, findings


def check_pairs(
    sets: Sequence[Pairs],
    reduce_zero_label: bool | None = None,
    ignore_index: int | None = 255,
    num_classes: int | None = None,
    workers: int = 1,
    step: Callable[[str], None] = lambda text: None,
) -> Report:
    """Decodes every pair of some sets and compares the sets.

    Args:
        sets: as `open_pairs` gives them.
        reduce_zero_label: see `LabelRule`; None: what fits the values, which a warning names.
        ignore_index: see there.
        num_classes: how many classes there are; None: as many as are named in the set, else as fit the values.
        workers: processes that decode.
        step: told of each image, for a progress bar.
    """
    looked, reports, findings = [], [], []
    for pairs in sets:
        found = []
        for index, pair in enumerate(_examine_all(pairs, workers)):
            step(pairs.images.name(index))
            found.append(pair)
        looked.append(found)
    seen: dict[bytes, tuple[int, int]] = {}
    for number, (pairs, found) in enumerate(zip(sets, looked, strict=True)):
        findings += _files(pairs, found)
        findings += _duplicates(sets, number, found, seen)
    if any(pair.values is not None for found in looked for pair in found):
        values = np.unique(np.concatenate([p.values for found in looked for p in found if p.values is not None]))
        classes = num_classes or next((len(pairs.class_names) for pairs in sets if pairs.class_names), None)
        rule, said = _rule(values, classes, reduce_zero_label, ignore_index)
        if said:
            findings.append(Finding("warning", "numbering", sets[0].where, said))
        for pairs, found in zip(sets, looked, strict=True):
            report, more = _labels(pairs, found, rule)
            reports.append(report)
            findings += more
    return Report(reports, findings)


def _rule(
    values: np.ndarray, classes: int | None, reduce_zero_label: bool | None, ignore_index: int | None
) -> tuple[LabelRule, str]:
    """What the values mean, and what was taken for it where it was not said."""
    inside = values if ignore_index is None else values[values != ignore_index]
    most = min(int(inside.max(initial=0)), 254)
    reduce = bool(classes is not None and most >= classes) if reduce_zero_label is None else reduce_zero_label
    count = classes or max(1, most + 1 - int(reduce))
    rule = LabelRule(count, reduce, ignore_index)
    said = []
    if classes is None:
        said.append(f"how many classes there are is not said: taken for {count}, by the largest value ({most})")
    if reduce_zero_label is None:
        said.append(f"reduce_zero_label is not said: taken for {str(reduce).lower()}, so that {rule.expected()}")
    return rule, "; ".join(said)


def _files(pairs: Pairs, found: Sequence[_Pair]) -> Iterator[Finding]:
    words = {
        "unreadable": "files can't be read",
        "size": "label files have another size than their image",
        "colours": "label files hold no class indices",
    }
    for kind, text in words.items():
        items = [pair.problems[kind] for pair in found if kind in pair.problems]
        if items:
            yield Finding("error", kind, pairs.where, f"{len(items)} of {len(pairs)} {text}", items)
    odd: dict[str, list[str]] = {}
    for index, pair in enumerate(found):
        if pair.odd:
            odd.setdefault(pair.odd, []).append(pairs.images.name(index))
    for kind, names in odd.items():
        yield Finding("warning", "mode", pairs.where, f"{len(names)} images: {kind}", names)


def _duplicates(sets: Sequence[Pairs], number: int, found: Sequence[_Pair], seen: dict) -> Iterator[Finding]:
    between: dict[int, list[str]] = {}
    for index, pair in enumerate(found):
        if not pair.digest:
            continue
        other, place = seen.setdefault(pair.digest, (number, index))
        if (other, place) != (number, index):
            text = f"{sets[number].images.name(index)} = {sets[other].images.name(place)}"
            between.setdefault(other, []).append(text)
    for other, texts in between.items():
        if other == number:
            message = f"{len(texts)} images are twice in the set (same pixels)"
            yield Finding("warning", "duplicate", sets[number].where, message, texts)
        else:
            message = f"{len(texts)} images are in {sets[other].where} too (same pixels)"
            yield Finding("error", "duplicate", sets[number].where, message, texts)


def _labels(pairs: Pairs, found: Sequence[_Pair], rule: LabelRule) -> tuple[SetReport, list[Finding]]:
    histogram, findings, wrong, damaged = LabelHistogram(), [], [], set()
    for index, pair in enumerate(found):
        if pair.values is None:
            continue
        name = pairs.labels.name(index)
        histogram.add_counts(pair.values, pair.counts, name, rule)
        bad = ~rule.allowed(pair.values)
        if bad.any():
            values = ", ".join(
                f"{v} ({n:,} pixels)" for v, n in zip(pair.values[bad][:8], pair.counts[bad][:8], strict=True)
            )
            damaged.add(name)
            wrong.append(f"{name}: {values}" + (f" and {bad.sum() - 8} more" if bad.sum() > 8 else ""))
    if wrong:
        message = f"{len(wrong)} label files have values that are no class; {rule.expected()}"
        findings.append(Finding("error", "values", pairs.where, message, wrong))
        histogram.wrong = {}  # listed above, file by file
    try:
        notes = check_histogram(histogram, rule, pairs.where)
    except DataError as error:
        findings.append(Finding("error", "ignored", pairs.where, str(error)))
    else:
        numbering = [note for note in notes if "reduce_zero_label" in note]
        findings += [Finding("warning", "numbering", pairs.where, note) for note in numbering]
        if names := [name for name in histogram.only_ignored if name not in damaged]:
            message = f"{len(names)} label files have ignored pixels only"
            findings.append(Finding("warning", "ignored", pairs.where, message, names))
    counts = histogram.classes(rule).tolist()
    names = pairs.class_names if pairs.class_names and len(pairs.class_names) == rule.num_classes else None
    per_class = dict(zip(names or map(str, range(rule.num_classes)), counts, strict=True))
    empty = [name for name, count in per_class.items() if not count]
    if empty and any(counts):
        message = f"{len(empty)} classes have no pixel in the set: no IoU can be measured of them there"
        findings.append(Finding("warning", "empty class", pairs.where, message, empty))
    return SetReport(pairs.where, len(pairs), per_class, "pixels"), findings


def _examine_all(pairs: Pairs, workers: int) -> Iterator[_Pair]:
    if workers <= 1:
        yield from (_examine(pairs, index) for index in range(len(pairs)))
        return
    with multiprocessing.Pool(workers, _remember, (pairs,)) as pool:
        yield from pool.imap(_examine_remembered, range(len(pairs)), chunksize=16)


_pairs: Pairs | None = None


def _remember(pairs: Pairs) -> None:
    global _pairs
    _pairs = pairs


def _examine_remembered(index: int) -> _Pair:
    return _examine(_pairs, index)


def _examine(pairs: Pairs, index: int) -> _Pair:
    pair, image, values = _Pair(), None, None
    try:
        data = pairs.images.read(index)
        image = decode_image(data, pairs.images.name(index))
        pair.odd, pair.digest = oddness(open_image(data, pairs.images.name(index))), digest_of(image)
    except ImageError as error:
        pair.problems["unreadable"] = str(error)
    name = pairs.labels.name(index)
    try:
        values = decode_labels(pairs.labels.read(index), name)
    except ImageError as error:
        both = [pair.problems["unreadable"]] if "unreadable" in pair.problems else []
        pair.problems["unreadable"] = "; ".join([*both, str(error)])
    except DataError as error:
        pair.problems["colours"] = str(error)
    if values is not None:
        pair.values, pair.counts = np.unique(values, return_counts=True)
        if image is not None and values.shape != (image.height, image.width):
            image = decode_annotated(data, pairs.images.name(index), values.shape)
        if image is not None and values.shape != (image.height, image.width):
            pair.problems["size"] = (
                f"{name}: {values.shape[1]} x {values.shape[0]}, the image {image.width} x {image.height}"
            )
    return pair
