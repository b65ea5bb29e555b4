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
from vitgraft.data.detection_targets import Objects, ObjectSource, are_numbers, is_box, is_inside, is_polygon, usable
from vitgraft.data.layout import instead_of, json_names
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.errors import DataError, ImageError
from vitgraft.untrusted import not_the_file

__all__ = ["CocoSource", "entry_errors", "find_images", "open_coco", "read_json", "split_entries"]

# where the images of a split are looked for below the root; {} is the name of the split
FOLDERS = ("{}", "{}2017", "images/{}", "images/{}2017", "images", "")

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


def split_entries(values: dict[str, Any]) -> tuple[dict[str, list[Any]], list[tuple[str, int, list[str]]]]:
    """The entries of a json that have all that is needed; of the others their kind, number and errors."""
    whole: dict[str, list[Any]] = {kind: [] for kind in ENTRIES}
    damaged = []
    for kind in ENTRIES:
        for number, one in enumerate(values[kind]):
            if errors := entry_errors(kind, one):
                damaged.append((kind, number, errors))
            else:
                whole[kind].append(one)
    return whole, damaged


class CocoSource(ObjectSource):
    """The images and objects of one COCO json.

    The annotations are kept as bytes and unpacked image by image: as Python objects, those of COCO's training set would
    take gigabytes in each worker process.

    Args:
        values: The content of the json, of which every entry has what is needed.
        files: The images, in the order of `values["images"]`.
        where: The dataset's name in messages.
        damaged: Number of annotations that the json has beside them.

    Raises:
        DataError: The json uses an id twice; `vitgraft check-data` lists all errors.
    """

    def __init__(self, values: dict[str, Any], files: ImageSource, where: str, damaged: int = 0):
        self.files, self.where = files, where
        images, categories = values["images"], sorted(values["categories"], key=lambda one: one["id"])
        self.category_ids = tuple(one["id"] for one in categories)
        self.class_names = tuple(str(one["name"]) for one in categories)
        self.ids = np.array([one["id"] for one in images], dtype=np.int64)
        self.sizes = np.array([(one["height"], one["width"]) for one in images], dtype=np.int64).reshape(-1, 2)
        for what, ids in (("image", self.ids.tolist()), ("category", self.category_ids)):
            if twice := [i for i, count in Counter(ids).items() if count > 1]:
                raise DataError(f"{where}: {what} ids that are there twice: {twice[:5]}; see vitgraft check-data")
        place = {number: i for i, number in enumerate(self.ids.tolist())}
        kept: list[list[dict[str, Any]]] = [[] for _ in images]
        self.counts = np.zeros((len(images), 2), dtype=np.int64)  # objects to learn from, objects in all
        self.has_masks = any(one.get("segmentation") for one in values["annotations"])
        known, skipped = set(self.category_ids), Counter({"with values of a wrong kind": damaged} if damaged else {})
        for one in values["annotations"]:
            number = place.get(one["image_id"])
            if number is None or one["category_id"] not in known:
                skipped["of an unknown image" if number is None else "of an unknown category"] += 1
                continue
            size = tuple(self.sizes[number].tolist())
            good = usable(one) and is_inside(one["bbox"], size) and (not self.has_masks or _has_segmentation(one, size))
            if not good and not one.get("iscrowd"):
                skipped["without a usable box or mask in the image"] += 1
            if not is_box(one["bbox"]):
                continue
            self.counts[number] += (good, 1)
            kept[number].append({name: one[name] for name in _KEPT if one.get(name) is not None})
        packed = [pickle.dumps(annotations, protocol=5) for annotations in kept]
        self.ends = np.cumsum([len(part) for part in packed], dtype=np.int64)
        self.packed = np.frombuffer(b"".join(packed), dtype=np.uint8)
        self.skipped = dict(skipped)  # reason -> annotations

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
        if not self.skipped:
            return ""
        parts = ", ".join(f"{count} {what}" for what, count in self.skipped.items())
        return f"{self.where}: annotations that training leaves out: {parts} (vitgraft check-data lists them)"


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


def read_json(files: Files, name: str) -> dict[str, list[Any]]:
    """The content of a COCO json, with its three lists; their entries are not checked.

    Raises:
        DataError: No json, or not COCO's of objects.
    """
    shown = f"{files.root}/{name}"
    try:
        data = files.read(name) or b""
        if instead := not_the_file(data):
            raise DataError(f"{shown} {instead}")
        values = json.loads(data)
    except DataError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{shown}: not a readable json file ({error})") from error
    missing = [kind for kind in ENTRIES if not (isinstance(values, dict) and isinstance(values.get(kind), list))]
    if missing:
        raise DataError(f"{shown}: not COCO's json of objects, it lacks {', '.join(missing)}")
    if not values["images"]:
        raise DataError(f"{shown}: no images in it")
    return values


def find_images(files: Files, values: dict[str, Any], json_name: str, folder: str | None = None) -> FileSource:
    """The images of a json, in its order, in the folder that has the first one that any has.

    Args:
        files: Where they are.
        values: The content of the json.
        json_name: Its path, which names the split.
        folder: Path of the images; None looks for it.

    Raises:
        DataError: No folder has any of them.
    """
    beside, base = os.path.split(json_name)
    split = base.removesuffix(".json").removeprefix("instances_").removesuffix("2017")
    if base in ("_annotations.coco.json", "annotations.json"):
        split = os.path.basename(beside)
    names = [str(one.get("file_name", "")) for one in values["images"]]
    options = [folder] if folder is not None else [*(pattern.format(split) for pattern in FOLDERS), beside]
    for name in names[:20]:
        for option in options:
            if files.has(os.path.normpath(os.path.join(option, name))):
                return FileSource(files, [os.path.normpath(os.path.join(option, one)) for one in names])
    looked = ", ".join(repr(str(files.root / option)) for option in dict.fromkeys(options))
    raise DataError(f"{json_name}: its images, such as {names[0]!r}, are not in {looked}; name their folder")


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
    values = read_json(files, name)
    whole, damaged = split_entries(values)
    needed = {"image_id", "category_id", "bbox"}
    for kind, number, errors in damaged:
        entry = values[kind][number]
        # a damaged value makes an annotation unusable, which is counted where it is left out
        if kind != "annotations" or not isinstance(entry, dict) or not entry.keys() >= needed:
            raise DataError(
                f"{files.root}/{name}: {kind}[{number}] {' and '.join(errors)}; vitgraft check-data lists all"
            )
    return CocoSource(whole, find_images(files, whole, name, images), f"{files.root}/{name}", len(damaged))
