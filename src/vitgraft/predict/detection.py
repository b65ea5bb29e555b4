"""Predictions of detectors: boxes, scores, labels and masks."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitgraft.data.detection_transforms import DetectionPreprocessing, eval_transform
from vitgraft.metrics.draw import draw_detections
from vitgraft.models.mask_rcnn import MaskRCNN
from vitgraft.predict.base import Prediction, Predictor, class_names_of, preprocessing_options
from vitgraft.weights.create import build_backbone

__all__ = ["Detector"]


@dataclass
class Detector(Predictor):
    """A `Predictor` of objects: `predict` returns a dict for each image, by descending score.

    `boxes` float32 (N, 4), x0, y0, x1, y1 in pixels of the image, `scores` float32 (N,), `labels` int64 (N,), 1 to C,
    and `masks` bool (N, H, W) where the model has them. What is not finite is left out.

    Attributes:
        model: (list of (3, H, W), sizes=[(H, W) of the file]) -> boxes, scores, labels and masks of each.
        class_names: Of the labels 1 to C.
        score: Least score of what is drawn and counted; files hold all detections.
    """

    score: float = 0.5

    task: ClassVar = "detection"
    noun: ClassVar = "detector"
    kind: ClassVar = "detections"
    options: ClassVar = ("model", "num_classes", "model_kwargs", "graft", "masks", "detector")
    settings: ClassVar = ("score",)

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score={self.score:g}: 0 to 1")

    @classmethod
    def of_run(cls, hyper_parameters: Mapping[str, Any]) -> Self:
        """The detector of a run's options; its weights are loaded afterwards."""
        h = hyper_parameters
        backbone = build_backbone(h["model"], h.get("model_kwargs"), h.get("graft"))
        model = MaskRCNN(backbone, h["num_classes"], h.get("masks") in (None, True), **(h.get("detector") or {}))
        preprocessing = DetectionPreprocessing(**preprocessing_options(h, DetectionPreprocessing))
        return cls(model, preprocessing, class_names_of(h), hyper_parameters=h)

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """RGB image -> float32 (3, H, W), as in the model's evaluation."""
        return eval_transform(self.preprocessing)

    @torch.inference_mode()
    def predict_batch(self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
        """The detections in each image, by descending score."""
        return [_sorted(one) for one in self.model([one.to(self.device) for one in pixels], sizes=sizes)]

    def user_result(self, result: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """`boxes`, `scores`, `labels` and `masks`, as torchvision's detectors have them."""
        return {name: torch.from_numpy(values) for name, values in result.items()}

    def columns(self) -> list[str]:
        """Of a row for each object."""
        return ["class", "name", "score", "x", "y", "width", "height"]

    def rows(self, one: Prediction) -> list[list[Any]]:
        """One row for each object."""
        return [
            [label, self.class_names[label - 1], f"{score:.4f}", *(f"{number:.2f}" for number in box)]
            for label, score, box in _objects(one.result)
        ]

    def entry(self, one: Prediction) -> dict[str, Any]:
        """Boxes and masks as COCO has them: [x, y, width, height], and compressed run-length codes."""
        if one.result is None:
            return {}
        from vitgraft.data.detection_targets import encode_mask  # of the `detection` extra

        objects = []
        for number, (label, score, box) in enumerate(_objects(one.result)):
            found = {"class": self.class_names[label - 1], "label": label, "score": round(score, 6)}
            found["bbox"] = [round(value, 3) for value in box]
            if "masks" in one.result:
                found["segmentation"] = encode_mask(one.result["masks"][number])
            objects.append(found)
        return {"width": one.width, "height": one.height, **one.files, "objects": objects}

    def counts(self, one: Prediction) -> Counter[str]:
        """Objects of each class with at least the score."""
        return Counter(self.class_names[label - 1] for label in one.result["labels"][self._confident(one)])

    def summary(self, counts: Counter[str]) -> str:
        """Objects of the most frequent classes."""
        found = ", ".join(f"{name} ({count})" for name, count in counts.most_common(5))
        return f"{found or 'nothing'} (score {self.score:g} or more)"

    def draw(self, folder: Path, stem: str, one: Prediction) -> dict[str, str]:
        """Writes STEM.jpg with the detections of at least the score."""
        chosen = self._confident(one)
        found = {name: values[chosen] for name, values in one.result.items()}
        drawn = draw_detections(
            one.kept, found["boxes"], found["labels"], self.class_names, found["scores"], found.get("masks"), stem
        )
        path = folder / f"{stem}.jpg"
        drawn.save(path, quality=90)
        return {"visualization": str(path)}

    def _confident(self, one: Prediction) -> np.ndarray:
        return np.flatnonzero(one.result["scores"] >= self.score)


def _sorted(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Detections by descending score, without those that are not finite."""
    finite = found["boxes"].isfinite().all(1) & found["scores"].isfinite()
    order = torch.argsort(found["scores"].nan_to_num(-1), descending=True, stable=True)
    order = order[finite[order]]
    return {name: found[name][order].cpu().numpy() for name in ("boxes", "scores", "labels", "masks") if name in found}


def _objects(result: Mapping[str, np.ndarray]) -> list[tuple[int, float, list[float]]]:
    """(label, score, [x, y, width, height]) of each detection."""
    boxes = result["boxes"].astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return list(zip(result["labels"].tolist(), result["scores"].tolist(), boxes.tolist(), strict=True))
