"""Which layout the files of a dataset have: class folders, ADE20K's, or COCO's."""

from __future__ import annotations

import os
from pathlib import Path

from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = ["ANNOTATIONS", "IMAGES", "find_jsons", "layout_of", "layout_start"]

IMAGES, ANNOTATIONS = "images", "annotations"
_MARKS = (b'"images"', b'"annotations"', b'"categories"')


def layout_of(path: str | Path) -> str:
    """The layout of a path: "coco", "semantic" (ADE20K's), or "images" for class folders, shards and all else."""
    if str(path).endswith(".json"):
        return "coco"
    try:
        files = Files(path)
        if find_jsons(files):
            return "coco"
        start = layout_start(files)
        # COCO has json files below `annotations`
        if start is not None and files.images(start + IMAGES) and files.images(start + ANNOTATIONS):
            return "semantic"
    except (DataError, OSError):
        pass  # shards, URLs; opening it names the error
    return "images"


def find_jsons(files: Files) -> list[str]:
    """COCO's jsons with objects, paths below the root; where some are named instances_*, as COCO's are, only those."""
    names = [f"{ANNOTATIONS}/{name}" for name in files.listed(ANNOTATIONS) if name.endswith(".json")]
    for folder in ("", *files.folders()):
        inside = (name for name in files.listed(folder) if name.endswith(".coco.json"))
        names += [f"{folder}/{name}" if folder else name for name in inside]
    instances = [name for name in names if os.path.basename(name).startswith("instances_")]
    return instances or [name for name in names if all(mark in files.read(name) for mark in _MARKS)]


def layout_start(files: Files) -> str | None:
    """The folder with `images` and `annotations`: the root, or a folder in it, with a slash behind; None is none."""
    for start in ("", *(f"{name}/" for name in files.folders())):
        if {IMAGES, ANNOTATIONS} <= set(files.folders(start)):
            return start
    return None
