"""Which layout the files of a dataset have, and where its splits lie; training and `check-data` decide by it.

A dataset may have several layouts at once, such as COCO's jsons beside label maps: each data module takes its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from vitgraft.data.readers.base import split_names
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = [
    "ANNOTATIONS", "IMAGES", "find_json", "find_jsons", "instead_of", "layout_start", "layouts_of",
    "passed_over", "semantic_splits",
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
    "semantic": "ADE20K's layout, which SegmentationData reads",
    "images": "class folders, tars of them and shards are read by ImageData",
}
_MARKS = (b'"images"', b'"annotations"', b'"categories"')
# folders of images, and of label maps beside them
_IMAGE_FOLDERS = ("images", "Images", "image", "imgs", "img", "JPEGImages")
_LABEL_FOLDERS = ("masks", "Masks", "mask", "labels", "label", "annotations", "gt", "SegmentationClass")
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


def layouts_of(path: str | Path | Files, cache_dir: str | Path | None = None) -> dict[str, str]:
    """The layouts that are recognised, the one that decides first, each with what it is recognised by.

    Args:
        path: Folder, tar, json, or anything else.
        cache_dir: Where a compressed tar is unpacked.

    Returns:
        "coco" and "semantic" (ADE20K's); neither for class folders, shards, URLs and all else.
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
            found["semantic"] = " and ".join(next(iter(pairs.values())))
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
    if name := next((name for name in tried if files.has(name)), None):
        return name
    if not split.endswith(".json"):
        there = {name.lower(): name for name in _json_files(files)}
        alike = [pattern.format(word) for word in split_names(split) for pattern in JSONS]
        if name := next((there[name] for name in alike if name in there), None):
            return name
    jsons = find_jsons(files)
    there = ", ".join(jsons[:6]) or ", ".join([n for n in files.names if n.endswith(".json")][:6]) or "no json file"
    text = f"no annotations of {split!r} (looked for {', '.join(tried[:4])}); there is {there}"
    if jsons:
        text += f"; name the json: data.train={jsons[0]}, and data.val likewise"
    for more in (instead_of("coco", files), passed_over(files, jsons)):
        text += f"; {more}" if more else ""
    raise DataError(f"{files.root}: {text}")


def find_jsons(files: Files) -> list[str]:
    """COCO's jsons with objects, paths below the root; where some are named instances_*, as COCO's are, only those."""
    names = _json_files(files)
    instances = [name for name in names if os.path.basename(name).startswith("instances_")]
    return instances or [name for name in names if all(mark in files.read(name) for mark in _MARKS)]


def _json_files(files: Files) -> list[str]:
    names = [f"{ANNOTATIONS}/{name}" for name in files.listed(ANNOTATIONS)] + files.listed()
    names += [pattern.format(folder) for folder in files.folders() for pattern in JSONS[-2:]]
    return [name for name in dict.fromkeys(names) if name.endswith(".json") and files.has(name)]


def semantic_splits(files: Files) -> dict[str, tuple[str, str]]:
    """The splits of label maps: name -> folder of the images, folder of the label files.

    They are those of ADE20K's layout; or of folders of images and of masks side by side, with the splits in them
    (`images/train`, `masks/train`), around them (`train/images`, `train/masks`), or without splits, named "".
    """
    start = layout_start(files)
    if start is not None and (inside := {*files.folders(start + IMAGES), *files.folders(start + ANNOTATIONS)}):
        return {split: (f"{start}{IMAGES}/{split}", f"{start}{ANNOTATIONS}/{split}") for split in sorted(inside)}
    return _beside(files)


def _beside(files: Files) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for around in ("", *files.folders()):
        start = f"{around}/" if around else ""
        images = next((start + name for name in _IMAGE_FOLDERS if files.has_folder(start + name)), None)
        labels = images and next((start + name for name in _LABEL_FOLDERS if files.has_folder(start + name)), None)
        if not labels:
            continue
        inside = sorted({*files.folders(images)} & {*files.folders(labels)})
        for name in inside or [""]:
            pair = tuple(f"{folder}/{name}".rstrip("/") for folder in (images, labels))
            stems = [{os.path.splitext(image)[0] for image in files.images(folder)} for folder in pair]
            if stems[0] & stems[1]:
                found[name or around] = pair
    return found


def passed_over(files: Files, used: Collection[str] = ()) -> str:
    """Annotations that nothing reads, as "found result.json in the root and 364 XML files: not read"; may be empty.

    Args:
        files: The dataset; its root and the folders in it are looked at.
        used: Paths of what is read.
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
        if kind in kinds and name not in used and not base.startswith(_NO_ANNOTATIONS):
            kinds[kind].append(name)
    parts = [name if "/" in name else f"{name} in the root" for name in (kinds[".json"] + kinds[".csv"])[:4]]
    if len(kinds[".json"] + kinds[".csv"]) > 4:
        parts.append(f"{len(kinds['.json'] + kinds['.csv']) - 4} more .json and .csv")
    # one or two text files are a README and a list of classes, more are YOLO's
    for kind, least, words in ((".xml", 1, "XML files"), (".txt", 3, "text files")):
        if len(kinds[kind]) >= least:
            parts.append(f"{len(kinds[kind])} {words}")
    if not parts:
        return ""
    *first, last = parts
    text = f"found {', '.join(first)}{' and ' if first else ''}{last}: not read"
    if kinds[".xml"] or len(kinds[".txt"]) > 2:
        text += " (DetectionData reads COCO's json: convert them)"
    return text


def layout_start(files: Files) -> str | None:
    """The folder with `images` and `annotations`: the root, or a folder in it, with a slash behind; None is none."""
    for start in ("", *(f"{name}/" for name in files.folders())):
        if files.has_folder(start + IMAGES) and files.has_folder(start + ANNOTATIONS):
            return start
    return None
