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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from vitgraft.atomic import atomic_write
from vitgraft.errors import DataError

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
    """Where the files of a plain tar lie.

    Attributes:
        names: Of the files, in the order in which they lie there.
        offsets: Of their first bytes, int64 (N,).
        sizes: In bytes, int64 (N,).
    """

    def __init__(self, names: Sequence[str], offsets: np.ndarray, sizes: np.ndarray):
        self.names, self.offsets, self.sizes = list(names), offsets, sizes

    @classmethod
    def scan(cls, path: Path) -> TarIndex:
        """Walks the headers of a tar.

        Raises:
            DataError: The file is no tar, or is cut short.
        """
        names, offsets, sizes, end = [], [], [], 0
        try:
            with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        names.append(member.name.removeprefix("./"))
                        offsets.append(member.offset_data)
                        sizes.append(member.size)
                    end = tar.offset
                    tar.members.clear()  # a million entries would take a gigabyte
                check_tar_end(path, file, end)
        except _BROKEN as error:
            raise DataError(f"{path}: not a readable tar ({error})") from error
        return cls(names, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64))

    @classmethod
    def load(cls, path: Path, cache_dir: Path) -> TarIndex:
        """`scan`, kept in the cache folder for a large tar, under the tar's path, size and time."""
        if os.path.getsize(path) < KEEP_INDEX_FROM:
            return cls.scan(path)
        kept = cache_dir / f"{_fingerprint(path)}.index.npz"
        if kept.exists():
            with np.load(kept) as saved:
                names = saved["names"].tobytes().decode(errors="surrogateescape").split("\n")
                return cls(names, saved["offsets"], saved["sizes"])
        log.info("%s: looking for the images in it, once", path)
        index = cls.scan(path)
        try:
            with atomic_file(kept) as file:
                names = np.frombuffer("\n".join(index.names).encode(errors="surrogateescape"), dtype=np.uint8)
                np.savez(file, names=names, offsets=index.offsets, sizes=index.sizes)
        except OSError as error:
            log.warning("%s: its index can't be kept in %s (%s)", path, cache_dir, error)
        return index


def check_tar_end(shown: str | Path, file: BinaryIO, end: int) -> None:
    """A tar ends with blocks of zeros; tarfile takes one that is cut between two files for a whole one.

    Args:
        shown: The name of the tar in messages.
        file: The tar, opened.
        end: Where the data of its last file ends, rounded up to a block.

    Raises:
        DataError: Nothing follows there.
    """
    if os.fstat(file.fileno()).st_size <= end:
        raise DataError(f"{shown}: cut short, its end is missing")


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


def open_index(path: Path, cache_dir: str | Path | None) -> tuple[Path, TarIndex]:
    """The plain tar of a tar, unpacked where it is compressed, and where its files lie.

    Raises:
        DataError: No readable tar.
    """
    cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
    plain = path if path.suffix == ".tar" else unpack(path, cache_dir)
    return plain, TarIndex.load(plain, cache_dir)


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
    return f"{path.name.split('.')[0]}-{hashlib.blake2b(os.fsencode(key), digest_size=8).hexdigest()}"
