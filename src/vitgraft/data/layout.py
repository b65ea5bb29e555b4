"""Which layout the files of a dataset have, and where its splits lie; training and `check-data` decide by it.

A dataset may have several layouts at once, such as COCO's jsons beside label maps: each data module takes its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = ["ANNOTATIONS", "IMAGES", "find_jsons", "instead_of", "json_names", "layout_start", "layouts_of"]

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


def json_names(split: str) -> list[str]:
    """Where COCO's json of a split may be, below the root; a json that is named is itself."""
    return [split] if split.endswith(".json") else [pattern.format(split) for pattern in JSONS]


def find_jsons(files: Files) -> list[str]:
    """COCO's jsons with objects, paths below the root; where some are named instances_*, as COCO's are, only those."""
    names = [f"{ANNOTATIONS}/{name}" for name in files.listed(ANNOTATIONS)] + files.listed()
    names += [pattern.format(folder) for folder in files.folders() for pattern in JSONS[-2:]]
    names = [name for name in dict.fromkeys(names) if name.endswith(".json") and files.has(name)]
    instances = [name for name in names if os.path.basename(name).startswith("instances_")]
    return instances or [name for name in names if all(mark in files.read(name) for mark in _MARKS)]


def layout_start(files: Files) -> str | None:
    """The folder with `images` and `annotations`: the root, or a folder in it, with a slash behind; None is none."""
    for start in ("", *(f"{name}/" for name in files.folders())):
        if files.has_folder(start + IMAGES) and files.has_folder(start + ANNOTATIONS):
            return start
    return None
