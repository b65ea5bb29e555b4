"""What an unknown dataset holds, for the recipe that `vitgraft init` writes: task, classes, sizes, objects.

It is opened by the data modules that train on it, by their rules: what they refuse is refused here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.data.base import DataModule
from vitgraft.data.check_semantic import PairCheck
from vitgraft.data.classification import ImageData
from vitgraft.data.decode import open_image
from vitgraft.data.findings import Options
from vitgraft.data.image_sizes import HEADER, sizes_of_source
from vitgraft.data.label_maps import find_pairs, read_class_names
from vitgraft.data.layout import OBJECT_FORMATS, layouts_of, semantic_splits
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.data.segmentation import SegmentationData
from vitgraft.data.split import Part
from vitgraft.errors import DataError, ImageError, MissingSplitError, RecipeError
from vitgraft.training.check_recipe import recipe_errors

__all__ = ["TASKS", "Dataset", "inspect"]

TASKS = ("classification", "detection", "instances", "segmentation")
# tables of the colors of label maps that are taken where they lie beside them
COLOR_TABLES = ("colors.csv", "colours.csv", "class_dict.csv", "labelmap.txt")
SMALL = 1000  # images; of fewer, a tenth would be too few to measure by
LOOKED_AT = 64  # label maps whose values are counted
FEW = 16  # files whose headers are compared
OBJECTS_OF = 2000  # images whose objects are measured


@dataclass(frozen=True)
class Dataset:
    """A dataset and how a run reads it.

    Attributes:
        task: One of `TASKS`: boxes are "detection", boxes with masks "instances".
        options: Of the data module: name -> value and why it has it; `root` is the first.
        layout: What it was recognized by.
        train: Number of training images.
        val: Number of validation images.
        class_names: Of the labels, in their order.
        counts: Images (classification) or objects of each class in training; empty where they are not counted.
        sizes: int64 (N, 2), height and width of training images, or of a sample of them.
        sides: Square root of the area of each box, pixels; empty without boxes.
        most_objects: Largest number of objects in a training image.
    """

    task: str
    options: dict[str, tuple[Any, str]]
    layout: str
    train: int
    val: int
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    sizes: np.ndarray
    sides: np.ndarray = field(default_factory=lambda: np.zeros(0))
    most_objects: int = 0

    def __str__(self) -> str:
        names = ", ".join(self.class_names[:4]) + (", ..." if len(self.class_names) > 4 else "")
        classes = f"{len(self.class_names)} class{'es' * (len(self.class_names) != 1)}" + f" ({names})" * (
            len(names) < 60
        )
        return f"{self.train:,} training and {self.val:,} validation images, {classes}"


def inspect(root: str, task: str | None = None, given: Mapping[str, Any] | None = None) -> Dataset:
    """Finds out what a run on a dataset needs.

    Args:
        root: As `data.root` takes it.
        task: One of `TASKS`; None infers it.
        given: Options of the data module that are set.

    Raises:
        DataError: Several tasks or formats fit, the files can't be used, or there is nothing to learn; the message
            names the option that decides.
        RecipeError: Options that the data module does not take.
    """
    given = dict(given or {})
    layouts = layouts_of(root, given.get("cache_dir"))
    kind = {"instances": "detection"}.get(task, task) or _task_of(root, layouts)
    if task is None and kind == "classification":
        _check_no_masks(root)
    chosen: dict[str, tuple[Any, str]] = {"root": (root, "")} | {name: (value, "") for name, value in given.items()}
    if kind == "segmentation":
        chosen |= _label_rule(root, given)
    if task == "detection":
        chosen.setdefault("masks", (False, "boxes alone"))
    data = _open(kind, chosen)
    source = data.source("train")
    layout = next((f"{name} ({where})" for name, where in layouts.items() if name == kind), "")
    details: dict[str, Any] = {}
    if kind == "detection":
        task = _with_masks(data, task)
        layout = OBJECT_FORMATS[data.annotations.format]
        details = {"sizes": source.sizes, "counts": tuple(source.per_class.values()), **_objects_of(source)}
    elif kind == "segmentation":
        layout, details = "label maps", {"sizes": sizes_of_source(source.images), "counts": ()}
    else:
        whole = source.source if isinstance(source, Part) else source
        layout = "a table" if hasattr(whole, "tables") else "class folders"
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        details = {"sizes": sizes_of_source(source), "counts": tuple(counts.tolist())}
    if not len(details["sizes"]):
        raise DataError(f"{root}: no training image can be read; vitgraft check-data lists all")
    sizes = (len(source), len(data.source("val")))
    return Dataset(task or kind, chosen, layout, *sizes, tuple(map(str, source.class_names)), **details)


def _task_of(root: str, layouts: Mapping[str, str]) -> str:
    """The task by what lies there."""
    objects = [name for name in layouts if name in OBJECT_FORMATS]
    if objects and "semantic" in layouts:
        raise DataError(
            f"{root}: boxes or masks of objects ({OBJECT_FORMATS[objects[0]]}: {layouts[objects[0]]}), and label maps "
            f"({layouts['semantic']}): set --task to detection, instances or segmentation"
        )
    return "detection" if objects else "segmentation" if layouts else "classification"


def _check_no_masks(root: str) -> None:
    """Refuses two folders with files of the same names and sizes, of which one has gray or palette images alone.

    Raises:
        DataError: They may be two classes, or images and their masks.
    """
    files = Files(root) if Path(root).is_dir() else None
    folders = files.folders() if files is not None else []
    if len(folders) != 2:
        return
    names = [{os.path.splitext(name)[0]: f"{folder}/{name}" for name in files.images(folder)} for folder in folders]
    common = sorted(names[0].keys() & names[1].keys())[:FEW]
    if len(common) < 2 or len(names[0]) != len(names[1]):
        return
    with contextlib.suppress(ImageError):
        pairs = [[open_image(files.read(one[stem], HEADER), stem) for one in names] for stem in common]
        masks = [all(pair[number].mode in ("1", "L", "P") for pair in pairs) for number in (0, 1)]
        if sum(masks) == 1 and all(one.size == other.size for one, other in pairs):
            images, labels = folders[masks[0]], folders[masks[1]]
            raise DataError(
                f"{root}: {images} and {labels} have images of the same names and sizes. Two classes: --task "
                f"classification; images and their masks: --task segmentation --data.train=[{images},{labels}]"
            )


def _open(kind: str, chosen: dict[str, tuple[Any, str]]) -> DataModule:
    """The data module, with a validation part where the dataset has none; what it takes is added to the options."""
    if kind == "detection":
        from vitgraft.data.detection import DetectionData as cls  # needs the extra `detection`
    else:
        cls = {"classification": ImageData, "segmentation": SegmentationData}[kind]
    path = f"{cls.__module__}.{cls.__name__}"

    def opened(**more: Any) -> DataModule:
        options = {name: value for name, (value, _) in chosen.items()} | more
        if errors := recipe_errors({"data": {"class_path": path, "init_args": options}}, {}, {}):
            raise RecipeError(errors)
        return cls(**options)

    data = opened()
    try:
        for split in ("train", "val"):
            data.source(split)
    except MissingSplitError:
        if "val_fraction" in chosen:
            raise
        data = opened(val_fraction=0.1)
        count = sum(len(data.source(split)) for split in ("train", "val"))
        chosen["val_fraction"] = (0.1 if count >= SMALL else 0.2, "there is no validation split; seeded, by class")
        data = opened()
    data.setup("fit")
    if "test" not in chosen and _has_test(opened(test="test"), data):
        chosen["test"] = ("test", "for `vitgraft test`, once, at the end")
    return data


def _has_test(with_test: DataModule, data: DataModule) -> bool:
    """Whether there is a test split of the same classes."""
    try:
        with_test.check_pair(data.source("train"), with_test.source("test"))
    except DataError:
        return False
    return True


def _with_masks(data: Any, task: str | None) -> str:
    """ "instances" or "detection", by the task that is set and the masks that are there."""
    source = data.source("train")
    without, total = source.left_out["no segmentation"], source.total
    if task == "instances" and not source.has_masks:
        raise DataError(f"{source.where}: no object has a mask: --task detection trains on their boxes")
    if task is None and source.has_masks and without:
        raise DataError(
            f"{source.where}: {total - without} of {total} objects have masks. The boxes of all: --task detection; "
            "those with masks alone: --task instances"
        )
    return "instances" if source.has_masks else "detection"


def _objects_of(source: Any) -> dict[str, Any]:
    """Sides of the boxes, and the most objects of an image."""
    places = np.linspace(0, len(source) - 1, min(len(source), OBJECTS_OF)).round().astype(int).tolist()
    boxes = [[one["bbox"] for one in source.objects(place).annotations] for place in places]
    areas = np.array([width * height for image in boxes for _, _, width, height in image])
    return {"sides": np.sqrt(areas.clip(min=0)), "most_objects": int(source.counts[:, 1].max(initial=0))}


def _label_rule(root: str, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """What the values of label maps mean, as far as it is not set: by classes.txt, by a table of colors, or by a count
    of the values in some of them.

    Raises:
        DataError: Colors without a table.
    """
    files = Files(root, given.get("cache_dir"))
    if any(given.get(name) is not None for name in ("colors", "label_values", "reduce_zero_label")):
        return _numbered(files, given)
    check = _some_labels(files, given)
    listed = {*files.listed(), *(f"{folder}/{name}" for folder in files.folders() for name in files.listed(folder))}
    table = next((name for name in sorted(listed) if os.path.basename(name) in COLOR_TABLES), None)
    colors = [one.errors["colors"] for one in check.examined.values() if "colors" in one.errors]
    palette = any(one.palette for one in check.examined.values())
    if table and (colors or palette):
        return {"colors": (table, "the masks are in colors; this table names their classes")}
    if colors:
        raise DataError(
            f"{colors[0].partition(';')[0]}: name the table of the colors, --data.colors FILE, with a line "
            "red,green,blue,name for each class"
        )
    values = [one.values for one in check.examined.values() if one.values is not None]
    found = np.unique(np.concatenate([*values, np.zeros(0, np.int32)])).tolist()
    inside = [value for value in found if value != 255]
    if found == [0, 255]:
        text = "the masks hold 0 and 255; rename the classes as you like"
        return {"label_values": ({0: "background", 255: "object"}, text)}
    if inside and len(inside) <= max(inside) / 2 and not check.class_names:  # such as 0, 85, 170
        return {"label_values": ({value: f"value_{value}" for value in found}, "those in the masks; name the classes")}
    list(check.infer_rule([check]))
    rule = check.rule
    shown = f"values of {len(values)} masks: {', '.join(map(str, found[:14]))}{' ...' if len(found) > 14 else ''}"
    zero = "0 is ignored, 1 is the first class" if rule.reduce_zero_label else "0 is the first class"
    reduce = {"reduce_zero_label": (rule.reduce_zero_label, f"{zero}; {shown}")}
    return reduce | _numbered(files, {**given, "num_classes": given.get("num_classes") or rule.num_classes})


def _numbered(files: Files, given: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The number of classes, where nothing names them."""
    named = given.get("class_names") or given.get("colors") or given.get("label_values") or read_class_names(files)
    if named or not given.get("num_classes"):
        return {}
    return {"num_classes": (given["num_classes"], "the largest value and 0; put their names in class_names")}


def _some_labels(files: Files, given: Mapping[str, Any]) -> PairCheck:
    """A sample of the label maps of all splits, examined."""
    pairs_of = [given["train"]] if isinstance(given.get("train"), list) else list(semantic_splits(files).values())
    if not pairs_of:
        raise DataError(
            f"{files.root}: no label maps: wanted folders such as images and masks, or --data.train=[IMAGES,MASKS]"
        )
    suffixes = (given.get("image_suffix") or "", given.get("label_suffix") or "")
    pairs = find_pairs(files, pairs_of[-1] if len(pairs_of) == 1 else pairs_of[0], *suffixes)
    check = PairCheck(pairs, given.get("class_names") or read_class_names(files), Options())
    for index in np.linspace(0, len(check) - 1, min(len(check), LOOKED_AT)).round().astype(int).tolist():
        check.examined[index] = check[index]
    return check
