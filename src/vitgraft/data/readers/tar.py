"""A tar, read in place: the headers are walked once, then any file is one read at its place.

Compressed tars (.tar.gz, .tgz, .tar.bz2, .tar.xz) can't be read at a place. They are unpacked once, to a plain tar in
the cache folder, which is used from then on. The walk through the headers of a large tar is kept there as well.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from vitgraft.atomic import atomic_write
from vitgraft.errors import DataError, ImageError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
log = logging.getLogger(__name__)
# Below this many bytes the walk through the headers takes less than a second, and its result is not kept.
KEEP_INDEX_FROM = 1 << 30
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)


def default_cache_dir() -> Path:
    """$VITGRAFT_CACHE, or vitgraft in the user's cache folder."""
    if given := os.environ.get("VITGRAFT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitgraft"


def is_tar(path: str | Path) -> bool:
    """Whether a path is a tar, by its ending."""
    return str(path).endswith(TAR_SUFFIXES)


class TarIndex:
    """Where the files of a tar lie; of a large tar it is kept in the cache folder.

    Args:
        path: The tar; a compressed one is unpacked to the cache folder.
        cache_dir: The cache folder; None is `default_cache_dir()`.

    Attributes:
        plain: Path of the tar that is not compressed.
        names: Of the files, in the order in which they lie there.
        offsets: Of their first bytes, int64 (N,).
        sizes: In bytes, int64 (N,).

    Raises:
        DataError: The file is no tar, or is cut short.
    """

    def __init__(self, path: Path, cache_dir: str | Path | None):
        cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.plain = plain = path if path.suffix == ".tar" else unpack(path, cache_dir)
        if os.path.getsize(plain) < KEEP_INDEX_FROM:
            arrays = scan_tar(plain)
        else:
            arrays = kept_arrays(cache_dir / f"{_fingerprint(plain)}.index.npz", lambda: scan_tar(plain))
        self.names, self.offsets, self.sizes = unpack_lines(arrays["names"]), arrays["offsets"], arrays["sizes"]


def scan_tar(path: Path) -> dict[str, np.ndarray]:
    """`TarIndex` as arrays, by a walk through the headers."""
    with open(path, "rb") as file:
        found = [
            (member.name.removeprefix("./"), member.offset_data, member.size)
            for member in walk_tar(file, path)
            if member.isfile()
        ]
    return {
        "names": pack_lines(name for name, _, _ in found),
        "offsets": np.array([offset for _, offset, _ in found], dtype=np.int64),
        "sizes": np.array([size for _, _, size in found], dtype=np.int64),
    }


def walk_tar(file: BinaryIO, shown: str | Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a plain tar.

    Args:
        file: The tar, opened.
        shown: Its name in messages.

    Raises:
        DataError: The file is no tar, or is cut short.
    """
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = tar.offset
                yield member
                tar.members.clear()  # a million entries would take a gigabyte
    except _BROKEN as error:
        raise DataError(f"{shown}: not a readable tar ({error})") from error
    # a tar ends with blocks of zeros; tarfile takes one that is cut between two files for a whole one
    if os.fstat(file.fileno()).st_size <= end:
        raise DataError(f"{shown}: cut short, its end is missing")


def kept_arrays(kept: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in a file of the cache folder; made and kept there where it is missing."""
    if kept.is_file():
        with np.load(kept) as arrays:
            return dict(arrays)
    log.info("%s is not there yet: looking for the images, once", kept)
    arrays = make()
    try:
        with atomic_file(kept) as file:
            np.savez(file, **arrays)
    except OSError as error:
        log.warning("%s can't be kept (%s)", kept, error)
    return arrays


def pack_lines(lines: Iterable[str]) -> np.ndarray:
    """Texts without line breaks as one array, uint8."""
    return np.frombuffer(os.fsencode("\n".join(lines)), dtype=np.uint8)


def unpack_lines(text: np.ndarray) -> list[str]:
    """What `pack_lines` packed."""
    return os.fsdecode(text.tobytes()).split("\n")


def digest(text: str) -> str:
    """A part of a file name that stands for a text."""
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


class PlainTar:
    """Reads parts of a file from any process: the file is opened where it is first read, and has no position.

    Args:
        path: The file.
        opener: Path -> file descriptor.
    """

    def __init__(self, path: str | Path, opener: Callable[[str], int] | None = None):
        self.path, self.opener, self._fd, self._pid = str(path), opener, -1, -1

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file."""
        if self._pid != os.getpid():
            self._fd = self.opener(self.path) if self.opener else os.open(self.path, os.O_RDONLY)
            self._pid = os.getpid()
        return os.pread(self._fd, size, offset)

    def read_image(self, offset: int, size: int, name: str) -> bytes:
        """The `size` bytes of an image.

        Raises:
            ImageError: They can't be read, or not all of them are there.
        """
        try:
            data = self.read(offset, size)
        except OSError as error:
            raise ImageError(name, error.strerror or str(error)) from error
        if len(data) < size:
            raise ImageError(name, f"the tar ends after {len(data)} of {size} bytes")
        return data

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        if self._pid == os.getpid():
            os.close(self._fd)
        self._fd = self._pid = -1

    def __del__(self):
        if getattr(self, "_pid", -1) == os.getpid():
            os.close(self._fd)

    def __getstate__(self) -> dict:
        return {"path": self.path, "opener": self.opener, "_fd": -1, "_pid": -1}


def unpack(path: Path, cache_dir: Path) -> Path:
    """A compressed tar as a plain one in the cache folder; done once for each state of the file.

    Raises:
        DataError: The file is broken, or the cache folder can't hold it.
    """
    target = cache_dir / f"{_fingerprint(path)}.tar"
    if target.exists():
        return target
    log.warning("%s: a compressed tar can't be read in place; unpacking it once, to %s", path, target)
    import bz2

    opener = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[path.suffix]
    try:
        with atomic_file(target) as out, opener(path, "rb") as packed:
            while True:
                try:
                    piece = packed.read(1 << 20)
                except _BROKEN as error:
                    raise DataError(f"{path}: broken or cut short ({error})") from error
                if not piece:
                    break
                out.write(piece)
    except OSError as error:
        raise DataError(
            f"{path}: can't be unpacked to {target} ({error.strerror or error}); "
            f"unpack it yourself, or set VITGRAFT_CACHE to a folder with room"
        ) from error
    return target


def atomic_file(path: Path) -> AbstractContextManager[IO[bytes]]:
    """`atomic_write` for a cache that several processes fill at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(path, "wb", unique=True)


def _fingerprint(path: Path) -> str:
    """A file name for what is derived from a file: another one when the file changes."""
    stat = path.stat()
    key = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return f"{path.name.split('.')[0]}-{digest(key)}"
