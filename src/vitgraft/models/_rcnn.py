"""Parts of Mask R-CNN in which the Swin authors' set-up differs from torchvision's.

Sources: SwinTransformer/Swin-Transformer-Object-Detection, configs/_base_/models/mask_rcnn_swin_fpn.py and the mmdet
functions that it configures; everything else is torchvision's class, unchanged.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import _utils as det_utils
from torchvision.models.detection import roi_heads as tv_roi_heads
from torchvision.models.detection import rpn as tv_rpn
from torchvision.ops import roi_align

__all__ = [
    "Anchors",
    "Matcher",
    "RPNHead",
    "RegionProposals",
    "RoIAlignLevels",
    "RoIHeads",
    "mask_targets",
    "paste_masks",
]

Targets = list[dict[str, torch.Tensor]]


class Anchors(nn.Module):
    """Anchors of one size per level, centerd on every cell's top left corner; mmdet's AnchorGenerator.

    torchvision rounds their sides, and takes image size // map size for the stride, which is 61 and not 64 on the
    coarsest map of an 800 pixel side.

    Args:
        strides: Of the maps, in pixels.
        scale: Side of the square anchor in cells: 8 at strides 4 to 64 gives 32 to 512 pixels.
        ratios: Height / width.
    """

    def __init__(self, strides: Sequence[int], scale: float = 8.0, ratios: Sequence[float] = (0.5, 1.0, 2.0)):
        super().__init__()
        self.strides, self.scale, self.ratios = tuple(strides), scale, tuple(ratios)

    def of_level(self, stride: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """(H * W * ratios, 4) boxes x0, y0, x1, y1 in pixels of a map of H x W cells, row by row."""
        root = torch.tensor(self.ratios, dtype=torch.float32, device=device).sqrt()
        half = torch.stack([1 / root, root], 1) * (stride * self.scale / 2)  # (ratios, 2): half width, half height
        cell = torch.cat([-half, half], 1)
        y, x = torch.meshgrid(*(torch.arange(n, device=device) * stride for n in size), indexing="ij")
        return (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + cell).reshape(-1, 4)

    def forward(self, images, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The anchors of all levels, once for each image; in float32 whatever the maps are."""
        levels = [
            self.of_level(stride, tuple(level.shape[-2:]), level.device)
            for stride, level in zip(self.strides, features, strict=True)
        ]
        return [torch.cat(levels)] * len(images.image_sizes)


class Matcher(det_utils.Matcher):
    """torchvision's matcher with mmdet's rule for an object's best anchors (MaxIoUAssigner).

    They are positives below the threshold too, but only from the overlap `min_positive` on (`min_pos_iou`), and they
    belong to that object even where another one overlaps more; of several objects with one best anchor the last has it.
    """

    def __init__(self, high: float, low: float, min_positive: float):
        super().__init__(high, low, allow_low_quality_matches=True)
        self.min_positive = min_positive

    def set_low_quality_matches_(self, matches, all_matches, match_quality_matrix) -> None:
        """Gives to the anchors that are an object's best this object; overlaps are (objects, anchors)."""
        best = match_quality_matrix.amax(1, keepdim=True)
        is_best = (match_quality_matrix == best) & (best >= self.min_positive)
        last = len(is_best) - 1 - is_best.flip(0).to(torch.uint8).argmax(0)
        chosen = is_best.any(0)
        matches[chosen] = last[chosen]


class RPNHead(tv_rpn.RPNHead):
    """torchvision's head; its outputs are float32 under autocast, because boxes are made from them."""

    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per level (B, C, H, W): logits (B, A, H, W) and deltas (B, 4 A, H, W)."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class RegionProposals(tv_rpn.RegionProposalNetwork):
    """torchvision's region proposal network with an L1 loss for boxes, and `min_pos_iou`."""

    def __init__(self, *args, min_positive: float = 0.3, **kwargs):
        super().__init__(*args, **kwargs)
        matcher = self.proposal_matcher
        self.proposal_matcher = Matcher(matcher.high_threshold, matcher.low_threshold, min_positive)

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        """Binary cross-entropy: mean of the sampled anchors. L1: sum over the positive ones / number sampled."""
        positive, negative = (torch.where(torch.cat(part))[0] for part in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        labels, targets = torch.cat(labels), torch.cat(regression_targets)
        number = max(1, sampled.numel())
        box = F.l1_loss(pred_bbox_deltas[positive], targets[positive], reduction="sum") / number
        logits = objectness.flatten()[sampled]
        return F.binary_cross_entropy_with_logits(logits, labels[sampled], reduction="sum") / number, box


class RoIAlignLevels(nn.Module):
    """RoIAlign on the level that fits a box, aligned, with as many samples as the box needs.

    Level floor(log2(sqrt(width * height) / finest)), clamped: with finest 56 this is FPN's rule (224 on stride 16).

    Args:
        strides: Of the maps.
        output_size: Side of the result, in cells.
        finest: Boxes of sides up to twice this many pixels are read from the finest map.
    """

    def __init__(self, strides: Sequence[int], output_size: int, finest: float = 56.0):
        super().__init__()
        self.strides, self.output_size, self.finest = tuple(strides), output_size, finest

    def levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """(N, 4) -> (N,) index of the map."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        return torch.log2(side / self.finest + 1e-6).floor().clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes=None) -> torch.Tensor:
        """Maps (B, C, H, W) and boxes (N_i, 4) of each image -> (sum of N_i, C, output_size, output_size)."""
        maps = list(maps.values())[: len(self.strides)]
        images = torch.cat([torch.full_like(box[:, :1], i) for i, box in enumerate(boxes)])
        rois = torch.cat([images, torch.cat(boxes)], 1)
        levels = self.levels(rois[:, 1:])
        result = None
        for i, (level, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = torch.where(levels == i)[0]
            # sampling ratio 0: as many points in a bin as it has cells
            part = roi_align(level, rois[chosen].to(level.dtype), self.output_size, 1 / stride, 0, aligned=True)
            if result is None:  # in the dtype that RoIAlign has under autocast
                result = part.new_zeros(rois.shape[0], *part.shape[1:])  # len() would fix it in an export
            result = result.index_put((chosen,), part)
        return result


def mask_targets(masks: torch.Tensor, boxes: torch.Tensor, matched: torch.Tensor, size: int) -> torch.Tensor:
    """Targets of the mask head: the matched object's mask inside each box.

    mmdet's BitmapMasks.crop_and_resize: aligned RoIAlign, then 1 from 0.5 on (torchvision: not aligned, not rounded).

    Args:
        masks: (objects, H, W), any dtype; only those that are matched are ever made float.
        boxes: (N, 4)
        matched: (N,) the object of each box.
        size: Side of the target.

    Returns:
        (N, size, size) of 0 and 1.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, size, size)
    used, index = matched.unique(return_inverse=True)
    rois = torch.cat([index[:, None].to(boxes), boxes], 1)
    crops = roi_align(masks[used, None].to(boxes), rois, size, 1.0, 0, aligned=True)[:, 0]
    return (crops >= 0.5).to(boxes)


def _own_class(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(N, classes, M, M) and (N,) -> (N, M, M)."""
    return logits[torch.arange(len(classes), device=logits.device), classes]


class RoIHeads(tv_roi_heads.RoIHeads):
    """torchvision's heads with an L1 loss for boxes, mask targets of 0 and 1, and masks left at the head's size."""

    def box_losses(self, logits, deltas, labels, targets) -> dict[str, torch.Tensor]:
        """Cross-entropy: mean of the sampled boxes. L1 of their own class: sum over the positive ones / number sampled.

        Args:
            logits: (N, classes), 0 is background.
            deltas: (N, classes * 4)
            labels: (N,)
            targets: (N, 4)
        """
        number = max(1, len(labels))
        positive = torch.where(labels > 0)[0]
        own = deltas.reshape(len(labels), -1, 4)[positive, labels[positive]]
        return {
            "loss_classifier": F.cross_entropy(logits, labels, reduction="sum") / number,
            "loss_box_reg": F.l1_loss(own, targets[positive], reduction="sum") / number,
        }

    def mask_loss(self, features, proposals, labels, matched, targets: Targets, image_shapes) -> torch.Tensor:
        """Binary cross-entropy of the own class's mask, mean over all pixels of the positive boxes."""
        positive = [torch.where(image > 0)[0] for image in labels]
        boxes = [box[chosen] for box, chosen in zip(proposals, positive, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))).float()
        size = logits.shape[-1]
        want = torch.cat(
            [
                mask_targets(target["masks"], box, match[chosen], size)
                for target, box, match, chosen in zip(targets, boxes, matched, positive, strict=True)
            ]
        )
        classes = torch.cat([image[chosen] for image, chosen in zip(labels, positive, strict=True)])
        own = _own_class(logits, classes)
        # without any object the sum keeps the head in the graph, as distributed training needs
        return F.binary_cross_entropy_with_logits(own, want, reduction="sum") / max(1, want.numel())

    def forward(self, features, proposals, image_shapes, targets: Targets | None = None):
        """Proposals to losses in training, else to detections: boxes, labels, scores, `mask_probs` (N, 28, 28)."""
        if self.training:
            proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        outputs = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        logits, deltas = (output.float() for output in outputs)
        if self.training:
            losses = self.box_losses(logits, deltas, torch.cat(labels), torch.cat(regression))
            if self.has_mask():
                losses["loss_mask"] = self.mask_loss(features, proposals, labels, matched, targets, image_shapes)
            return [], losses
        found = [
            dict(zip(("boxes", "scores", "labels"), image, strict=True))
            for image in zip(*self.postprocess_detections(logits, deltas, proposals, image_shapes), strict=True)
        ]
        if self.has_mask():
            boxes = [image["boxes"] for image in found]
            logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
            classes = torch.cat([image["labels"] for image in found])
            own = _own_class(logits, classes).float().sigmoid()
            for image, probs in zip(found, own.split([len(box) for box in boxes]), strict=True):
                image["mask_probs"] = probs
        return found, {}


def paste_masks(
    probs: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Masks of boxes in an image: each pixel reads the box's probabilities at its center, bilinearly.

    mmdet's _do_paste_mask; torchvision's own rounds the boxes to whole pixels first.

    Args:
        probs: (N, M, M)
        boxes: (N, 4), which may reach beyond the image.
        size: Height and width of the image.
        threshold: A pixel belongs to the object from this probability on.

    Returns:
        (N, height, width) bool.
    """
    height, width = size
    result = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=probs.device)
    for mask, prob, (x0, y0, x1, y1) in zip(result, probs, boxes.tolist(), strict=True):
        # half a cell of the probabilities reaches out of the box and fades to 0
        left, right = max(0, math.floor(x0) - 1), min(width, math.ceil(x1) + 1)
        top, bottom = max(0, math.floor(y0) - 1), min(height, math.ceil(y1) + 1)
        if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
            continue
        x = (torch.arange(left, right, device=prob.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, device=prob.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
        values = F.grid_sample(prob[None, None], grid[None].to(prob.dtype), align_corners=False)[0, 0]
        mask[top:bottom, left:right] = values >= threshold
    return result
