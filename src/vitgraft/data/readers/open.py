"""Opening sources of images: `open_source` finds out what lies at a path."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vitgraft.data.readers.base import EXTENSIONS, TAR_SUFFIXES, ImageSource
from vitgraft.data.readers.folder import FileSource, images_below, open_folder
from vitgraft.data.readers.huggingface import is_huggingface, open_huggingface
from vitgraft.data.readers.imagenet import is_imagenet_val, open_imagenet_val
from vitgraft.data.readers.shards import expand_braces, is_shards, open_shards
from vitgraft.data.readers.tar import is_tar, open_tar, open_unlabelled_tar
from vitgraft.errors import DataError

FORMATS = ("folder", "tar", "shards", "imagenet-val", "huggingface")


def open_files(paths: Sequence[str | Path]) -> ImageSource:
    """Images without labels, for prediction: files, folders (all images below them), or a tar.

    Raises:
        DataError: a path does not exist, or no image was found.
    """
    if len(paths) == 1 and is_tar(paths[0]):
        return open_unlabelled_tar(Path(paths[0]))
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [os.path.join(path, name) for name in sorted(images_below(path, "."))]
        elif path.is_file():
            if is_tar(path):
                raise DataError(f"{path}: a tar must be given alone")
            files.append(str(path))
        else:
            raise DataError(f"{path}: no such file or folder")
    if not files:
        raise DataError(f"{', '.join(map(str, paths))}: no image found (looked for {' '.join(sorted(EXTENSIONS))})")
    return FileSource(Path(), [os.path.normpath(file) for file in files], None, ())


def open_source(
    root: str | Path,
    split: str | None = None,
    format: str | None = None,
    class_names: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    cache_gb: float = 64.0,
    allow_empty: bool = False,
) -> ImageSource:
    """Opens a set of images; what it is, is found out from what lies there.

    Looked for, in this order: `hf:NAME` (Hugging Face); a brace pattern, URL or list of shards; ROOT/SPLIT,
    ROOT/SPLIT.tar, ROOT/SPLIT.tar.gz and the like, ROOT/SPLIT-000000.tar ... (shards); ROOT itself where no split is
    asked for. A folder of class folders, a tar of them, WebDataset shards and ImageNet's flat validation folder are
    told apart by what is inside.

    Args:
        root: folder, tar, shard pattern or URL, or `hf:` and the name of a data set.
        split: such as "train" or "val"; None takes `root` as one set.
        format: of `FORMATS`, to force one.
        class_names: of shards that carry label numbers only.
        cache_dir: where unpacked tars, indices and downloaded shards go; None is `default_cache_dir()`.
        cache_gb: most that downloaded shards may take there, in 10**9 bytes.
        allow_empty: whether class folders may be empty.

    Raises:
        DataError: nothing there, or nothing of a known format; the message says what was looked for.
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
    if not where.exists():
        raise DataError(f"{where}: no such file or folder")
    if format == "imagenet-val" or (format is None and is_imagenet_val(where)):
        return open_imagenet_val(where, cache_dir)
    if format == "shards":
        return open_shards([str(where)], class_names, cache_dir, cache_gb)
    if format == "tar" or (format is None and is_tar(where)):
        return open_tar(where, split, cache_dir)
    return open_folder(where, allow_empty)


def _find_split(root: Path, split: str) -> Path | list[str]:
    """ROOT/SPLIT as a folder or a tar, or the shards ROOT/SPLIT-NNN.tar or ROOT/SPLIT/NNN.tar."""
    tried = [root / split, *(root / f"{split}{suffix}" for suffix in TAR_SUFFIXES)]
    for path in tried:
        if path.is_dir() and (shards := sorted(map(str, path.glob("*.tar")))):
            return shards
        if path.exists():
            return path
    numbered = re.compile(rf"(.*[-_])?{re.escape(split)}(ing|idation)?[-_.]?\d+\.tar")
    if shards := sorted(str(path) for path in root.glob("*.tar") if numbered.fullmatch(path.name)):
        return shards
    there = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
    looked = f"{', '.join(path.name for path in tried)}, {split}-NNN.tar"
    raise DataError(f"{root}: no split {split!r} (looked for {looked}); there is {there}")


def check_same_classes(train: ImageSource, val: ImageSource) -> None:
    """The two sets must name the same classes in the same order, or their labels mean different things.

    Raises:
        DataError: they don't; the message lists what one of them lacks.
    """
    if train.class_names == val.class_names:
        return
    lines = []
    for one, other in ((train, val), (val, train)):
        if only := [name for name in one.class_names if name not in set(other.class_names)]:
            lines.append(f"only in {one.where()}: {', '.join(only[:8])}{' ...' if len(only) > 8 else ''}")
    if not lines:
        lines = [f"the same classes in another order: {train.class_names[:4]} ... and {val.class_names[:4]} ..."]
    raise DataError(
        f"training and validation have different classes ({len(train.class_names)} and {len(val.class_names)}): "
        + "; ".join(lines)
    )
