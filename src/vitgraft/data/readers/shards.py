"""WebDataset shards: tars in which the files of a sample stand together (`key.jpg`, `key.cls`), local or at URLs.

They are read by place, not as a stream: an index has the place and the label of each image. So an epoch's order
is a function of (seed, epoch), as with every other source, and the number of workers changes nothing. It is made in one
walk over all shards, which for URLs fetches each once, and kept in the cache folder; or beforehand, to lie beside them:

    python -m vitgraft.data.readers.shards 'https://host/train-{0000..1023}.tar' vitgraft-index.npz

Shards at URLs come into the cache folder when they are needed, and the longest unused ones go when it is full.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitgraft.data.readers.base import EXTENSIONS, ImageSource, Names
from vitgraft.data.readers.download import FileCache, fetch, is_url
from vitgraft.data.readers.tar import (
    PlainTar,
    default_cache_dir,
    digest,
    kept_arrays,
    pack_lines,
    unpack_lines,
    walk_tar,
)  # fmt: skip
from vitgraft.errors import DataError
from vitgraft.terminal import Progress

log = logging.getLogger(__name__)
INDEX_NAME = "vitgraft-index.npz"
BLOCKS_AT_ONCE = 8
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def is_shards(root: str) -> bool:
    """Whether a text names shards: it has braces, is a URL of a tar, or a list of tars with commas between."""
    return bool(_BRACES.search(root)) or (is_url(root) and root.endswith(".tar"))


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` -> a-000.tar, a-001.tar, a-002.tar; `{train,val}` likewise; several are combined."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    if found[3] is not None:
        values = found[3].split(",")
    else:
        first, last = found[1], found[2]
        if int(first) > int(last):
            raise DataError(f"{pattern}: {{{first}..{last}}} counts down")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        values = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [shard for value in values for shard in expand_braces(before + value + after)]


class ShardSource(ImageSource):
    """Images in shards.

    Args:
        shards: Paths or URLs.
        index: What `scan_shard` found in each.
        class_names: The name of each label; None takes the texts of `.cls` files, or numbers.
        cache: Keeps the shards that come from URLs.

    Raises:
        DataError: Labels that don't fit the class names, or a cache too small to work with.
    """

    def __init__(self, shards: Sequence[str], index: dict[str, np.ndarray], class_names, cache: FileCache):
        self.shards, self.cache = list(shards), cache
        self.where = shards[0] if len(shards) == 1 else f"{shards[0]} ... ({len(shards)} shards)"
        self.ends, self.offsets, self.sizes = index["ends"], index["offsets"], index["sizes"]
        self.blocks = np.diff(self.ends, prepend=0).tolist()
        self.keys = Names(unpack_lines(index["keys"]))
        self.class_names, self.labels = _labels(unpack_lines(index["labels"]), class_names, self.where)
        self._open: OrderedDict[int, PlainTar] = OrderedDict()
        if is_url(self.shards[0]):
            largest = int((self.offsets + self.sizes).max())
            if cache.limit < (needed := 2 * BLOCKS_AT_ONCE * largest):
                raise DataError(
                    f"cache_gb={cache.limit / 1e9:g}: {BLOCKS_AT_ONCE} shards of up to {largest / 1e9:.3g} GB are in "
                    f"use at a time; give at least {needed / 1e9:.3g}"
                )

    def name(self, index: int) -> str:
        return f"{self.shards[int(np.searchsorted(self.ends, index, 'right'))]}/{self.keys[index]}"

    def file_size(self, index: int, path: bytes) -> int:
        return int(self.sizes[index])

    def read(self, index: int) -> bytes:
        number = int(np.searchsorted(self.ends, index, "right"))
        return self._shard(number).read_image(int(self.offsets[index]), int(self.sizes[index]), self.name(index))

    def _shard(self, number: int) -> PlainTar:
        if number not in self._open:
            self._open[number] = PlainTar(self.shards[number], self.cache.open)
            if len(self._open) > 2 * BLOCKS_AT_ONCE:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]


def open_shards(
    shards: Sequence[str],
    class_names: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float = 64.0,
) -> ShardSource:
    """Opens shards, with the index beside them, the kept one, or a new one.

    Args:
        shards: Paths or URLs; `expand_braces` makes them of a pattern.
        class_names: The name of each label number; else the lines of classes.txt beside the shards, if there is one.
        cache_dir: Folder for indices and shards; None is `default_cache_dir()`.
        cache_gb: Most that shards from URLs may take there, in 10**9 bytes.

    Raises:
        DataError: A shard is missing or broken, or its samples have no image or no label.
    """
    directory = Path(cache_dir) if cache_dir else default_cache_dir()
    cache = FileCache(directory / "shards", int(cache_gb * 1e9))
    missing = [shard for shard in shards if not is_url(shard) and not Path(shard).is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(shards)} shards are not there: {', '.join(missing[:3])}")
    if class_names is None and (listed := _beside(shards[0], "classes.txt")):
        try:
            class_names = listed.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"classes.txt beside {shards[0]}: no text in UTF-8 ({error})") from error
    return ShardSource(shards, _index(shards, directory, cache), class_names, cache)


def _index(shards: Sequence[str], directory: Path, cache: FileCache) -> dict[str, np.ndarray]:
    if published := _beside(shards[0], INDEX_NAME):
        index = dict(np.load(io.BytesIO(published)))
        if unpack_lines(index["shards"]) == [shard.rsplit("/", 1)[-1] for shard in shards]:
            return index
        log.warning("%s beside the shards is for other shards, and not used", INDEX_NAME)
    states = "\n".join(shard if is_url(shard) else f"{shard} {_state(Path(shard))}" for shard in shards)
    return kept_arrays(directory / f"shards-{digest(states)}.npz", lambda: scan_shards(shards, cache))


def scan_shards(shards: Sequence[str], cache: FileCache) -> dict[str, np.ndarray]:
    """Walks all shards: where the images lie and what their labels are.

    Returns:
        "ends": after how many images each shard ends, int64 (shards,); "offsets" and "sizes" of the images in bytes,
        int64 (N,); "keys", "labels" and "shards": texts as UTF-8 lines, uint8.
    """
    if is_url(shards[0]) or len(shards) > 100:
        log.warning("looking through %d shards, once: %s ...", len(shards), shards[0])
    found = []
    # threads wait for the network while others unpack
    with Progress(len(shards)) as step, ThreadPoolExecutor(8) as pool:
        scans = pool.map(lambda shard: scan_shard(shard, cache), shards)
        for shard in shards:
            step(shard)
            found.append(next(scans))
    flat = [sample for samples in found for sample in samples]
    return {
        "ends": np.cumsum([len(samples) for samples in found], dtype=np.int64),
        "offsets": np.array([sample[1] for sample in flat], dtype=np.int64),
        "sizes": np.array([sample[2] for sample in flat], dtype=np.int64),
        "keys": pack_lines(sample[0] for sample in flat),
        "labels": pack_lines(sample[3] for sample in flat),
        "shards": pack_lines(shard.rsplit("/", 1)[-1] for shard in shards),
    }


def scan_shard(shard: str, cache: FileCache) -> list[tuple[str, int, int, str]]:
    """(file name, offset, size, label) of each sample of a shard.

    A sample is the files that share a name up to the first dot; its label is the text of `.cls`, or "label" or "cls" in
    `.json`.

    Raises:
        DataError: No readable tar, or a sample without an image or a label.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with open(cache.open(shard), "rb") as file:
            for member in walk_tar(file, shard):
                folder, slash, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key, ending = folder + slash + stem, ending.lower()
                if not member.isfile() or not stem:
                    continue
                if f".{ending}" in EXTENSIONS:
                    images[key] = (member.name, member.offset_data, member.size)
                elif ending in ("cls", "cls.txt", "json"):
                    text = os.pread(file.fileno(), member.size, member.offset_data).decode()
                    if ending != "json":
                        labels[key] = text.strip()
                        continue
                    values = json.loads(text)
                    value = values.get("label", values.get("cls")) if isinstance(values, dict) else None
                    if value is not None:
                        labels.setdefault(key, str(value))
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{shard}: not a readable shard ({error})") from error
    if not images:
        raise DataError(f"{shard}: no images in it")
    if without := [key for key in images if key not in labels]:
        raise DataError(
            f"{shard}: {len(without)} of {len(images)} images have no label, such as {without[0]}; "
            f'wanted {without[0]}.cls beside the image, or "label" in {without[0]}.json'
        )
    return [(*image, labels[key]) for key, image in images.items()]


def _labels(texts: list[str], class_names, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Label texts as class names and numbers: numbers count from 0, other texts are names."""
    if all(text.isdigit() for text in texts):
        labels = np.array([int(text) for text in texts], dtype=np.int64)
        names = tuple(class_names) if class_names is not None else tuple(map(str, range(labels.max() + 1)))
        if labels.max() >= len(names):
            raise DataError(f"{where}: label {labels.max()}, but {len(names)} class names")
        return names, labels
    names = tuple(class_names) if class_names is not None else tuple(sorted(set(texts)))
    place = {name: label for label, name in enumerate(names)}
    if unknown := sorted(set(texts) - set(names)):
        raise DataError(f"{where}: classes that are not among the {len(names)} class names: {', '.join(unknown[:5])}")
    return names, np.array([place[text] for text in texts], dtype=np.int64)


def _beside(shard: str, name: str) -> bytes | None:
    """A file in the folder of the shards; None where there is none."""
    place = shard.rsplit("/", 1)[0] + "/" + name if "/" in shard else name
    if is_url(place):
        return fetch(place, missing_ok=True)
    return Path(place).read_bytes() if Path(place).is_file() else None


def _state(path: Path) -> str:
    """Another text when the file changes."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m vitgraft.data.readers.shards 'PATTERN' vitgraft-index.npz")
    all_shards = expand_braces(sys.argv[1])
    np.savez(sys.argv[2], **scan_shards(all_shards, FileCache(default_cache_dir() / "shards", 64 * 10**9)))
