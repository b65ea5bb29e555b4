"""`vitgraft check-data` for COCO datasets: the json, every annotation and every image file.

Errors: a json that lacks what is needed, ids that are there twice, unknown images and categories, impossible boxes and
masks, files that are missing, can't be read or are of another size, images that are in two splits, splits with
different categories. Warnings: objects that training leaves out or clips, classes and images without objects.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitgraft.data.coco import ENTRIES, find_images, read_json, split_entries
from vitgraft.data.detection_targets import check_segmentation, is_inside, rle_codec, to_rle
from vitgraft.data.findings import Check, Examined, Finding, Options, SetReport
from vitgraft.data.layout import find_jsons
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = ["CocoCheck", "open_path"]

BORDER = 1.0  # pixels that a box may lie outside of its image, or beside its mask, by rounding

# kind -> (level, what is wrong with its annotations)
ANNOTATIONS = {
    "unknown image": ("error", "are of an unknown image"),
    "unknown category": ("error", "are of an unknown category"),
    "box not finite": ("error", "have a box with nan or infinity"),
    "box without area": ("error", "have a box whose width or height is not above 0"),
    "box outside": ("error", "have a box that lies beside its image"),
    "segmentation": ("error", "have a segmentation that can't be used"),
    "no segmentation": ("error", "have no segmentation, where others of the dataset have one"),
    "small box": ("warning", "have a box narrower than a pixel: training leaves them out"),
    "box over the border": ("warning", "have a box that goes over the border of its image: it is clipped"),
    "box and mask": ("warning", "have a box that does not fit their mask"),
}


def open_path(path: str, options: Options) -> Iterator[Check | Finding]:
    """All jsons with objects of a folder or tar; what can't be opened is a finding.

    Args:
        path: Folder, tar, or one json, in `annotations` beside the images or among them.
        options: Not used.
    """
    try:
        if path.endswith(".json"):
            here = Path(path).parent
            files = Files(here.parent if here.name == "annotations" else here)
            names = [str(Path(path).relative_to(files.root))]
        else:
            files = Files(path)
            names = find_jsons(files)
    except DataError as error:
        yield Finding("error", "set", path, str(error))
        return
    if not names:
        yield Finding("error", "set", path, "no annotations/*.json with images, annotations and categories")
    for name in names:
        where = f"{files.root}/{name}"
        try:
            values = read_json(files, name)
        except DataError as error:
            yield Finding("error", "json", where, str(error))
            continue
        kept, damaged = split_entries(values)
        for kind in ENTRIES:
            items = [f"{kind}[{number}] {' and '.join(errors)}" for one, number, errors in damaged if one == kind]
            if items:
                message = f"{len(items)} of {len(values[kind])} {kind} lack what is needed, or have it of a wrong kind"
                yield Finding("error", "keys", where, message, items)
        images = None
        try:
            images = find_images(files, kept, name) if kept["images"] else None
        except DataError as error:
            yield Finding("error", "missing", where, str(error))
        yield CocoCheck(where, images, kept)


class CocoCheck(Check):
    """One json.

    Args:
        where: Its path.
        files: Its images in their order; None where they were not found.
        values: Its content, without entries that lack something.
    """

    def __init__(self, where: str, files: ImageSource | None, values: dict[str, list[Any]]):
        super().__init__(where, files)
        self.values = values
        self.sizes = [(image["height"], image["width"]) for image in values["images"]]
        self.names = {category["id"]: category["name"] for category in values["categories"]}

    def examine(self, index: int) -> Examined:
        examined, (height, width) = super().examine(index), self.sizes[index]
        if examined.sizes and (height, width) not in examined.sizes:
            upright = f"{examined.sizes[0][1]} x {examined.sizes[0][0]}"
            text = f"{self.files.name(index)}: {upright}, the json has {width} x {height}"
            return examined._replace(errors={"size": text})
        return examined

    def report(self) -> SetReport:
        counts = Counter(a["category_id"] for a in self.values["annotations"] if not a.get("iscrowd"))
        per_class = {name: counts[category] for category, name in sorted(self.names.items())}
        return SetReport(self.where, len(self.values["images"]), per_class, "objects")

    def findings(self, first: CocoCheck) -> Iterator[Finding]:
        yield from self._check_ids()
        yield from self._check_annotations()
        per_class = self.report().per_class
        if empty := [name for name, count in per_class.items() if not count]:
            message = f"{len(empty)} of {len(per_class)} classes have no object: no AP can be measured of them there"
            yield self.finding("warning", "empty class", message, empty)
        one, two = first.names, self.names
        if one != two:
            only = [
                f"{number}: {one.get(number, 'none')} / {two.get(number, 'none')}"
                for number in sorted({*one, *two})
                if one.get(number) != two.get(number)
            ]
            message = f"other categories than {first.where} has (there / here): {', '.join(only[:8])}"
            yield self.finding("error", "classes", message)

    def _check_ids(self) -> Iterator[Finding]:
        for kind, name, level in (
            *((kind, "id", "error") for kind in ENTRIES),
            ("images", "file_name", "error"),
            ("categories", "name", "warning"),
        ):
            values = Counter(entry[name] for entry in self.values[kind] if entry.get(name) is not None)
            if twice := [f"{kind} {name} {value}: {count} times" for value, count in values.items() if count > 1]:
                yield self.finding(level, "ids", f"{len(twice)} values of {name} of {kind} are there twice", twice)

    def _check_annotations(self) -> Iterator[Finding]:
        images, annotations = self.values["images"], self.values["annotations"]
        sizes = dict(zip((image["id"] for image in images), self.sizes, strict=True))
        masks = any(annotation.get("segmentation") for annotation in annotations)
        found: dict[str, list[str]] = {}
        learned = set()
        for number, annotation in enumerate(annotations):
            errors = dict(self._errors(annotation, sizes.get(annotation["image_id"]), masks))
            name = f"annotation {annotation.get('id', f'[{number}]')} (image {annotation['image_id']})"
            for kind, text in errors.items():
                found.setdefault(kind, []).append(f"{name}: {text}")
            if not annotation.get("iscrowd") and not any(ANNOTATIONS[kind][0] == "error" for kind in errors):
                learned.add(annotation["image_id"])
        for kind, (level, words) in ANNOTATIONS.items():
            if items := found.get(kind):
                yield self.finding(level, kind, f"{len(items)} annotations {words}", items)
        if empty := [image["file_name"] for image in images if image["id"] not in learned]:
            message = f"{len(empty)} images have no object: training leaves them out, unless keep_empty is true"
            if len(empty) == len(images):
                message = (
                    f"all {len(empty)} images have no object to learn: training has only background, "
                    "no AP can be measured"
                )
            yield self.finding("warning", "no objects", message, empty)

    def _errors(self, annotation: dict[str, Any], size: tuple[int, int] | None, masks: bool) -> Iterator[tuple]:
        """(kind, message) of all that is wrong with an annotation."""
        if annotation["category_id"] not in self.names:
            yield "unknown category", f"category {annotation['category_id']}"
        box = annotation["bbox"]
        x, y, w, h = box
        if not all(map(math.isfinite, box)):
            yield "box not finite", f"{box}"
        elif w <= 0 or h <= 0:
            yield "box without area", f"{box}"
        else:
            if w < 1 or h < 1:
                yield "small box", f"{box}"
            if size is None:
                yield "unknown image", f"image {annotation['image_id']}"
                return
            shown = f"{box} in {size[1]} x {size[0]}"
            if not is_inside(box, size):
                yield "box outside", shown
                return
            if x < -BORDER or y < -BORDER or x + w > size[1] + BORDER or y + h > size[0] + BORDER:
                yield "box over the border", shown
            segmentation = annotation.get("segmentation")
            if not segmentation:
                if masks:
                    yield "no segmentation", "none"
            elif error := check_segmentation(segmentation, size):
                yield "segmentation", error
            elif text := _misfit(box, segmentation, size):
                yield "box and mask", text


def _misfit(box: list[float], segmentation: Any, size: tuple[int, int]) -> str:
    """Where the box and the one around the mask are more than rounding apart."""
    if isinstance(segmentation, list):  # COCO's boxes are those of the polygons, before they are drawn on pixels
        xs, ys = ([n for polygon in segmentation for n in polygon[start::2]] for start in (0, 1))
        around = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    else:
        around = [float(n) for n in rle_codec.toBbox(to_rle(segmentation, size))]
    corners = [(b[0], b[1], b[0] + b[2], b[1] + b[3]) for b in (box, around)]
    apart = max(abs(one - other) for one, other in zip(*corners, strict=True))
    slack = 2 * BORDER + 0.02 * max(box[2], box[3])
    return f"box {box}, around the mask {[round(n, 1) for n in around]}" if apart > slack else ""
