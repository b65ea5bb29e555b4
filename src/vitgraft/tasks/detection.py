"""Training a detector: boxes, or boxes and masks, on any backbone."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import ConfigDict
from torch import nn
from typing_extensions import TypedDict

from vitgraft.errors import RecipeError
from vitgraft.metrics.draw import draw_detections, side_by_side
from vitgraft.models.feature_pyramid import PyramidOptions
from vitgraft.models.mask_rcnn import MaskRCNN
from vitgraft.options import Count, Fraction, Model, Positive, WholeNumber
from vitgraft.tasks.base import Mistake, Task
from vitgraft.weights.create import build_backbone

__all__ = ["Detection"]


class DetectorOptions(TypedDict, total=False):
    """Options of `vitgraft.models.mask_rcnn.MaskRCNN`, which documents them and has their defaults.

    `proposals_before` and `proposals` are numbers in training and in evaluation.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    fpn_channels: Count
    box_channels: Count
    mask_channels: Count
    mask_convs: WholeNumber
    anchor_scale: Positive
    anchor_ratios: tuple[Positive, ...]
    proposals_before: tuple[Count, Count]
    proposals: tuple[Count, Count]
    anchors_sampled: Count
    boxes_sampled: Count
    finest: Positive
    score_threshold: Fraction
    nms_threshold: Fraction
    detections: Count


class Detection(Task):
    """A Mask R-CNN or Faster R-CNN and how it is trained.

    Logs each part of the loss, and `val/box_ap`, `val/box_ap50`, `val/box_ap75` and, with masks, `val/mask_ap`,
    `val/mask_ap50`, `val/mask_ap75`.

    Args:
        model: Name of a timm backbone (vitgraft's are among them), or a `MaskRCNN`.
        num_classes: Without the background; None takes those of the data.
        masks: False trains a Faster R-CNN, on boxes alone; None takes the masks where the data has them.
        detector: Further options of `vitgraft.models.mask_rcnn.MaskRCNN`: widths, anchors, numbers of proposals.
        pyramid: Options of `vitgraft.pyramid`, where the backbone is a plain ViT.
        **kwargs: Of `Task`: the backbone's other options, optimizer, schedule, seed.
    """

    LOGGED: ClassVar = {name: name for name in ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")}
    MAIN = "box_ap"
    DATA = "vitgraft.data.detection.DetectionData"

    def __init__(
        self,
        model: Model,
        num_classes: Count | None = None,
        masks: bool | None = None,
        detector: DetectorOptions | None = None,
        pyramid: PyramidOptions | None = None,
        **kwargs,
    ):
        super().__init__(model, num_classes, **kwargs)

    def setup(self, stage: str) -> None:
        """As `Task.setup`; takes from the data whether there are masks."""
        super().setup(stage)
        has_masks = getattr(getattr(self.trainer, "datamodule", None), "has_masks", True)
        if self.hparams.masks is None:
            self.hparams.masks = has_masks
        if stage == "fit" and self.hparams.masks and not has_masks:
            raise RecipeError("model.masks=True: the training data has no masks; null or false trains on its boxes")

    def build(self, pretrained: bool = False, device: str | None = None) -> nn.Module:
        """The detector around the named backbone."""
        h = self.hparams
        backbone = build_backbone(h.model, h.model_kwargs, h.graft, pretrained, device)
        return MaskRCNN(backbone, h.num_classes, h.masks is None or h.masks, pyramid=h.pyramid, **(h.detector or {}))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Sum of the losses of a batch with `images` (list) and `targets` (list)."""
        self.before_step(batch_idx)
        losses = self.model(list(batch.images), list(batch.targets))
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, batch_size=len(batch.images))
        loss = sum(losses.values())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.images))
        return loss

    def make_metric(self) -> Any:
        """COCO's average precisions of boxes and masks (`vitgraft.metrics.detection.DetectionMetrics`)."""
        from vitgraft.metrics.detection import DetectionMetrics

        return DetectionMetrics(self.class_names, self.hparams.masks is None or self.hparams.masks)

    def evaluate(self, model: nn.Module, metric: Any, batch: Any) -> list[Mistake]:
        """Counts the detections in a batch, in the pixels of the image files; unreadable images are left out.

        A mistake is as large as the number of objects that were missed, and of detections of nothing or of another
        class, at a score and an IoU of 0.5.
        """
        from vitgraft.metrics.matching import SCORE, confusion_of

        if not len(batch.images):
            return []
        found = model(list(batch.images), sizes=[target["orig_size"] for target in batch.targets])
        metric.update(found, list(batch.targets))
        mistakes = []
        for one, target in zip(found, batch.targets, strict=True):
            shown = one["scores"] >= SCORE
            boxes, labels, scores = (one[name][shown].cpu() for name in ("boxes", "labels", "scores"))
            counts = confusion_of(boxes, labels.tolist(), target["objects"], self.hparams.num_classes)
            mistakes.append((float(counts.sum() - counts.trace()), (boxes, labels, scores)))
        return mistakes

    def draw_mistake(
        self, loaded: tuple[Image.Image, Any], predicted: Sequence[torch.Tensor], title: str
    ) -> Image.Image:
        """The detections beside the objects."""
        from vitgraft.metrics.matching import labeled_boxes

        image, objects = loaded
        panels = []
        for word, (boxes, labels, *scores) in (("detected", predicted), ("labeled", labeled_boxes(objects))):
            scores = scores[0].tolist() if scores else None
            panels.append(
                draw_detections(
                    image, boxes.numpy(), labels.tolist(), self.class_names, scores, title=f"{word}: {title}"
                )
            )
        return side_by_side(panels)

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, torch.Tensor]]:
        """Detections of each image, in the pixels of its file."""
        return self.model(list(batch.images), sizes=[target["orig_size"] for target in batch.targets])

    def inference(self) -> tuple[list[str], dict[str, Any]]:
        """As `Task.inference`: the detector's options, thresholds among them."""
        return [], {"detector": self.hparams.detector}
