"""Average precision of boxes and masks as COCO measures it. Every number comes from faster-coco-eval.

Detections are kept as they come, with what the set says of their image, in the pixels of the file; so exactly the
images that went by are measured, each once, over all processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitgraft.data.detection_targets import Objects, encode_mask, to_rle
from vitgraft.errors import MissingExtraError

try:
    from faster_coco_eval import COCO, COCOeval_faster
except ImportError as error:
    raise MissingExtraError("faster-coco-eval", "detection") from error
try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError("torchmetrics", "train") from error

__all__ = ["DetectionMetrics", "DetectionReport"]

KINDS = {"bbox": "box", "segm": "mask"}
AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}  # COCO's: below 32 x 32, below 96 x 96 pixels, above
MOST = (1, 10, 100)  # detections of an image
MEASURES = ("ap", "ap50", "ap75", *(f"ap{name}" for name in AREAS if name), *(f"ar{most}" for most in MOST))
MEASURES += tuple(f"ar{name}" for name in AREAS if name)


@dataclass
class DetectionReport:
    """What was measured on a whole set. Precisions and recalls are 0 to 1, and None where there is nothing to find.

    Attributes:
        num_images: images that were counted.
        num_objects: objects in them, without crowds.
        num_crowds: regions of many objects; detections in them are neither right nor wrong.
        num_detections: detections.
        num_nonfinite: detections left out because a coordinate or the score is not finite.
        values: such as "box_ap", "box_ap50", "mask_ap_small", "box_ar100"; None for masks that were not asked for.
        classes: of each class a row: class, name, objects, detections, box_ap, box_ap50, box_ar, and for masks alike.
        detections: COCO's results, "bbox" and "segm".
        curves: of "box" and "mask" the mean precision of the classes, float64 (10 IoUs, 101 recalls).
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

    def numbers(self) -> dict[str, float | int | None]:
        """All numbers by name: counts, then COCO's twelve for boxes and for masks."""
        counts = ("num_images", "num_objects", "num_crowds", "num_detections", "num_nonfinite")
        return {**self.values, **{name: getattr(self, name) for name in counts}}


class DetectionMetrics(Metric):
    """Collects detections; a torchmetrics metric in name, as its state is no tensor.

    Args:
        class_names: of the labels 1 to C.
        masks: whether masks are measured too.
        **kwargs: of torchmetrics.Metric.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

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
            found: of each image `boxes` (N, 4), x0, y0, x1, y1 in pixels of the file, `scores` (N,), `labels` (N,),
                1 to C, and `masks`, (N, H, W) of the file's size, bool or 0 and 1, or N run-length codes.
            targets: of each image `image_id` and `objects`, as `DetectionSamples` gives them in evaluation.

        Raises:
            ValueError: they don't belong together.
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
                f"model and {len(objects.category_ids)} categories of the set; they count from 1"
            )
        if isinstance(masks, Tensor):
            masks = masks.detach().cpu().numpy()  # one copy from the GPU, not one for each object
        finite = (boxes.isfinite().all(1) & scores.isfinite()).nonzero().flatten().tolist()
        kept = []
        for i in finite:
            x0, y0, x1, y1 = boxes[i].tolist()
            one = {
                "category_id": objects.category_ids[labels[i] - 1],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(scores[i]),
            }
            if self.masks:
                one["segmentation"] = encode_mask(masks[i]) if isinstance(masks, np.ndarray) else masks[i]
            kept.append(one)
        return {"objects": objects, "found": kept, "nonfinite": len(boxes) - len(finite)}

    def compute(self) -> dict[str, Tensor]:
        """The numbers of the whole set, over all processes."""
        return {name: torch.tensor(float(n)) for name, n in self.report().numbers().items() if n is not None}

    def report(self) -> DetectionReport:
        """Everything that was counted, over all processes; all of them must call it.

        The first process computes; the others get its numbers, without the detections.
        """
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return self._report(self.images)
        first = distributed.get_rank() == 0
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.gather_object(self.images, parts if first else None)
        shared: list[Any] = [None]
        if first:
            report = self._report({number: image for part in reversed(parts) for number, image in part.items()})
            shared = [replace(report, detections={})]  # hundreds of megabytes on COCO, which nobody else writes
        distributed.broadcast_object_list(shared)
        return report if first else shared[0]

    def _report(self, images: dict[int, dict[str, Any]]) -> DetectionReport:
        images = dict(sorted(images.items()))
        kinds = ("bbox", "segm") if self.masks else ("bbox",)
        truth = self._truth(images)
        detections = {kind: [] for kind in kinds}
        for number, image in images.items():
            for one in image["found"]:
                for kind in kinds:  # apart, as a result with both would have the area of its box, not of its mask
                    part = "bbox" if kind == "bbox" else "segmentation"
                    names = ("category_id", part, "score")
                    detections[kind].append({"image_id": number, **{name: one[name] for name in names}})
        values: dict[str, float | None] = {f"{kind}_{name}": None for kind in KINDS.values() for name in MEASURES}
        rows = _rows(truth, detections["bbox"])
        curves = {}
        for kind in kinds:
            known = truth
            if kind != "bbox":  # an object without a mask can be found as a box, never as a mask
                known = {**truth, "annotations": [one for one in truth["annotations"] if "segmentation" in one]}
            precision, recall = measure(known, detections[kind], kind)
            name = KINDS[kind]
            values |= {f"{name}_{key}": value for key, value in summarize(precision, recall).items()}
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
        )

    def _truth(self, images: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """What the set says of these images, as a COCO json."""
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


def measure(truth: dict[str, Any], detections: list[dict[str, Any]], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """COCO's evaluation.

    Args:
        truth: a COCO json.
        detections: COCO's results.
        kind: "bbox" or "segm".

    Returns:
        precision, float64 (10 IoUs, 101 recalls, C, 4 areas, 3 numbers of detections), and recall, (10, C, 4, 3); -1
        where there is nothing to find.
    """
    classes = len(truth["categories"])
    if not truth["images"]:
        return -np.ones((10, 101, classes, 4, 3)), -np.ones((10, classes, 4, 3))
    reference = COCO(truth, use_deepcopy=True)
    evaluation = COCOeval_faster(reference, reference.loadRes([dict(one) for one in detections]), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    return (np.asarray(evaluation.eval[name], dtype=np.float64) for name in ("precision", "recall"))


def summarize(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """COCO's twelve numbers, ap to ar_large, of what `measure` gives."""
    sizes = list(AREAS.values())[1:]
    numbers = [mean(precision[..., 0, -1]), mean(precision[0, ..., 0, -1]), mean(precision[5, ..., 0, -1])]
    numbers += [mean(precision[..., area, -1]) for area in sizes]
    numbers += [mean(recall[..., 0, place]) for place in range(len(MOST))]
    numbers += [mean(recall[..., area, -1]) for area in sizes]
    return dict(zip(MEASURES, numbers, strict=True))


def mean(values: np.ndarray) -> float | None:
    """Of all that are not -1, COCO's sign for a class without objects; None where there are none."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None
