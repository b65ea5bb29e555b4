"""Where images come from: one interface for every format, and `open_source`, which finds out what lies at a path.

A source is a fixed list of images: image i has a name, a label and the bytes of its file. It reads whatever i it is
asked for, from any process, and keeps no state that could matter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitgraft.errors import DataError, ImageError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
FORMATS = ("folder", "tar", "shards", "imagenet-val", "huggingface")
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


class FileSource(ImageSource):
    """Image files, named by their paths below a folder.

    Args:
        root: the folder.
        files: paths below it.
        labels: of each file, or None where there are none.
        class_names: the name of each label.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: Sequence[int] | None, class_names: Sequence[str]):
        self.root, self.files, self.class_names = str(root), Names(files), tuple(class_names)
        self.labels = np.full(len(files), -1) if labels is None else np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return self.files[index] if self.root == "." else os.path.join(self.root, self.files[index])

    def read(self, index: int) -> bytes:
        try:
            with open(self.name(index), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ImageError(self.name(index), error.strerror or str(error)) from error

    def where(self) -> str:
        return self.root


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image, by its ending; hidden files and macOS's `._` companions are not."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in EXTENSIONS


def open_folder(root: Path, allow_empty: bool = False) -> FileSource:
    """A folder of class folders; images may lie deeper inside them. Labels count the folders in order of their names.

    Args:
        root: the folder.
        allow_empty: whether there may be class folders without images.

    Raises:
        DataError: there is no class folder, or one without images.
    """
    with os.scandir(root) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    if not classes:
        raise DataError(f"{root}: no class folders; wanted {root}/CLASS/IMAGE.jpg, a tar or shards")
    files, labels, empty = [], [], []
    for label, name in enumerate(classes):
        found = sorted(_images_below(root, name))
        if not found:
            empty.append(name)
        files += found
        labels += [label] * len(found)
    if empty and not allow_empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no image: {shown}. "
            f"Remove them, or add images ({' '.join(sorted(EXTENSIONS))})"
        )
    return FileSource(root, files, labels, classes)


def _images_below(root: Path, folder: str) -> list[str]:
    found = []
    for here, folders, names in os.walk(os.path.join(root, folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(here, root)
        found += [os.path.join(below, name) for name in names if is_image_name(name)]
    return found


def open_files(paths: Sequence[str | Path]) -> ImageSource:
    """Images without labels, for prediction: files, folders (all images below them), or a tar.

    Raises:
        DataError: a path does not exist, or no image was found.
    """
    from vitgraft.data.tar import is_tar, open_unlabelled_tar

    if len(paths) == 1 and is_tar(paths[0]):
        return open_unlabelled_tar(Path(paths[0]))
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [os.path.join(path, name) for name in sorted(_images_below(path, "."))]
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
    from vitgraft.data.huggingface import is_huggingface, open_huggingface
    from vitgraft.data.imagenet import is_imagenet_val, open_imagenet_val
    from vitgraft.data.shards import expand_braces, is_shards, open_shards
    from vitgraft.data.tar import is_tar, open_tar

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
