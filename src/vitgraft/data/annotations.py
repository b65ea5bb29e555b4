"""The objects of a dataset in any format: COCO's json, Pascal VOC's XML, YOLO's text files. Training, evaluation,
`check-data` and `convert` read them here, as `CocoJson`s."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from vitgraft.data.coco import CocoJson, CocoSource, Entries, find_images, read_json
from vitgraft.data.layout import (
    OBJECT_FORMATS,
    find_json,
    find_jsons,
    instead_of,
    object_format,
    passed_over,
    voc_splits,
    yolo_splits,
)
from vitgraft.data.readers.base import ImageSource, of_split
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.data.voc import Voc
from vitgraft.data.yolo import Yolo
from vitgraft.errors import DataError, MissingSplitError

__all__ = ["Annotations"]


class Annotations:
    """Objects of all splits of a dataset.

    Args:
        files: The dataset.
        format: "coco", "voc" or "yolo"; None infers it.
        any_size: Pascal VOC: take the size of an image from its file where the XML has none.

    Attributes:
        format: What they are read as.
        ending: Of the files of the objects.

    Raises:
        DataError: The dataset has several formats, and none is named.
    """

    def __init__(self, files: Files, format: str | None = None, any_size: bool = False):
        self.files, self.any_size = files, any_size
        self.format = format or object_format(files) or "coco"
        self.ending = {"coco": ".json", "voc": ".xml", "yolo": ".txt"}[self.format]

    @cached_property
    def _reader(self) -> Voc | Yolo:
        find = voc_splits if self.format == "voc" else yolo_splits
        splits = find(self.files)
        if not splits:
            raise DataError(f"{self.files.root}: nothing of {OBJECT_FORMATS[self.format]}: set data.format otherwise")
        return Voc(self.files, splits, self.any_size) if self.format == "voc" else Yolo(self.files, splits)

    @property
    def splits(self) -> list[str]:
        """The names of the splits, those of COCO's by their jsons; "" is a dataset without splits."""
        return find_jsons(self.files) if self.format == "coco" else sorted(self._reader.splits)

    def find(self, split: str, whole: bool = False) -> str:
        """The name in `splits` of a split.

        Args:
            split: Such as "train"; in COCO's format also a path of a json.
            whole: Whether a dataset without splits will do, of which a part is taken.

        Raises:
            MissingSplitError: There is none.
        """
        if self.format == "coco":
            try:
                return find_json(self.files, split)
            except MissingSplitError:
                if whole and len(self.splits) == 1:
                    return self.splits[0]
                raise
        own = of_split(split, self.splits)
        if own is None and whole and self.splits == [""]:
            own = ""
        if own is None:
            there = ", ".join(self.splits)
            there = f"there is {there}" if there else "the dataset is not split"
            more = [instead_of(self.format, self.files), passed_over(self.files, read=self.ending)]
            text = f"{self.files.root}: no split {split!r} of {OBJECT_FORMATS[self.format]}; {there}"
            raise MissingSplitError("; ".join([text, *filter(None, more)]))
        return own

    def entries(self, name: str) -> Entries:
        """The entries of one of `splits`."""
        return read_json(self.files, name) if self.format == "coco" else self._reader.entries(name)

    def json(self, name: str, entries: Entries, decode: bool = False, masks: bool = True) -> CocoJson:
        """The objects of one of `splits`.

        Args:
            name: Of the split.
            entries: All of `entries(name)`, or a part of them.
            decode: As of `CocoJson`.
            masks: As of `CocoJson`.
        """
        shown = name if self.format == "coco" else self._reader.splits[name].where
        return CocoJson(self.files, shown, decode, masks, entries)

    def images(self, json: CocoJson, folder: str | None = None) -> ImageSource:
        """The images of a split, in its order; those without a file are added to `json.missing`.

        Args:
            json: Of the split.
            folder: Path of the images, of COCO's format; None looks for it.

        Raises:
            DataError: No folder has any of them.
        """
        if self.format == "coco":
            return find_images(self.files, json, folder)
        names = [one["file_name"] for one in json.images]
        there = {*self.files.names}
        json.missing += [f"{self.files.root / name}: No such file or directory" for name in names if name not in there]
        return FileSource(self.files, names)

    def open(self, name: str, entries: Entries, folder: str | None = None, masks: bool = True) -> CocoSource:
        """A split as a source of images and objects.

        Args:
            name: Of the split.
            entries: As of `json`.
            folder: As of `images`.
            masks: As of `CocoJson`.

        Raises:
            DataError: It can't be used.
        """
        json = self.json(name, entries, masks=masks)
        if json.fatal:
            raise DataError(f"{json.where}: {json.fatal[0]}; vitgraft check-data lists all")
        return CocoSource(json, self.images(json, folder))

    def passed_over(self, used: Sequence[str] | None = None) -> str:
        """Annotations that are not read, in a sentence; may be empty."""
        if self.format == "coco":
            return passed_over(self.files, find_jsons(self.files) if used is None else used)
        return passed_over(self.files, read=self.ending)
