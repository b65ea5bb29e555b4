"""Detectors and segmenters as ONNX files, compared with PyTorch on images of three sizes before they are put in place.

The files read normalized images and give boxes, labels, scores and masks in the pixels of their input, or logits and
class maps. Sizes are fixed unless they are asked to be free, which the operators of few models allow: windows, levels
of grafts and pooling to a fixed size are computed from the size while the model is exported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image, nms

from vitgraft.errors import ExportError
from vitgraft.models.mask_rcnn import SIZE_DIVISOR, MaskRCNN
from vitgraft.predict.detection import Detector
from vitgraft.predict.segmentation import Segmenter
from vitgraft.tools.export import metadata_of, onnx_file

__all__ = ["DenseExport", "DetectorGraph", "ImageCheck", "SegmenterGraph", "export_dense", "input_size_of_run"]

BOX_TOLERANCE, SCORE_TOLERANCE, PIXEL_TOLERANCE = 0.5, 1e-3, 1e-3
"""Largest differences between PyTorch and onnxruntime that pass: of a box in pixels, of a score, and the fraction of
pixels of masks and class maps that differ."""


class SegmenterGraph(nn.Module):
    """A segmenter with its class map: images (B, 3, H, W) -> logits (B, K, H, W), classes uint8 (B, H, W).

    Args:
        model: Images -> logits.
    """

    outputs = ("logits", "classes")

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the class with the highest one."""
        logits = self.model(images)
        return logits, logits.argmax(1).to(torch.uint8)


class DetectorGraph(nn.Module):
    """The evaluation of a `MaskRCNN` on one image, in operators that ONNX has.

    The steps are those of torchvision's RPN and heads, without their lists of images, and with masks pasted by
    separable interpolation instead of one by one.

    Args:
        model: The detector, in evaluation mode.
    """

    def __init__(self, model: MaskRCNN):
        super().__init__()
        self.model = model
        self.outputs = ("boxes", "labels", "scores", "masks")[: 4 if model.has_masks else 3]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (1, 3, H, W) -> boxes (N, 4), labels (N,), scores (N,) falling, and masks bool (N, H, W)."""
        heads, size = self.model.roi_heads, images.shape[-2:]
        maps = self.model.backbone(F.pad(images, (0, -size[1] % SIZE_DIVISOR, 0, -size[0] % SIZE_DIVISOR)))
        proposals = self._proposals(list(maps.values()), size)
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, [proposals])))
        scores = logits.float().softmax(1)[:, 1:]
        boxes = clip_boxes_to_image(heads.box_coder.decode(deltas.float(), [proposals]), size)[:, 1:]
        labels = torch.arange(1, logits.shape[1], device=logits.device).expand(scores.shape)
        boxes, scores, labels = boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1)
        chosen = torch.where((scores > heads.score_thresh) & _has_sides(boxes, 1e-2))[0]
        boxes, scores, labels = boxes[chosen], scores[chosen], labels[chosen]
        kept = _suppress(boxes, scores, labels, heads.nms_thresh, size)[: heads.detections_per_img]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        if not self.model.has_masks:
            return boxes, labels, scores
        logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, [boxes])))
        index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return boxes, labels, scores, paste(logits.gather(1, index)[:, 0].float().sigmoid(), boxes, size)

    def _proposals(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """(N, 4) boxes of the RPN."""
        rpn = self.model.rpn
        found = []
        for level, (logits, deltas) in enumerate(zip(*rpn.head(list(maps)), strict=True)):
            anchors = rpn.anchor_generator.of_level(
                rpn.anchor_generator.strides[level], logits.shape[-2:], logits.device
            )
            logits = logits[0].permute(1, 2, 0).reshape(-1)
            deltas = deltas[0].reshape(-1, 4, *deltas.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            best, index = logits.topk(min(rpn.pre_nms_top_n(), logits.shape[0]))
            boxes = rpn.box_coder.decode_single(deltas[index], anchors[index])
            found.append((clip_boxes_to_image(boxes, size), best.sigmoid(), torch.full_like(index, level)))
        boxes, scores, levels = (torch.cat(part) for part in zip(*found, strict=True))
        chosen = torch.where((scores >= rpn.score_thresh) & _has_sides(boxes, rpn.min_size))[0]
        boxes, scores, levels = boxes[chosen], scores[chosen], levels[chosen]
        return boxes[_suppress(boxes, scores, levels, rpn.nms_thresh, size)[: rpn.post_nms_top_n()]]


def _has_sides(boxes: Tensor, least: float) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] >= least) & (boxes[:, 3] - boxes[:, 1] >= least)


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, size: Sequence[int]) -> Tensor:
    """Indices by falling score of what stays inside each group: groups are moved apart by more than the image."""
    offsets = groups.to(boxes) * (max(size) + 1)
    return nms(boxes + offsets[:, None], scores, threshold)


def paste(probs: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """`vitgraft.models._rcnn.paste_masks` of all boxes at once, as two matrix products.

    Args:
        probs: (N, M, M)
        boxes: (N, 4)
        size: (H, W) of the image.

    Returns:
        Bool (N, H, W).
    """
    side = probs.shape[-1]
    cells = torch.arange(side, dtype=probs.dtype, device=probs.device)

    def weights(low: Tensor, high: Tensor, length: int) -> Tensor:
        """(N, length, M): of each cell in each row or column of pixels; a hat function."""
        centers = torch.arange(length, dtype=probs.dtype, device=probs.device) + 0.5
        places = (centers - low[:, None]) / (high - low)[:, None] * side - 0.5
        return (1 - (places[:, :, None] - cells).abs()).clamp(min=0)

    rows, columns = weights(boxes[:, 1], boxes[:, 3], size[0]), weights(boxes[:, 0], boxes[:, 2], size[1])
    return rows @ probs @ columns.transpose(1, 2) >= 0.5


@dataclass(frozen=True)
class ImageCheck:
    """How far onnxruntime is from PyTorch on an image.

    Attributes:
        size: (height, width) of the image as the model reads it.
        objects: Detections that were compared; None for a segmenter.
        box: Largest difference of a corner, pixels.
        score: Largest difference of a score.
        pixels: Largest fraction of the pixels of a mask, or of the class map, that differs.
        unmatched: Detections of one that the other has not.
    """

    size: tuple[int, int]
    objects: int | None = None
    box: float = 0.0
    score: float = 0.0
    pixels: float = 0.0
    unmatched: int = 0

    @property
    def ok(self) -> bool:
        """Whether all differences pass."""
        return (
            self.unmatched == 0
            and self.box <= BOX_TOLERANCE
            and self.score <= SCORE_TOLERANCE
            and self.pixels <= PIXEL_TOLERANCE
        )

    def __str__(self) -> str:
        text = f"image {self.size[0]} x {self.size[1]}: "
        if self.objects is not None:
            text += f"{self.objects} objects, boxes within {self.box:.1e} pixels, scores within {self.score:.1e}, "
            text += f"{self.unmatched} without a match, " if self.unmatched else ""
        return f"{text}{1 - self.pixels:.4%} of the pixels equal"


@dataclass(frozen=True)
class DenseExport:
    """What was written.

    Attributes:
        path: The file.
        opset: Of its standard operators.
        size_bytes: Of the file.
        inputs: (batch, 3, height, width); 0 is free.
        outputs: Names.
        checks: Of each image, all of which pass.
    """

    path: Path
    opset: int
    size_bytes: int
    inputs: tuple[int, int, int, int]
    outputs: tuple[str, ...]
    checks: tuple[ImageCheck, ...]


def input_size_of_run(run: Detector | Segmenter) -> tuple[int, int]:
    """(height, width) that a file has by default: the window of a segmenter, else the size of its training crops, or
    what the images of a detector are resized to, as multiples of 32."""
    if isinstance(run, Segmenter) and run.window is not None:
        return run.window, run.window
    height, width = run.preprocessing.input_size
    return tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (height, width))


def export_dense(
    run: Detector | Segmenter,
    path: str | Path,
    size: tuple[int, int] | None = None,
    free_size: bool = False,
    opset: int | None = None,
    images: Sequence[Image.Image] = (),
) -> DenseExport:
    """Writes a detector or segmenter as ONNX, where onnxruntime computes the same.

    Input `images`: float32, normalized by the metadata's mean and std; (1, 3, H, W) for a detector, (batch, 3, H, W)
    for a segmenter. Metadata: task, class_names, input_size, mean, std (JSON), vitgraft_version.

    Args:
        run: A detector or segmenter of `vitgraft.load`; without its windows, scales and flips.
        path: File to write; weights go into the same file.
        size: (height, width) of the input; None takes `input_size_of_run`.
        free_size: Leave height and width free.
        opset: ONNX operator set; None takes PyTorch's default.
        images: Those to compare on; none: three drawn ones, of different sizes.

    Raises:
        MissingExtraError: Onnx, onnxscript or onnxruntime is missing.
        ExportError: PyTorch cannot export the model, onnxruntime lacks an operator of it, or computes something else.
            Nothing is written then.
    """
    path, size = Path(path), size or input_size_of_run(run)
    segments = isinstance(run, Segmenter)
    model = run.model.eval()
    graph = (SegmenterGraph(model) if segments else DetectorGraph(model)).eval()
    free: dict[int, Any] = {0: torch.export.Dim("batch")} if segments else {}
    if free_size:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    given = [_prepare(run, image, size, free_size) for image in images or _drawn(size, free_size)]
    example = torch.stack([given[0][0]] * (2 if segments else 1))  # torch.export takes a size of 1 for a constant
    metadata = metadata_of(run, None if free_size else size)
    try:
        with onnx_file(graph, path, example, graph.outputs, free, opset, metadata) as file:
            check = _check_classes if segments else _check_objects
            checks = tuple(check(run.model, file, pixels, shown) for pixels, shown in given)
            if not all(one.ok for one in checks):
                lines = "\n  ".join(str(one) for one in checks)
                raise ExportError(f"onnxruntime computes something else than PyTorch; nothing was written\n  {lines}")
            file.keep()
    except ExportError as error:
        if not free_size:
            raise
        hint = "The size is fixed while such a model is exported: leave the free size out"
        raise ExportError(f"{error}\n{hint}") from error
    inputs = (0 if segments else 1, 3, *((0, 0) if free_size else size))
    return DenseExport(path, file.opset, file.size_bytes, inputs, graph.outputs, checks)


def _drawn(size: tuple[int, int], free_size: bool) -> list[Image.Image]:
    """Three images of different sizes with blots of color, up to the given size or, where sizes are free, beyond it."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in ((1.0, 1.0), (0.75, 1.0), (1.5, 1.25) if free_size else (1.0, 0.625)):
        wanted = max(1, round(size[1] * width)), max(1, round(size[0] * height))
        coarse = rng.integers(0, 256, (max(2, wanted[1] // 24), max(2, wanted[0] // 24), 3), dtype=np.uint8)
        found.append(Image.fromarray(coarse).resize(wanted, Image.Resampling.BICUBIC))
    return found


def _prepare(
    run: Detector | Segmenter, image: Image.Image, size: tuple[int, int], free_size: bool
) -> tuple[Tensor, tuple[int, int]]:
    """(3, H, W) as the file reads it, and the (height, width) of the image in it: padded right and below with zeros."""
    if not free_size:
        factor = min(1.0, size[0] / image.height, size[1] / image.width)
        if factor < 1:
            image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
    pixels = run.transform(image)
    shown = (pixels.shape[1], pixels.shape[2])
    if not free_size:
        if shown[0] > size[0] or shown[1] > size[1]:
            factor = min(size[0] / shown[0], size[1] / shown[1])
            shown = (max(1, int(shown[0] * factor)), max(1, int(shown[1] * factor)))
            pixels = F.interpolate(pixels[None], shown, mode="bilinear", antialias=True)[0]
        pixels = F.pad(pixels, (0, size[1] - shown[1], 0, size[0] - shown[0]))
    return pixels.to(run.device), shown


@torch.no_grad()
def _check_classes(model: nn.Module, file: Any, pixels: Tensor, shown: tuple[int, int]) -> ImageCheck:
    expected = model(pixels[None]).argmax(1).cpu()
    (different,) = (file.run(pixels[None])[1] != expected)[:, : shown[0], : shown[1]]
    return ImageCheck(shown, pixels=different.float().mean().item())


@torch.no_grad()
def _check_objects(model: MaskRCNN, file: Any, pixels: Tensor, shown: tuple[int, int]) -> ImageCheck:
    """Compares detections in pairs of one label. The last ones may be exchanged for others of the same score, by the
    threshold or the greatest number of detections."""
    expected = {name: value.cpu() for name, value in model([pixels])[0].items()}
    names = ("boxes", "labels", "scores", "masks")
    found = dict(zip(names, file.run(pixels[None]), strict=False))
    heads = model.roi_heads
    least = heads.score_thresh
    for one in (expected, found):
        if len(one["scores"]) >= heads.detections_per_img:
            least = max(least, one["scores"].min().item())
    free = torch.ones(len(found["scores"]), dtype=torch.bool)
    box = score = different = 0.0
    objects = unmatched = 0
    for i in range(len(expected["scores"])):
        distances = (found["boxes"] - expected["boxes"][i]).abs().amax(1)
        distances = distances.masked_fill(~free | (found["labels"] != expected["labels"][i]), float("inf"))
        j = int(distances.argmin()) if len(distances) else -1
        if j < 0 or distances[j] > BOX_TOLERANCE:
            unmatched += int(expected["scores"][i] > least + SCORE_TOLERANCE)
            continue
        free[j] = False
        objects += 1
        box = max(box, distances[j].item())
        score = max(score, (found["scores"][j] - expected["scores"][i]).abs().item())
        if "masks" in found:
            different = max(different, (found["masks"][j] != expected["masks"][i]).float().mean().item())
    unmatched += int((found["scores"][free] > least + SCORE_TOLERANCE).sum())
    return ImageCheck(shown, objects, box, score, different, unmatched)
