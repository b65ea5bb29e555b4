"""Images with objects, of any dataset: their annotations, masks, and the targets of a detector.

An object is a dict in COCO's words: `bbox` [x, y, width, height] in pixels, `category_id` of the dataset, `iscrowd`,
`area` in pixels, and `segmentation` (polygons, or a run-length code) where there are masks. Labels count the categories
in the order of their ids: 1 to C; 0 is the background.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from vitgraft.data.digits import NUM_DIGITS, DigitScenes, scene_config
from vitgraft.data.readers.base import Source
from vitgraft.errors import MissingExtraError

try:
    from faster_coco_eval.core import mask as rle_codec
except ImportError as error:
    raise MissingExtraError("faster-coco-eval", "detection") from error

__all__ = ["DigitObjects", "ObjectSource", "Objects", "encode_mask", "to_rle", "to_target"]


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
    """The scenes of handwritten digits (`vitgraft.data.digits`), with a box and a mask for each digit.

    Args:
        length: Number of scenes.
        seed: Which world of scenes.
        split: "train" or "test": which digit scans the scenes are made of.
        size: Side of the square scenes, pixels, a multiple of 4; all digits grow with it.
        num_classes: So many instead of 10, for trying a recipe: digit d is of class d modulo it.
    """

    has_masks = True

    def __init__(
        self, length: int, seed: int = 0, split: str = "train", size: int = 64, num_classes: int | None = None
    ):
        super().__init__(length, seed, split, scene_config(size))
        self.category_ids = tuple(range(1, (num_classes or NUM_DIGITS) + 1))
        if num_classes is not None:
            self.class_names = tuple(f"class_{i}" for i in range(num_classes))

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
    polygons = [_clipped(list(map(float, polygon)), size) for polygon in segmentation or [] if is_polygon(polygon)]
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


def check_segmentation(segmentation: Any, size: tuple[int, int]) -> str:
    """Why a segmentation can't be used; empty where it can.

    Args:
        segmentation: Polygons, or a run-length code.
        size: (height, width) of the image.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2:
                length = len(polygon) if isinstance(polygon, list) else "no"
                return f"a polygon is a list of x, y, x, y ..., this one has {length} numbers"
            if len(polygon) < 6:
                return f"a polygon of {len(polygon) // 2} points; at least 3 have an inside"
            if not are_numbers(polygon):
                return "a polygon with nan, infinity, or what is no number"
        return ""
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        return "neither polygons nor a run-length code with size and counts"
    try:
        area = int(decode_mask(_encode(segmentation, size)).sum())
    except Exception as error:  # whatever the decoder makes of damaged text
        return f"a run-length code that can't be used: {error}"
    return "" if area else "a mask without a pixel"


# boxes and targets


def are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


def is_box(box: Any) -> bool:
    """Whether it is x, y, width, height in finite numbers."""
    return are_numbers(box) and len(box) == 4


def is_polygon(polygon: Any) -> bool:
    """Whether it has at least 3 points, whole ones, all finite."""
    return are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0


def usable(annotation: dict[str, Any]) -> bool:
    """Whether an object can be learned: a box with finite numbers and at least one pixel wide and high, no crowd.

    SwinTransformer/Swin-Transformer-Object-Detection mmdet/datasets/coco.py `_parse_ann_info` leaves out the others.
    """
    box = annotation["bbox"]
    return not annotation.get("iscrowd") and is_box(box) and min(box[2:]) >= 1


def is_inside(box: list[float], size: tuple[int, int]) -> bool:
    """Whether a part of a box x, y, width, height lies in an image of (height, width)."""
    x, y, w, h = box
    return x < size[1] and y < size[0] and x + w > 0 and y + h > 0


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
        known = annotation["category_id"] in labels
        if not (known and usable(annotation) and is_inside(annotation["bbox"], objects.size)):
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
