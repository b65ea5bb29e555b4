"""Which layout the files of a dataset have, and where its splits lie; training and `check-data` decide by it.

A dataset may have several layouts at once, such as COCO's jsons beside label maps: each data module takes its own. Of
the formats of objects (COCO's json, Pascal VOC's XML, YOLO's text files) it must have one, or one must be named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vitgraft.data.readers.base import SPLITS, is_image_name, split_names
from vitgraft.data.readers.folder_or_tar import Files, archives_passed_over
from vitgraft.errors import DataError, MissingSplitError

__all__ = [
    "ANNOTATIONS", "IMAGES", "OBJECT_FORMATS", "FolderPair", "ObjectSplit", "find_json", "find_jsons", "instead_of",
    "layout_start", "layouts_of", "object_format", "passed_over", "semantic_splits", "split_of_json", "start_folder",
    "voc_splits", "yolo_classes", "yolo_splits", "yolo_yaml",
]  # fmt: skip

IMAGES, ANNOTATIONS = "images", "annotations"
# where the json of a split of COCO's layout is looked for; {} is the name of the split
JSONS = (
    "annotations/instances_{}.json",
    "annotations/instances_{}2017.json",
    "annotations/{}.json",
    "{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
)
READERS = {
    "coco": "COCO's layout, which DetectionData reads",
    "voc": "Pascal VOC's layout, which DetectionData reads",
    "yolo": "YOLO's layout, which DetectionData reads",
    "semantic": "ADE20K's layout, which SegmentationData reads",
    "images": "class folders, tars of them, tables of files and labels, and shards are read by ImageData",
}
OBJECT_FORMATS = {
    "coco": "COCO's json",
    "voc": "Pascal VOC's XML",
    "yolo": "YOLO's text files",
}
_MARKS = (b'"images"', b'"annotations"', b'"categories"')
# folders of images, and of label maps beside them
_IMAGE_FOLDERS = ("images", "Images", "image", "imgs", "img", "JPEGImages")
_LABEL_FOLDERS = ("masks", "Masks", "mask", "labels", "label", "annotations", "gt", "SegmentationClass")
_XML_FOLDERS = ("Annotations", "annotations", "labels", "label", "xml", "xmls")
_TXT_FOLDERS = ("labels", "Labels", "label", "annotations")
# a line of YOLO's: a class and at least four numbers
_YOLO_LINE = re.compile(rb"\s*\d+(\.0*)?(\s+[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)
_YOLO_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
# what stands beside images of known layouts and is no annotation of objects, classes or pixels
_NO_ANNOTATIONS = (
    "captions_",
    "person_keypoints_",
    "panoptic_",
    "stuff_",
    "image_info_",
    "LOC_",
    "dataset_dict",
    "state",
)
_FEW = 16  # folders that are looked into for annotations
_TRIED = 4  # label files whose names are compared with those of all images


def layouts_of(path: str | Path | Files, cache_dir: str | Path | None = None) -> dict[str, str]:
    """The layouts that are recognized, the one that decides first, each with what it is recognized by.

    Args:
        path: Folder, tar, json, or anything else.
        cache_dir: Where a compressed tar is unpacked.

    Returns:
        "coco", "semantic" (label maps), "voc" and "yolo"; none for class folders, tables, shards, URLs and all else.
    """
    if str(path).endswith(".json"):
        return {"coco": str(path)}
    found: dict[str, str] = {}
    try:
        files = path if isinstance(path, Files) else Files(path, cache_dir)
        if jsons := find_jsons(files):
            found["coco"] = jsons[0]
        start = layout_start(files)
        if start is not None and files.images(start + IMAGES) and files.images(start + ANNOTATIONS):
            found["semantic"] = f"{start}{IMAGES} and {start}{ANNOTATIONS}"
        elif pairs := _beside(files):
            found["semantic"] = " and ".join(next(iter(pairs.values()))[:2])
        for name, find in (("voc", voc_splits), ("yolo", yolo_splits)):
            if splits := find(files):
                found[name] = next(iter(splits.values())).where or "the files in the root"
    except (DataError, OSError):
        pass  # opening it names the error
    return found


def instead_of(layout: str, path: str | Path | Files, cache_dir: str | Path | None = None) -> str:
    """What a dataset has instead of a layout and which data module takes it, as a sentence; may be empty.

    Args:
        layout: "coco", "semantic", or "images" for class folders, shards and all else.
        path: Folder, tar, or anything else.
        cache_dir: Where a compressed tar is unpacked.
    """
    found = layouts_of(path, cache_dir)
    if not found and layout != "images":
        return READERS["images"]
    return "; ".join(f"{found[name]}: {READERS[name]}" for name in found if name != layout)


def find_json(files: Files, split: str) -> str:
    """COCO's json of a split, below the root; a json that is named is itself, or nothing.

    Raises:
        DataError: There is none; the message names what was looked for and what is there.
    """
    tried = [split] if split.endswith(".json") else [pattern.format(split) for pattern in JSONS]
    if name := next((name for name in tried if files.has(name)), None) or _json_alike(files, split):
        return name
    jsons = find_jsons(files)
    there = ", ".join(jsons[:6]) or ", ".join([n for n in files.names if n.endswith(".json")][:6]) or "no json file"
    text = f"no annotations of {split!r} (looked for {', '.join(tried[:4])}); there is {there}"
    others = [_json_alike(files, names[0]) for names in SPLITS if _is_split(split) and split.lower() not in names]
    if free := [name for name in jsons if name not in others]:
        text += f"; name the json: data.train={free[0]}, and data.val likewise"
    for more in (instead_of("coco", files), passed_over(files, jsons)):
        text += f"; {more}" if more else ""
    raise MissingSplitError(f"{files.root}: {text}")


def _json_alike(files: Files, split: str) -> str | None:
    """COCO's json of a split, under a name of the same meaning in any case; None where there is none."""
    there = {name.lower(): name for name in _json_files(files)}
    alike = [pattern.format(word) for word in split_names(split) for pattern in JSONS]
    return next((there[name] for name in alike if name in there), None)


def split_of_json(name: str) -> str:
    """The split that COCO's json is of, by its path."""
    folder, base = os.path.split(name)
    if base in ("_annotations.coco.json", "annotations.json"):
        return os.path.basename(folder)
    return base.removesuffix(".json").removeprefix("instances_").removesuffix("2017")


def find_jsons(files: Files) -> list[str]:
    """COCO's jsons with objects, paths below the root; where some are named instances_*, as COCO's are, only those."""
    names = _json_files(files)
    instances = [name for name in names if os.path.basename(name).startswith("instances_")]
    return instances or [name for name in names if all(mark in files.read(name) for mark in _MARKS)]


def _json_files(files: Files) -> list[str]:
    names = [f"{ANNOTATIONS}/{name}" for name in files.listed(ANNOTATIONS)] + files.listed()
    names += [pattern.format(folder) for folder in files.folders() for pattern in JSONS[-2:]]
    return [name for name in dict.fromkeys(names) if name.endswith(".json") and files.has(name)]


class FolderPair(NamedTuple):
    """The label maps of a split.

    Attributes:
        images: Folder of the images.
        labels: Folder of the label files.
        stems: Names without ending of those that belong to the split; None is all.
    """

    images: str
    labels: str
    stems: tuple[str, ...] | None = None


def semantic_splits(files: Files) -> dict[str, FolderPair]:
    """The splits of label maps.

    They are those of ADE20K's layout; of Pascal VOC's by the lists in ImageSets/Segmentation; or of folders of images
    and of masks side by side, with the splits in them (`images/train`, `masks/train`), around them (`train/images`,
    `train/masks`), or without splits, named "".
    """
    start = layout_start(files)
    if start is not None and (inside := {*files.folders(start + IMAGES), *files.folders(start + ANNOTATIONS)}):
        return {
            split: FolderPair(f"{start}{IMAGES}/{split}", f"{start}{ANNOTATIONS}/{split}") for split in sorted(inside)
        }
    return _beside(files)


def _beside(files: Files) -> dict[str, FolderPair]:
    """Folders of images and of label maps side by side."""
    start = start_folder(files)
    if (lists := _lists(files, f"{start}ImageSets/Segmentation")) and files.has_folder(f"{start}SegmentationClass"):
        folders = (f"{start}JPEGImages", f"{start}SegmentationClass")
        return {split: FolderPair(*folders, tuple(stems)) for split, stems in lists.items()}
    return _paired(files, ["", *(f"{name}/" for name in files.folders())], _LABEL_FOLDERS)


def _lists(files: Files, folder: str) -> dict[str, list[str]]:
    """The lists of Pascal VOC's splits in a folder: names without ending."""
    found = {}
    for name in files.listed(folder):
        lines = (files.read(f"{folder}/{name}") or b"").decode("utf-8", "replace").splitlines()
        stems = [line.strip() for line in lines if line.strip()]
        is_of_class = bool(stems) and re.fullmatch(r".*\s-?[01]", stems[0]) is not None  # aeroplane_train.txt
        if name.endswith(".txt") and stems and not is_of_class:
            found[os.path.splitext(name)[0]] = stems
    if [*found] == ["default"]:  # CVAT's, where no subsets were made
        return {"": found["default"]}
    return found


def _paired(
    files: Files, starts: Iterable[str], label_folders: Iterable[str], ending: str = ""
) -> dict[str, FolderPair]:
    """Folders of images and of labels that have files of the same names, by the split they are of.

    Args:
        files: The dataset.
        starts: Folders with both, with a slash behind; "" is the root.
        label_folders: Names of folders of labels.
        ending: Of labels that are no images; these may lie among the images too.
    """
    found: dict[str, FolderPair] = {}
    for start in starts:
        around = os.path.basename(start.rstrip("/"))
        images = next((start + name for name in _IMAGE_FOLDERS if files.has_folder(start + name)), None)
        labels = next((start + name for name in label_folders if files.has_folder(start + name)), None)
        if ending and _lie_together(files, start.rstrip("/"), ending):
            images = labels = start.rstrip("/")
        elif ending:
            images = start.rstrip("/") if images is None else images
            labels = images if labels is None and _lie_together(files, images, ending) else labels
        if images is None or labels is None:
            continue
        inside = sorted({*files.folders(images)} & {*files.folders(labels)})
        if ending:
            inside = list(filter(_is_split, inside))
        for name in [name for name in inside if _alike(files, f"{images}/{name}", f"{labels}/{name}", ending)] or [""]:
            pair = FolderPair(*(f"{folder}/{name}".strip("/") for folder in (images, labels)))
            if name or _alike(files, pair.images, pair.labels, ending):
                found[name or around] = pair
    if len(found) > 1:
        found.pop("", None)
    return found


def _lie_together(files: Files, folder: str, ending: str) -> bool:
    """Whether an image and its labels are right in a folder."""
    names = files.listed(folder)
    stems = {os.path.splitext(name)[0] for name in names if is_image_name(name)}
    return any(name.endswith(ending) and name[: -len(ending)] in stems for name in names)


def _alike(files: Files, images: str, labels: str, ending: str) -> bool:
    """Whether an image and a label have the same name."""
    stems = {os.path.splitext(name)[0] for name in files.images(images.strip("/"))}
    if not ending:
        named = [os.path.splitext(name)[0] for name in files.images(labels)]
        # a suffix behind the names of one of both is set by an option
        likely = (label.startswith(stem) or stem.startswith(label) for label in named[:_TRIED] for stem in stems)
        return bool(stems & {*named}) or any(likely)
    start = f"{labels.strip('/')}/".lstrip("/")
    return any(
        name.startswith(start) and name.endswith(ending) and name[len(start) : -len(ending)] in stems
        for name in files.names
    )


class ObjectSplit(NamedTuple):
    """A split with a file of annotations for each image.

    Attributes:
        where: What it is recognized by, below the root.
        pairs: Image and annotations of it, paths below the root; None where there is none.
    """

    where: str
    pairs: list[tuple[str | None, str | None]]


def object_format(files: Files) -> str:
    """The format of the objects of a dataset, a key of `OBJECT_FORMATS`; "" where there is none.

    Raises:
        DataError: There are several.
    """
    found = {name: where for name, where in layouts_of(files).items() if name in OBJECT_FORMATS}
    if len(found) > 1:
        listed = ", ".join(f"{OBJECT_FORMATS[name]} ({where})" for name, where in found.items())
        raise DataError(
            f"{files.root}: objects in several formats: {listed}. Set data.format to one of {', '.join(found)} "
            "(--data-format of check-data), or move the others out of the folder"
        )
    return next(iter(found), "")


def start_folder(files: Files) -> str:
    """The folder in which a dataset begins, with a slash behind: the root, or the one folder in it, and so on."""
    start, known = "", {*_IMAGE_FOLDERS, *_LABEL_FOLDERS, *_XML_FOLDERS}
    while len(inside := files.folders(start.rstrip("/"))) == 1:
        kinds = {os.path.splitext(name)[1].lower() for name in files.listed(start.rstrip("/"))}
        if inside[0] in known or _is_split(inside[0]) or kinds & {".yaml", ".yml", ".txt", ".xml"}:
            break
        start += f"{inside[0]}/"
    return start


def _is_split(name: str) -> bool:
    return any(name.lower() in names for names in SPLITS)


def _starts(files: Files) -> list[str]:
    """Folders that images and labels may lie in side by side; of many folders, which are classes, the splits only."""
    start = start_folder(files)
    folders = files.folders(start.rstrip("/"))
    if len(folders) > _FEW:
        folders = [name for name in folders if _is_split(name)]
    return [start, *(f"{start}{name}/" for name in folders)]


def voc_splits(files: Files) -> dict[str, ObjectSplit]:
    """The splits of Pascal VOC's layout, by the lists in ImageSets/Main or by folders; one without splits is named "".

    XML lies in `Annotations` and images in `JPEGImages`; or side by side in folders of other names, with the splits in
    them or around them; or images and XML lie together (labelImg, Roboflow).
    """
    start = start_folder(files)
    folder = next((start + name for name in _XML_FOLDERS if files.has_folder(start + name)), None)
    images = next((start + name for name in _IMAGE_FOLDERS if files.has_folder(start + name)), start.rstrip("/"))
    found: dict[str, ObjectSplit] = {}
    for place in (f"{start}ImageSets/Main", f"{start}ImageSets") if folder is not None else ():
        for split, stems in _lists(files, place).items():
            name = f"{place}/{split or 'default'}.txt"
            found.setdefault(split, ObjectSplit(name, _by_name(files, images, folder, ".xml", stems)))
    if not found:
        found = {
            split: ObjectSplit(pair[1], _by_name(files, *pair[:2], ".xml"))
            for split, pair in _paired(files, _starts(files), _XML_FOLDERS, ".xml").items()
        }
    first = next((label for split in found.values() for _, label in split.pairs if label), None)
    return found if first is not None and b"<annotation" in (files.read(first) or b"") else {}


def _by_name(
    files: Files, images: str, labels: str, ending: str, stems: list[str] | None = None
) -> list[tuple[str | None, str | None]]:
    """Images and annotations of the same path below two folders but for the ending; for VOC those with annotations,
    else all images."""
    image_start, label_start = (f"{folder}/".lstrip("/") for folder in (images, labels))
    by_stem = {os.path.splitext(name)[0]: image_start + name for name in files.images(images)}
    there = {
        name[len(label_start) : -len(ending)]: name
        for name in files.names
        if name.startswith(label_start) and name.endswith(ending)
    }
    if stems is None:
        stems = sorted(there) if ending == ".xml" else sorted(by_stem)
    return [
        (by_stem.get(stem) or (None if stem in there else f"{image_start}{stem}.jpg"), there.get(stem))
        for stem in stems
    ]


def yolo_yaml(files: Files) -> tuple[str, dict[str, Any]] | None:
    """Name and content of the file that names YOLO's classes and folders; None where there is none."""
    start = start_folder(files)
    names = [start + name for name in files.listed(start.rstrip("/")) if name.endswith((".yaml", ".yml"))]
    for name in sorted(names, key=lambda name: os.path.basename(name) not in ("data.yaml", "data.yml")):
        try:
            values = yaml.safe_load(files.read(name) or b"")
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(values, dict) and "names" in values and {"train", "val", "nc", "path", "test"} & {*values}:
            return name, values
    return None


def yolo_classes(files: Files) -> tuple[str, list[str]]:
    """Where YOLO's classes are named, and their names in the order of their numbers.

    Raises:
        DataError: They are not named, or the file contradicts itself.
    """
    if found := yolo_yaml(files):
        where, values = found
        names = values["names"]
        if isinstance(names, dict):
            if sorted(names) != [*range(len(names))]:
                raise DataError(f"{files.root}/{where}: names has the numbers {sorted(names)}, not 0 to C - 1")
            names = [names[number] for number in range(len(names))]
        if not isinstance(names, list) or not names:
            raise DataError(f"{files.root}/{where}: names={names!r}: a list of the names of the classes")
        if values.get("nc") not in (None, len(names)):
            raise DataError(f"{files.root}/{where}: nc is {values['nc']}, but names has {len(names)}; correct one")
        return where, [str(name) for name in names]
    start = start_folder(files)
    for folder in (start, *_starts(files)[1:], *(f"{start}{name}/" for name in _TXT_FOLDERS)):
        for name in _YOLO_NAMES:
            if data := files.read(folder + name):
                lines = data.decode("utf-8-sig", "replace").splitlines()
                return folder + name, [line.strip() for line in lines if line.strip()]
    raise DataError(
        f"{files.root}: the names of YOLO's classes are unknown: put data.yaml (names: [cat, dog]) or classes.txt "
        "(a name in each line) there"
    )


def yolo_splits(files: Files) -> dict[str, ObjectSplit]:
    """The splits of YOLO's layouts, by data.yaml, lists of images, or folders; one without splits is named "".

    Paths of data.yaml are read as its exporters mean them: below `path`, the yaml's folder or the root, of another
    machine, or with a `../` too many (Roboflow). The labels of an image are at its path with `labels` for `images`, or
    beside it.
    """
    start, described = start_folder(files), yolo_yaml(files)
    found: dict[str, ObjectSplit] = {}
    if described is not None:
        name, values = described
        for names in SPLITS:
            for key in (key for key in names if values.get(key)):
                entries = values[key] if isinstance(values[key], list) else [values[key]]
                images = [image for entry in entries for image in _yolo_images(files, start, values, str(entry))]
                if images:
                    found[names[0]] = ObjectSplit(f"{name}: {key}", _with_labels(files, images))
    elif any(files.has(start + name) for name in _YOLO_NAMES):  # CVAT's YOLO 1.1
        for name in files.listed(start.rstrip("/")):
            split = os.path.splitext(name)[0]
            if name.endswith(".txt") and _is_split(split) and (images := _listed_images(files, start, start + name)):
                found[split] = ObjectSplit(start + name, _with_labels(files, images))
        if [*found] == ["train"] and files.has_folder(f"{start}obj_train_data"):  # the one name without subsets
            found = {"": found["train"]}
    if not found:
        found = {
            split: ObjectSplit(pair[1], _by_name(files, *pair[:2], ".txt"))
            for split, pair in _paired(files, _starts(files), _TXT_FOLDERS, ".txt").items()
        }
    if described is not None:
        return {split: one for split, one in found.items() if one.pairs}
    labels = [label for split in found.values() for _, label in split.pairs if label][:20]
    lines = [line for label in labels for line in (files.read(label) or b"").splitlines()[:1]]
    all_empty = bool(labels) and not lines and any(files.has(start + name) for name in _YOLO_NAMES)
    return found if all_empty or any(map(_YOLO_LINE.fullmatch, lines)) else {}


def _yolo_images(files: Files, start: str, values: dict[str, Any], entry: str) -> list[str]:
    """The images of an entry of data.yaml, a folder or a list."""
    entry = entry.replace("\\", "/").rstrip("/")
    parts = [part for part in entry.split("/") if part not in ("", ".", "..")]
    inside = [
        part for part in str(values.get("path") or "").replace("\\", "/").split("/") if part not in ("", ".", "..")
    ]
    options = ["/".join([*inside, *parts]), *("/".join(parts[skip:]) for skip in range(len(parts)))]
    for option in options:
        if files.has(start + option) and option.endswith(".txt"):
            return _listed_images(files, start, start + option)
        if files.has_folder(start + option):
            folder = (start + option).rstrip("/")
            return [f"{folder}/{name}" for name in files.images(folder)]
    return []


def _listed_images(files: Files, start: str, name: str) -> list[str]:
    """The images that a list names, each by the longest end of its path that is there; itself where none is."""
    found = []
    for line in (files.read(name) or b"").decode("utf-8-sig", "replace").splitlines():
        parts = [part for part in line.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if parts and is_image_name(parts[-1]):
            options = [start + "/".join(parts[skip:]) for skip in range(len(parts))]
            found.append(next((option for option in options if files.has(option)), options[0]))
    return found


def _with_labels(files: Files, images: list[str]) -> list[tuple[str | None, str | None]]:
    """Images with the file of their objects; None where there is none."""
    there = {name for name in files.names if name.endswith(".txt")}
    pairs: list[tuple[str | None, str | None]] = []
    for image in images:
        stem = os.path.splitext(image)[0]
        parts = stem.split("/")
        options = [f"{stem}.txt"]
        if places := [number for number, part in enumerate(parts[:-1]) if part in _IMAGE_FOLDERS]:
            before, after = parts[: places[-1]], parts[places[-1] + 1 :]
            options[:0] = ["/".join([*before, name, *after]) + ".txt" for name in _TXT_FOLDERS]
        pairs.append((image, next((option for option in options if option in there), None)))
    return pairs


def passed_over(files: Files, used: Collection[str] = (), read: str = "") -> str:
    """Annotations that are not read, as "found result.json in the root and 364 XML files: not read"; may be empty.

    Args:
        files: The dataset; its root and the folders in it are looked at.
        used: Paths of what is read.
        read: Ending of all files that are read.
    """
    folders = files.folders()
    if len(folders) > _FEW:  # class folders
        folders = [name for name in folders if name.lower() in _LABEL_FOLDERS]
    for folder in list(folders):
        if folder.lower() in _LABEL_FOLDERS:
            folders += [f"{folder}/{name}" for name in files.folders(folder)[:_FEW]]
        else:
            folders += [f"{folder}/{name}" for name in _LABEL_FOLDERS if files.has_folder(f"{folder}/{name}")]
    names = [*files.listed(), *(f"{folder}/{name}" for folder in folders for name in files.listed(folder))]
    kinds: dict[str, list[str]] = {".json": [], ".csv": [], ".xml": [], ".txt": []}
    for name in names:
        kind, base = os.path.splitext(name)[1].lower(), os.path.basename(name)
        if kind in kinds and kind != read and name not in used and not base.startswith(_NO_ANNOTATIONS):
            kinds[kind].append(name)
    parts = [name if "/" in name else f"{name} in the root" for name in (kinds[".json"] + kinds[".csv"])[:4]]
    if len(kinds[".json"] + kinds[".csv"]) > 4:
        parts.append(f"{len(kinds['.json'] + kinds['.csv']) - 4} more .json and .csv")
    # one or two text files are a README and a list of classes, more are YOLO's
    for kind, least, words in ((".xml", 1, "XML files"), (".txt", 3, "text files")):
        if len(kinds[kind]) >= least:
            parts.append(f"{len(kinds[kind])} {words}")
    if not parts:
        return archives_passed_over(files)
    *first, last = parts
    text = f"found {', '.join(first)}{' and ' if first else ''}{last}: not read"
    if kinds[".xml"] or len(kinds[".txt"]) > 2:
        text += " (DetectionData reads boxes in Pascal VOC's and YOLO's layouts)"
    return text


def layout_start(files: Files) -> str | None:
    """The folder with `images` and `annotations`: the root, or a folder in it, with a slash behind; None is none."""
    for start in ("", *(f"{name}/" for name in files.folders())):
        if files.has_folder(start + IMAGES) and files.has_folder(start + ANNOTATIONS):
            return start
    return None
