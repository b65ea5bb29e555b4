"""The interface of every source of images.

A source is a fixed list of images: image i has a name, a label and the bytes of its file. It reads whatever i it is
asked for, from any process, and keeps no state that could matter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class ImageSource:
    """A fixed list of labelled images.

    Attributes:
        class_names: the name of each label.
        labels: int64 (N,), -1 where an image has no label.
        blocks: sizes of the shards that the images lie in, where only few of them can be at hand at a time; None where
            any order is as good as any other.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    blocks: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What to call an image in messages: its path."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            ImageError: they can't be read.
        """
        raise NotImplementedError

    def where(self) -> str:
        """What to call the whole source in messages."""
        raise NotImplementedError


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


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image, by its ending; hidden files and macOS's `._` companions are not."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS
