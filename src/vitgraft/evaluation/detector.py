"""A detector to predict with: the model of a run and how its images are made ready."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitgraft.data.detection_transforms import DetectionPreprocessing, eval_transform
from vitgraft.errors import CheckpointError
from vitgraft.evaluation.classifier import load_weights, read_run

__all__ = ["Detector", "detect", "open_detector"]


@dataclass(frozen=True)
class Detector:
    """A model with all that its predictions need.

    Attributes:
        model: in eval mode: (list of (3, H, W), sizes=[(H, W) of the file]) -> boxes, scores, labels and masks of each.
        preprocessing: what it expects of its images.
        class_names: of the labels 1 to C.
        source: where it comes from, in words.
        weights: "raw" or "ema" (averaged).
    """

    model: nn.Module
    preprocessing: DetectionPreprocessing
    class_names: tuple[str, ...]
    source: str
    weights: str

    def facts(self) -> dict[str, Any]:
        """What a file of predictions says of its origin."""
        return {"model": self.source, "weights": self.weights, "preprocessing": asdict(self.preprocessing)}


def open_detector(what: str, weights: str | None = None) -> Detector:
    """Loads the detector of a run.

    Args:
        what: the run's folder (its best.ckpt, else last.ckpt), or a checkpoint.
        weights: "raw" or "ema"; None takes the averaged ones where there are any.

    Raises:
        CheckpointError: nothing there, damaged, or not of a detector.
    """
    checkpoint, path = read_run(what)
    from vitgraft.tasks.detection import Detection

    options = checkpoint["hyper_parameters"]
    if not checkpoint["task"].endswith(".Detection") or not isinstance(options.get("model"), str):
        raise CheckpointError(f"{path}: of a run of {checkpoint['task']}, which is no detector made by a model's name")
    task = Detection(**{**options, "pretrained": False, "checkpoint_path": None})
    model = task.build()
    weights = load_weights(model, checkpoint, path, weights)
    known = {field.name for field in fields(DetectionPreprocessing)}
    config = {name: value for name, value in (options.get("data_config") or {}).items() if name in known}
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    if "input_size" in config:
        config["input_size"] = config["input_size"][-2:]
    source = f"{options['model']} of {path}"
    return Detector(model.eval(), DetectionPreprocessing(**config), tuple(task.class_names), source, weights)


@torch.inference_mode()
def detect(detector: Detector, image: Image.Image) -> dict[str, np.ndarray]:
    """The objects in an image, the surest first.

    Args:
        detector: what predicts.
        image: RGB, of any size.

    Returns:
        boxes float32 (N, 4), x0, y0, x1, y1 in pixels of the image, scores float32 (N,), labels int64 (N,), 1 to C,
        and masks bool (N, H, W) where the model has them. What is not finite is left out.
    """
    device = next(detector.model.parameters()).device
    pixels = eval_transform(detector.preprocessing)(image).to(device)
    found = detector.model([pixels], sizes=[(image.height, image.width)])[0]
    finite = found["boxes"].isfinite().all(1) & found["scores"].isfinite()
    order = torch.argsort(found["scores"].nan_to_num(-1), descending=True, stable=True)
    order = order[finite[order]]
    return {name: found[name][order].cpu().numpy() for name in ("boxes", "scores", "labels", "masks") if name in found}
