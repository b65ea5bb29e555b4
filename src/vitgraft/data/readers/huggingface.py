"""Hugging Face datasets, when `datasets` is installed: `hf:NAME`, `hf:NAME@CONFIGURATION`, or a folder of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitgraft.data.readers.base import ImageSource, read_file
from vitgraft.errors import DataError, ImageError, MissingSplitError

PREFIX = "hf:"


class HuggingFaceSource(ImageSource):
    """A split with one image column and one class column; the encoded bytes are read as stored.

    Args:
        rows: A `datasets.Dataset`.
        where: Its name in messages.

    Raises:
        DataError: There is no image column or no class column, or more than one.
    """

    def __init__(self, rows, where: str):
        import datasets

        self.where = where
        self.column = _only_column(rows, datasets.Image, where, "image")
        classes = _only_column(rows, datasets.ClassLabel, where, "class label")
        self.class_names = tuple(rows.features[classes].names)
        self.labels = np.asarray(rows.with_format("numpy")[classes][:], dtype=np.int64)
        self.rows = rows.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> bytes:
        image = self.rows[index][self.column] or {}
        if image.get("bytes") is not None:
            return image["bytes"]
        if not image.get("path"):
            raise ImageError(self.name(index), "the row has no image")
        return read_file(image["path"], self.name(index))


def is_huggingface(root: str | Path) -> bool:
    """Whether a path is `hf:NAME`, or a folder that `Dataset.save_to_disk` wrote."""
    if str(root).startswith(PREFIX):
        return True
    return any((Path(root) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_huggingface(root: str | Path, split: str | None) -> HuggingFaceSource:
    """One split of a dataset of the hub, or of a folder that `save_to_disk` wrote.

    Args:
        root: `hf:NAME`, `hf:NAME@CONFIGURATION`, or the folder.
        split: Such as "train"; "val" also finds "validation". None where the folder is one dataset.

    Raises:
        DataError: `datasets` is not installed, or there is no such dataset or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{root}: needs the package datasets: pip install datasets") from error
    text = str(root)
    try:
        if text.startswith(PREFIX):
            name, _, configuration = text.removeprefix(PREFIX).partition("@")
            found = datasets.load_dataset(name, configuration or None)
        else:
            found = datasets.load_from_disk(text)
    except Exception as error:  # network, file system, and the package's own kinds
        raise DataError(f"{root}: can't be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        return HuggingFaceSource(found, text)
    names = [split, "validation"] if split == "val" else [split]
    for name in names:
        if name in found:
            return HuggingFaceSource(found[name], f"{text}[{name}]")
    raise MissingSplitError(f"{root}: no split {split!r}; there is {', '.join(found)}")


def _only_column(rows, kind: type, shown: str, what: str) -> str:
    found = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(f"{shown}: wanted one {what} column, there are {len(found)}: {', '.join(rows.features)}")
    return found[0]
