"""Pascal VOC's XML, one file for each image, as the entries of a COCO json: boxes and classes.

The originals (a `database` such as "The VOC2007 Database") count pixels from 1 and include the last one; all else
(labelImg, Roboflow, CVAT) writes corners counted from 0. Objects that are `difficult` are objects like others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple
from xml.etree import ElementTree

from vitgraft.data.coco import Entries
from vitgraft.data.image_sizes import sizes_of
from vitgraft.data.layout import ObjectSplit, start_folder
from vitgraft.data.readers.folder_or_tar import Files

__all__ = ["Voc"]

CLASS_FILES = ("labelmap.txt", "classes.txt", "predefined_classes.txt", "labels.txt")
_ORIGINAL = re.compile(r"voc\s*20\d\d", re.IGNORECASE)


class VocObject(NamedTuple):
    """Class, corners x0, y0, x1, y1 in pixels (None: there are no numbers), and whether it is marked difficult."""

    name: str
    corners: tuple[float, ...] | None
    difficult: bool


class VocFile(NamedTuple):
    """What an XML has: the image's file name, its (height, width) or None, its objects, and an error or ""."""

    image: str
    size: tuple[int, int] | None
    objects: list[VocObject]
    error: str = ""


def read_xml(data: bytes) -> VocFile:
    """The content of an XML of Pascal VOC."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        return VocFile("", None, [], "has a DOCTYPE, which is not read")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return VocFile("", None, [], f"is no XML ({error})")
    if root.tag != "annotation":
        return VocFile("", None, [], f"is no annotation of Pascal VOC but <{root.tag}>")
    sides = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(side is not None and side > 0 for side in sides) else None
    first = 1.0 if _ORIGINAL.search(root.findtext("source/database") or "") else 0.0
    objects = []
    for one in root.iter("object"):
        corners = [_number(one.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
        box = None if None in corners else (corners[0] - first, corners[1] - first, corners[2], corners[3])
        difficult = (one.findtext("difficult") or "").strip() in ("1", "true", "True")
        objects.append(VocObject((one.findtext("name") or "").strip(), box, difficult))
    return VocFile((root.findtext("filename") or "").strip(), size, objects)


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


class Voc:
    """The XML files of a dataset; each is read once.

    Args:
        files: The dataset.
        splits: As of `voc_splits`.
        any_size: Take the size of an image from its file where the XML has none, which is an error otherwise.
    """

    def __init__(self, files: Files, splits: Mapping[str, ObjectSplit], any_size: bool = False):
        self.files, self.splits, self.any_size = files, splits, any_size
        self.start = start_folder(files)
        self.read = {
            label: read_xml(files.read(label) or b"")
            for label in dict.fromkeys(label for split in splits.values() for _, label in split.pairs if label)
        }
        self.classes = self._named_classes()
        used = {one.name for xml in self.read.values() for one in xml.objects if one.name}
        self.unnamed = sorted(used - {*self.classes}) if self.classes else []
        self.classes = self.classes or sorted(used)

    def _named_classes(self) -> list[str]:
        """The classes by a file of their names; empty where there is none."""
        for name in CLASS_FILES:
            if data := self.files.read(self.start + name):
                lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
                # CVAT: label:color_rgb:parts:actions
                names = [line.split(":")[0] if name == "labelmap.txt" else line for line in lines]
                return [name for name in names if name and name[0] != "#" and name.lower() != "background"]
        return []

    def entries(self, split: str) -> Entries:
        """A split as entries of a COCO json; ids of annotations name their XML.

        Args:
            split: One of `splits`.
        """
        pairs = [self._with_image(*pair) for pair in self.splits[split].pairs]
        files = {label: self.read[label] for _, label in pairs if label}
        without = [
            image for image, label in pairs if image and (not label or (self.any_size and not files[label].size))
        ]
        sizes = dict(zip(without, sizes_of(self.files, without), strict=True))
        ids = {name: number for number, name in enumerate(self.classes, start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        found: dict[str, list[str]] = {"xml": [], "size": [], "class": [], "difficult": []}
        for image, label in pairs:
            xml = files.get(label) or VocFile("", None, [])
            if xml.error:
                found["xml"].append(f"{label} {xml.error}")
                continue
            size = xml.size or sizes.get(image)
            if size is None:
                found["size"].append(str(label))
                continue
            number = len(images) + 1
            images.append({"id": number, "file_name": image, "height": size[0], "width": size[1]})
            for place, one in enumerate(xml.objects, start=1):
                name = f"{label} object {place}"
                if one.name not in ids:
                    found["class"].append(f"{name}: {one.name!r}")
                    continue
                if one.difficult:
                    found["difficult"].append(name)
                x0, y0, x1, y1 = one.corners or (float("nan"),) * 4
                box = [x0, y0, x1 - x0, y1 - y0]
                area = max(0.0, box[2] * box[3]) if one.corners else 0.0
                entry = {"id": name, "image_id": number, "category_id": ids[one.name], "bbox": box, "area": area}
                annotations.append({**entry, "iscrowd": 0})
        lists = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }
        unlabeled = [str(image) for image, label in pairs if not label]
        return Entries(
            lists,
            [
                ("error", "xml", "XML files can't be read: write them anew, or remove them", found["xml"]),
                (
                    "error",
                    "size",
                    "XML files have no <size> with the width and height of the image: write it, or let `vitgraft "
                    "convert IN OUT --to coco` take the sizes of the images",
                    found["size"],
                ),
                (
                    "error",
                    "class",
                    "objects have no name of a class, or one that the list of classes lacks: name the class, or add it "
                    f"to {' or '.join(CLASS_FILES[:2])}",
                    found["class"],
                ),
                (
                    "warning",
                    "difficult",
                    "objects are marked difficult: they are learned like others",
                    found["difficult"],
                ),
                (
                    "warning",
                    "unlabeled",
                    "images of the list have no XML: taken as images without objects",
                    unlabeled,
                ),
            ],
        )

    def _with_image(self, image: str | None, label: str | None) -> tuple[str, str | None]:
        """An image's path, by the name in the XML where no file has the XML's own name; a path of no file otherwise."""
        if image is not None or label is None:
            return image or "", label
        named = self.read[label].image.replace("\\", "/").rsplit("/", 1)[-1] or os.path.basename(label)[:-4] + ".jpg"
        there = self._images.get(named, [])
        return there[0] if len(there) == 1 else f"{os.path.dirname(label)}/{named}".lstrip("/"), label

    @cached_property
    def _images(self) -> dict[str, list[str]]:
        """Paths of the image files, by their names without folders."""
        found: dict[str, list[str]] = {}
        for name in self.files.images():
            found.setdefault(os.path.basename(name), []).append(name)
        return found
