"""`vitgraft check-data` for COCO sets: the json, every annotation and every image file, all that is wrong at once.

Errors are what ends a run or makes its numbers wrong: a json that lacks what is needed, ids that are there twice,
unknown images and categories, boxes and masks that mean nothing, files that are missing, can't be read or are of
another size, images that are in two sets, sets with different categories. Warnings are what one should know of: objects
that training leaves out or clips, classes and images without objects, odd kinds of images.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitgraft.data.check import Finding, Report, SetReport, digest_of, oddness
from vitgraft.data.coco import NEEDED, CocoFiles, find_images, find_jsons, lacking, wrong_values
from vitgraft.data.decode import decode_image, open_image
from vitgraft.data.detection_targets import check_segmentation, to_rle
from vitgraft.data.readers.base import ImageSource
from vitgraft.errors import DataError, ImageError

__all__ = ["CocoSet", "check_coco", "open_cocos"]

BORDER = 1.0  # pixels that a box may lie outside of its image, or beside its mask, by rounding


@dataclass
class CocoSet:
    """One json, read but not judged yet.

    Attributes:
        where: its path.
        values: what it holds.
        files: its images in their order; None where they were not found.
    """

    where: str
    values: dict[str, list[dict[str, Any]]]
    files: ImageSource | None

    def __len__(self) -> int:
        return len(self.files) if self.files is not None else 0


def open_cocos(path: str) -> tuple[list[CocoSet], list[Finding]]:
    """All jsons with objects of a folder or tar; what can't be opened is a finding.

    Args:
        path: folder, tar, or one json, in `annotations` beside the images or among them.
    """
    try:
        if path.endswith(".json"):
            here = Path(path).parent
            root = here.parent if here.name == "annotations" else here
            files, names = CocoFiles(root), [str(Path(path).relative_to(root))]
        else:
            files = CocoFiles(Path(path))
            names = find_jsons(files)
    except DataError as error:
        return [], [Finding("error", "set", path, str(error))]
    sets, findings = [], []
    if not names:
        findings.append(Finding("error", "set", path, "no annotations/*.json with images, annotations and categories"))
    for name in names:
        where = f"{files.root}/{name}"
        try:
            values = json.loads(files.read(name))
        except (ValueError, OSError, KeyError) as error:
            findings.append(Finding("error", "json", where, f"can't be read ({error})"))
            continue
        lists = values if isinstance(values, dict) else {}
        missing = [kind for kind in NEEDED if not isinstance(lists.get(kind), list)]
        if missing:
            findings.append(
                Finding("error", "json", where, f"not COCO's json of objects, it lacks {', '.join(missing)}")
            )
            continue
        kept, wanting = _complete(lists)
        for kind, items in wanting.items():
            message = f"{len(items)} of {len(lists[kind])} {kind} lack what is needed, or have it of a wrong kind"
            findings.append(Finding("error", "keys", where, message, items))
        sets.append(CocoSet(where, kept, _images(files, kept, name, findings, where)))
    return sets, findings


def _images(files: CocoFiles, values: dict, name: str, findings: list[Finding], where: str) -> ImageSource | None:
    if not values["images"]:
        findings.append(Finding("error", "set", where, "no images in it"))
        return None
    split = os.path.basename(name).removeprefix("instances_").removesuffix(".json").removesuffix("2017")
    try:
        folder = find_images(files, values, name, split, None)
    except DataError as error:
        findings.append(Finding("error", "missing", where, str(error)))
        return None
    return files.images([os.path.normpath(os.path.join(folder, one["file_name"])) for one in values["images"]])


def _complete(values: dict[str, list]) -> tuple[dict[str, list], dict[str, list[str]]]:
    """The entries that have what is needed, of the right kind, and what the others lack."""
    kept: dict[str, list] = {}
    wanting: dict[str, list[str]] = {}
    for kind in NEEDED:
        kept[kind] = []
        for number, one in enumerate(values[kind]):
            entry = one if isinstance(one, dict) else {}
            if wrong := wrong_values(kind, entry):
                wanting.setdefault(kind, []).append(f"{kind}[{number}] {lacking(wrong, entry)}")
            else:
                kept[kind].append(one)
    return kept, wanting


def check_coco(sets: Sequence[CocoSet], workers: int = 1, step: Callable[[str], None] = lambda text: None) -> Report:
    """Checks every annotation, decodes every image and compares the sets.

    Args:
        sets: as `open_cocos` gives them.
        workers: processes that decode.
        step: told of each image, for a progress bar.
    """
    reports, findings = [], []
    seen: dict[bytes, tuple[int, int]] = {}
    for number, one in enumerate(sets):
        names = {category["id"]: category["name"] for category in one.values["categories"]}
        counts = Counter(a["category_id"] for a in one.values["annotations"] if not a.get("iscrowd"))
        per_class = {name: counts[category] for category, name in sorted(names.items())}
        reports.append(SetReport(one.where, len(one.values["images"]), per_class, "objects"))
        findings += _check_ids(one)
        findings += _check_annotations(one)
        if empty := [name for name, count in per_class.items() if not count]:
            message = f"{len(empty)} of {len(per_class)} classes have no object: no AP can be measured of them there"
            findings.append(Finding("warning", "empty class", one.where, message, empty))
        if number and (text := _different(sets[0], one)):
            findings.append(Finding("error", "classes", one.where, text))
        findings += _check_files(sets, number, seen, workers, step)
    return Report(reports, findings)


def _different(first: CocoSet, other: CocoSet) -> str:
    one, two = ({c["id"]: c["name"] for c in some.values["categories"]} for some in (first, other))
    if one == two:
        return ""
    only = [
        f"{number}: {one.get(number, 'none')} / {two.get(number, 'none')}"
        for number in sorted({*one, *two})
        if one.get(number) != two.get(number)
    ]
    return f"other categories than {first.where} has (there / here): {', '.join(only[:8])}"


def _check_ids(one: CocoSet) -> Iterator[Finding]:
    for kind in NEEDED:
        ids = Counter(entry["id"] for entry in one.values[kind] if entry.get("id") is not None)
        if twice := [f"{kind} id {number}: {count} times" for number, count in ids.items() if count > 1]:
            yield Finding("error", "ids", one.where, f"{len(twice)} ids of {kind} are there more than once", twice)
    for kind, name, level in (("images", "file_name", "error"), ("categories", "name", "warning")):
        names = Counter(entry[name] for entry in one.values[kind])
        if twice := [f"{text}: {count} times" for text, count in names.items() if count > 1]:
            yield Finding(level, "ids", one.where, f"{len(twice)} names of {kind} are there more than once", twice)


# kind -> (level, what it says of its annotations)
WORDS = {
    "unknown image": ("error", "are of an image that there is not"),
    "unknown category": ("error", "are of a category that there is not"),
    "box not finite": ("error", "have a box with nan or infinity"),
    "box without area": ("error", "have a box whose width or height is not above 0"),
    "box outside": ("error", "have a box that lies beside its image"),
    "segmentation": ("error", "have a segmentation that can't be used"),
    "no segmentation": ("error", "have no segmentation, where others of the set have one"),
    "small box": ("warning", "have a box narrower than a pixel: training leaves them out"),
    "box over the border": ("warning", "have a box that goes over the border of its image: it is clipped"),
    "box and mask": ("warning", "have a box that does not fit their mask"),
}


def _check_annotations(one: CocoSet) -> Iterator[Finding]:
    sizes = {image["id"]: (image["height"], image["width"]) for image in one.values["images"]}
    categories = {category["id"] for category in one.values["categories"]}
    masks = any(annotation.get("segmentation") for annotation in one.values["annotations"])
    found: dict[str, list[str]] = {}
    learned = set()
    for number, annotation in enumerate(one.values["annotations"]):
        problems = dict(_problems(annotation, sizes.get(annotation["image_id"]), categories, masks))
        name = f"annotation {annotation.get('id', f'[{number}]')} (image {annotation['image_id']})"
        for kind, text in problems.items():
            found.setdefault(kind, []).append(f"{name}: {text}")
        if not annotation.get("iscrowd") and not any(WORDS[kind][0] == "error" for kind in problems):
            learned.add(annotation["image_id"])
    for kind, (level, words) in WORDS.items():
        if items := found.get(kind):
            yield Finding(level, kind, one.where, f"{len(items)} annotations {words}", items)
    if empty := [image["file_name"] for image in one.values["images"] if image["id"] not in learned]:
        some = len(empty) < len(one.values["images"])
        message = (
            f"{len(empty)} images have no object: training leaves them out, unless keep_empty is true"
            if some
            else f"all {len(empty)} images have no object to learn: training has only background, no AP can be measured"
        )
        yield Finding("warning", "no objects", one.where, message, empty)


def _problems(
    annotation: dict[str, Any], size: tuple[int, int] | None, categories: set[int], masks: bool
) -> Iterator[tuple[str, str]]:
    """(kind, what it is) of all that is wrong with an annotation."""
    if annotation["category_id"] not in categories:
        yield "unknown category", f"category {annotation['category_id']}"
    box = annotation["bbox"]
    if not all(map(math.isfinite, box)):
        yield "box not finite", f"{box}"
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        yield "box without area", f"{box}"
        return
    if w < 1 or h < 1:
        yield "small box", f"{box}"
    if size is None:
        yield "unknown image", f"image {annotation['image_id']}"
        return
    height, width = size
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        yield "box outside", f"{box} in {width} x {height}"
        return
    if x < -BORDER or y < -BORDER or x + w > width + BORDER or y + h > height + BORDER:
        yield "box over the border", f"{box} in {width} x {height}"
    segmentation = annotation.get("segmentation")
    if not segmentation:
        if masks:
            yield "no segmentation", "none"
        return
    if wrong := check_segmentation(segmentation, size):
        yield "segmentation", wrong
        return
    if text := _misfit(box, segmentation, size):
        yield "box and mask", text


def _misfit(box: list[float], segmentation: Any, size: tuple[int, int]) -> str:
    """Where the box and the one around the mask are more than rounding apart."""
    from faster_coco_eval.core import mask as rle_codec

    if isinstance(segmentation, list):  # COCO's boxes are those of the polygons, before they are drawn on pixels
        xs, ys = ([n for polygon in segmentation for n in polygon[start::2]] for start in (0, 1))
        around = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    else:
        around = [float(n) for n in rle_codec.toBbox(to_rle(segmentation, size))]
    corners = [(b[0], b[1], b[0] + b[2], b[1] + b[3]) for b in (box, around)]
    apart = max(abs(one - other) for one, other in zip(*corners, strict=True))
    slack = 2 * BORDER + 0.02 * max(box[2], box[3])
    return f"box {box}, around the mask {[round(n, 1) for n in around]}" if apart > slack else ""


def _check_files(sets, number: int, seen: dict, workers: int, step) -> Iterator[Finding]:
    one = sets[number]
    if one.files is None:
        return
    problems: dict[str, list[str]] = {}
    odd: dict[str, list[str]] = {}
    between: dict[int, list[str]] = {}
    for index, (kind, text, digest) in enumerate(_examine_all(one, workers)):
        name = one.files.name(index)
        step(name)
        if kind in ("missing", "unreadable", "size"):
            problems.setdefault(kind, []).append(text)
        elif text:
            odd.setdefault(text, []).append(name)
        if digest:
            other, place = seen.setdefault(digest, (number, index))
            if (other, place) != (number, index):
                between.setdefault(other, []).append(f"{name} = {sets[other].files.name(place)}")
    words = {
        "missing": "image files are missing",
        "unreadable": "image files can't be read",
        "size": "image files have another size than the json says",
    }
    for kind, said in words.items():
        if items := problems.get(kind):
            yield Finding("error", kind, one.where, f"{len(items)} of {len(one)} {said}", items)
    for other, pairs in between.items():
        if other == number:
            message = f"{len(pairs)} images are twice in the set (same pixels)"
            yield Finding("warning", "duplicate", one.where, message, pairs)
        else:
            message = f"{len(pairs)} images are in {sets[other].where} too (same pixels)"
            yield Finding("error", "duplicate", one.where, message, pairs)
    for text, names in odd.items():
        yield Finding("warning", "mode", one.where, f"{len(names)} images: {text}", names)


def _examine_all(one: CocoSet, workers: int) -> Iterator[tuple[str, str, bytes]]:
    sizes = [(image["width"], image["height"]) for image in one.values["images"]]
    if workers <= 1:
        yield from (_examine(one.files, sizes, index) for index in range(len(one)))
        return
    with multiprocessing.Pool(workers, _remember, (one.files, sizes)) as pool:
        yield from pool.imap(_examine_remembered, range(len(one)), chunksize=16)


_remembered: tuple[ImageSource, list[tuple[int, int]]]


def _remember(files: ImageSource, sizes: list[tuple[int, int]]) -> None:
    global _remembered
    _remembered = (files, sizes)


def _examine_remembered(index: int) -> tuple[str, str, bytes]:
    return _examine(*_remembered, index)


def _examine(files: ImageSource, sizes: list[tuple[int, int]], index: int) -> tuple[str, str, bytes]:
    """(kind of what is wrong or "", what is wrong or odd, digest of the pixels)"""
    try:
        data = files.read(index)
    except ImageError as error:
        return "missing", str(error), b""
    try:
        image = decode_image(data, files.name(index))
        header = open_image(data, files.name(index))
    except ImageError as error:
        return "unreadable", str(error), b""
    width, height = sizes[index]
    if (width, height) not in (image.size, header.size):
        text = f"{files.name(index)}: {image.width} x {image.height}, the json says {width} x {height}"
        return "size", text, digest_of(image)
    return "", oddness(header), digest_of(image)
