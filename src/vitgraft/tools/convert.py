"""Datasets of objects in any format that is read, written in COCO's layout: OUT/annotations/instances_SPLIT.json and
OUT/SPLIT/NAME.jpg."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vitgraft._version import __version__
from vitgraft.atomic import atomic_write
from vitgraft.data.annotations import Annotations
from vitgraft.data.coco import CocoJson, Entries
from vitgraft.data.layout import OBJECT_FORMATS
from vitgraft.data.readers.base import SPLITS, ImageSource
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.data.split import hold_out
from vitgraft.errors import DataError

__all__ = ["Converted", "open_splits", "write_coco"]

_DIGITS = 3  # of a pixel


class Converted(NamedTuple):
    """A split to be written: its name, its objects with what was found in them, and its images."""

    split: str
    json: CocoJson
    images: ImageSource


def open_splits(
    path: str, format: str | None = None, val_fraction: float | None = None, seed: int = 0
) -> list[Converted]:
    """All splits of a dataset of objects, checked.

    Args:
        path: Folder or tar.
        format: "coco", "voc" or "yolo"; None infers it.
        val_fraction: Fraction that is held out for validation of a dataset without splits, or with training images
            alone, as `data.val_fraction` of a run of the same seed does.
        seed: Of the choice.

    Raises:
        DataError: The dataset can't be used, or files of images are missing.
    """
    annotations = Annotations(Files(path), format, any_size=True)
    names = annotations.splits
    if not names:
        raise DataError(f"{path}: nothing of {', '.join(OBJECT_FORMATS.values())}")
    parts: list[tuple[str, str, Entries]] = []
    for name in names:
        entries = annotations.entries(name)
        if entries.error:
            raise DataError(f"{path}: {entries.error}; vitgraft check-data lists all")
        if val_fraction is None:
            parts.append((_split_of(name), name, entries))
            continue
        if len(names) > 1:
            raise DataError(f"--val-fraction {val_fraction:g}: {path} has splits already: {', '.join(names)}")
        files = [str(image.get("file_name")) for image in entries.lists["images"]]
        held = hold_out(files, entries.strata(), val_fraction, seed)
        if held.all() or not held.any():
            raise DataError(f"--val-fraction {val_fraction:g}: nothing is left of {len(held)} images for one part")
        parts += [
            ("train", name, entries.take((~held).__getitem__, "")),
            ("val", name, entries.take(held.__getitem__, "")),
        ]
    found = []
    for split, name, entries in parts:
        values = annotations.json(name, entries)
        if values.fatal:
            raise DataError(f"{values.where}: {values.fatal[0]}; vitgraft check-data lists all")
        images = annotations.images(values)
        if values.missing:
            raise DataError(
                f"{values.where}: {len(values.missing)} of {len(values.images)} images are missing: copy them there, "
                f"or take them out of the annotations; the first: {values.missing[0]}"
            )
        found.append(Converted(split, values, images))
    return found


def _split_of(name: str) -> str:
    """The name of a split, or of the one of a json or of a dataset without splits."""
    base = os.path.basename(name)
    if base in ("_annotations.coco.json", "annotations.json"):
        base = os.path.basename(os.path.dirname(name))
    base = base.removesuffix(".json").removeprefix("instances_").removesuffix("2017")
    return next((names[0] for names in SPLITS if base.lower() in names), base or "train")


def write_coco(out: Path, splits: list[Converted], link: bool = False, step: Callable[[str], None] = print) -> None:
    """Writes COCO's layout.

    Args:
        out: The folder, made where it is missing.
        splits: As of `open_splits`.
        link: Link the image files (hard links), where they lie in a folder of the same disk, instead of copying them.
        step: Called with each image's name, for a progress bar.

    Raises:
        ImageError: A file can't be read.
    """
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for split, values, images in splits:
        names = [images.name(index) for index in range(len(images))]
        start = os.path.commonpath([os.path.dirname(name) for name in names])
        inside = [os.path.relpath(name, start).replace(os.sep, "/") for name in names]
        for index, name in enumerate(inside):
            target = out / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_image(images, index, target, link)
            step(names[index])
        with atomic_write(out / "annotations" / f"instances_{split}.json") as file:
            json.dump(_json(values, inside), file)


def _write_image(images: ImageSource, index: int, target: Path, link: bool) -> None:
    source = Path(images.name(index))
    if link and source.is_file():
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    if source.is_file():
        shutil.copyfile(source, target)
    else:  # in a tar
        target.write_bytes(images.read(index))


def _json(values: CocoJson, inside: list[str]) -> dict[str, Any]:
    """The content of a json; annotations without a finite box are left out."""
    annotations = []
    for one in values.annotations:
        if not all(map(math.isfinite, one["bbox"])):
            continue  # no json can hold them
        number = len(annotations) + 1
        box = [round(value, _DIGITS) for value in one["bbox"]]
        more = {"id": number, "bbox": box, "iscrowd": int(one.get("iscrowd") or 0)}
        if isinstance(one.get("segmentation"), list):
            polygons = one["segmentation"]
            more["segmentation"] = [[round(value, _DIGITS) for value in polygon] for polygon in polygons]
        annotations.append({**one, **more, "area": round(one.get("area") or box[2] * box[3], _DIGITS)})
    return {
        "info": {"description": f"converted by vitgraft {__version__}"},
        "images": [{**image, "file_name": name} for image, name in zip(values.images, inside, strict=True)],
        "annotations": annotations,
        "categories": values.categories,
    }
