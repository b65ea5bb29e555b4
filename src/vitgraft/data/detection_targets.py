"""Images with objects, of any dataset: their annotations, masks, and the targets of a detector.

An object is a dict in COCO's words: `bbox` [x, y, width, height] in pixels, `category_id` of the dataset, `iscrowd`,
`area` in pixels, and `segmentation` (polygons, or a run-length code) where there are masks. Labels count the categories
in the order of their ids: 1 to C; 0 is the background.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from vitgraft.data.digits import DigitScenes
from vitgraft.data.learnable import REASONS
from vitgraft.data.readers.base import Source
from vitgraft.errors import MissingExtraError

try:
    from faster_coco_eval.core import mask as rle_codec
except ImportError as error:
    raise MissingExtraError("faster-coco-eval", "detection") from error

__all__ = [
    "REASONS", "DigitObjects", "ObjectSource", "Objects", "decode_mask", "encode_mask", "object_errors", "to_rle",
    "to_target",
]  # fmt: skip

BORDER = 1.0  # pixels that a box may lie outside of its image, or beside its mask, by rounding


class Objects:
    """The objects of one image, as annotated.

    A class of its own, so that nothing walks through thousands of numbers when a batch is moved to a device.

    Attributes:
        annotations: COCO's dicts.
        size: (height, width) of the image, pixels.
        category_ids: Of the labels 1 to C.
    """

    __slots__ = ("annotations", "category_ids", "size")

    def __init__(self, annotations: list[dict[str, Any]], size: tuple[int, int], category_ids: tuple[int, ...]):
        self.annotations, self.size, self.category_ids = annotations, size, category_ids


class ObjectSource(Source):
    """Images with objects; `load` gives the image and its `Objects`.

    Attributes:
        class_names: Of the categories, in the order of their ids.
        category_ids: Of the categories, increasing; they may have gaps.
        has_masks: Whether every object that counts has a segmentation.
    """

    category_ids: tuple[int, ...]
    has_masks: bool

    @property
    def classes(self) -> list[str]:
        return [f"{number} {name}" for number, name in zip(self.category_ids, self.class_names, strict=True)]

    def image_id(self, index: int) -> int:
        """The id of an image in results."""
        raise NotImplementedError


class DigitObjects(DigitScenes, ObjectSource):
    """The scenes of handwritten digits (`vitgraft.data.digits`), with a box and a mask for each digit."""

    has_masks = True

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.class_names) + 1))

    def image_id(self, index: int) -> int:
        return index + 1

    def load(self, index: int) -> tuple[Image.Image, Objects]:
        scene = self.scene(index)
        annotations = [
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "category_id": digit % len(self.category_ids) + 1,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "segmentation": encode_mask(mask),
            }
            for (x0, y0, x1, y1), mask, digit in zip(
                scene.boxes.tolist(), scene.masks, scene.category_ids.tolist(), strict=True
            )
        ]
        return Image.fromarray(scene.image), Objects(annotations, scene.image.shape[:2], self.category_ids)


# masks


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W), bool or 0 and 1, as COCO's compressed run-length code, with text for the counts."""
    return _as_text(rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8)))


def decode_mask(code: dict[str, Any]) -> np.ndarray:
    """A compressed run-length code as uint8 (H, W), 0 and 1."""
    return rle_codec.decode(code)


def to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """A segmentation of any of COCO's three kinds as a compressed run-length code; None where it can't be used.

    That is: nothing there, a code of another size than the image's or one that can't be decoded, no pixel inside.

    Args:
        segmentation: Polygons, an uncompressed code (counts as a list) or a compressed one. Polygons of fewer than 3
            points, which have no inside, are left out.
        size: (height, width) of the image.
    """
    try:
        code = _encode(segmentation, size)
        return code if code is not None and decode_mask(code).any() else None
    except Exception:  # whatever the codec makes of damaged counts
        return None


def _encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    height, width = size
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != tuple(size):
            raise ValueError(f"of {tuple(segmentation['size'])}, the image has {tuple(size)} (height, width)")
        counts = segmentation["counts"]
        if not isinstance(counts, list):
            return segmentation
        if sum(counts) != height * width:
            raise ValueError(f"of {sum(counts)} pixels, the image has {height * width}")
        return _as_text(rle_codec.frPyObjects(segmentation, height, width))
    polygons = [
        _clipped(list(map(float, polygon)), size) for polygon in segmentation or [] if not polygon_error(polygon)
    ]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    return _as_text(rle_codec.merge(rle_codec.frPyObjects(polygons, height, width))) if polygons else None


def _clipped(polygon: list[float], size: tuple[int, int]) -> list[float]:
    """The polygon; where it goes far beyond the image, its part within and around the image.

    The codec walks along each edge in steps of a fifth of a pixel: 1e9 pixels would take minutes and gigabytes. By
    Sutherland and Hodgman, "Reentrant polygon clipping", 1974.
    """
    far = 10 * max(size) + 1000
    if max(map(abs, polygon)) <= far:
        return polygon
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    for axis, side in ((0, -1), (0, 1), (1, -1), (1, 1)):
        inside = [side * point[axis] <= far for point in points]
        kept: list[tuple[float, float]] = []
        for number, point in enumerate(points):
            before = points[number - 1]
            if inside[number] != inside[number - 1]:
                fraction = (side * far - before[axis]) / (point[axis] - before[axis])
                kept.append(tuple(a + fraction * (b - a) for a, b in zip(before, point, strict=True)))
            if inside[number]:
                kept.append(point)
        points = kept
    return [value for point in points for value in point]


def _as_text(code: dict[str, Any]) -> dict[str, Any]:
    counts = code["counts"]
    return {"size": [int(n) for n in code["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def polygon_error(polygon: Any) -> str:
    """Why a polygon can't be used; empty where it can."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        length = len(polygon) if isinstance(polygon, list) else "no"
        return f"a polygon is a list of x, y, x, y ..., this one has {length} numbers"
    if len(polygon) < 6:
        return f"a polygon of {len(polygon) // 2} points; at least 3 have an inside"
    return "" if _are_numbers(polygon) else "a polygon with nan, infinity, or what is no number"


# objects


def object_errors(
    annotation: dict[str, Any],
    size: tuple[int, int] | None,
    category_ids: Container[int],
    masks: bool,
    decode: bool = False,
    segmentations: bool = True,
) -> Iterator[tuple[str, str]]:
    """Reason, a key of `REASONS`, and detail of all that is wrong with an object.

    Args:
        annotation: COCO's dict; `bbox` has four numbers.
        size: (height, width) of its image, pixels; None: there is no such image.
        category_ids: Of the dataset.
        masks: Whether it must have a segmentation.
        decode: As in `segmentation_errors`.
        segmentations: Whether a segmentation is looked at, if there is one.
    """
    if annotation.get("iscrowd"):
        yield "crowd", f"iscrowd {annotation['iscrowd']}"
    if annotation["category_id"] not in category_ids:
        yield "unknown category", f"category {annotation['category_id']}"
    if size is None:
        yield "unknown image", f"image {annotation['image_id']}"
        return
    box, segmentation = annotation["bbox"], annotation.get("segmentation")
    errors = list(box_errors(box, size))
    yield from errors
    if any(REASONS[reason].level == "error" for reason, _ in errors):
        return
    if not segmentation:
        if masks:
            yield "no segmentation", "none"
    elif segmentations:
        yield from segmentation_errors(segmentation, box, size, decode)


def box_errors(box: list[float], size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """Reason and detail of all that is wrong with a box x, y, width, height in an image of (height, width)."""
    x, y, w, h = box
    if not _are_numbers(box):
        yield "box not finite", f"{box}"
    elif w <= 0 or h <= 0:
        yield "box without area", f"{box}"
    else:
        if w < 1 or h < 1:
            is_part = max(box) <= 1 and min(x, y) >= 0 and x + w <= 1.01 and y + h <= 1.01
            yield "normalized" if is_part else "small box", f"{box}"
        shown = f"{box} in {size[1]} x {size[0]}"
        if not (x < size[1] and y < size[0] and x + w > 0 and y + h > 0):
            yield "box outside", shown
        elif x < -BORDER or y < -BORDER or x + w > size[1] + BORDER or y + h > size[0] + BORDER:
            yield "box over the border", shown


def segmentation_errors(
    segmentation: Any, box: list[float], size: tuple[int, int], decode: bool = False
) -> Iterator[tuple[str, str]]:
    """Reason and detail of what is wrong with a segmentation, at most one.

    Args:
        segmentation: Polygons, or a run-length code.
        box: x, y, width, height of the object, pixels.
        size: (height, width) of the image.
        decode: Whether a code is decoded to its pixels: slow, and the only way to see that some of them are missing.
    """
    if isinstance(segmentation, list):
        errors = [polygon_error(polygon) for polygon in segmentation]
        if any(errors):
            yield "segmentation" if all(errors) else "polygon", next(filter(None, errors))
            return
        # COCO's boxes are those of the polygons, before they are drawn on pixels
        xs, ys = ([n for polygon in segmentation for n in polygon[start::2]] for start in (0, 1))
        around = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        if min(*xs, *ys) >= 0 and max(*xs, *ys) <= 1 < max(box[2:]):
            yield "normalized", f"polygons inside one pixel, around {[round(n, 2) for n in around]}, of the box {box}"
            return
        # of other polygons some pixel is inside for sure, and none has to be drawn
        is_doubtful = min(around[2:]) < 2 or not (
            around[0] < size[1] and around[1] < size[0] and around[0] + around[2] > 0 and around[1] + around[3] > 0
        )
        if is_doubtful and min(box[2:]) >= 1 and to_rle(segmentation, size) is None:
            yield "segmentation", f"a polygon without a pixel in the image, around {[round(n, 2) for n in around]}"
            return
    elif not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        yield "segmentation", "neither polygons nor a run-length code with size and counts"
        return
    else:
        try:
            code = _encode(segmentation, size)
            around = rle_codec.toBbox(code).tolist()
            has_pixels = decode_mask(code).any() if decode else around[2] > 0
        except Exception as error:  # whatever the codec makes of damaged text
            yield "segmentation", f"a run-length code that can't be used: {error}"
            return
        if not has_pixels:
            yield "segmentation", "a mask without a pixel"
            return
    corners = [(b[0], b[1], b[0] + b[2], b[1] + b[3]) for b in (box, around)]
    apart = max(abs(one - other) for one, other in zip(*corners, strict=True))
    if apart > 2 * BORDER + 0.02 * max(box[2], box[3]):
        yield "box and mask", f"box {box}, around the mask {[round(n, 1) for n in around]}"


def _are_numbers(values: Sequence[Any]) -> bool:
    try:
        return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    except OverflowError:  # an integer beyond every float
        return False


def to_target(objects: Objects, masks: bool = True) -> dict[str, Any]:
    """The target that torchvision's transforms and detectors take, without crowds and objects without box or mask.

    Args:
        objects: Of one image.
        masks: Whether masks are wanted.

    Returns:
        boxes: float32 (N, 4), x0, y0, x1, y1, inside the image; labels: int64 (N,); masks: uint8 (N, H, W).
    """
    height, width = objects.size
    labels = {category: number + 1 for number, category in enumerate(objects.category_ids)}
    boxes, numbers, decoded = [], [], []
    for annotation in objects.annotations:
        bad = any(REASONS[reason].left_out for reason, _ in box_errors(annotation["bbox"], objects.size))
        if annotation.get("iscrowd") or annotation["category_id"] not in labels or bad:
            continue
        if masks:
            code = to_rle(annotation.get("segmentation"), objects.size)
            if code is None:
                continue
            decoded.append(decode_mask(code))
        x, y, w, h = annotation["bbox"]
        boxes.append([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)])
        numbers.append(labels[annotation["category_id"]])
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=objects.size
        ),
        "labels": torch.tensor(numbers, dtype=torch.int64),
    }
    if masks:
        stacked = np.stack(decoded) if decoded else np.zeros((0, height, width), dtype=np.uint8)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
    return target
