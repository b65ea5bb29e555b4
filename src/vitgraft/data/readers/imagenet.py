"""ImageNet-1K validation as it was published: 50,000 images in one flat folder or tar, and a file with their classes.

The ground-truth file has a number from 1 to 1000 for each image. **These numbers are not the usual labels**: they count
the devkit's own order of the classes (ILSVRC2012_ID), whereas everybody's label is the place of the class among the
sorted synsets. The devkit's `meta.mat` has the synset of each ILSVRC2012_ID and is needed to translate, else every
label would be wrong. Kaggle's `LOC_val_solution.csv` names the synset of each image and does without.

Looked for beside the images, one folder above, and in the devkit (ILSVRC2012_devkit_t12/data, or
ILSVRC2012_devkit_t12.tar.gz unpacked or not).
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from pathlib import Path

from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.errors import DataError, MissingExtraError

IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG$", re.IGNORECASE)
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
KAGGLE = "LOC_val_solution.csv"
DEVKIT = "ILSVRC2012_devkit_t12"


def is_imagenet_val(path: Path) -> bool:
    """Whether a folder holds ImageNet's validation images flat."""
    return path.is_dir() and any(IMAGE_NAME.match(entry.name) for entry in path.iterdir())


def open_imagenet_val(path: Path, cache_dir: str | Path | None = None) -> FileSource:
    """The flat validation set; class names are the synsets, labels their places among the sorted ones.

    Args:
        path: Folder of ILSVRC2012_val_NNNNNNNN.JPEG, or a tar of them (ILSVRC2012_img_val.tar).
        cache_dir: Where a compressed tar is unpacked.

    Raises:
        DataError: No such images, or the files with their classes are missing or disagree.
    """
    files = Files(path, cache_dir)
    names = [name for name in files.images() if IMAGE_NAME.search(name)]
    if not names:
        raise DataError(f"{path}: wanted images named ILSVRC2012_val_NNNNNNNN.JPEG")
    synsets = _synsets(path)
    of_images = []
    for name in names:
        if (synset := synsets.get(int(IMAGE_NAME.search(name)[1]))) is None:
            raise DataError(f"{path}: {name} is not among the {len(synsets)} images of the ground truth")
        of_images.append(synset)
    classes = sorted(set(synsets.values()))
    place = {synset: label for label, synset in enumerate(classes)}
    return FileSource(files, names, [place[synset] for synset in of_images], classes)


def _synsets(path: Path) -> dict[int, str]:
    """Number of each validation image -> its synset."""
    if kaggle := _find(path, KAGGLE):
        try:
            rows = csv.DictReader(io.StringIO(kaggle.decode()))
            return {int(row["ImageId"].rsplit("_", 1)[1]): row["PredictionString"].split()[0] for row in rows}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, csv.Error) as error:
            raise DataError(f"{path}: {KAGGLE} is damaged ({error!r})") from error
    truth, meta = _find(path, GROUND_TRUTH), _find(path, META)
    if truth is None:
        raise DataError(
            f"{path}: the classes of the flat validation images are missing: {GROUND_TRUTH} with {META} "
            f"(both in {DEVKIT}.tar.gz), or {KAGGLE}, beside the images or one folder above"
        )
    if meta is None:
        raise DataError(
            f"{path}: {GROUND_TRUTH} counts classes in the devkit's order, and {META}, which lists that order, "
            f"was not found; put it (or {DEVKIT}.tar.gz) beside the ground truth"
        )
    ids = _wordnet_ids(meta)
    try:
        given = [int(line) for line in truth.decode().split()]
    except ValueError as error:
        raise DataError(f"{path}: {GROUND_TRUTH} is damaged ({error}); wanted a number in each line") from error
    if unknown := set(given) - set(ids):
        raise DataError(f"{GROUND_TRUTH}: class {min(unknown)} is not in {META}, which has {min(ids)} to {max(ids)}")
    return {number: ids[class_id] for number, class_id in enumerate(given, start=1)}


def _wordnet_ids(meta: bytes) -> dict[int, str]:
    """ILSVRC2012_ID -> synset of the classes (not of the groups above them) in the devkit's meta.mat."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError("scipy", "train") from error
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}


def _find(path: Path, name: str) -> bytes | None:
    for folder in (path if path.is_dir() else path.parent, path.parent, path.parent.parent):
        for place in (folder / name, folder / DEVKIT / "data" / name):
            if place.is_file():
                return place.read_bytes()
        devkit = folder / f"{DEVKIT}.tar.gz"
        if devkit.is_file() and name != KAGGLE:
            with tarfile.open(devkit) as tar:
                return tar.extractfile(f"{DEVKIT}/data/{name}").read()
    return None
