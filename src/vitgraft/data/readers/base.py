"""The interface of every source of images.

A source is a fixed list of images: image i has a name, and what `load` gives. It reads whatever i it is asked for, from
any process, and keeps no state that could matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitgraft.data.decode import decode_image
from vitgraft.errors import DataError, ImageError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
# names of the same split, in any case
SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))


def split_names(split: str) -> tuple[str, ...]:
    """The names of a split and of those that mean the same, in lower case."""
    return next((names for names in SPLITS if split.lower() in names), (split.lower(),))


def of_split(split: str, names: Iterable[str]) -> str | None:
    """The one of some names that is a split's: its own, else of the same meaning in any case (`Valid` for `val`)."""
    names = list(names)
    if split in names:
        return split
    alike = [name for name in names if name.lower() in split_names(split)]
    return alike[0] if len(alike) == 1 else None


# Files whose size, and whose content `fingerprint` looks at: those of ImageNet may lie on a disk that answers late
SIZED, READ, LARGE = 20_000, 64, 1 << 22


def _evenly(length: int, most: int) -> list[int]:
    """Places that lie evenly over a list, the first and the last among them."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(int).tolist()


class Source:
    """A fixed list of images and their annotations, of any task.

    Attributes:
        class_names: The name of each label.
        where: The name of the source in messages.
    """

    class_names: tuple[str, ...]
    where: str

    @property
    def classes(self) -> Sequence[str]:
        """What must be the same in training and validation: the names, with their ids where labels count ids."""
        return self.class_names

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """The name of an image in messages: its path."""
        raise NotImplementedError

    def load(self, index: int) -> Any:
        """An image as upright RGB, and in dense tasks its annotation.

        Raises:
            ImageError: It can't be read.
        """
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must find again: the number of images, the classes, and hashes of the names, of the
        files (sizes, and what some of them hold) and of the annotations.

        Names count from the last folder that all of them are in, so that the data may be moved.
        """
        names = self.paths()
        start = os.path.commonprefix([min(names), max(names)]).rfind(b"/") + 1 if names else 0  # noqa: RUF071
        hashes = {"names": (b"\n".join(name[start:] for name in names),), **self.contents(names)}
        digests = {kind: hash_of(parts) for kind, parts in hashes.items()}
        return {"images": len(names), "classes": list(map(str, self.classes)), **digests}

    def paths(self) -> list[bytes]:
        """The names of all images."""
        return [os.fsencode(self.name(index)) for index in range(len(self))]

    def contents(self, paths: Sequence[bytes]) -> dict[str, Iterable[bytes]]:
        """What `fingerprint` hashes beside the names, cheap to read: "files" and "annotations"; may be empty.

        Args:
            paths: As of `paths`.
        """
        return {}


def hash_of(parts: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


class ImageSource(Source):
    """Labeled image files.

    Attributes:
        labels: int64 (N,), -1 where an image has no label.
        absent: Classes that training has and this split has no images of (`number_as`).
        blocks: Sizes of the shards that hold the images, where only few of them can be at hand at a time; None where
            any order is as good as any other.
    """

    labels: np.ndarray
    absent: Sequence[str] = ()
    blocks: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            ImageError: They can't be read.
        """
        raise NotImplementedError

    def file_size(self, index: int, path: bytes) -> int:
        """Bytes of an image's file, -1 where it is missing; only what knows it without reading the file overrides it.

        Args:
            index: Of the image.
            path: Its name.

        Raises:
            NotImplementedError: They are not known.
        """
        raise NotImplementedError

    def contents(self, paths: Sequence[bytes]) -> dict[str, Iterable[bytes]]:
        return {"files": self._files(paths), "annotations": (self.labels.tobytes(),)}

    def _files(self, paths: Sequence[bytes]) -> Iterator[bytes]:
        """Sizes of the files, and of fewer the bytes; both lie evenly over the source."""
        try:
            sizes = [self.file_size(index, paths[index]) for index in _evenly(len(self), SIZED)]
        except NotImplementedError:
            return
        yield np.array(sizes, dtype=np.int64).tobytes()
        for index in _evenly(len(self), READ) if self.blocks is None else ():  # shards may have to be downloaded for it
            if self.file_size(index, paths[index]) < LARGE:
                with contextlib.suppress(ImageError):
                    yield self.read(index)

    def load(self, index: int) -> Image.Image:
        return decode_image(self.read(index), self.name(index))


def check_same_classes(train: Source, val: Source) -> None:
    """Two datasets must have the same classes in the same order, or their labels mean different things.

    Raises:
        DataError: They don't; the message lists what one of them lacks.
    """
    if train.classes == val.classes:
        return
    lines = []
    for one, other in ((train, val), (val, train)):
        if only := [name for name in one.classes if name not in set(other.classes)]:
            lines.append(f"only in {one.where}: {', '.join(only[:8])}{' ...' if len(only) > 8 else ''}")
    if not lines:
        lines = [f"the same classes in another order: {train.classes[:4]} ... and {val.classes[:4]} ..."]
    numbers = f"{len(train.classes)} and {len(val.classes)}"
    raise DataError(f"training and validation have different classes ({numbers}): " + "; ".join(lines))


def number_as(train: ImageSource, source: ImageSource) -> None:
    """Numbers the labels of a split as those of training, where it lacks some of its classes.

    Class folders are numbered split by split, and a small validation split may have no image of a rare class.

    Args:
        train: The training images.
        source: Of another split; left as it is where it has the same classes, or one that training has not.
    """
    own = source.class_names
    if own == train.class_names or not {*own} <= {*train.class_names}:
        return
    places = {name: number for number, name in enumerate(train.class_names)}
    numbers = np.array([places[name] for name in own], dtype=np.int64)
    source.labels = np.where(source.labels < 0, source.labels, numbers[source.labels])
    source.absent = [name for name in train.class_names if name not in {*own}]
    source.class_names = train.class_names


class Names:
    """A list of texts that takes no Python object for each, so that forked workers share its memory."""

    def __init__(self, names: Sequence[str]):
        encoded = [os.fsencode(name) for name in names]
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


def read_file(path: str | Path, name: str) -> bytes:
    """The bytes of an image's file.

    Raises:
        ImageError: They can't be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a read of a pipe would wait for ever
            raise ImageError(name, "a folder, pipe or device, not a file")
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise ImageError(name, error.strerror or str(error)) from error


def is_image_name(name: str) -> bool:
    """Whether a file counts as an image, by its ending; hidden files and macOS's `._` companions do not."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS
