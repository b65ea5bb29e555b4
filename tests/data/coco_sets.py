"""A small COCO set on the disk, with everything that real ones have."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vitgraft.data.detection_targets import encode_mask

# ids with gaps, not in order
CATEGORIES = [{"id": 7, "name": "bolt"}, {"id": 3, "name": "nut"}]


def disc(height: int, width: int, y: int, x: int, radius: int) -> np.ndarray:
    """bool (height, width)"""
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def annotation(number: int, image: int, category: int, box: list, segmentation, **more) -> dict:
    one = {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
    return {**one, "area": box[2] * box[3], "segmentation": segmentation, **more}


def coco_values() -> dict:
    """Polygons, a compressed and an uncompressed run-length code, a crowd, an image without objects, a grey one."""
    mask = disc(40, 60, 20, 30, 8)
    images = [
        {"id": 10, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 4, "file_name": "b.jpg", "height": 50, "width": 48},
        {"id": 99, "file_name": "empty.png", "height": 40, "width": 40},
    ]
    # uncompressed: 50 rows a column; the crowd is columns 10 to 19
    crowd = {"size": [50, 48], "counts": [500, 500, 1400]}
    annotations = [
        annotation(1, 10, 7, [22, 12, 17, 17], encode_mask(mask), area=int(mask.sum())),
        annotation(2, 10, 3, [2, 3, 10, 20], [[2, 3, 12, 3, 12, 23, 2, 23]]),
        annotation(5, 4, 3, [30, 5, 10, 10], [[30, 5, 40, 5, 40, 15, 30, 15]]),
        annotation(6, 4, 3, [10, 0, 10, 50], crowd, iscrowd=1),
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_set(root: Path, values: dict, split: str = "train", seed: int = 0) -> Path:
    """annotations/instances_SPLIT.json and SPLIT/ below a root; b.jpg is grey."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(values))
    generator = np.random.default_rng(seed)
    for one in values["images"]:
        shape = (one["height"], one["width"]) + (() if one["file_name"] == "b.jpg" else (3,))
        Image.fromarray(generator.integers(0, 255, shape).astype(np.uint8)).save(root / split / one["file_name"])
    return root
