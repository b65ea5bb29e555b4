"""`open_source` finds out which format lies at a path, and opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vitgraft.data.readers.base import ImageSource, of_split
from vitgraft.data.readers.folder_or_tar import Files, open_class_folders, open_files
from vitgraft.data.readers.huggingface import is_huggingface, open_huggingface
from vitgraft.data.readers.imagenet import is_imagenet_val, open_imagenet_val
from vitgraft.data.readers.shards import expand_braces, is_shards, open_shards
from vitgraft.data.readers.table import has_class_folders, is_table, names_images, open_table, tables_of
from vitgraft.data.readers.tar import TAR_SUFFIXES, is_tar
from vitgraft.errors import DataError, MissingSplitError

__all__ = ["FORMATS", "open_files", "open_source"]

FORMATS = ("folder", "tar", "table", "shards", "imagenet-val", "huggingface")


def open_source(
    root: str | Path,
    split: str | None = None,
    format: str | None = None,
    class_names: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float = 64.0,
    allow_empty: bool = False,
    file_column: str | None = None,
    label_column: str | None = None,
) -> ImageSource:
    """Opens a dataset of labeled images; its format is inferred from what lies there.

    Looked for, in this order: `hf:NAME` (Hugging Face); a brace pattern, URL or list of shards; ROOT/SPLIT,
    ROOT/SPLIT.tar, ROOT/SPLIT.tar.gz and the like, ROOT/SPLIT-000000.tar ... (shards); ROOT itself where no split is
    asked for. A folder or tar of class folders, WebDataset shards, ImageNet's flat validation folder and images with a
    table of their labels are distinguished by what is inside. A table is also read by its own path.

    Args:
        root: Folder, tar, shard pattern or URL, or `hf:` and the name of a dataset.
        split: Such as "train" or "val"; None takes `root` as one dataset.
        format: One of `FORMATS`; None infers it.
        class_names: Of shards and tables that carry label numbers only.
        cache_dir: Where unpacked tars, indices and downloaded shards go; None is `default_cache_dir()`.
        cache_gb: Limit of downloaded shards there, in 10**9 bytes.
        allow_empty: Whether class folders may be empty.
        file_column: Of a table; None finds it.
        label_column: Of a table; None finds it.

    Raises:
        MissingSplitError: The dataset does not have the split.
        DataError: Nothing there, or nothing of a known format; the message names what was looked for.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"format={format!r}: one of {', '.join(FORMATS)}")
    if format == "huggingface" or (format is None and is_huggingface(root)):
        return open_huggingface(root, split)
    if is_shards(str(root)):
        return open_shards(expand_braces(str(root)), class_names, cache_dir, cache_gb)
    where = Path(root)
    table = where.name if is_table(str(where)) and where.is_file() else None
    if table or format == "table" or (format is None and _has_table(where, split)):
        files = Files(where.parent if table else where, cache_dir)
        return open_table(files, split, table, file_column, label_column, class_names)
    if split is not None and where.is_dir():
        where, split = _find_split(where, split), None
        if isinstance(where, list):
            return open_shards(where, class_names, cache_dir, cache_gb)
    if format == "imagenet-val" or (format is None and is_imagenet_val(where)):
        return open_imagenet_val(where, cache_dir)
    if format == "shards":
        return open_shards([str(where)], class_names, cache_dir, cache_gb)
    return open_class_folders(where, split, cache_dir, allow_empty)


def _has_table(root: Path, split: str | None) -> bool:
    """Whether a folder has images with a table of their labels, and no class folders.

    Raises:
        DataError: It has both.
    """
    if not root.is_dir() or is_imagenet_val(root):
        return False
    files = Files(root)
    if not (tables := tables_of(files)):
        return False
    own = of_split(split, files.folders()) if split is not None else None
    if own is not None and any(is_tar(name) for name in files.listed(own)):
        return False
    if any(is_tar(name) for name in files.listed()):
        return False
    if not has_class_folders(files):
        return True
    if any(names_images(files, table) for table in tables):
        raise DataError(
            f"{root}: class folders ({', '.join(files.folders()[:4])}), and a table that names images "
            f"({', '.join(tables)}): set data.format (--data-format of check-data) to folder or table"
        )
    return False


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
    raise MissingSplitError(f"{root}: no split {split!r} (looked for {looked}); {there}")
