"""COCO's json and the images it names, as they are published: in folders, or in one tar."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vitgraft.data.decode import decode_annotated
from vitgraft.data.detection_targets import REASONS, Objects, ObjectSource, object_errors
from vitgraft.data.findings import Finding
from vitgraft.data.layout import instead_of, json_names
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.errors import DataError, ImageError

__all__ = ["CocoJson", "CocoSource", "entry_errors", "find_images", "open_coco"]

# where the images of a split are looked for below the root; {} is the name of the split
FOLDERS = ("{}", "{}2017", "images/{}", "images/{}2017", "images", "")
NEEDED = {"image_id", "category_id", "bbox"}  # of an annotation
_KEPT = ("bbox", "category_id", "iscrowd", "area", "segmentation")

Text = Annotated[StrictStr, Field(min_length=1)]
Side = Annotated[StrictInt, Field(gt=0)]


class ImageEntry(TypedDict):
    """What an image needs."""

    id: StrictInt
    file_name: Text
    height: Side
    width: Side


class AnnotationEntry(TypedDict):
    """What an annotation needs and may have; null is absent."""

    image_id: StrictInt
    category_id: StrictInt
    bbox: Annotated[list[StrictFloat], Field(min_length=4, max_length=4)]
    # nothing uses ids of annotations; some tools write text there
    id: NotRequired[StrictInt | StrictStr | None]
    iscrowd: NotRequired[Annotated[StrictInt, Field(ge=0, le=1)] | StrictBool | None]
    area: NotRequired[Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)] | None]


class CategoryEntry(TypedDict):
    """What a category needs."""

    id: StrictInt
    name: Text


ENTRIES = {"images": ImageEntry, "annotations": AnnotationEntry, "categories": CategoryEntry}
_CHECKS = {kind: TypeAdapter(entry) for kind, entry in ENTRIES.items()}
for _entry in ENTRIES.values():
    _entry.__pydantic_config__ = ConfigDict(hide_input_in_errors=True)


def entry_errors(kind: str, entry: Any) -> list[str]:
    """What an entry lacks, and its values that are not possible.

    Args:
        kind: "images", "annotations" or "categories".
        entry: One of them.
    """
    try:
        _CHECKS[kind].validate_python(entry)
    except ValidationError as error:
        if not isinstance(entry, dict):
            return [f"is no mapping but {entry!r:.40}"]
        reasons: dict[str, list[str]] = {}
        for one in error.errors(include_url=False, include_input=False):
            reasons.setdefault(str(one["loc"][0]), []).append(one["msg"])
        absent = [name for name in reasons if name not in entry]
        given = [
            f"has {name} {json.dumps(entry[name], default=str):.60} ({' or '.join(dict.fromkeys(texts))})"
            for name, texts in reasons.items()
            if name in entry
        ]
        return [f"lacks {', '.join(absent)}", *given] if absent else given
    return []


class CocoJson:
    """The content of a COCO json: its objects by image, and all that is wrong with it.

    Training and `vitgraft check-data` read it by this one pass.

    Args:
        files: Where it is.
        name: Its path there.
        decode: Whether run-length codes are decoded to their pixels, as in `segmentation_errors`.

    Attributes:
        images: The entries that have all that is needed; `annotations` and `categories` likewise.
        sizes: (height, width) of each image, pixels.
        objects: The annotations of each image that an evaluation counts: of known categories, with a box.
        counts: int64 (images, 2): objects to learn from, and objects in all.
        has_masks: Whether any annotation has a segmentation.
        findings: Errors and warnings.
        fatal: Errors that make the json useless for training.
        left_out: Reason of `REASONS` -> annotations that can't be learned, without crowds.

    Raises:
        DataError: No json, or not COCO's of objects.
    """

    def __init__(self, files: Files, name: str, decode: bool = False):
        self.name, self.where = name, f"{files.root}/{name}"
        self.findings: list[Finding] = []
        self.fatal: list[str] = []
        self.left_out: Counter[str] = Counter()
        values = _read_json(files, name)
        self.images, self.annotations, self.categories = (self._whole(kind, values[kind]) for kind in ENTRIES)
        self.sizes = [(image["height"], image["width"]) for image in self.images]
        self._check_ids()
        self._sort_objects(decode)

    def _finding(self, level: str, kind: str, message: str, items: list[str]) -> None:
        if items:
            self.findings.append(Finding(level, kind, self.where, f"{len(items)} {message}", items))

    def _whole(self, kind: str, entries: list[Any]) -> list[dict[str, Any]]:
        """The entries that have all that is needed."""
        whole, items = [], []
        for number, entry in enumerate(entries):
            errors = entry_errors(kind, entry)
            if not errors:
                whole.append(entry)
                continue
            items.append(f"{kind}[{number}] {' and '.join(errors)}")
            # a damaged value makes an annotation unusable, which is counted where it is left out
            if kind == "annotations" and isinstance(entry, dict) and entry.keys() >= NEEDED:
                self.left_out["keys"] += 1
            else:
                self.fatal.append(items[-1])
        self._finding("error", "keys", f"of {len(entries)} {kind} {REASONS['keys'].words}", items)
        return whole

    def _check_ids(self) -> None:
        for kind, name, level in (
            *((kind, "id", "error") for kind in ENTRIES),
            ("images", "file_name", "error"),
            ("categories", "name", "warning"),
        ):
            values = Counter(entry[name] for entry in getattr(self, kind) if entry.get(name) is not None)
            twice = [f"{kind} {name} {value}: {count} times" for value, count in values.items() if count > 1]
            if name == "id" and kind != "annotations":
                self.fatal += twice
            self._finding(level, "ids", f"values of {name} of {kind} are there twice", twice)

    def _sort_objects(self, decode: bool) -> None:
        places = {image["id"]: place for place, image in enumerate(self.images)}
        category_ids = {category["id"] for category in self.categories}
        self.has_masks = any(annotation.get("segmentation") for annotation in self.annotations)
        self.objects: list[list[dict[str, Any]]] = [[] for _ in self.images]
        self.counts = np.zeros((len(self.images), 2), dtype=np.int64)
        found: dict[str, list[str]] = {reason: [] for reason in REASONS}
        for number, one in enumerate(self.annotations):
            place, crowd = places.get(one["image_id"]), bool(one.get("iscrowd"))
            size = None if place is None else self.sizes[place]
            errors = dict(object_errors(one, size, category_ids, self.has_masks, decode))
            for reason, text in errors.items():
                name = f"annotation {one.get('id', f'[{number}]')} (image {one['image_id']})"
                found[reason].append(f"{name}: {text}")
            why = next((reason for reason in errors if REASONS[reason].left_out), None)
            if why and not crowd:
                self.left_out[why] += 1
            if not errors.keys() & {"unknown image", "unknown category", "box not finite"}:
                self.counts[place] += (not why and not crowd, 1)
                self.objects[place].append({name: one[name] for name in _KEPT if one.get(name) is not None})
        for reason, (level, left_out, words) in REASONS.items():
            more = ": training leaves them out" if left_out and level == "warning" else ""
            self._finding(level, reason, f"annotations {words}{more}", found[reason])
        empty = [image["file_name"] for image, count in zip(self.images, self.counts[:, 0], strict=True) if not count]
        if len(empty) < len(self.images):
            words = "images have no object: training leaves them out, unless keep_empty is true"
            self._finding("warning", "no objects", words, empty)
        elif empty:
            words = "images have no object to learn: training has only background, no AP can be measured"
            self.findings.append(Finding("warning", "no objects", self.where, f"all {len(empty)} {words}", empty))


class CocoSource(ObjectSource):
    """The images and objects of one COCO json.

    The annotations are kept as bytes and unpacked image by image: as Python objects, those of COCO's training set would
    take gigabytes in each worker process.

    Args:
        json: The content of the json.
        files: The images, in its order.

    Attributes:
        counts: As in `CocoJson`; `findings` and `left_out` as well.

    Raises:
        DataError: The json lacks what is needed; `vitgraft check-data` lists all errors.
    """

    def __init__(self, json: CocoJson, files: ImageSource):
        self.files, self.where, self.has_masks, self.counts = files, json.where, json.has_masks, json.counts
        self.findings, self.left_out = json.findings, json.left_out
        categories = sorted(json.categories, key=lambda one: one["id"])
        self.category_ids = tuple(one["id"] for one in categories)
        self.class_names = tuple(str(one["name"]) for one in categories)
        self.ids = np.array([one["id"] for one in json.images], dtype=np.int64)
        self.sizes = np.array(json.sizes, dtype=np.int64).reshape(-1, 2)
        packed = [pickle.dumps(annotations, protocol=5) for annotations in json.objects]
        self.ends = np.cumsum([len(part) for part in packed], dtype=np.int64)
        self.packed = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        return self.files.name(index)

    def image_id(self, index: int) -> int:
        return int(self.ids[index])

    def objects(self, index: int) -> Objects:
        """The annotations of an image."""
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

    def to_learn(self, min_side: int = 32, keep_empty: bool = False) -> np.ndarray:
        """Indices of the images to train on, int64.

        SwinTransformer/Swin-Transformer-Object-Detection mmdet/datasets/coco.py `_filter_imgs`: no image without an
        object to learn, none with a side below 32 pixels.

        Args:
            min_side: Smallest side of an image, pixels.
            keep_empty: Whether images without objects stay.
        """
        large = self.sizes.min(1) >= min_side
        return np.flatnonzero(large if keep_empty else large & (self.counts[:, 0] > 0))

    def warning(self) -> str:
        """Which annotations training leaves out, in one line; empty where it takes all."""
        if not self.left_out:
            return ""
        parts = ", ".join(f"{count} {REASONS[reason].words}" for reason, count in self.left_out.items())
        return f"{self.where}: annotations that training leaves out: {parts} (vitgraft check-data lists them)"


def _read_json(files: Files, name: str) -> dict[str, list[Any]]:
    """The content of a COCO json, with its three lists; their entries are not checked.

    Raises:
        DataError: No json, or not COCO's of objects.
    """
    shown = f"{files.root}/{name}"
    try:
        values = json.loads(files.read(name))
    except (ValueError, OSError) as error:
        raise DataError(f"{shown}: not a readable json file ({error})") from error
    missing = [kind for kind in ENTRIES if not (isinstance(values, dict) and isinstance(values.get(kind), list))]
    if missing:
        raise DataError(f"{shown}: not COCO's json of objects, it lacks {', '.join(missing)}")
    if not values["images"]:
        raise DataError(f"{shown}: no images in it")
    return values


def find_images(files: Files, json: CocoJson, folder: str | None = None) -> FileSource:
    """The images of a json, in its order, in the folder that has the first one that any has.

    Args:
        files: Where they are.
        json: Its path names the split.
        folder: Path of the images; None looks for it.

    Raises:
        DataError: No folder has any of them.
    """
    beside, base = os.path.split(json.name)
    split = base.removesuffix(".json").removeprefix("instances_").removesuffix("2017")
    if base in ("_annotations.coco.json", "annotations.json"):
        split = os.path.basename(beside)
    names = [str(one.get("file_name", "")) for one in json.images]
    options = [folder] if folder is not None else [*(pattern.format(split) for pattern in FOLDERS), beside]
    for name in names[:20]:
        for option in options:
            if files.has(os.path.normpath(os.path.join(option, name))):
                return FileSource(files, [os.path.normpath(os.path.join(option, one)) for one in names])
    looked = ", ".join(repr(str(files.root / option)) for option in dict.fromkeys(options))
    raise DataError(f"{json.name}: its images, such as {names[0]!r}, are not in {looked}; name their folder")


def open_coco(
    root: str | Path, split: str, images: str | None = None, cache_dir: str | Path | None = None
) -> CocoSource:
    """Opens a split of a COCO dataset.

    Args:
        root: Folder or tar.
        split: Such as "train" (then annotations/instances_train.json, instances_train2017.json ... are looked for), or
            the path of a json below the root.
        images: Folder of the images below the root; None looks for it.
        cache_dir: Where a compressed tar is unpacked; None is `default_cache_dir()`.

    Raises:
        DataError: Nothing there, or it can't be used; the message names what was looked for.
    """
    files = Files(root, cache_dir)
    tried = json_names(split)
    name = next((name for name in tried if files.has(name)), None)
    if name is None:
        looked = ", ".join(tried[:4])
        there = ", ".join([name for name in files.names if name.endswith(".json")][:6]) or "no json file"
        instead = instead_of("coco", files)
        raise DataError(
            f"{files.root}: no annotations of {split!r} (looked for {looked}); there is {there}"
            f"{instead and '; '}{instead}"
        )
    json = CocoJson(files, name)
    if json.fatal:
        raise DataError(f"{json.where}: {json.fatal[0]}; vitgraft check-data lists all")
    return CocoSource(json, find_images(files, json, images))
