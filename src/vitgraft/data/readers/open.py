"""`open_source` finds out which format lies at a path, and opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vitgraft.data.readers.base import ImageSource, of_split
from vitgraft.data.readers.folder_or_tar import open_class_folders, open_files
from vitgraft.data.readers.huggingface import is_huggingface, open_huggingface
from vitgraft.data.readers.imagenet import is_imagenet_val, open_imagenet_val
from vitgraft.data.readers.shards import expand_braces, is_shards, open_shards
from vitgraft.data.readers.tar import TAR_SUFFIXES
from vitgraft.errors import DataError

__all__ = ["FORMATS", "open_files", "open_source"]

FORMATS = ("folder", "tar", "shards", "imagenet-val", "huggingface")


def open_source(
    root: str | Path,
    split: str | None = None,
    format: str | None = None,
    class_names: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float = 64.0,
    allow_empty: bool = False,
) -> ImageSource:
    """Opens a dataset of labelled images; its format is inferred from what lies there.

    Looked for, in this order: `hf:NAME` (Hugging Face); a brace pattern, URL or list of shards; ROOT/SPLIT,
    ROOT/SPLIT.tar, ROOT/SPLIT.tar.gz and the like, ROOT/SPLIT-000000.tar ... (shards); ROOT itself where no split is
    asked for. A folder or tar of class folders, WebDataset shards and ImageNet's flat validation folder are
    distinguished by what is inside.

    Args:
        root: Folder, tar, shard pattern or URL, or `hf:` and the name of a dataset.
        split: Such as "train" or "val"; None takes `root` as one dataset.
        format: One of `FORMATS`; None infers it.
        class_names: Of shards that carry label numbers only.
        cache_dir: Where unpacked tars, indices and downloaded shards go; None is `default_cache_dir()`.
        cache_gb: Limit of downloaded shards there, in 10**9 bytes.
        allow_empty: Whether class folders may be empty.

    Raises:
        DataError: Nothing there, or nothing of a known format; the message names what was looked for.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"format={format!r}: one of {', '.join(FORMATS)}")
    if format == "huggingface" or (format is None and is_huggingface(root)):
        return open_huggingface(root, split)
    if is_shards(str(root)):
        return open_shards(expand_braces(str(root)), class_names, cache_dir, cache_gb)
    where = Path(root)
    if split is not None and where.is_dir():
        where, split = _find_split(where, split), None
        if isinstance(where, list):
            return open_shards(where, class_names, cache_dir, cache_gb)
    if format == "imagenet-val" or (format is None and is_imagenet_val(where)):
        return open_imagenet_val(where, cache_dir)
    if format == "shards":
        return open_shards([str(where)], class_names, cache_dir, cache_gb)
    return open_class_folders(where, split, cache_dir, allow_empty)


def _find_split(root: Path, split: str) -> Path | list[str]:
    """ROOT/SPLIT as a folder or a tar, or the shards ROOT/SPLIT-NNN.tar or ROOT/SPLIT/NNN.tar."""
    tried = [root / split, *(root / f"{split}{suffix}" for suffix in TAR_SUFFIXES)]
    if alike := of_split(split, [name for name in os.listdir(root) if (root / name).is_dir()]):
        tried.append(root / alike)  # `Valid` for `val`
    for path in tried:
        if path.is_dir() and (shards := sorted(map(str, path.glob("*.tar")))):
            return shards
        if path.exists():
            return path
    numbered = re.compile(rf"(.*[-_])?{re.escape(split)}(ing|idation)?[-_.]?\d+\.tar")
    if shards := sorted(str(path) for path in root.glob("*.tar") if numbered.fullmatch(path.name)):
        return shards
    names = sorted(os.listdir(root))
    there = f"there is {', '.join(names[:8])}" if names else "the folder is empty"
    looked = f"{', '.join(path.name for path in tried)}, {split}-NNN.tar"
    raise DataError(f"{root}: no split {split!r} (looked for {looked}); {there}")
