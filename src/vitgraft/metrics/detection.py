"""Average precision of boxes and masks as COCO measures it. Every number comes from faster-coco-eval.

Detections are kept as they come, with the objects of their image, in the pixels of the file; so exactly the images that
were evaluated are measured, each once, over all processes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from vitgraft.data.detection_targets import Objects, encode_mask, to_rle
from vitgraft.errors import MissingExtraError
from vitgraft.metrics.base import BACKGROUND, Report, ReportingMetric, percent
from vitgraft.metrics.figures import confusion_figure, precision_recall_figure
from vitgraft.metrics.matching import SCORE, confusion_of

try:
    from faster_coco_eval import COCO, COCOeval_faster
except ImportError as error:
    raise MissingExtraError("faster-coco-eval", "detection") from error

__all__ = ["DetectionMetrics", "DetectionReport"]

KINDS = {"bbox": "box", "segm": "mask"}
MEASURES = {  # COCO's twelve, in the order of its summary
    "ap": "AP (IoU 0.50 to 0.95)",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small (below 32 x 32 pixels)",
    "ap_medium": "AP medium",
    "ap_large": "AP large (96 x 96 pixels and above)",
    "ar1": "AR, 1 detection an image",
    "ar10": "AR, 10 detections",
    "ar100": "AR, 100 detections",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}


@dataclass
class DetectionReport(Report):
    """What was measured on a dataset. Precisions and recalls are 0 to 1, and None where there are no objects.

    Attributes:
        num_images: Images that were counted.
        num_objects: Objects in them, without crowds.
        num_crowds: Regions of many objects; detections in them are neither correct nor wrong.
        num_detections: Detections.
        num_nonfinite: Detections left out because a coordinate or the score is not finite.
        values: Such as "box_ap", "box_ap50", "mask_ap_small", "box_ar100"; None for masks that are not measured.
        classes: Of each class a row: class, name, objects, detections, box_ap, box_ap50, box_ar, and for masks alike.
        detections: COCO's results, "bbox" and "segm".
        curves: Of "box" and "mask" the mean precision of the classes, float64 (10 IoUs, 101 recalls).
        confusion: int64 (C + 1, C + 1), of detections with a score of at least 0.5: rows are the true classes, columns
            the detected ones, by boxes that overlap with an IoU of at least 0.5; the last ones are the background.
    """

    num_images: int
    num_objects: int
    num_crowds: int
    num_detections: int
    num_nonfinite: int
    values: dict[str, float | None]
    classes: list[dict[str, Any]]
    detections: dict[str, list[dict[str, Any]]] = field(repr=False)
    curves: dict[str, np.ndarray] = field(repr=False)
    confusion: np.ndarray = field(repr=False)

    kind: ClassVar = "detection evaluation"
    labels: ClassVar = {
        "num_images": "images",
        "num_objects": "objects",
        "num_crowds": "crowd regions",
        "num_detections": "detections",
        "num_nonfinite": "detections that are not finite, left out",
        "num_unreadable": "unreadable images, left out",
    }
    hidden_at_zero: ClassVar = frozenset({"num_crowds", "num_nonfinite", "num_unreadable"})
    count_column: ClassVar = "objects"
    weakest_by: ClassVar = "box_ap"

    @property
    def headings(self) -> dict[str, str]:
        """Columns of the classes in tables."""
        measures = {"ap": "AP", "ap50": "AP50", "ar": "AR"}
        shown = {f"{kind}_{name}": f"{kind} {heading}" for kind in self.curves for name, heading in measures.items()}
        return {"objects": "objects", "detections": "detections", **shown}

    @property
    def num_classes(self) -> int:
        """Classes of the model."""
        return len(self.classes)

    def numbers(self) -> dict[str, float | int | None]:
        """All numbers by name: COCO's twelve for boxes and for masks, then counts."""
        return {**self.values, **super().numbers()}

    def class_rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Objects, detections, AP, AP50 and AR of each class."""
        return [{**row, "name": name} for row, name in zip(self.classes, class_names, strict=True)]

    def figures(self, class_names: Sequence[str], title: str) -> dict[str, Any]:
        """Precision against recall, and the confusion matrix with the background."""
        return {
            "precision_recall.png": precision_recall_figure(self.curves, title),
            "confusion.png": confusion_figure(self.confusion, [*class_names, BACKGROUND], title, "objects"),
        }

    def details(self) -> dict[str, Any]:
        """The columns of the classes, and the confusion matrix."""
        columns = {column: [row[column] for row in self.classes] for column in self.headings}
        return {"classes": columns, "confusion": self.confusion.tolist()}

    def files(self) -> dict[str, str]:
        """COCO's results, of boxes and of masks: COCO's own code would take the areas of boxes for those of masks in a
        file with both."""
        return {
            f"detections.{kind}.json": json.dumps(found, separators=(",", ":")) + "\n"
            for kind, found in self.detections.items()
        }

    def summary(self, numbers: Mapping[str, float | int | None]) -> tuple[list[str], list[list[str]]]:
        """COCO's twelve numbers, in a column for boxes and one for masks."""
        rows = [
            [label, *(percent(numbers[f"{kind}_{name}"], 2) for kind in self.curves)]
            for name, label in MEASURES.items()
        ]
        return ["", *self.curves], rows

    def notes(self, numbers: Mapping[str, float | int | None]) -> list[str]:
        """The counts in one line."""
        return [", ".join(f"{shown} {self.labels[name]}" for name, shown in self.shown_numbers(numbers).items())]


class DetectionMetrics(ReportingMetric):
    """Collects detections; its state is a dict by image, which is gathered when the report is made.

    torchmetrics' MeanAveragePrecision(backend="faster_coco_eval") calls the same code, but knows no ids of images, so
    the padding of a distributed sampler is counted twice; it needs a mask for every object, gathers everything to every
    process, and has no AP50 by class.

    Args:
        class_names: Of the labels 1 to C.
        masks: Whether masks are measured too.
        **kwargs: Of torchmetrics.Metric.
    """

    def __init__(self, class_names: Sequence[str], masks: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.class_names, self.masks = tuple(class_names), masks
        self.images: dict[int, dict[str, Any]] = {}

    def reset(self) -> None:
        """Forgets all images."""
        super().reset()
        self.images = {}

    def update(self, found: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        """Counts the images of a batch. An image that was counted already is not counted again.

        Args:
            found: Of each image `boxes` (N, 4), x0, y0, x1, y1 in pixels of the file, `scores` (N,), `labels` (N,),
                1 to C, and `masks`, (N, H, W) of the file's size, bool or 0 and 1, or N run-length codes.
            targets: Of each image `image_id` and `objects`, as `DetectionSamples` gives them in evaluation.

        Raises:
            ValueError: They do not belong together.
        """
        for one, target in zip(found, targets, strict=True):
            if target["image_id"] not in self.images:
                self.images[target["image_id"]] = self._image(one, target["image_id"], target["objects"])

    def _image(self, found: dict[str, Any], number: int, objects: Objects) -> dict[str, Any]:
        boxes, scores = (found[name].detach().double().cpu() for name in ("boxes", "scores"))
        labels, masks = found["labels"].tolist(), found.get("masks") if self.masks else []
        if masks is None or not len(boxes) == len(scores) == len(labels) or (self.masks and len(masks) != len(boxes)):
            raise ValueError(
                f"image {number}: {len(boxes)} boxes, {len(scores)} scores, {len(labels)} labels and "
                f"{'no' if masks is None else len(masks)} masks; as many of each are needed"
            )
        if isinstance(masks, Tensor) and tuple(masks.shape[1:]) != objects.size:
            raise ValueError(f"image {number}: masks {tuple(masks.shape)} for an image of {objects.size}")
        if labels and not (min(labels) >= 1 and max(labels) <= len(self.class_names) == len(objects.category_ids)):
            raise ValueError(
                f"image {number}: labels {min(labels)} to {max(labels)} for {len(self.class_names)} classes of the "
                f"model and {len(objects.category_ids)} categories of the dataset; they count from 1"
            )
        if isinstance(masks, Tensor):
            masks = masks.detach().cpu().numpy()  # one copy from the GPU, not one for each object
        finite = (boxes.isfinite().all(1) & scores.isfinite()).nonzero().flatten().tolist()
        image: dict[str, Any] = {"objects": objects, "nonfinite": len(boxes) - len(finite), "bbox": [], "segm": []}
        for i in finite:
            x0, y0, x1, y1 = boxes[i].tolist()
            one = {"image_id": number, "category_id": objects.category_ids[labels[i] - 1], "score": float(scores[i])}
            image["bbox"].append({**one, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            if self.masks:  # apart, as a result with both would have the area of its box, not of its mask
                mask = encode_mask(masks[i]) if isinstance(masks, np.ndarray) else masks[i]
                image["segm"].append({**one, "segmentation": mask})
        return image

    def _report(self) -> DetectionReport:
        """The first process computes; the others get its numbers, without the detections."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return self._measure(self.images)
        first = distributed.get_rank() == 0
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.gather_object(self.images, parts if first else None)
        shared: list[Any] = [None]
        if first:
            report = self._measure({number: image for part in reversed(parts) for number, image in part.items()})
            shared = [replace(report, detections={})]  # hundreds of megabytes on COCO, which nobody else writes
        distributed.broadcast_object_list(shared)
        return report if first else shared[0]

    def _measure(self, images: dict[int, dict[str, Any]]) -> DetectionReport:
        images = dict(sorted(images.items()))
        kinds = ("bbox", "segm") if self.masks else ("bbox",)
        truth = self._truth(images)
        detections = {kind: [one for image in images.values() for one in image[kind]] for kind in kinds}
        values = {f"{kind}_{name}": None for kind in KINDS.values() for name in MEASURES}
        rows = _rows(truth, detections["bbox"])
        curves = {}
        for kind in kinds:
            known = truth
            if kind != "bbox":  # an object without a mask can be found as a box, never as a mask
                known = {**truth, "annotations": [one for one in truth["annotations"] if "segmentation" in one]}
            numbers, precision, recall = evaluate(known, detections[kind], kind)
            name = KINDS[kind]
            values |= {f"{name}_{key}": value for key, value in numbers.items()}
            for i, row in enumerate(rows):
                row |= {
                    f"{name}_ap": mean(precision[:, :, i, 0, -1]),
                    f"{name}_ap50": mean(precision[0, :, i, 0, -1]),
                    f"{name}_ar": mean(recall[:, i, 0, -1]),
                }
            present = precision[:, :, (precision[0, 0, :, 0, -1] > -1), 0, -1]
            curves[name] = present.mean(2) if present.shape[2] else np.zeros(present.shape[:2])
        crowds = sum(one["iscrowd"] for one in truth["annotations"])
        return DetectionReport(
            num_images=len(images),
            num_objects=len(truth["annotations"]) - crowds,
            num_crowds=crowds,
            num_detections=len(detections["bbox"]),
            num_nonfinite=sum(image["nonfinite"] for image in images.values()),
            values=values,
            classes=rows,
            detections=detections,
            curves=curves,
            confusion=sum(map(self._confusion, images.values()), np.zeros(2 * (len(self.class_names) + 1,), np.int64)),
        )

    def _confusion(self, image: dict[str, Any]) -> np.ndarray:
        objects: Objects = image["objects"]
        shown = sorted((one for one in image["bbox"] if one["score"] >= SCORE), key=lambda one: -one["score"])
        boxes = torch.tensor([one["bbox"] for one in shown], dtype=torch.float64).reshape(-1, 4)
        labels = [objects.category_ids.index(one["category_id"]) + 1 for one in shown]
        return confusion_of(box_convert(boxes, "xywh", "xyxy"), labels, objects, len(self.class_names))

    def _truth(self, images: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """The objects of these images, as a COCO json."""
        annotations, ids = [], tuple(range(1, len(self.class_names) + 1))
        sizes = {}
        for number, image in images.items():
            objects: Objects = image["objects"]
            ids, sizes[number] = objects.category_ids, objects.size
            for one in objects.annotations:
                code = to_rle(one.get("segmentation"), objects.size) if self.masks else None
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # COCO's code takes an object 0 for none
                        "image_id": number,
                        "category_id": one["category_id"],
                        "bbox": list(one["bbox"]),
                        "iscrowd": int(bool(one.get("iscrowd"))),
                        "area": float(one.get("area", one["bbox"][2] * one["bbox"][3])),
                        **({"segmentation": code} if code is not None else {}),
                    }
                )
        return {
            "info": {},
            "images": [{"id": number, "height": h, "width": w} for number, (h, w) in sizes.items()],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in zip(ids, self.class_names, strict=True)],
        }


def _rows(truth: dict[str, Any], detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    objects, found = Counter(), Counter(one["category_id"] for one in detections)
    for one in truth["annotations"]:
        objects[one["category_id"]] += not one["iscrowd"]
    return [
        {"class": i + 1, "name": one["name"], "objects": objects[one["id"]], "detections": found[one["id"]]}
        for i, one in enumerate(truth["categories"])
    ]


def evaluate(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: str
) -> tuple[dict[str, float | None], np.ndarray, np.ndarray]:
    """COCO's evaluation.

    Args:
        truth: A COCO json.
        detections: COCO's results.
        kind: "bbox" or "segm".

    Returns:
        COCO's twelve numbers, ap to ar_large, None where there are no objects; precision, float64 (10 IoUs, 101
        recalls, C, 4 areas, 3 numbers of detections), and recall, (10, C, 4, 3), -1 where there are no objects.
    """
    classes = len(truth["categories"])
    if not truth["images"]:
        return dict.fromkeys(MEASURES), -np.ones((10, 101, classes, 4, 3)), -np.ones((10, classes, 4, 3))
    reference = COCO(truth, use_deepcopy=True)
    evaluation = COCOeval_faster(reference, reference.loadRes([dict(one) for one in detections]), kind)
    evaluation.run()
    numbers = {
        name: None if value == -1 else float(value) for name, value in zip(MEASURES, evaluation.stats, strict=True)
    }
    precision, recall = (np.asarray(evaluation.eval[name], dtype=np.float64) for name in ("precision", "recall"))
    return numbers, precision, recall


def mean(values: np.ndarray) -> float | None:
    """Of all that are not -1, which COCO writes for a class without objects; None where there are none."""
    present = values[values > -1]
    return float(present.mean()) if present.size else None
