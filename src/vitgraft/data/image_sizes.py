"""Sizes of image files, by their headers: no pixel is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from vitgraft.data.decode import open_image
from vitgraft.data.findings import upright_size
from vitgraft.data.readers.base import ImageSource
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import ImageError

__all__ = ["sizes_of", "sizes_of_source"]

HEADER = 1 << 16  # bytes that the header of nearly every file is in
THREADS = 8  # a file system of a network answers late
UNKNOWN = (1000, 1000)  # of a file that can't be read, which is found and named when it is decoded


def sizes_of(files: Files, names: Sequence[str]) -> list[tuple[int, int]]:
    """(height, width) of images, upright; `UNKNOWN` where a file is missing or can't be read.

    Args:
        files: Where they are.
        names: Their paths there.
    """
    if files.index is not None:
        return [_size(files, name) for name in names]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda name: _size(files, name), names, chunksize=64))


def _size(files: Files, name: str) -> tuple[int, int]:
    for most in (HEADER, None):
        data = files.read(name, most)
        if not data:
            return UNKNOWN
        try:
            return _upright(open_image(data, name))
        except ImageError:
            continue
    return UNKNOWN


def _upright(image: Image.Image) -> tuple[int, int]:
    if image.format == "PNG":
        image.info.setdefault("exif", b"")  # else Pillow decodes the image, to look for an entry behind it
    try:
        return upright_size(image)
    except Exception:  # a damaged entry of EXIF
        return image.size[::-1]


def sizes_of_source(source: ImageSource, most: int = 256) -> np.ndarray:
    """int64 (N, 2), (height, width) of images that lie evenly over a source, upright; without those that can't be read.

    Args:
        source: The images.
        most: How many of them.
    """
    found = []
    for index in np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int).tolist():
        with contextlib.suppress(ImageError):
            found.append(_upright(open_image(source.read(index), source.name(index))))
    return np.array(found, dtype=np.int64).reshape(-1, 2)
