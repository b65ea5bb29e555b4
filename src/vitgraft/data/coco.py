"""COCO's json and the images it names, as they are published: in folders, or in one tar."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitgraft.data.decode import decode_annotated
from vitgraft.data.detection_targets import Objects, ObjectSource, are_numbers, is_box, is_inside, is_polygon, usable
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.folder import FileSource
from vitgraft.data.readers.tar import PlainTar, TarIndex, TarSource, default_cache_dir, is_tar, unpack
from vitgraft.errors import DataError, ImageError

__all__ = ["CocoFiles", "CocoSource", "find_jsons", "is_coco", "open_coco", "read_coco_json"]

# where a split's json and its images are looked for below the root; {} is the name of the split
JSONS = (
    "annotations/instances_{}.json",
    "annotations/instances_{}2017.json",
    "annotations/{}.json",
    "{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
)
FOLDERS = ("{}", "{}2017", "images/{}", "images/{}2017", "images", "")


class CocoSource(ObjectSource):
    """The images and objects of one COCO json.

    The annotations are kept as bytes and unpacked image by image: as Python objects, those of COCO's training set would
    take gigabytes in each worker process.

    Args:
        values: what the json holds.
        files: the images, in the order of `values["images"]`.
        shown: what to call the set in messages.

    Raises:
        DataError: the json lacks what is needed, or uses an id twice; `vitgraft check-data` lists all that is wrong.
    """

    def __init__(self, values: dict[str, Any], files: ImageSource, shown: str):
        self.files, self.shown = files, shown
        images, categories = values["images"], sorted(values["categories"], key=lambda one: one["id"])
        self.category_ids = tuple(one["id"] for one in categories)
        self.class_names = tuple(str(one["name"]) for one in categories)
        self.ids = np.array([one["id"] for one in images], dtype=np.int64)
        self.sizes = np.array([(one["height"], one["width"]) for one in images], dtype=np.int64).reshape(-1, 2)
        for what, ids in (("image", self.ids.tolist()), ("category", self.category_ids)):
            if twice := [i for i, count in Counter(ids).items() if count > 1]:
                raise DataError(f"{shown}: {what} ids that are there twice: {twice[:5]}; see vitgraft check-data")
        place = {number: i for i, number in enumerate(self.ids.tolist())}
        kept: list[list[dict[str, Any]]] = [[] for _ in images]
        self.counts = np.zeros((len(images), 2), dtype=np.int64)  # objects to learn from, objects in all
        self.has_masks = any(one.get("segmentation") for one in values["annotations"])
        known, strange = set(self.category_ids), Counter()
        for one in values["annotations"]:
            if wrong_values("annotations", one):
                strange["with values of a wrong kind"] += 1
                continue
            where = place.get(one["image_id"])
            if where is None or one["category_id"] not in known:
                strange["of an unknown image" if where is None else "of an unknown category"] += 1
                continue
            crowd = bool(one.get("iscrowd"))
            size = tuple(self.sizes[where].tolist())
            good = usable(one) and is_inside(one["bbox"], size) and (not self.has_masks or _has_segmentation(one, size))
            if not good and not crowd:
                strange["without a usable box or mask in the image"] += 1
            if not is_box(one["bbox"]):
                continue
            self.counts[where] += (good, 1)
            kept[where].append({name: one[name] for name in _KEPT if one.get(name) is not None})
        packed = [pickle.dumps(annotations, protocol=5) for annotations in kept]
        self.ends = np.cumsum([len(part) for part in packed], dtype=np.int64)
        self.packed = np.frombuffer(b"".join(packed), dtype=np.uint8)
        self.strange = dict(strange)  # what is not used, by reason

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def image_id(self, index: int) -> int:
        return int(self.ids[index])

    def objects(self, index: int) -> Objects:
        """What the json says of an image."""
        height, width = self.sizes[index].tolist()
        start = int(self.ends[index - 1]) if index else 0
        annotations = pickle.loads(self.packed[start : self.ends[index]])
        return Objects(annotations, (height, width), self.category_ids)

    def load(self, index: int) -> tuple[Image.Image, Objects]:
        objects, data, name = self.objects(index), self.files.read(index), self.name(index)
        image = decode_annotated(data, name, objects.size)
        if image.size[::-1] != objects.size:
            height, width = objects.size
            raise ImageError(name, f"is {image.width} x {image.height}, its annotations are for {width} x {height}")
        return image, objects

    def where(self) -> str:
        return self.shown

    def to_learn(self, min_side: int = 32, keep_empty: bool = False) -> np.ndarray:
        """Indices of the images to train on, int64.

        SwinTransformer/Swin-Transformer-Object-Detection mmdet/datasets/coco.py `_filter_imgs`: no image without an
        object to learn, none with a side below 32 pixels.

        Args:
            min_side: smallest side of an image, pixels.
            keep_empty: whether images without objects stay.
        """
        large = self.sizes.min(1) >= min_side
        return np.flatnonzero(large if keep_empty else large & (self.counts[:, 0] > 0))

    def notice(self) -> str:
        """What of the json training leaves out, in one line; empty where there is nothing."""
        if not self.strange:
            return ""
        parts = ", ".join(f"{count} {what}" for what, count in self.strange.items())
        return f"{self.shown}: annotations that training leaves out: {parts} (vitgraft check-data says which)"


_KEPT = ("bbox", "category_id", "iscrowd", "area", "segmentation")


def _has_segmentation(annotation: dict[str, Any], size: tuple[int, int]) -> bool:
    """Whether there are polygons, or a code of the image's size; text of a code is decoded when it is used."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        return any(map(is_polygon, segmentation))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return False
    counts = segmentation["counts"]
    if isinstance(counts, list) and not (are_numbers(counts) and sum(counts) == size[0] * size[1]):
        return False
    return bool(counts) and tuple(segmentation["size"]) == size


class CocoFiles:
    """The files below a root that is a folder or a tar."""

    def __init__(self, root: Path, cache_dir: str | Path | None = None):
        self.root, self.index = root, None
        if root.is_dir():
            return
        if not root.is_file() or not is_tar(root):
            what = "not a tar" if root.exists() else "no such file or folder"
            raise DataError(f"{root}: {what}; wanted a folder or tar with annotations/ and images")
        cache = Path(cache_dir) if cache_dir else default_cache_dir()
        self.plain = root if root.suffix == ".tar" else unpack(root, cache)
        self.index = TarIndex.load(self.plain, cache)
        self.places = {name: i for i, name in enumerate(self.index.names)}

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.places if self.index else (self.root / name).is_file()

    def names(self) -> list[str]:
        """All json files, paths below the root."""
        if self.index:
            return sorted(name for name in self.index.names if name.endswith(".json"))
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob("*/*.json")) + sorted(
            path.name for path in self.root.glob("*.json")
        )

    def read(self, name: str) -> bytes:
        """The content of a file."""
        if self.index:
            place = self.places[name]
            return PlainTar(self.plain).read(int(self.index.offsets[place]), int(self.index.sizes[place]))
        return (self.root / name).read_bytes()

    def images(self, names: list[str]) -> ImageSource:
        """Image files, in this order; one that is missing shows when it is read."""
        if not self.index:
            return FileSource(self.root, names, None, ())
        places = [self.places.get(name, -1) for name in names]
        # a file that is not there has more bytes than can be read
        sizes = [int(self.index.sizes[i]) if i >= 0 else 1 for i in places]
        offsets = [int(self.index.offsets[i]) if i >= 0 else self.plain.stat().st_size for i in places]
        return TarSource(self.plain, self.root, names, np.array(offsets), np.array(sizes), None, ())


def find_split(files: CocoFiles, split: str) -> str:
    """The json of a split.

    Raises:
        DataError: there is none.
    """
    tried = [pattern.format(split) for pattern in JSONS]
    if found := next((name for name in tried if files.has(name)), None):
        return found
    there = ", ".join(files.names()[:6]) or "no json file"
    raise DataError(f"{files.root}: no annotations of {split!r} (looked for {', '.join(tried[:4])}); there is {there}")


def find_images(files: CocoFiles, values: dict[str, Any], json_name: str, split: str, folder: str | None) -> str:
    """The folder below the root in which the images lie: the one that has the first image that any has.

    Raises:
        DataError: none has.
    """
    names = [str(one.get("file_name", "")) for one in values["images"][:20]]
    beside = os.path.dirname(json_name)
    options = [folder] if folder is not None else [*(pattern.format(split) for pattern in FOLDERS), beside]
    for name in names:
        for option in options:
            if files.has(os.path.join(option, name)):
                return option
    looked = ", ".join(repr(str(files.root / option)) for option in dict.fromkeys(options))
    raise DataError(f"{json_name}: its images, such as {names[0]!r}, are not in {looked}; name their folder")


def read_coco_json(data: bytes, shown: str) -> dict[str, Any]:
    """What a COCO json holds.

    Raises:
        DataError: no json, or without images, annotations and categories that have what is needed.
    """
    try:
        values = json.loads(data)
    except ValueError as error:
        raise DataError(f"{shown}: not a json file ({error})") from error
    if not isinstance(values, dict) or (
        missing := [name for name in ("images", "annotations", "categories") if not isinstance(values.get(name), list)]
    ):
        missing = ", ".join(missing) if isinstance(values, dict) else "everything"
        raise DataError(f"{shown}: not COCO's json of objects, it lacks {missing}")
    for kind, needed in NEEDED.items():
        for number, one in enumerate(values[kind]):
            if not isinstance(one, dict):
                raise DataError(f"{shown}: {kind}[{number}] is no mapping but {one!r:.40}")
            # a damaged value makes an annotation unusable, which is counted where it is left out
            wrong = [name for name in needed if name not in one] if kind == "annotations" else wrong_values(kind, one)
            if wrong:
                raise DataError(
                    f"{shown}: {kind}[{number}] {lacking(wrong, one)}; vitgraft check-data lists all of them"
                )
    return values


NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_OPTIONAL = ("id", "iscrowd", "area")  # of annotations; null is taken as absent
_KINDS = {
    "file_name": "text",
    "name": "text",
    "height": "a whole number above 0",
    "width": "a whole number above 0",
    "bbox": "four numbers",
    "iscrowd": "0 or 1",
    "area": "a number from 0 up",
}


def wrong_values(kind: str, entry: dict[str, Any]) -> list[str]:
    """Names of the values that an entry lacks, or has of a wrong kind.

    Args:
        kind: "images", "annotations" or "categories".
        entry: one of them.
    """
    wrong = [name for name in NEEDED[kind] if not _is_kind(name, entry.get(name))]
    if kind == "annotations":
        there = ((name, entry[name]) for name in _OPTIONAL if entry.get(name) is not None)
        # nothing uses ids of annotations; some tools write text there
        wrong += [name for name, value in there if not (_is_kind(name, value) or (name == "id" and type(value) is str))]
    return wrong


def _is_kind(name: str, value: Any) -> bool:
    if name in ("file_name", "name"):
        return isinstance(value, str) and bool(value)
    if name == "bbox":
        return isinstance(value, list) and len(value) == 4 and all(isinstance(n, int | float) for n in value)
    if name == "iscrowd":
        return isinstance(value, int) and value in (0, 1)
    if isinstance(value, bool):
        return False
    if name == "area":
        return isinstance(value, int | float) and 0 <= value < math.inf
    return isinstance(value, int) and (value > 0 or name not in ("height", "width"))


def lacking(names: list[str], entry: dict[str, Any]) -> str:
    """What is wrong with the values that `wrong_values` names, in words."""
    absent = [name for name in names if name not in entry]
    parts = [f"lacks {', '.join(absent)}"] if absent else []
    for name in (name for name in names if name in entry):
        kind = _KINDS.get(name, "a whole number")
        parts.append(f"has {name} {json.dumps(entry[name], default=str):.60}, which must be {kind}")
    return " and ".join(parts)


def open_coco(
    root: str | Path, split: str, images: str | None = None, cache_dir: str | Path | None = None
) -> CocoSource:
    """Opens a split of a COCO set.

    Args:
        root: folder or tar.
        split: such as "train" (then annotations/instances_train.json, instances_train2017.json ... are looked for), or
            the path of a json below the root.
        images: folder of the images below the root; None looks for it.
        cache_dir: where a compressed tar is unpacked; None is `default_cache_dir()`.

    Raises:
        DataError: nothing there, or it can't be used; the message says what was looked for.
    """
    files = CocoFiles(Path(root), cache_dir)
    json_name = split if split.endswith(".json") else find_split(files, split)
    if not files.has(json_name):
        raise DataError(f"{files.root}: no {json_name}; there is {', '.join(files.names()[:6]) or 'no json file'}")
    shown = f"{files.root}/{json_name}"
    values = read_coco_json(files.read(json_name), shown)
    if not values["images"]:
        raise DataError(f"{shown}: no images in it")
    folder = find_images(files, values, json_name, split, images)
    names = [os.path.normpath(os.path.join(folder, str(one["file_name"]))) for one in values["images"]]
    return CocoSource(values, files.images(names), shown)


def find_jsons(files: CocoFiles) -> list[str]:
    """The jsons with objects, paths below the root; where some are called instances_*, as COCO's are, only those."""
    names = [name for name in files.names() if os.path.dirname(name) == "annotations" or name.endswith(".coco.json")]
    instances = [name for name in names if os.path.basename(name).startswith("instances_")]
    return instances or [name for name in names if all(mark in files.read(name) for mark in _MARKS)]


_MARKS = (b'"images"', b'"annotations"', b'"categories"')


def is_coco(root: str | Path) -> bool:
    """Whether a folder or tar is in COCO's layout: annotations/instances_SPLIT.json or other jsons of its kind."""
    try:
        return bool(find_jsons(CocoFiles(Path(root))))
    except (DataError, OSError):
        return False
