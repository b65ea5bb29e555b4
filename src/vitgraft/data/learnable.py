"""Whether there is something to learn: the findings that stop a run before its first step, the same in `fit`,
`validate`, `test` and `vitgraft check-data`.

A run looks at all annotations and file names, but decodes a sample of the images only; `check-data` decodes all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vitgraft.data.findings import Check, Finding
from vitgraft.errors import DataError
from vitgraft.terminal import number_of, printable

__all__ = ["LOOKED_AT", "REASONS", "class_findings", "left_out_findings", "look", "show_and_stop"]

LOOKED_AT = 64  # images of a split that are examined before a run
PIXELS = 4_000_000  # of them that are decoded, beside label files; of the other images the header is read


class Reason(NamedTuple):
    """What may be wrong with an object of a detector.

    Attributes:
        level: "error" or "warning".
        left_out: Whether the object can't be learned and training leaves it out.
        words: What such objects are, after their number.
        remedy: How to get them into training.
    """

    level: str
    left_out: bool
    words: str
    remedy: str = ""


# SwinTransformer/Swin-Transformer-Object-Detection mmdet/datasets/coco.py `_parse_ann_info` leaves out crowds, boxes
# beside their image, and boxes narrower than a pixel
REASONS = {
    "keys": Reason(
        "error",
        True,
        "lack what is needed, or have it of a wrong kind",
        "write image_id, category_id and bbox as numbers; iscrowd is 0 or 1, area is 0 or more, or both are absent",
    ),
    "category": Reason(
        "error",
        True,
        "have a category_id that is null, or text that is no number",
        "write the id of one of the categories",
    ),
    "unknown image": Reason("error", True, "are of an unknown image", "image_id must be the id of one of the images"),
    "unknown category": Reason(
        "error", True, "are of an unknown category", "add it to categories, or write the id of one that is there"
    ),
    "crowd": Reason(
        "warning",
        True,
        "are crowds (iscrowd 1)",
        "CVAT writes brush masks as crowds: set iscrowd to 0 where an annotation is one object",
    ),
    "box not finite": Reason(
        "error", True, "have a box with nan or infinity", "write bbox as x, y, width, height in pixels"
    ),
    "box without area": Reason(
        "error",
        True,
        "have a box whose width or height is not above 0",
        "write bbox as x, y, width, height, not as two corners; remove what is no object",
    ),
    "normalized": Reason(
        "error",
        True,
        "have coordinates from 0 to 1, as if divided by the image's sides",
        "multiply them by width and height: COCO's are pixels",
    ),
    "box outside": Reason(
        "error",
        True,
        "have a box that lies beside its image",
        "check the width and height of the images, and that bbox is x, y, width, height in pixels, not two corners",
    ),
    "segmentation": Reason(
        "error",
        True,
        "have a segmentation that can't be used",
        "write each polygon as one flat list x, y, x, y, ... of at least 3 points in pixels, a code with size [height, "
        "width]; or train on boxes only (data.masks=false)",
    ),
    "polygon": Reason("error", False, "have a polygon that can't be used, beside others"),
    "no segmentation": Reason(
        "error",
        True,
        "have no segmentation, where others of the dataset have one",
        "train on boxes only (data.masks=false), or add the masks",
    ),
    "small box": Reason("warning", True, "have a box narrower than a pixel", "enlarge them, if they are objects"),
    "box over the border": Reason(
        "warning",
        False,
        "have a box that goes over the border of its image: it is clipped",
        "Where most do, check that bbox is x, y, width, height, not two corners x, y, x, y",
    ),
    "box and mask": Reason("warning", False, "have a box that does not fit their mask"),
}


def class_findings(where: str, per_class: Mapping[str, int], counted: str, hint: str = "") -> Iterator[Finding]:
    """An error where the classes with data are too few: two are needed, for a detector one.

    Args:
        where: The dataset.
        per_class: Number of images, pixels or objects of each class.
        counted: What `per_class` counts, "images", "pixels" or "objects".
        hint: What leads on, where more is known.
    """
    filled = [name for name, count in per_class.items() if count]
    needed = 1 if counted == "objects" else 2
    if len(filled) < needed:
        usable = "usable objects" if counted == "objects" else counted
        only = f"only class {filled[0]!r} has {usable}" if filled else f"no class has {usable}"
        classes = number_of(len(per_class), "classes")
        hint = hint or f"add {counted} of {'another' if filled else 'a'} class"
        text = f"nothing to learn: of {classes} {only}, {needed} needed; {hint}"
        yield Finding("error", "nothing to learn", where, text, stops=True)


def common_classes(first: Check, other: Check) -> Iterator[Finding]:
    """An error where no class with data in one split has any in another.

    Args:
        first: The training set.
        other: What is evaluated; of label maps both are whole, since a sample may lack rare classes.
    """
    one, two = first.report(), other.report()
    if one.counted == "pixels" and not (first.has_all and other.has_all):
        return
    learned, measured = ({name for name, count in part.per_class.items() if count} for part in (one, two))
    if learned and measured and not learned & measured:
        shown = [", ".join(sorted(map(str, names))[:5]) for names in (learned, measured)]
        text = f"no class that has {two.counted} here ({shown[1]}) has any in {first.where} ({shown[0]})"
        yield Finding("error", "classes", other.where, f"{text}: divide the dataset anew", stops=True)


def left_out_findings(
    where: str,
    per_class: Mapping[str, int],
    left_out: Counter[str],
    total: int,
    most: float,
    examples: Mapping[str, Sequence[str]],
) -> Iterator[Finding]:
    """An error where a detector has no object to learn, or too many of its annotations can't be learned.

    Args:
        where: The dataset.
        per_class: Number of objects to learn, of each class.
        left_out: Reason of `REASONS` -> annotations that can't be learned.
        total: Number of annotations.
        most: Largest fraction of them that may be left out.
        examples: Reason -> annotations that it is of.
    """
    reasons = ", ".join(f"{count} {REASONS[reason].words}" for reason, count in left_out.most_common())
    remedy = next((REASONS[reason].remedy for reason, _ in left_out.most_common(1)), "")
    remedy = f". {remedy}" if remedy else ""
    if not any(per_class.values()):
        why = f"all {total} annotations are left out: {reasons}" if total else "the list annotations is empty"
        hint = remedy.removeprefix(". ") or "annotate objects in some of the images"
        found = [*class_findings(where, per_class, "objects", f"{why}. {hint}")]
    elif left_out.total() > most * total:
        text = (
            f"{left_out.total()} of {total} annotations are left out, more than the fraction max_left_out={most:g}: "
            f"{reasons}{remedy}"
        )
        found = [Finding("error", "left out", where, text, stops=True)]
    else:
        return
    items = [item for reason, _ in left_out.most_common() for item in examples.get(reason, ())[:1]]
    yield from (replace(one, items=items, repeats=tuple(left_out)) for one in found)


def look(check: Check, most: int = LOOKED_AT, pixels: int | None = PIXELS) -> None:
    """Examines a sample of a check's images, which lies evenly over the dataset; each class is in it where they are
    few.

    Args:
        check: Its `examined` is filled.
        most: Images to examine.
        pixels: How many of their pixels are decoded; None is all.
    """
    if check.files is None or getattr(check.files, "blocks", None) is not None:
        return  # shards may have to be downloaded for it
    check.pixels = pixels
    chosen = {*np.linspace(0, len(check) - 1, min(most, len(check))).round().astype(int).tolist()}
    classes, firsts = np.unique(check.files.labels, return_index=True)
    if len(classes) <= most:
        chosen |= {*firsts.tolist()}
    for index in sorted(chosen):
        check.examined[index] = check[index]
    check.look_further()


def show_and_stop(findings: Sequence[Finding], show: bool = True) -> None:
    """Prints each finding in one line, the same of several splits in one, and stops a run where it must.

    Args:
        findings: Of all splits.
        show: Whether to print; one process of several does.

    Raises:
        DataError: With the findings that stop a run, a line each.
    """
    stopping: list[str] = []
    named = {finding.where: finding.repeats for finding in findings if finding.stops}
    merged: dict[tuple[str, bool], list[Finding]] = {}
    for finding in findings:
        if finding.kind not in named.get(finding.where, ()):
            merged.setdefault((finding.message, finding.stops), []).append(finding)
    for (_, stops), alike in merged.items():
        where = ", ".join(dict.fromkeys(finding.where for finding in alike))
        line = replace(alike[0], where=where).line()
        if stops:
            stopping.append(line)
        elif show:
            print(printable(line))
    if stopping:
        raise DataError("\n".join(stopping))
