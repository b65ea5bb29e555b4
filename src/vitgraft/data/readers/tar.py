"""A tar of class folders, read in place: the headers are walked once, then any image is one read at its place.

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
from vitgraft.data.readers.base import TAR_SUFFIXES, ImageSource, Names, is_image_name
from vitgraft.errors import DataError, ImageError

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
    """Whether a path is taken for a tar, by its ending."""
    return str(path).endswith(TAR_SUFFIXES)


class TarIndex:
    """Where the files of a plain tar lie.

    Attributes:
        names: of the files, in the order in which they lie there.
        offsets: of their first bytes, int64 (N,).
        sizes: in bytes, int64 (N,).
    """

    def __init__(self, names: Sequence[str], offsets: np.ndarray, sizes: np.ndarray):
        self.names, self.offsets, self.sizes = list(names), offsets, sizes

    @classmethod
    def scan(cls, path: Path) -> TarIndex:
        """Walks the headers of a tar.

        Raises:
            DataError: the file is no tar, or is cut short.
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
                return cls(saved["names"].tobytes().decode().split("\n"), saved["offsets"], saved["sizes"])
        log.info("%s: looking for the images in it, once", path)
        index = cls.scan(path)
        try:
            with atomic_file(kept) as file:
                names = np.frombuffer("\n".join(index.names).encode(), dtype=np.uint8)
                np.savez(file, names=names, offsets=index.offsets, sizes=index.sizes)
        except OSError as error:
            log.warning("%s: its index can't be kept in %s (%s)", path, cache_dir, error)
        return index


def check_tar_end(shown: str | Path, file: BinaryIO, end: int) -> None:
    """A tar ends with blocks of zeros; tarfile takes one that is cut between two files for a whole one.

    Args:
        shown: what to call the tar.
        file: the tar, opened.
        end: where the data of its last file ends, rounded up to a block.

    Raises:
        DataError: nothing follows there.
    """
    if os.fstat(file.fileno()).st_size <= end:
        raise DataError(f"{shown}: cut short, its end is missing")


class PlainTar:
    """Reads parts of a file from any process: the file is opened where it is first read, and has no position.

    Args:
        path: the file.
        opener: path -> file descriptor.
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


class TarSource(ImageSource):
    """Images inside a plain tar.

    Args:
        path: the tar.
        shown: what to call it in messages.
        names: of the images.
        offsets: of their first bytes, int64 (N,).
        sizes: in bytes, int64 (N,).
        labels: int64 (N,), or None where there are none.
        class_names: the name of each label.
    """

    def __init__(self, path: Path, shown: Path, names, offsets, sizes, labels, class_names: Sequence[str]):
        self.tar, self.shown = PlainTar(path), str(shown)
        self.names, self.offsets, self.sizes = Names(names), offsets, sizes
        self.labels = np.full(len(names), -1) if labels is None else np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)

    def name(self, index: int) -> str:
        return f"{self.shown}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        try:
            data = self.tar.read(int(self.offsets[index]), int(self.sizes[index]))
        except OSError as error:
            raise ImageError(self.name(index), error.strerror or str(error)) from error
        if len(data) < self.sizes[index]:
            raise ImageError(self.name(index), f"the tar ends after {len(data)} of {self.sizes[index]} bytes")
        return data

    def where(self) -> str:
        return self.shown


def open_tar(path: Path, split: str | None = None, cache_dir: str | Path | None = None) -> TarSource:
    """A tar of class folders: CLASS/IMAGE, or SPLIT/CLASS/IMAGE, also below one common folder.

    Args:
        path: the tar, plain or compressed.
        split: the folder inside the tar that holds the class folders; None where the tar is one set.
        cache_dir: where what is unpacked goes; None is `default_cache_dir()`.

    Raises:
        DataError: no readable tar, no class folders in it, or no such split.
    """
    plain, index = open_index(path, cache_dir)
    keep = np.array([i for i, name in enumerate(index.names) if is_image_name(name)], dtype=np.int64)
    if not len(keep):
        raise DataError(f"{path}: no images in it ({len(index.names)} other files)")
    parts = [index.names[i].split("/") for i in keep]
    depth = _common_folders(parts)
    if split is not None and all(len(p) > depth + 2 for p in parts):
        inside = np.array([p[depth] == split for p in parts])
        if not inside.any():
            there = sorted({p[depth] for p in parts})
            raise DataError(f"{path}: no folder {split!r} in it; there is {', '.join(there[:8])}")
        keep, parts, depth = keep[inside], [p for p in parts if p[depth] == split], depth + 1
    if any(len(p) < depth + 2 for p in parts):
        raise DataError(
            f"{path}: images that lie in no class folder; wanted CLASS/IMAGE.jpg, or for WebDataset, format: shards"
        )
    classes = sorted({p[depth] for p in parts})
    label = {name: number for number, name in enumerate(classes)}
    order = np.array(sorted(range(len(parts)), key=lambda i: parts[i][depth:]), dtype=np.int64)
    keep = keep[order]
    labels = [label[parts[i][depth]] for i in order]
    names = [index.names[i] for i in keep]
    return TarSource(plain, path, names, index.offsets[keep], index.sizes[keep], labels, classes)


def open_unlabelled_tar(path: Path, cache_dir: str | Path | None = None) -> TarSource:
    """All images of a tar, in the order of their names, without labels.

    Raises:
        DataError: no readable tar, or no image in it.
    """
    plain, index = open_index(path, cache_dir)
    keep = sorted((i for i, name in enumerate(index.names) if is_image_name(name)), key=lambda i: index.names[i])
    if not keep:
        raise DataError(f"{path}: no images in it ({len(index.names)} other files)")
    return TarSource(plain, path, [index.names[i] for i in keep], index.offsets[keep], index.sizes[keep], None, ())


def open_index(path: Path, cache_dir: str | Path | None) -> tuple[Path, TarIndex]:
    """The plain tar of a tar, unpacked where it is compressed, and where its files lie.

    Raises:
        DataError: no such file, or no readable tar.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
    plain = path if path.suffix == ".tar" else unpack(path, cache_dir)
    return plain, TarIndex.load(plain, cache_dir)


def _common_folders(parts: list[list[str]]) -> int:
    """How many folders all files have in common, not counting one that may be the only class."""
    depth = 0
    while all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    return depth


def unpack(path: Path, cache_dir: Path) -> Path:
    """A compressed tar as a plain one in the cache folder; done once for each state of the file.

    Raises:
        DataError: the file is broken, or the cache folder can't hold it.
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
    return f"{path.name.split('.')[0]}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
