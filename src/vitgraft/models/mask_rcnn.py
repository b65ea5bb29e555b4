"""Mask R-CNN and Faster R-CNN on any backbone, set up as the Swin authors' detector.

torchvision's region proposal network and heads, with the overrides of `models/_rcnn.py`; sizes and thresholds of
SwinTransformer/Swin-Transformer-Object-Detection, configs/_base_/models/mask_rcnn_swin_fpn.py.

Differences from that code that stay: anchors in the padding of the smaller images of a batch take part as background;
background has box deltas and a mask of its own, which nothing reads (0.01 % of the parameters).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vitgraft.models._rcnn import Anchors, RegionProposals, RoIAlignLevels, RoIHeads, RPNHead, Targets, paste_masks
from vitgraft.models.dense import DenseFeatures, new_parts, undecayed
from vitgraft.models.feature_pyramid import STRIDES, PyramidOptions, SimpleFeaturePyramid, is_hierarchical, pyramid

__all__ = ["SIZE_DIVISOR", "FPNBackbone", "MaskRCNN", "pad_images"]

SIZE_DIVISOR = 32
"""Batches are padded to multiples of it."""


class FPNBackbone(nn.Module):
    """Backbone and FPN: images (B, 3, H, W) to five maps of `out_channels`, strides 4 to 64.

    A plain ViT's simple feature pyramid is its own FPN, as in ViTDet. The fifth map is every second cell of the fourth.
    torchvision's detectors take it as their backbone: an `OrderedDict` of maps, and `out_channels`.

    Args:
        model: A backbone as `vitgraft.pyramid` takes it, or what that function returned, of strides 4 to 32.
        out_channels: Of all maps.
        **options: Of `vitgraft.pyramid`, for a plain ViT; its own `out_channels` other than this adds an FPN.

    Raises:
        TypeError, ValueError: As `vitgraft.pyramid`; a pyramid of other strides.
    """

    def __init__(self, model: nn.Module, out_channels: int = 256, **options: Any):
        super().__init__()
        if isinstance(model, (DenseFeatures, SimpleFeaturePyramid)):
            self.features = model
        else:
            channels = None if is_hierarchical(model) else out_channels
            self.features = pyramid(model, **{"out_channels": channels, **options})
        strides, channels = self.features.feature_info.reduction(), self.features.feature_info.channels()
        if tuple(strides) != STRIDES:
            raise ValueError(f"a detector reads maps of strides {STRIDES}, not {tuple(strides)}")
        self.out_channels = out_channels
        self.fpn: nn.Module | None = None
        if isinstance(self.features, DenseFeatures) or set(channels) != {out_channels}:
            self.fpn = FeaturePyramidNetwork(channels, out_channels)
            for module in self.fpn.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)  # mmdet's FPN
        self.last = LastLevelMaxPool()

    def forward(self, x: torch.Tensor) -> "OrderedDict[str, torch.Tensor]":
        """Maps by the names "0" to "3" and "pool", finest first."""
        maps = self.features(x)
        named = OrderedDict((str(i), level) for i, level in enumerate(maps))
        if self.fpn is not None:
            named = self.fpn(named)
        results, names = self.last(list(named.values()), [], list(named))
        return OrderedDict(zip(names, results, strict=True))


class MaskRCNN(nn.Module):
    """Two-stage detector with masks, or without (Faster R-CNN).

    Args:
        model: A backbone, grafted or not: one of timm with four stages of strides 4 to 32, or a plain ViT of timm,
            torchvision or transformers; or what `vitgraft.pyramid` made of it.
        num_classes: Without the background, which is label 0.
        masks: False makes a Faster R-CNN.
        fpn_channels: Of the maps that all heads read.
        box_channels: Of the box head's two layers.
        mask_channels: Of the mask head.
        mask_convs: Its number of convolutions before the deconvolution.
        anchor_scale: Side of the square anchors in cells: 8 gives 32 to 512 pixels.
        anchor_ratios: Their height / width.
        proposals_before: Boxes per level before suppression, in training and in evaluation.
        proposals: Boxes per image after it, likewise.
        anchors_sampled: Anchors per image in the loss, half of them positive where there are as many.
        boxes_sampled: Proposals per image in the loss, a quarter of them positive.
        finest: Boxes of sides up to twice this many pixels are read from the finest map.
        score_threshold: Detections have more than this.
        nms_threshold: Of the same class, those that overlap more than this are one.
        detections: At most, per image.
        pyramid: Options of `vitgraft.pyramid`, for a plain ViT as `model`.

    Parameters lie under `backbone` (`features` and `fpn`), `rpn`, `roi_heads`.

    Raises:
        TypeError, ValueError: The backbone has not the maps (`vitgraft.pyramid`).
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        masks: bool = True,
        fpn_channels: int = 256,
        box_channels: int = 1024,
        mask_channels: int = 256,
        mask_convs: int = 4,
        anchor_scale: float = 8.0,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        proposals_before: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (1000, 1000),
        anchors_sampled: int = 256,
        boxes_sampled: int = 512,
        finest: float = 56.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        pyramid: PyramidOptions | None = None,
    ):
        super().__init__()
        self.num_classes, outputs = num_classes, num_classes + 1
        self.backbone = FPNBackbone(model, fpn_channels, **(pyramid or {}))
        both = ("training", "testing")
        self.rpn = RegionProposals(
            Anchors((*STRIDES, 64), anchor_scale, anchor_ratios),
            RPNHead(fpn_channels, len(anchor_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=anchors_sampled,
            positive_fraction=0.5,
            pre_nms_top_n=dict(zip(both, proposals_before, strict=True)),
            post_nms_top_n=dict(zip(both, proposals, strict=True)),
            nms_thresh=0.7,
        )
        mask_parts = {}
        if masks:
            mask_parts = {
                "mask_roi_pool": RoIAlignLevels(STRIDES, 14, finest),
                "mask_head": MaskRCNNHeads(fpn_channels, [mask_channels] * mask_convs, 1),
                "mask_predictor": MaskRCNNPredictor(
                    mask_channels if mask_convs else fpn_channels, mask_channels, outputs
                ),
            }
        self.roi_heads = RoIHeads(
            RoIAlignLevels(STRIDES, 7, finest),
            TwoMLPHead(fpn_channels * 7 * 7, box_channels),
            FastRCNNPredictor(box_channels, outputs),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=boxes_sampled,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),  # deltas scaled by 0.1, 0.1, 0.2, 0.2
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections,
            **mask_parts,
        )
        self._init_heads()

    def _init_heads(self) -> None:
        """mmdet's initial values of Shared2FCBBoxHead; those of the other heads are torchvision's too."""
        heads = self.roi_heads
        for layer in (heads.box_head.fc6, heads.box_head.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((heads.box_predictor.cls_score, 0.01), (heads.box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    @property
    def has_masks(self) -> bool:
        """Whether there is a mask head."""
        return self.roi_heads.has_mask()

    def forward(
        self,
        images: list[torch.Tensor],
        targets: Targets | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Losses in training mode, else detections.

        Args:
            images: (3, H, W) each, normalized; they are padded with zeros, neither resized nor normalized here.
            targets: In training, for each image `boxes` (N, 4) x0 y0 x1 y1 in pixels, `labels` (N,) from 1 up, and
                `masks` (N, H, W) if there is a mask head. N may be 0.
            sizes: In evaluation, (height, width) of the files the images were resized from: boxes and masks come in
                their pixels. None: in the images' own.

        Returns:
            In training the losses by their names (`loss_objectness`, `loss_rpn_box_reg`, `loss_classifier`,
            `loss_box_reg`, `loss_mask`), to be added up. In evaluation for each image `boxes` (N, 4), `scores` (N,)
            falling, `labels` (N,) and `masks` (N, height, width) bool.

        Raises:
            ValueError: Targets without boxes, labels or masks, or boxes without area.
        """
        if self.training:
            self._check(images, targets)
        batch = pad_images(images)
        features = self.backbone(batch.tensors)
        proposals, proposal_losses = self.rpn(batch, features, targets if self.training else None)
        found, losses = self.roi_heads(features, proposals, batch.image_sizes, targets if self.training else None)
        if self.training:
            return {**proposal_losses, **losses}
        sizes = batch.image_sizes if sizes is None else [tuple(int(side) for side in size) for size in sizes]
        for one, old, new in zip(found, batch.image_sizes, sizes, strict=True):
            scale = one["boxes"].new_tensor([new[1] / old[1], new[0] / old[0]] * 2)
            one["boxes"] = one["boxes"] * scale
            if "mask_probs" in one:
                one["masks"] = paste_masks(one.pop("mask_probs"), one["boxes"], new)
        return found

    def _check(self, images: list[torch.Tensor], targets: Targets | None) -> None:
        needed = ("boxes", "labels", "masks") if self.has_masks else ("boxes", "labels")
        if targets is None or len(targets) != len(images):
            raise ValueError(f"{len(images)} images need as many targets in training, got {targets and len(targets)}")
        for i, target in enumerate(targets):
            absent = [name for name in needed if name not in target]
            if absent:
                hint = "; masks=False makes a detector of boxes alone" if absent == ["masks"] else ""
                raise ValueError(f"target {i} has no {', '.join(absent)}{hint}")
            boxes = target["boxes"]
            flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)  # NaN is neither
            if flat.any():
                raise ValueError(f"target {i} has boxes without area: {boxes[flat][0].tolist()}; leave them out")

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """All that is new around the timm model: what trains when the backbone is frozen."""
        fpn = [] if self.backbone.fpn is None else [self.backbone.fpn]
        return (*new_parts(self.backbone.features), *fpn, self.rpn, self.roi_heads)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """What the backbone wants no weight decay on, by the detector's names."""
        return undecayed(self.backbone.features, "backbone.features.backbone")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Saves memory by computing the inside of the backbone's blocks twice."""
        self.backbone.features.set_grad_checkpointing(enable)


def pad_images(images: Sequence[torch.Tensor], divisor: int = SIZE_DIVISOR) -> ImageList:
    """Images (C, H, W) in one batch, zeros right and below, sides multiples of `divisor`; with their sizes."""
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
    padded = [
        F.pad(image, (0, width - size[1], 0, height - size[0])) for image, size in zip(images, sizes, strict=True)
    ]
    return ImageList(torch.stack(padded), sizes)
