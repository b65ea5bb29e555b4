"""The files in a folder or a tar, by the same names; class folders among them; loose files for prediction."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from vitgraft.data.readers.base import (
    EXTENSIONS,
    SPLITS,
    ImageSource,
    Names,
    is_image_name,
    of_split,
    read_file,
    split_names,
)
from vitgraft.data.readers.tar import TAR_SUFFIXES, PlainTar, TarIndex, is_tar
from vitgraft.errors import DataError, ImageError, MissingSplitError
from vitgraft.untrusted import is_inside

OTHER_ARCHIVES = (".zip", ".rar", ".7z")


class Files:
    """The files below a folder or in a tar, by their paths with `/`.

    Args:
        root: The folder, or the tar.
        cache_dir: Where a compressed tar is unpacked; None is `default_cache_dir()`.

    Raises:
        DataError: Neither a folder nor a readable tar.
    """

    def __init__(self, root: str | Path, cache_dir: str | Path | None = None):
        self.root, self.index = Path(root), None
        if self.root.is_dir():
            return
        if not self.root.exists():
            raise DataError(f"{root}: no such file or folder")
        if not is_tar(self.root):
            raise DataError(f"{root}: neither a folder nor a tar ({' '.join(TAR_SUFFIXES)})")
        self.index = TarIndex(self.root, cache_dir)

    @cached_property
    def names(self) -> list[str]:
        """All files but hidden ones, sorted; listed once."""
        names = _walk(self.root) if self.index is None else self.index.names
        return sorted(name for name in names if not os.path.basename(name).startswith("."))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.index.names)}

    def has(self, name: str) -> bool:
        """Whether there is such a file; a name that leads out of the dataset names none."""
        return is_inside(name) and os.path.isfile(self.root / name) if self.index is None else name in self._places

    def has_folder(self, name: str) -> bool:
        """Whether there is such a folder."""
        return os.path.isdir(self.root / name) if self.index is None else name in self._tree

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """A file's content; None where there is no such file.

        Args:
            name: Its path.
            most: Only so many bytes of it, the first ones.
        """
        if not self.has(name):
            return None
        if self.index is None:
            with open(self.root / name, "rb") as file:
                return file.read(-1 if most is None else most)
        place = self._places[name]
        size = int(self.index.sizes[place])
        return PlainTar(self.index.plain).read(
            int(self.index.offsets[place]), size if most is None else min(size, most)
        )

    def images(self, folder: str = "") -> list[str]:
        """Paths of the image files below a folder, relative to it, sorted."""
        start = "" if folder in ("", ".") else folder.rstrip("/") + "/"
        return [name[len(start) :] for name in self.names if name.startswith(start) and is_image_name(name)]

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders right in a folder."""
        return sorted(self._inside(folder)[0])

    def listed(self, folder: str = "") -> list[str]:
        """Names of the files right in a folder."""
        return sorted(self._inside(folder)[1])

    def _inside(self, folder: str) -> tuple[set[str], set[str]]:
        """Folders and files right in a folder, without hidden ones."""
        if self.index is not None:
            return self._tree.get(folder.rstrip("/"), (set(), set()))
        inside: tuple[set[str], set[str]] = (set(), set())
        if os.path.isdir(self.root / folder):
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if not entry.name.startswith((".", "__MACOSX")):
                        with contextlib.suppress(OSError):  # links that lead to each other
                            inside[not entry.is_dir()].add(entry.name)
        return inside

    @cached_property
    def _tree(self) -> dict[str, tuple[set[str], set[str]]]:
        tree: dict[str, tuple[set[str], set[str]]] = {}
        for name in self.names:
            path, is_file = name, True
            while path:
                parent, _, base = path.rpartition("/")
                known = parent in tree
                tree.setdefault(parent, (set(), set()))[is_file].add(base)
                if known:
                    break
                path, is_file = parent, False
        return tree


def _walk(root: Path) -> Iterator[str]:
    """The files below a folder. A link to a folder that it lies in, which would lead round for ever, is left out."""
    lines = {str(root): (os.path.realpath(root),)}  # folder to come -> real paths of it and of those that it lies in
    for here, folders, names in os.walk(root, followlinks=True):
        line = lines.pop(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders.copy():
            path = os.path.join(here, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(line[-1], name)
            if real in line:
                folders.remove(name)
            else:
                lines[path] = (*line, real)
        below = os.path.relpath(here, root).replace(os.sep, "/")
        yield from (name if below == "." else f"{below}/{name}" for name in names)


class FileSource(ImageSource):
    """Image files in a folder or a tar; one that is missing is an error when it is read.

    Args:
        files: Where they are.
        names: Their paths there.
        labels: Of each, or None where there are none.
        class_names: The name of each label.
        anywhere: Whether names may lead out of the dataset, as a user's may; those of annotations may not.
    """

    def __init__(
        self,
        files: Files,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        anywhere: bool = False,
    ):
        self.anywhere = anywhere
        self.where, self.names, self.class_names = str(files.root), Names(names), tuple(class_names)
        self.labels = np.full(len(names), -1) if labels is None else np.asarray(labels, dtype=np.int64)
        self.tar = None
        if files.index is not None:
            places = np.array([files._places.get(name, -1) for name in names], dtype=np.int64)
            self.tar, self.sizes = PlainTar(files.index.plain), files.index.sizes[places]
            self.offsets = np.where(places < 0, -1, files.index.offsets[places])

    def name(self, index: int) -> str:
        return self.names[index] if self.where == "." else os.path.join(self.where, self.names[index])

    def file_size(self, index: int, path: bytes) -> int:
        if self.tar is not None:
            return int(self.sizes[index]) if self.offsets[index] >= 0 else -1
        try:
            return os.stat(path).st_size
        except (OSError, ValueError):
            return -1

    def read(self, index: int) -> bytes:
        name = self.name(index)
        if self.tar is None:
            if not (self.anywhere or is_inside(self.names[index])):
                why = "has a NUL byte, which no file name has" if "\0" in name else "leads out of the dataset"
                raise ImageError(name, f"the name {why}, and is not opened")
            return read_file(name, name)
        if self.offsets[index] < 0:
            raise ImageError(name, "No such file in the tar")
        return self.tar.read_image(int(self.offsets[index]), int(self.sizes[index]), name)


def archives_passed_over(files: Files) -> str:
    """Archives in a folder that has no folders, and that are no split's and no shards; may be empty."""
    if files.index is not None or files.folders():
        return ""
    usual = {word for names in SPLITS for word in names}
    names = [name for name in files.listed() if name.lower().endswith((*TAR_SUFFIXES, *OTHER_ARCHIVES))]
    whole = [one for one in names if one.split(".")[0].lower() not in usual and not re.search(r"-\d+\.", one)]
    return "; ".join(
        f"found {name}: "
        + (f"give {files.root / name} instead of its folder" if is_tar(name) else "unpack it, or make a tar of it")
        for name in whole[:3]
    )


def open_class_folders(
    root: str | Path, split: str | None = None, cache_dir: str | Path | None = None, allow_empty: bool = False
) -> FileSource:
    """A folder or tar of class folders; images may lie deeper inside them. Labels count the folders in order of names.

    Args:
        root: CLASS/IMAGE below a folder; in a tar also SPLIT/CLASS/IMAGE, and all of that below one common folder.
        split: Folder in a tar that holds the class folders; None where the tar is one dataset.
        cache_dir: Where a compressed tar is unpacked; None is `default_cache_dir()`.
        allow_empty: Whether there may be class folders without images.

    Raises:
        DataError: No readable tar, no class folders, one without images, or no such split.
    """
    files = Files(root, cache_dir)
    if files.index is None:
        classes = files.folders()
        if not classes:
            raise DataError(f"{root}: no class folders; wanted {root}/CLASS/IMAGE.jpg, a tar or shards")
        images, start = [name for name in files.images() if "/" in name], ""
    else:
        images, start = _in_split(files, split)
        classes = sorted({name[len(start) :].split("/")[0] for name in images})
    label = {name: number for number, name in enumerate(classes)}
    found = [(name[len(start) :].split("/")[0], name) for name in images]
    found = sorted(one for one in found if one[0] in label)
    if (empty := sorted(set(classes) - {name for name, _ in found})) and not allow_empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no image: {shown}. "
            f"Remove them, or add images ({' '.join(sorted(EXTENSIONS))})"
        )
    # what is no UTF-8 as text, which recipes and checkpoints can hold
    shown = [name.encode(errors="backslashreplace").decode() for name in classes]
    return FileSource(files, [name for _, name in found], [label[name] for name, _ in found], shown)


def splits_in_tar(files: Files) -> list[str]:
    """The folders of splits in a tar, those for training first; empty where it has class folders alone."""
    _, inside = _start(files.images())
    return [name for names in SPLITS for name in sorted(inside or ()) if name.lower() in names]


def _start(images: Sequence[str]) -> tuple[str, set[str] | None]:
    """The one folder that all images are in, with a slash behind, and the folders in it; None for these where some are
    class folders, which hold images."""
    start = ""
    while True:
        if any(name.count("/", len(start)) < 2 for name in images):
            return start, None
        inside = {name[len(start) :].split("/")[0] for name in images}
        if len(inside) != 1:
            return start, inside
        start += f"{inside.pop()}/"


def _in_split(files: Files, split: str | None) -> tuple[list[str], str]:
    """The images of a split of a tar, and the folder that holds its class folders, with a slash behind."""
    images = files.images()
    if not images:
        raise DataError(f"{files.root}: no images in it ({len(files.names)} other files)")
    start, inside = _start(images)
    if split is not None and start.rstrip("/").rpartition("/")[2].lower() not in split_names(split):
        own = of_split(split, inside or ())
        if own is None:
            there = sorted(inside or {name[len(start) :].split("/")[0] for name in images})
            raise MissingSplitError(f"{files.root}: no folder {split!r} in it; there is {', '.join(there[:8])}")
        start += f"{own}/"
        images = [name for name in images if name.startswith(start)]
    if any("/" not in name[len(start) :] for name in images):
        raise DataError(
            f"{files.root}: images outside of class folders; wanted CLASS/IMAGE.jpg, or for WebDataset, format: shards"
        )
    return images, start


def open_files(paths: Sequence[str | Path]) -> FileSource:
    """Images without labels, for prediction: files, folders (all images below them), or a tar.

    Raises:
        DataError: A path does not exist, or no image was found.
    """
    if len(paths) == 1 and is_tar(paths[0]):
        files = Files(paths[0])
        names = files.images()
    else:
        files, names = Files("."), []
        for path in map(Path, paths):
            if is_tar(path) and path.is_file():
                raise DataError(f"{path}: a tar must be given alone")
            if path.is_dir():
                names += [os.path.normpath(path / name) for name in Files(path).images()]
            elif path.is_file():
                names.append(os.path.normpath(path))
            else:
                raise DataError(f"{path}: no such file or folder")
    if not names:
        raise DataError(f"{', '.join(map(str, paths))}: no image found (looked for {' '.join(sorted(EXTENSIONS))})")
    return FileSource(files, names, anywhere=True)
