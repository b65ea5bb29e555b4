"""COCO's json and the images it names, as they are published: in folders, or in one tar."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired
from urllib.parse import unquote

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vitgraft.data.decode import decode_annotated
from vitgraft.data.detection_targets import Objects, ObjectSource, object_errors
from vitgraft.data.findings import MIN_SIDE, Finding
from vitgraft.data.layout import find_json, split_of_json
from vitgraft.data.learnable import REASONS
from vitgraft.data.readers.base import ImageSource, of_split
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.errors import DataError, ImageError
from vitgraft.terminal import number_of
from vitgraft.untrusted import not_the_file

__all__ = ["CocoJson", "CocoSource", "Entries", "entry_errors", "find_images", "open_coco", "read_json", "to_learn"]

# where the images of a split are looked for below the root; {} is the name of the split
FOLDERS = ("{}", "{}2017", "images/{}", "images/{}2017", "images", "")
NEEDED = {"image_id", "category_id", "bbox"}  # of an annotation
_KEPT = ("bbox", "category_id", "iscrowd", "area", "segmentation")
_NUMBERS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "height", "width"}  # what has to be a number
_NUMBER = re.compile(r"[-+]?\d{1,18}(\.\d*)?")
_OUTSIDE = re.compile(r"^(\.\./|/)+")
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/|[A-Za-z][A-Za-z0-9+.-]*://")

Text = Annotated[StrictStr, Field(min_length=1)]
Id = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Side = Annotated[StrictInt, Field(gt=0)]


class ImageEntry(TypedDict):
    """What an image needs."""

    id: Id
    file_name: Text
    height: Side
    width: Side


class AnnotationEntry(TypedDict):
    """What an annotation needs and may have; null is absent."""

    image_id: Id
    category_id: Id
    bbox: Annotated[list[StrictFloat], Field(min_length=4, max_length=4)]
    # nothing uses ids of annotations; some tools write text there
    id: NotRequired[StrictInt | StrictStr | None]
    iscrowd: NotRequired[Annotated[StrictInt, Field(ge=0, le=1)] | StrictBool | None]
    area: NotRequired[Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)] | None]


class CategoryEntry(TypedDict):
    """What a category needs."""

    id: Id
    name: Text


ENTRIES = {"images": ImageEntry, "annotations": AnnotationEntry, "categories": CategoryEntry}
_CHECKS = {kind: TypeAdapter(entry) for kind, entry in ENTRIES.items()}
for _entry in ENTRIES.values():
    _entry.__pydantic_config__ = ConfigDict(hide_input_in_errors=True)


class Entries(NamedTuple):
    """The objects of a split in COCO's words, of any format.

    Attributes:
        lists: "images", "annotations" and "categories".
        findings: Level, kind, message without the number of items, and items, of what only the format itself shows;
            with an error training does not start.
        part: What of the split it is, in brackets; empty is all.
    """

    lists: dict[str, list[Any]]
    findings: Sequence[tuple[str, str, str, list[str]]] = ()
    part: str = ""

    @property
    def error(self) -> str:
        """The first error of the findings; empty where there is none."""
        errors = ((message, items) for level, _, message, items in self.findings if level == "error" and items)
        return next((f"{number_of(len(items), message)}; the first: {items[0]}" for message, items in errors), "")

    def take(self, is_in: Callable[[int], bool], part: str) -> Entries:
        """Some of the images, with their annotations.

        Args:
            is_in: Of a place in the list of images.
            part: What they are, in brackets.
        """
        images = self.lists["images"]
        ids = [str(image.get("id")) if isinstance(image, dict) else "" for image in images]
        own = {one for place, one in enumerate(ids) if is_in(place)}
        return Entries(
            {
                "images": [image for place, image in enumerate(images) if is_in(place)],
                "annotations": [
                    one
                    for one in self.lists["annotations"]
                    if isinstance(one, dict) and str(one.get("image_id")) in own
                ],
                "categories": self.lists["categories"],
            },
            self.findings,
            part,
        )

    def strata(self) -> list[str]:
        """Of each image, the category of its objects that the fewest objects have; empty where it has none."""
        annotations = [one for one in self.lists["annotations"] if isinstance(one, dict)]
        total = Counter(str(one.get("category_id")) for one in annotations)
        rarest: dict[str, str] = {}
        for one in annotations:
            image, category = str(one.get("image_id")), str(one.get("category_id"))
            rarest[image] = min(rarest.get(image, category), category, key=lambda name: (total[name], name))
        return [
            rarest.get(str(image.get("id")), "") if isinstance(image, dict) else "" for image in self.lists["images"]
        ]


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
        masks: Whether masks are wanted; without them no object is left out for its segmentation.
        entries: Its content, where it was read from files of another format; None reads it.

    Attributes:
        images: The entries that have all that is needed; `annotations` and `categories` likewise.
        sizes: (height, width) of each image, pixels.
        objects: The annotations of each image that an evaluation counts: of known categories, with a box.
        counts: int64 (images, 2): objects to learn from, and objects in all.
        has_masks: Whether any annotation has a segmentation.
        findings: Errors and warnings.
        fatal: Errors that make the json useless for training.
        left_out: Reason of `REASONS` -> annotations that can't be learned.
        total: Number of annotations.
        per_class: Name of each category -> objects to learn from.
        missing: Names of images that have no file; `find_images` fills it.

    Raises:
        DataError: No json, or not COCO's of objects.
    """

    def __init__(
        self, files: Files, name: str, decode: bool = False, masks: bool = True, entries: Entries | None = None
    ):
        entries = read_json(files, name) if entries is None else entries
        self.name, self.where = name, f"{files.root}/{name}".rstrip("/") + entries.part
        self.findings: list[Finding] = []
        self.fatal: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.missing: list[str] = []
        for finding in entries.findings:
            self._finding(*finding)
        self.fatal += [entries.error] if entries.error else []
        values = entries.lists
        self.total = len(values["annotations"])
        self.images, self.annotations, self.categories = (self._whole(kind, values[kind]) for kind in ENTRIES)
        self.sizes = [(image["height"], image["width"]) for image in self.images]
        self._check_ids()
        self._sort_objects(decode, masks)

    def _finding(self, level: str, kind: str, message: str, items: list[str]) -> None:
        if items:
            self.findings.append(Finding(level, kind, self.where, number_of(len(items), message), items))

    def _whole(self, kind: str, entries: list[Any]) -> list[dict[str, Any]]:
        """The entries that have all that is needed."""
        whole, items, categories = [], [], []
        read: dict[str, list[str]] = {}
        for number, entry in enumerate(entries):
            errors = entry_errors(kind, entry)
            if errors and isinstance(entry, dict):
                entry, changed = _with_numbers(entry, kind)
                errors = entry_errors(kind, entry) if changed else errors
                for key in changed if not errors else ():
                    read.setdefault(key, []).append(f"{kind}[{number}]")
            if not errors:
                whole.append(entry)
                continue
            name = entry.get("id") if isinstance(entry, dict) and kind == "annotations" else None
            item = f"{name if isinstance(name, str) else f'{kind}[{number}]'} {' and '.join(errors)}"
            # a damaged value makes an annotation unusable, which is counted where it is left out
            if kind == "annotations" and isinstance(entry, dict) and entry.keys() >= NEEDED:
                if isinstance(entry["category_id"], str | None):
                    categories.append(item)
                    continue
                self.left_out["keys"] += 1
            else:
                self.fatal.append(item)
            items.append(item)
        more = ""
        if kind == "annotations" and self.left_out["keys"]:
            more = f": training leaves them out. {REASONS['keys'].remedy}"
        self._finding("error", "keys", f"of {len(entries)} {kind} {REASONS['keys'].words}{more}", items)
        if categories:
            self.left_out["category"] += len(categories)
            self._reason("category", categories)
        for key, places in read.items():
            message = f"{kind} have {key} as text or as a fraction such as 96.0: read as the number it means"
            self._finding("warning", "reinterpreted", message, places)
        return whole

    def _reason(self, reason: str, items: list[str]) -> None:
        """The finding of annotations that something is wrong with."""
        level, left_out, words, remedy = REASONS[reason]
        words += ": training leaves them out" if left_out else ""
        self._finding(level, reason, f"annotations {words}{remedy and '. '}{remedy}", items)

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
            self._finding(level, "ids", f"values of {name} of {kind} are there twice: each needs its own", twice)

    def _sort_objects(self, decode: bool, masks: bool) -> None:
        places = {image["id"]: place for place, image in enumerate(self.images)}
        category_ids = {category["id"] for category in self.categories}
        self.has_masks = masks and any(annotation.get("segmentation") for annotation in self.annotations)
        usable: Counter[int] = Counter()
        self.objects: list[list[dict[str, Any]]] = [[] for _ in self.images]
        self.counts = np.zeros((len(self.images), 2), dtype=np.int64)
        found: dict[str, list[str]] = {reason: [] for reason in REASONS}
        for number, one in enumerate(self.annotations):
            place = places.get(one["image_id"])
            size = None if place is None else self.sizes[place]
            errors = dict(object_errors(one, size, category_ids, self.has_masks, decode, masks))
            for reason, text in errors.items():
                name = f"annotation {one.get('id', f'[{number}]')} (image {one['image_id']})"
                found[reason].append(f"{name}: {text}")
            why = next((reason for reason in errors if REASONS[reason].left_out), None)
            if why:
                self.left_out[why] += 1
            else:
                usable[one["category_id"]] += 1
            if not errors.keys() & {"unknown image", "unknown category", "box not finite"}:
                self.counts[place] += (not why, 1)
                self.objects[place].append({name: one[name] for name in _KEPT if one.get(name) is not None})
        for reason, items in found.items():
            self._reason(reason, items)
        categories = sorted(self.categories, key=lambda one: one["id"])
        self.by_id = {category["id"]: str(category["name"]) for category in categories}
        self.per_class = dict.fromkeys((category["name"] for category in categories), 0)
        for category in categories:  # two may have one name
            self.per_class[category["name"]] += usable[category["id"]]
        empty = [image["file_name"] for image, count in zip(self.images, self.counts[:, 0], strict=True) if not count]
        if len(empty) < len(self.images):
            words = "images have no object: training leaves them out, unless keep_empty is true"
            self._finding("warning", "no objects", words, empty)


class CocoSource(ObjectSource):
    """The images and objects of one COCO json.

    The annotations are kept as bytes and unpacked image by image: as Python objects, those of COCO's training set would
    take gigabytes in each worker process.

    Args:
        json: The content of the json.
        files: The images, in its order.

    Attributes:
        counts: As in `CocoJson`; `findings`, `left_out`, `total`, `per_class`, `by_id` and `missing` as well.

    Raises:
        DataError: The json lacks what is needed; `vitgraft check-data` lists all errors.
    """

    def __init__(self, json: CocoJson, files: ImageSource):
        self.files, self.where, self.has_masks, self.counts = files, json.where, json.has_masks, json.counts
        self.findings, self.left_out, self.total, self.missing = json.findings, json.left_out, json.total, json.missing
        self.per_class, self.by_id = json.per_class, json.by_id
        self.category_ids, self.class_names = tuple(json.by_id), tuple(json.by_id.values())
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

    def contents(self, paths: Sequence[bytes]) -> dict[str, Iterable[bytes]]:
        return {
            **self.files.contents(paths),
            "annotations": (self.packed.data, self.sizes.tobytes(), self.ids.tobytes()),
        }

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


def to_learn(source: CocoJson | CocoSource, min_side: int = MIN_SIDE, keep_empty: bool = False) -> np.ndarray:
    """Indices of the images to train on, int64.

    SwinTransformer/Swin-Transformer-Object-Detection mmdet/datasets/coco.py `_filter_imgs`: no image without an object
    to learn, none with a side below 32 pixels.

    Args:
        source: All images.
        min_side: Smallest side of an image, pixels.
        keep_empty: Whether images without objects stay.
    """
    large = np.asarray(source.sizes, dtype=np.int64).reshape(-1, 2).min(1) >= min_side
    return np.flatnonzero(large if keep_empty else large & (source.counts[:, 0] > 0))


def read_json(files: Files, name: str) -> Entries:
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
    return Entries({kind: values[kind] for kind in ENTRIES})


def _with_numbers(entry: dict[str, Any], kind: str) -> tuple[dict[str, Any], list[str]]:
    """An entry with text and fractions such as 96.0 as the numbers they mean, and the keys that had them."""
    names = _NUMBERS - {"id"} if kind == "annotations" else _NUMBERS
    read = {key: _number(entry[key], key in ("bbox", "area")) for key in sorted(names & entry.keys())}
    changed = [key for key, value in read.items() if value is not entry[key]]
    return (entry | {key: read[key] for key in changed}, changed) if changed else (entry, [])


def _number(value: Any, may_be_fraction: bool) -> Any:
    """The number that a value means; the value itself where it means none."""
    if isinstance(value, list):
        values = [_number(one, may_be_fraction) for one in value]
        return value if values == value else values
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and not may_be_fraction and value.is_integer() else value


def readings(name: str) -> list[str]:
    """The paths that a file name of a json may mean, below the folder of the images, the likeliest first.

    Exporters write backslashes, quote names as in URLs, and write the absolute path on their machine or a URL, of which
    only the last parts can be found here.
    """
    path = name.partition("?")[0] if "://" in name else name
    slashed = path.replace("\\", "/")
    found = [path, slashed, unquote(path), unquote(slashed)]
    if _ABSOLUTE.match(slashed):
        parts = [part for part in unquote(slashed).split("/") if part]
        found = ["/".join(parts[start:]) for start in range(1 if ":" in parts[0] else 0, len(parts))]
    return list(dict.fromkeys(found))


class _Lookup:
    """Which files there are, by one listing of each folder."""

    def __init__(self, files: Files):
        self.files, self.listed = files, {}

    def find(self, folder: str, name: str) -> str | None:
        """The path of the file that a json names, where its images are below a folder; None is none."""
        for reading in readings(name):
            path = os.path.normpath(os.path.join(folder, reading))
            inside, base = os.path.split(path)
            if path.startswith((".." + os.sep, os.sep)):
                continue  # out of the dataset
            if inside not in self.listed:
                self.listed[inside] = {*self.files.listed(inside)}
            if base in self.listed[inside] or (base.startswith(".") and self.files.has(path)):
                return path
        return None


def find_images(files: Files, json: CocoJson, folder: str | None = None) -> FileSource:
    """The images of a json, in its order, in the folder that has the first one that any has.

    Names are read as in `readings`, never as a path out of the dataset. Which were read as another path, and which have
    no file, is added to the json's `findings` and `missing`.

    Args:
        files: Where they are.
        json: Its path names the split.
        folder: Path of the images; None looks for it.

    Raises:
        DataError: No folder has any of them.
    """
    beside, split = os.path.dirname(json.name), split_of_json(json.name)
    names = [str(one.get("file_name", "")) for one in json.images]
    options = [folder] if folder is not None else [*(pattern.format(split) for pattern in FOLDERS), beside]
    if folder is None:
        for start in ("", "images"):  # `valid` for `val`
            alike = of_split(split, files.folders(start))
            options += [os.path.join(start, alike)] if alike else []
    lookup = _Lookup(files)
    for name in names[:20]:
        for option in options:
            if lookup.find(option, name):
                return _images_in(files, json, [lookup.find(option, one) for one in names], names, option)
    if any(_ABSOLUTE.match(name.replace("\\", "/")) for name in names[:20]):
        places = Counter(os.path.basename(path) for path in files.images())
        by_base = {os.path.basename(path): path for path in files.images() if places[os.path.basename(path)] == 1}
        found = [by_base.get(readings(name)[-1]) for name in names]
        if any(found):
            return _images_in(files, json, found, names, "")
    looked = ", ".join(repr(str(files.root / option)) for option in dict.fromkeys(options))
    raise DataError(
        f"{json.where}: its images, such as {names[0]!r}, are not in {looked}; name their folder below {files.root} "
        "(data.train_images, data.val_images)"
    )


def _images_in(files: Files, json: CocoJson, found: list[str | None], names: list[str], folder: str) -> FileSource:
    """The images of a json, by the path that was found for each name; None is none."""
    times = Counter(path for path, _ in {*zip(found, names, strict=True)})
    plain = [os.path.normpath(os.path.join(folder, name)) for name in names]
    for number, (path, own) in enumerate(zip(found, plain, strict=True)):
        if path is not None and path != own and times[path] > 1:
            found[number] = None  # another name means that file too
    read = [
        f"{name} = {path}"
        for name, path, own in zip(names, found, plain, strict=True)
        if path is not None and path != own
    ]
    absent = [own for path, own in zip(found, plain, strict=True) if path is None]
    json.missing += [f"{files.root / own}: No such file or directory" for own in absent]
    if read:
        words = "file names (backslashes, URLs, paths of another machine) are read as files of the dataset"
        json.findings.append(Finding("warning", "reinterpreted", json.where, number_of(len(read), words), read))
    # a missing name stays inside the dataset, and names no file there
    return FileSource(files, [path or _OUTSIDE.sub("", own) for path, own in zip(found, plain, strict=True)])


def open_coco(
    root: Files | str | Path,
    split: str,
    images: str | None = None,
    cache_dir: str | Path | None = None,
    masks: bool = True,
) -> CocoSource:
    """Opens a split of a COCO dataset.

    Args:
        root: Folder or tar.
        split: Such as "train" (then annotations/instances_train.json, instances_train2017.json ... are looked for), or
            the path of a json below the root.
        images: Folder of the images below the root; None looks for it.
        cache_dir: Where a compressed tar is unpacked; None is `default_cache_dir()`.
        masks: As of `CocoJson`.

    Raises:
        DataError: Nothing there, or it can't be used; the message names what was looked for.
    """
    files = root if isinstance(root, Files) else Files(root, cache_dir)
    json = CocoJson(files, find_json(files, split), masks=masks)
    if json.fatal:
        raise DataError(f"{json.where}: {json.fatal[0]}; vitgraft check-data lists all")
    return CocoSource(json, find_images(files, json, images))
