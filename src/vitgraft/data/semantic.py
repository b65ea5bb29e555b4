"""Images with a class for every pixel: ADE20K's layout and pairs of folders, as files or in a tar.

| layout | train, val, test of the data module |
|---|---|
| `ROOT/images/SPLIT/NAME.jpg`, `ROOT/annotations/SPLIT/NAME.png` (ADE20K) | `SPLIT`, such as `training` |
| a folder of images and a folder of label files, below ROOT or anywhere | `[IMAGES, LABELS]` |

ROOT is a folder or a tar, and may hold one folder with all of that. An image and its labels have the same path below
their folders but for the ending; `image_suffix` and `label_suffix` are what stands between the common part and the
ending (Cityscapes: `_leftImg8bit`, `_gtFine_labelTrainIds`). Class names are given, or are read from `classes.txt`
(line k names class k) or ADE20K's `objectInfo150.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitgraft.data.decode import decode_annotated
from vitgraft.data.digits import SceneConfig, digit_instances, make_scene
from vitgraft.data.label_maps import LabelHistogram, LabelRule, decode_labels
from vitgraft.data.readers.base import ImageSource, is_image_name
from vitgraft.data.readers.folder import FileSource
from vitgraft.data.readers.tar import TarSource, is_tar, open_index
from vitgraft.errors import DataError, ImageError

__all__ = ["DigitScenePixels", "Files", "PixelSource", "SemanticSource", "open_semantic", "read_class_names"]

IMAGES, ANNOTATIONS = "images", "annotations"
CLASS_FILES = ("classes.txt", "objectInfo150.txt")


class PixelSource:
    """A fixed list of images with a class for every pixel.

    Attributes:
        class_names: of classes 0 to C - 1.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What to call an image in messages: its path."""
        raise NotImplementedError

    def where(self) -> str:
        """What to call the whole source in messages."""
        raise NotImplementedError

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An RGB image and its labels, uint8 (H, W): 0 to C - 1, and 255 where a pixel is ignored.

        Raises:
            ImageError: one of its two files can't be read.
            DataError: the labels can't be: values outside the classes, another size than the image, colours.
        """
        raise NotImplementedError


class SemanticSource(PixelSource):
    """Image files and label files, in pairs.

    Args:
        images: the image files.
        labels: the label file of each.
        rule: what the labels' values mean.
        class_names: of the classes.
    """

    def __init__(self, images: ImageSource, labels: ImageSource, rule: LabelRule, class_names: Sequence[str]):
        self.images, self.labels, self.rule, self.class_names = images, labels, rule, tuple(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def where(self) -> str:
        return self.images.where()

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        image, values = self.load_values(index)
        return image, self.rule.apply(values, self.labels.name(index))

    def load_values(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """An RGB image and the values of its label file as they are, int32 (H, W).

        Raises:
            ImageError: one of its two files can't be read.
            DataError: the labels have colours, or another size than the image.
        """
        name, data = self.labels.name(index), self.images.read(index)
        values = decode_labels(self.labels.read(index), name)
        image = decode_annotated(data, self.images.name(index), values.shape)
        if values.shape != (image.height, image.width):
            raise DataError(
                f"{name}: labels of {values.shape[1]} x {values.shape[0]} pixels for an image of {image.width} x "
                f"{image.height} ({self.images.name(index)}); resize one of them, labels without interpolation"
            )
        return image, values

    def histogram(self, most: int) -> LabelHistogram:
        """Counts the label values of at most `most` images that lie evenly over the set.

        Files that can't be read are left out here: they are named where they are used.

        Raises:
            DataError: labels with colours, or of another size than their image.
        """
        histogram = LabelHistogram()
        count = min(most, len(self))
        for index in np.linspace(0, len(self) - 1, count).round().astype(int).tolist():
            try:
                _, values = self.load_values(index)
            except ImageError:
                continue
            histogram.add(values, self.labels.name(index), self.rule)
        return histogram


class DigitScenePixels(PixelSource):
    """Scenes of handwritten digits: class 0 is the canvas, classes 1 to 10 are the digits' ink.

    Args:
        length: number of scenes.
        split: "train" or "test": of which digit scans they are made.
        seed: which world of scenes.
        config: their looks.
    """

    def __init__(self, length: int, split: str = "train", seed: int = 0, config: SceneConfig | None = None):
        digit_instances(split)  # a missing scikit-learn shows here, not in a worker
        self.length, self.split, self.seed, self.config = length, split, seed, config or SceneConfig()
        self.class_names = ("background", *self.config.class_names)

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"digit scene {self.split}/{index}"

    def where(self) -> str:
        return f"{self.length} digit scenes ({self.split})"

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        scene = make_scene(index, self.seed, self.split, self.config)
        return Image.fromarray(scene.image), scene.semantic_mask


class Files:
    """The files below a folder or in a tar, by their paths with `/`.

    Args:
        root: the folder, or the tar.
        cache_dir: where a compressed tar is unpacked to.

    Raises:
        DataError: neither a folder nor a readable tar.
    """

    def __init__(self, root: str | Path, cache_dir: str | Path | None = None):
        self.root, self.index = Path(root), None
        if is_tar(self.root):
            self.plain, self.index = open_index(self.root, cache_dir)
            names = self.index.names
            self.place = {name: number for number, name in enumerate(names)}
        elif self.root.is_dir():
            names = _walk(self.root)
        else:
            raise DataError(f"{root}: no such folder or tar")
        self.names = sorted(name for name in names if not os.path.basename(name).startswith("."))

    def below(self, folder: str) -> list[str]:
        """The paths of image files below a folder, relative to it."""
        start = "" if folder in ("", ".") else folder.rstrip("/") + "/"
        return [name[len(start) :] for name in self.names if name.startswith(start) and is_image_name(name)]

    def folders(self, folder: str = "") -> list[str]:
        """The folders right below a folder."""
        start = folder + "/" if folder else ""
        inside = (name[len(start) :] for name in self.names if name.startswith(start))
        return sorted({name.split("/")[0] for name in inside if "/" in name})

    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is no such file."""
        if self.index is None:
            path = self.root / name
            return path.read_bytes() if path.is_file() else None
        if name not in self.place:
            return None
        return self.source([name]).read(0)

    def source(self, names: Sequence[str]) -> ImageSource:
        """Some of the files as a source."""
        if self.index is None:
            return FileSource(self.root, names, None, ())
        places = np.array([self.place[name] for name in names], dtype=np.int64)
        return TarSource(self.plain, self.root, names, self.index.offsets[places], self.index.sizes[places], None, ())

    def start(self) -> str:
        """The folder with `images` and `annotations`: the root, or the only folder in it, with a slash behind."""
        for start in ("", *(f"{name}/" for name in self.folders())):
            inside = self.folders(start.rstrip("/"))
            if IMAGES in inside and ANNOTATIONS in inside:
                return start
        return ""


def _walk(root: Path) -> Iterable[str]:
    for here, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(here, root).replace(os.sep, "/")
        yield from (name if below == "." else f"{below}/{name}" for name in names)


def open_semantic(
    root: str | Path | None,
    split: str | Sequence[str],
    rule: LabelRule,
    class_names: Sequence[str],
    image_suffix: str = "",
    label_suffix: str = "",
    files: Files | None = None,
    cache_dir: str | Path | None = None,
) -> SemanticSource:
    """Opens one set of pairs.

    Args:
        root: folder or tar; None where `split` is two folders.
        split: name of a split of ADE20K's layout, or the folder of images and the folder of labels.
        rule: what the labels' values mean.
        class_names: of the classes.
        image_suffix: of image files, between the common part of their name and the ending.
        label_suffix: of label files, likewise.
        files: those of `root`, where they are listed already.
        cache_dir: where a compressed tar is unpacked to.

    Raises:
        DataError: nothing there, or images without labels; the message names the first of them.
    """
    paired, unpaired, without_image = find_pairs(root, split, image_suffix, label_suffix, files, cache_dir)
    if unpaired:
        image, expected = unpaired[0]
        raise DataError(
            f"{len(unpaired)} of {len(paired[0]) + len(unpaired)} images have no label file, the first is {image} "
            f"(looked for {expected}.png); {len(without_image)} label files have no image"
            + (f", the first is {without_image[0]}" if without_image else "")
            + ". Remove what has no partner, or set data.image_suffix and data.label_suffix where the names differ"
        )
    return SemanticSource(*paired, rule, class_names)


def find_pairs(
    root: str | Path | None,
    split: str | Sequence[str],
    image_suffix: str = "",
    label_suffix: str = "",
    files: Files | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[tuple[ImageSource, ImageSource], list[tuple[str, str]], list[str]]:
    """The pairs of a set; images without labels, each with the path that was looked for; labels without images.

    Raises:
        DataError: no images there.
    """
    if root is None and isinstance(split, str):
        raise DataError(f"{split!r} is the name of a split: data.root must name the folder or tar it is in")
    if isinstance(split, str):
        files = files or Files(root, cache_dir)
        start = files.start()
        folders = (f"{start}{IMAGES}/{split}", f"{start}{ANNOTATIONS}/{split}")
        places = (files, files)
        if not files.below(folders[0]):
            there = ", ".join(files.folders(f"{start}{IMAGES}")) or ", ".join(files.folders()) or "nothing"
            raise DataError(
                f"{files.root}: no images in {folders[0]}; there is {there}. Wanted: {IMAGES}/{split}/NAME.jpg and "
                f"{ANNOTATIONS}/{split}/NAME.png, or two folders, [IMAGES, LABELS], instead of {split!r}"
            )
    else:
        if len(split) != 2:
            raise DataError(f"{list(split)}: two folders, that of the images and that of the labels")
        if root is not None and is_tar(root):
            files = files or Files(root, cache_dir)
            places, folders = (files, files), tuple(split)
        else:
            places = tuple(Files(Path(root or "") / folder, cache_dir) for folder in split)
            folders = ("", "")
    by_stem = []
    for place, folder, suffix in zip(places, folders, (image_suffix, label_suffix), strict=True):
        names = {}
        for name in place.below(folder):
            stem = os.path.splitext(name)[0]
            if not stem.endswith(suffix):
                continue  # such as Cityscapes' colour pictures beside the labels
            stem = stem[: len(stem) - len(suffix)]
            if stem in names:
                raise DataError(f"{place.root}/{folder}: {names[stem]} and {name} are of one name; remove one")
            names[stem] = name
        by_stem.append(names)
    images, labels = by_stem
    if not images:
        raise DataError(f"{places[0].root}/{folders[0]}: no images" + (f" *{image_suffix}.jpg" if image_suffix else ""))
    prefix = [f"{folder}/" if folder else "" for folder in folders]
    common = sorted(images.keys() & labels.keys())
    paired = (
        places[0].source([prefix[0] + images[stem] for stem in common]),
        places[1].source([prefix[1] + labels[stem] for stem in common]),
    )
    shown = [f"{place.root}/{start}" for place, start in zip(places, prefix, strict=True)]
    unpaired = [
        (shown[0] + images[stem], shown[1] + stem + label_suffix) for stem in sorted(images.keys() - labels.keys())
    ]
    return paired, unpaired, [shown[1] + labels[stem] for stem in sorted(labels.keys() - images.keys())]


def read_class_names(files: Files) -> list[str] | None:
    """The names in `classes.txt` (one a line) or ADE20K's `objectInfo150.txt`; None where neither is there.

    Raises:
        DataError: such a file is no text, or empty.
    """
    for start in dict.fromkeys(("", files.start())):
        for name in CLASS_FILES:
            data = files.read(start + name)
            if data is None:
                continue
            try:
                lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
            except UnicodeDecodeError as error:
                raise DataError(f"{files.root}/{start}{name}: no text in UTF-8 ({error})") from error
            names = [line for line in lines if line]
            if name == "objectInfo150.txt":  # Idx Ratio Train Val Name, with tabs between
                names = [line.split("\t")[-1].strip() for line in names[1:]]
            if not names:
                raise DataError(f"{files.root}/{start}{name}: empty; one name of a class in each line")
            return names
    return None
