"""A segmenter to predict with, and the classes of an image of any size within a limit of memory."""

import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitgraft.data.segmentation_transforms import SegmentationPreprocessing, resize_image, resize_labels
from vitgraft.errors import CheckpointError
from vitgraft.evaluation.classifier import load_weights, read_run
from vitgraft.evaluation.segmentation import predicted_classes
from vitgraft.evaluation.sliding import infer, infer_rows

__all__ = ["Segmenter", "classes_at_size", "open_segmenter", "peak_bytes", "segment"]

NO_CLASS = 255
# Beside the tensors that PyTorch shows there are the operators' workspaces and what the allocator can't use again
WORKSPACE = 1.5
# Copies of the scores (float32) that are alive where they are resized and compared
SCORE_COPIES = 4
# An image of 2 x 3000 pixels is a mistake rather than one of 180 x 270000
MOST_ENLARGED, MANY_PIXELS = 16, 1 << 24


@dataclass(frozen=True)
class Segmenter:
    """A model with all that its predictions need.

    Attributes:
        model: in eval mode: images (B, 3, H, W) -> logits (B, C, H, W).
        preprocessing: what it expects of its images.
        class_names: of each of the C classes.
        source: where it comes from, in words.
        weights: "raw" or "ema" (averaged).
        inference: window, stride, scales and flip of the run's evaluation, as `infer` takes them.
    """

    model: nn.Module
    preprocessing: SegmentationPreprocessing
    class_names: tuple[str, ...]
    source: str
    weights: str
    inference: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What a file of predictions says of its origin."""
        return {
            "model": self.source,
            "weights": self.weights,
            "preprocessing": asdict(self.preprocessing),
            "inference": self.inference,
        }

    @property
    def window(self) -> int:
        """Side of the windows in which large images are cut: those of the evaluation, or the training crops."""
        return self.inference["window"] or min(self.preprocessing.input_size)

    def inner_size(self, image: Image.Image, full_size: bool = False) -> tuple[int, int]:
        """(height, width) that an image has in the model: as the evaluation resizes it, or its own."""
        size = (image.height, image.width)
        return size if full_size else self.preprocessing.size_of(*size)

    def needed(self, inner: tuple[int, int]) -> int:
        """Bytes for an image of this size at once, with all scales and flips of `inference`."""
        scores, area = 4 * SCORE_COPIES * len(self.class_names), inner[0] * inner[1]
        largest = max(self.inference["scales"]) ** 2 * area
        by_model = self.bytes_of_window / self.window**2 * largest
        if self.inference["window"] is not None:
            by_model = self.bytes_of_window + scores * largest
        return int(by_model + scores * area + 24 * largest)

    def inference_of(self, image: Image.Image, limit: float, full_size: bool = False) -> dict[str, Any]:
        """How `segment` does an image: as `inference` says, or one too large for that in windows, at one scale."""
        if self.needed(self.inner_size(image, full_size)) <= limit:
            return self.inference
        return {**self.inference, "window": self.window, "scales": (1.0,), "flip": False}

    @cached_property
    def bytes_of_window(self) -> int:
        """Memory that the model takes for one window, measured."""
        device = next(self.model.parameters()).device
        image = torch.zeros(1, 3, self.window, self.window, device=device)
        return int(peak_bytes(self.model, image) * WORKSPACE)


def open_segmenter(what: str, weights: str | None = None) -> Segmenter:
    """Loads the segmenter of a run.

    Args:
        what: the run's folder (its best.ckpt, else last.ckpt), or a checkpoint.
        weights: "raw" or "ema"; None takes the averaged ones where there are any.

    Raises:
        CheckpointError: nothing there, damaged, or not of a segmenter.
    """
    checkpoint, path = read_run(what)
    from vitgraft.tasks.segmentation import Segmentation

    options = checkpoint["hyper_parameters"]
    if not checkpoint["task"].endswith(".Segmentation") or not isinstance(options.get("model"), str):
        raise CheckpointError(f"{path}: of a run of {checkpoint['task']}, which is no segmenter made by a model's name")
    task = Segmentation(**{**options, "pretrained": False, "checkpoint_path": None})
    model = task.build()
    weights = load_weights(model, checkpoint, path, weights)
    known = {field.name for field in fields(SegmentationPreprocessing)}
    config = {name: value for name, value in (options.get("data_config") or {}).items() if name in known}
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    if "input_size" in config:
        config["input_size"] = config["input_size"][-2:]
    preprocessing = SegmentationPreprocessing(**{"short_side": None, "long_side": None, **config})
    how = {name: options.get(name) for name in ("window", "stride")}
    how |= {"scales": tuple(options.get("scales") or (1.0,)), "flip": bool(options.get("flip"))}
    source = f"{options['model']} of {path}"
    return Segmenter(model.eval(), preprocessing, tuple(task.class_names), source, weights, how)


@torch.inference_mode()
def segment(segmenter: Segmenter, image: Image.Image, limit: float = 4e9, full_size: bool = False) -> np.ndarray:
    """The class of each pixel.

    An image that fits is given to the model whole, resized as in the evaluation, at all scales that it uses. A larger
    one is cut in overlapping windows at one scale, without flips, whose scores are averaged; of one that is larger
    still, parts with a margin are done one after the other. `Segmenter.inference_of` says which it will be.

    Args:
        segmenter: what predicts.
        image: RGB, of any size.
        limit: memory that the model and its scores may take, bytes; the image itself, 3 bytes a pixel, and the result,
            1 byte a pixel, come on top.
        full_size: leave the image's size as it is, whatever the evaluation does.

    Returns:
        uint8 (H, W): 0 to C - 1, and 255 where the model's scores are not finite.

    Raises:
        ValueError: not even one window fits in `limit`, or an image of a few pixels' height or width would become huge.
    """
    device = next(segmenter.model.parameters()).device
    given, how, classes = segmenter.preprocessing, segmenter.inference, len(segmenter.class_names)
    size, inner = (image.height, image.width), segmenter.inner_size(image, full_size)
    if min(inner) > MOST_ENLARGED * min(size) and inner[0] * inner[1] > MANY_PIXELS:
        raise ValueError(
            f"{size[1]} x {size[0]} pixels would become {inner[1]} x {inner[0]} (short_side="
            f"{given.short_side}, long_side={given.long_side}): crop it, or leave its size with --full-size"
        )
    pixels = resize_image(torch.from_numpy(np.array(image)).permute(2, 0, 1), inner, given.antialias)

    def prepared(part: Tensor) -> Tensor:
        return given.standardize(part.to(device).float() / 255)[None]

    scores = 4 * SCORE_COPIES * classes  # bytes of a pixel
    if segmenter.needed(inner) <= limit:
        if scores * size[0] * size[1] <= limit:
            found = predicted_classes(infer(segmenter.model, prepared(pixels), **how, size=size))[0]
            return _as_bytes(found)
        return classes_at_size(infer(segmenter.model, prepared(pixels), **how)[0], size, limit)
    result = torch.empty(inner, dtype=torch.uint8)
    for kept, taken in _parts(inner, segmenter.window, segmenter.bytes_of_window, scores, limit):
        part = prepared(pixels[:, taken[0] : taken[1], taken[2] : taken[3]])
        top = taken[0]
        for first, probabilities in infer_rows(segmenter.model, part, segmenter.window, how["stride"]):
            found = torch.from_numpy(_as_bytes(predicted_classes(probabilities)[0]))
            start, stop = max(top + first, kept[0]), min(top + first + len(found), kept[1])
            if start < stop:
                rows = found[start - top - first : stop - top - first, kept[2] - taken[2] : kept[3] - taken[2]]
                result[start:stop, kept[2] : kept[3]] = rows
    return resize_labels(result, size).numpy()


def _as_bytes(classes: Tensor) -> np.ndarray:
    return torch.where(classes < 0, NO_CLASS, classes).to(torch.uint8).cpu().numpy()


Box = tuple[int, int, int, int]  # top, bottom, left, right


def _parts(size: tuple[int, int], window: int, by_model: int, scores: int, limit: float) -> Iterator[tuple[Box, Box]]:
    """(what is kept, what is computed) of parts that cover an image; what is computed has half a window around.

    Raises:
        ValueError: no part with more than its margins fits.
    """
    left, margin = limit - by_model, window // 2
    # a part takes the scores of two windows' height, and itself as float32 with what is made of it
    strip, pixel = 2 * window * scores, 24
    least_height, least_width = (min(side, 2 * window) for side in size)
    width = min(size[1], int(left / (strip + pixel * least_height)))
    if width < least_width:
        need = by_model + least_width * (strip + pixel * least_height)
        raise ValueError(
            f"memory={limit / 1e9:g} GB: windows of {window} pixels need {need / 1e9:.2g} GB; give --memory more"
        )
    height = min(size[0], int((left - strip * width) / (pixel * width)))
    for top, bottom, outer_top, outer_bottom in _spans(size[0], height, margin):
        for start, stop, outer_start, outer_stop in _spans(size[1], width, margin):
            yield (top, bottom, start, stop), (outer_top, outer_bottom, outer_start, outer_stop)


def _spans(side: int, part: int, margin: int) -> Iterator[Box]:
    """(first, end) of what is kept and (first, end) of what is computed, of spans of at most `part` pixels."""
    if part >= side:
        yield 0, side, 0, side
        return
    step = part - 2 * margin
    for first in range(0, side, step):
        end = min(first + step, side)
        yield first, end, max(0, first - margin), min(side, end + margin)


def classes_at_size(scores: Tensor, size: tuple[int, int], limit: float = 4e9) -> np.ndarray:
    """The best class of each pixel of scores resized, bilinear, without making all of the resized scores at once.

    Args:
        scores: (C, h, w).
        size: (H, W) of the result.
        limit: memory for the resized scores, bytes.

    Returns:
        uint8 (H, W); 255 where scores are not finite.
    """
    height, width = size
    rows = max(1, int(limit / (4 * SCORE_COPIES * len(scores) * max(width, scores.shape[2]))))
    result = np.empty(size, dtype=np.uint8)
    # half-pixel centres, as F.interpolate with align_corners=False
    places = ((torch.arange(height, device=scores.device) + 0.5) * scores.shape[1] / height - 0.5).clamp(min=0)
    above = places.floor().long()
    below = (above + 1).clamp(max=scores.shape[1] - 1)
    share = (places - above).to(scores.dtype)[:, None]
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        lines = scores[:, above[band]] * (1 - share[band]) + scores[:, below[band]] * share[band]
        lines = F.interpolate(lines[None], (lines.shape[1], width), mode="bilinear", align_corners=False)
        result[band] = _as_bytes(predicted_classes(lines)[0])
    return result


@torch.no_grad()
def peak_bytes(model: nn.Module, image: Tensor) -> int:
    """Most bytes of tensors that a forward pass has alive at a time, without weights, on any device."""
    with LiveBytes() as live:
        model(image)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, from their making to their end."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage._cdata in before or storage._cdata in self.alive:
                continue
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())
        return result

    def _end(self, storage: int, size: int) -> None:
        self.alive.discard(storage)
        self.now -= size
