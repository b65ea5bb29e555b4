"""Predictions of segmenters: the class of each pixel."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitgraft.data.segmentation_transforms import EvalTransform, SegmentationPreprocessing, resize_labels
from vitgraft.metrics.draw import draw_classes
from vitgraft.models.feature_pyramid import pyramid
from vitgraft.models.sliding_window import infer, infer_rows, window_errors
from vitgraft.models.upernet import UperNet
from vitgraft.predict.base import Prediction, Predictor, class_names_of, preprocessing_options
from vitgraft.terminal import short_name
from vitgraft.weights.create import build_backbone

__all__ = ["NO_CLASS", "Segmenter", "best_classes"]

NO_CLASS = 255
MOST_VALUES = 1 << 28
"""Float32 values alive at once, 1 GB: of scores, and of the maps of a model that is given a whole image."""
VALUES_OF_MODEL = 64  # of a pixel, at least: UperNet on Swin-T takes 1.9 kB for each


@dataclass
class Segmenter(Predictor):
    """A `Predictor` of label maps: `predict` returns the class of each pixel, uint8 (H, W): 0 to C - 1, 255: none.

    Attributes:
        model: Images (B, 3, H, W) -> logits (B, C, H, W).
        window: Side of the windows that slide over an image; None: the whole image at once.
        stride: From one window to the next; None: two thirds of a window.
        scales: Factors on the image's size, over which probabilities are averaged.
        flip: Average with the mirrored image.
        full_size: Leave the image's size as it is, whatever the evaluation does.
        top: Largest classes that are shown.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    full_size: bool = False
    top: int = 5

    task: ClassVar = "segmentation"
    noun: ClassVar = "segmenter"
    kind: ClassVar = "segmentations"
    options: ClassVar = (
        *("model", "num_classes", "model_kwargs", "graft", "pool_scales", "dropout", "aux_channels", "aux_weight"),
        *("head_channels", "window", "stride", "scales", "flip"),
    )
    settings: ClassVar = ("window", "stride", "scales", "flip", "full_size", "top")
    memory_hint: ClassVar = "--window N predicts it in windows"

    def __post_init__(self) -> None:
        if errors := window_errors(self.window, self.stride, self.scales):
            raise ValueError("; ".join(errors))
        if self.full_size:
            self.preprocessing = replace(self.preprocessing, short_side=None, long_side=None)

    @classmethod
    def of_run(cls, hyper_parameters: Mapping[str, Any]) -> Self:
        """The segmenter of a run's options, inferred as in its evaluation; its weights are loaded afterwards."""
        h = hyper_parameters
        options = {name: h[name] for name in ("pool_scales", "dropout", "aux_channels") if name in h}
        if "head_channels" in h:
            options["channels"] = h["head_channels"]
        if h.get("aux_weight", 1) <= 0:
            options["aux_channels"] = None
        backbone = pyramid(build_backbone(h["model"], h.get("model_kwargs"), h.get("graft")))
        model = UperNet(backbone, h["num_classes"], **options)
        given = {"short_side": None, "long_side": None, **preprocessing_options(h, SegmentationPreprocessing)}
        return cls(
            model,
            SegmentationPreprocessing(**given),
            class_names_of(h),
            hyper_parameters=h,
            window=h.get("window"),
            stride=h.get("stride"),
            scales=tuple(h.get("scales") or (1.0,)),
            flip=bool(h.get("flip")),
        )

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """RGB image -> float32 (3, H, W), as in the model's evaluation; ValueError where it is too large."""
        return partial(_transform, EvalTransform(self.preprocessing), self._most_pixels())

    @torch.inference_mode()
    def predict_batch(self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray | None]:
        """The class of each pixel of each image; None where no score of it is finite."""
        found = [self._classes(one.to(self.device)[None], size) for one, size in zip(pixels, sizes, strict=True)]
        return [None if (one == NO_CLASS).all() else one for one in found]

    def user_result(self, result: np.ndarray) -> np.ndarray:
        """The class map, uint8 (H, W)."""
        return result

    def _most_pixels(self) -> int | None:
        """Pixels of a prepared image that the model takes whole; None: as many as there are, in windows."""
        if self.window is not None:
            return None
        return int(MOST_VALUES / max(VALUES_OF_MODEL, len(self.class_names)) / max(1.0, *self.scales) ** 2)

    def _classes(self, image: Tensor, size: tuple[int, int]) -> np.ndarray:
        """(1, 3, h, w) to uint8 (H, W) of the given size."""
        classes = len(self.class_names)
        if classes * image.shape[2] * image.shape[3] <= MOST_VALUES:
            # as in the evaluation where the scores of all pixels can be resized at once
            resized = size if classes * size[0] * size[1] <= MOST_VALUES else None
            scores = infer(self.model, image, self.window, self.stride, self.scales, self.flip, resized)
            return best_classes(scores[0], size).cpu().numpy()
        if self.scales != (1.0,) or self.flip:
            raise ValueError(
                f"{image.shape[3]} x {image.shape[2]} pixels of {classes} classes are too many for several scales or "
                "flips: --scales 1 --no-flip"
            )
        strips = infer_rows(self.model, image, self.window, self.stride)
        found = torch.cat([best_classes(strip[0], strip.shape[2:]) for _, strip in strips])
        return resize_labels(found, size).cpu().numpy()

    def metadata(self) -> dict[str, Any]:
        """The model and its inference as a file of predictions describes them."""
        inference = {name: getattr(self, name) for name in ("window", "stride", "scales", "flip")}
        return {**super().metadata(), "inference": inference}

    def areas(self, one: Prediction) -> list[tuple[int, str, int, float]]:
        """(index, name, pixels, fraction) of the classes in an image, by descending area."""
        pixels = np.bincount(one.result.reshape(-1), minlength=NO_CLASS + 1)
        order = [int(i) for i in np.argsort(-pixels, kind="stable") if pixels[i]]
        return [(i, self._name(i), int(pixels[i]), float(pixels[i] / one.result.size)) for i in order]

    def _name(self, index: int) -> str:
        return self.class_names[index] if index < len(self.class_names) else "(no class)"

    def columns(self) -> list[str]:
        """Of a row for each class in an image."""
        return ["width", "height", "class", "name", "pixels", "fraction"]

    def rows(self, one: Prediction) -> list[list[Any]]:
        """One row for each class in the image."""
        size = (one.width, one.height)
        return [[*size, i, name, pixels, f"{fraction:.6g}"] for i, name, pixels, fraction in self.areas(one)]

    def entry(self, one: Prediction) -> dict[str, Any]:
        """Size, files of the drawings, and the areas of the classes."""
        if one.result is None:
            return {}
        areas = [
            {"index": i, "class": name, "pixels": pixels, "fraction": float(f"{fraction:.6g}")}
            for i, name, pixels, fraction in self.areas(one)
        ]
        return {"width": one.width, "height": one.height, **one.files, "classes": areas}

    def counts(self, one: Prediction) -> Counter[str]:
        """Pixels of each class."""
        return Counter({short_name(name): pixels for _, name, pixels, _ in self.areas(one)})

    def summary(self, counts: Counter[str]) -> str:
        """Fractions of the largest classes."""
        return ", ".join(f"{name} {pixels / counts.total():.1%}" for name, pixels in counts.most_common(self.top))

    def draw(self, folder: Path, stem: str, one: Prediction) -> dict[str, str]:
        """Writes labels/STEM.png, 8-bit gray, the class of each pixel, and overlays/STEM.jpg, for people.

        With classes.txt the folder can be read as label files again.
        """
        files = {"labels": folder / "labels" / f"{stem}.png", "overlay": folder / "overlays" / f"{stem}.jpg"}
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.class_names), encoding="utf-8")
        Image.fromarray(one.result).save(files["labels"])
        draw_classes(one.kept, one.result, self.class_names, stem).save(files["overlay"], quality=90)
        return {name: str(path) for name, path in files.items()}


def _transform(transform: EvalTransform, most_pixels: int | None, image: Image.Image) -> Tensor:
    height, width = transform.preprocessing.size_of(image.height, image.width)
    if most_pixels is not None and height * width > most_pixels:
        resized = (width, height) != image.size
        raise ValueError(
            f"{image.width} x {image.height} pixels"
            + (f", resized to {width} x {height}," if resized else "")
            + " are too many for the model at once: --window N predicts them in windows of N pixels"
            + (", --full-size leaves the image's size" if resized else "")
        )
    return transform.image(image)


def best_classes(scores: Tensor, size: Sequence[int]) -> Tensor:
    """The class with the highest score of each pixel, of scores resized bilinearly, a few classes at a time.

    Args:
        scores: (C, h, w).
        size: (H, W).

    Returns:
        uint8 (H, W); 255 where a score is not finite.
    """
    step = max(1, MOST_VALUES // (size[0] * size[1]))
    best, classes = None, None
    for start in range(0, len(scores), step):
        part = scores[start : start + step]
        if tuple(part.shape[1:]) != tuple(size):
            part = F.interpolate(part[None], tuple(size), mode="bilinear", align_corners=False)[0]
        values, found = part.max(0)
        found = (found + start).to(torch.uint8)
        classes = found if best is None else torch.where(values > best, found, classes)
        best = values if best is None else torch.maximum(best, values)  # keeps what is not a number
    return torch.where(best.isfinite(), classes, NO_CLASS)
