"""Image files below a folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitgraft.data.readers.base import EXTENSIONS, ImageSource, Names, is_image_name
from vitgraft.errors import DataError, ImageError


class FileSource(ImageSource):
    """Image files, named by their paths below a folder.

    Args:
        root: the folder.
        files: paths below it.
        labels: of each file, or None where there are none.
        class_names: the name of each label.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: Sequence[int] | None, class_names: Sequence[str]):
        self.root, self.files, self.class_names = str(root), Names(files), tuple(class_names)
        self.labels = np.full(len(files), -1) if labels is None else np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return self.files[index] if self.root == "." else os.path.join(self.root, self.files[index])

    def read(self, index: int) -> bytes:
        try:
            with open(self.name(index), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ImageError(self.name(index), error.strerror or str(error)) from error

    def where(self) -> str:
        return self.root


def open_folder(root: Path, allow_empty: bool = False) -> FileSource:
    """A folder of class folders; images may lie deeper inside them. Labels count the folders in order of their names.

    Args:
        root: the folder.
        allow_empty: whether there may be class folders without images.

    Raises:
        DataError: there is no class folder, or one without images.
    """
    with os.scandir(root) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    if not classes:
        raise DataError(f"{root}: no class folders; wanted {root}/CLASS/IMAGE.jpg, a tar or shards")
    files, labels, empty = [], [], []
    for label, name in enumerate(classes):
        found = sorted(images_below(root, name))
        if not found:
            empty.append(name)
        files += found
        labels += [label] * len(found)
    if empty and not allow_empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no image: {shown}. "
            f"Remove them, or add images ({' '.join(sorted(EXTENSIONS))})"
        )
    return FileSource(root, files, labels, classes)


def images_below(root: Path, folder: str) -> list[str]:
    """Paths below `root` of the images anywhere in one of its folders."""
    found = []
    for here, folders, names in os.walk(os.path.join(root, folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(here, root)
        found += [os.path.join(below, name) for name in names if is_image_name(name)]
    return found
