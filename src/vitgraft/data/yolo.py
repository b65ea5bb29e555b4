"""YOLO's text files, one for each image, as the entries of a COCO json.

A line is the number of a class and x, y of the center, width and height of its box; or, of a mask, the points x, y of a
polygon, at least three. All are fractions of the image's width and height. Category ids are YOLO's numbers, from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitgraft.data.coco import Entries
from vitgraft.data.image_sizes import sizes_of
from vitgraft.data.layout import ObjectSplit, yolo_classes, yolo_yaml
from vitgraft.data.readers.folder_or_tar import Files

__all__ = ["Yolo"]

BEYOND = 1e-3  # what rounding may add to fractions of 0 to 1
_KINDS = {
    "numbers": "lines are none of YOLO's, a class and 4 numbers of a box or at least 3 points of a polygon",
    "scores": "lines have 6 numbers, as predictions with a score do: leave the score out",
    "fractions": (
        "lines have coordinates outside of 0 to 1, which are fractions of the image's width and height: divide pixels "
        "by them, clip what goes beyond"
    ),
    "class": "",
}


class Yolo:
    """The text files of a dataset.

    Args:
        files: The dataset.
        splits: As of `yolo_splits`.

    Raises:
        DataError: The classes are not named.
    """

    def __init__(self, files: Files, splits: Mapping[str, ObjectSplit]):
        self.files, self.splits = files, splits
        self.named_in, self.classes = yolo_classes(files)
        described = yolo_yaml(files)
        self.has_keypoints = described is not None and "kpt_shape" in described[1]

    def entries(self, split: str) -> Entries:
        """A split as entries of a COCO json; ids of annotations name their file and line.

        Args:
            split: One of `splits`.
        """
        pairs = self.splits[split].pairs
        sizes = sizes_of(self.files, [str(image) for image, _ in pairs])
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        found: dict[str, list[str]] = {kind: [] for kind in (*_KINDS, "twice")}
        for number, ((image, label), (height, width)) in enumerate(zip(pairs, sizes, strict=True), start=1):
            images.append({"id": number, "file_name": image, "height": height, "width": width})
            lines: set[bytes] = set()
            for place, line in enumerate((self.files.read(label) or b"").splitlines() if label else (), start=1):
                if not (line := line.strip()):
                    continue
                name = f"{label} line {place}"
                if line in lines:
                    found["twice"].append(name)
                    continue
                lines.add(line)
                kind, entry = self._read(line, (height, width))
                if kind:
                    found[kind].append(f"{name}: {line[:60].decode(errors='replace')}")
                else:
                    annotations.append({"id": name, "image_id": number, "iscrowd": 0, **entry})
        count, most = len(self.classes), len(self.classes) - 1
        beyond = f"lines have a class beyond the {count} (0 to {most}) of {self.named_in}: name it there, or correct it"
        words = {**_KINDS, "class": beyond}
        findings = [("error", kind, words[kind], found[kind]) for kind in _KINDS]
        findings.append(("warning", "duplicate", "lines are twice in their file: taken once", found["twice"]))
        if self.has_keypoints:
            findings.append(
                ("warning", "keypoints", "files hold keypoints: their boxes are read alone", [self.named_in])
            )
        lists = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(self.classes)],
        }
        return Entries(lists, findings)

    def _read(self, line: bytes, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
        """What is wrong with a line, a key of `_KINDS` or "", and its annotation."""
        height, width = size
        try:
            category, *numbers = map(float, line.split())
        except ValueError:
            return "numbers", {}
        if self.has_keypoints:
            numbers = numbers[:4]
        if len(numbers) == 5:
            return "scores", {}
        if (len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2)) or category != int(category):
            return "numbers", {}
        if not all(-BEYOND <= one <= 1 + BEYOND for one in numbers):  # nan, too
            return "fractions", {}
        if not 0 <= category < len(self.classes):
            return "class", {}
        if len(numbers) == 4:
            x, y, w, h = numbers
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            return "", {"category_id": int(category), "bbox": box, "area": max(0.0, box[2] * box[3])}
        points = [one * (height if place % 2 else width) for place, one in enumerate(numbers)]
        xs, ys = points[::2], points[1::2]
        area = abs(sum(xs[n - 1] * ys[n] - xs[n] * ys[n - 1] for n in range(len(xs)))) / 2
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        return "", {"category_id": int(category), "bbox": box, "area": area, "segmentation": [points]}
