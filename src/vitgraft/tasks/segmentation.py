"""Training a semantic segmenter: UperNet on any backbone, as the Swin authors do it on ADE20K."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import MinLen
from PIL import Image
from torch import Tensor, nn

from vitgraft.errors import RecipeError
from vitgraft.metrics.draw import draw_classes, side_by_side
from vitgraft.metrics.segmentation import SegmentationMetrics, predicted_classes
from vitgraft.models.feature_pyramid import PyramidOptions, pyramid
from vitgraft.models.sliding_window import infer, window_errors
from vitgraft.models.upernet import UperNet
from vitgraft.options import BelowOne, Count, Limits, Model, NonNegative, Positive
from vitgraft.tasks.base import Mistake, Task
from vitgraft.tasks.losses import ClassWeights, cross_entropy, dice_loss, focal_loss
from vitgraft.weights.create import build_backbone

__all__ = ["IGNORE", "Segmentation"]

IGNORE = 255
"""Label of pixels that belong to no class."""


class Segmentation(Task):
    """A segmenter and how it is trained.

    Logs `val/mIoU`, `val/acc` (of the pixels) and `val/acc_class`; with an auxiliary head also `train/loss_main` and
    `train/loss_aux`, the latter without its weight.

    Args:
        model: Name of a timm model (vitgraft's are among them) that becomes the backbone, or a module: images
            (B, 3, H, W) -> logits (B, K, H, W), and in training perhaps a tuple of those and of an auxiliary head's.
        num_classes: None takes those of the data.
        loss: "cross_entropy", "focal" (less weight for what is learned already), "dice" (the overlap with each class,
            small ones as much as large ones), or a sum: "cross_entropy+dice", "focal+dice".
        focal_gamma: Exponent of the focal loss; 0 is the cross-entropy.
        class_weights: A weight for each class, on the loss of its pixels, which stays a mean over all pixels;
            "balanced": pixels / (classes x pixels of the class) of the training set. None: all are alike.
        head_channels: Width of UperNet's head.
        aux_channels: Width of the auxiliary FCN head on the map of stride 16; None: no such head.
        aux_weight: Of its loss.
        dropout: Of channels, before both classifiers.
        pool_scales: Sides of the maps of the pyramid pooling.
        window: Evaluate by sliding windows of so many pixels; None: the whole image at once.
        stride: From one window to the next; None: two thirds of a window.
        scales: Evaluate at these multiples of the image's size, probabilities averaged: [0.5, 0.75, 1.0, 1.25, 1.5,
            1.75] are the authors'.
        flip: Average with the mirrored image in evaluation.
        pyramid: Options of `vitgraft.pyramid`, where the backbone is a plain ViT.
        **kwargs: Of `Task`: the model's other options, optimizer, schedule, seed. `checkpoint_path` is a checkpoint of
            the backbone (ImageNet), a run of any task of this package, or the authors' whole UperNet.
    """

    LOGGED: ClassVar = {"mIoU": "miou", "acc": "pixel_accuracy", "acc_class": "mean_class_accuracy"}
    MAIN = "mIoU"
    DATA = "vitgraft.data.segmentation.SegmentationData"

    def __init__(
        self,
        model: Model,
        num_classes: Count | None = None,
        loss: Literal["cross_entropy", "focal", "dice", "cross_entropy+dice", "focal+dice"] = "cross_entropy",
        focal_gamma: NonNegative = 2.0,
        class_weights: ClassWeights | None = None,
        head_channels: Count = 512,
        aux_channels: Count | None = 256,
        aux_weight: NonNegative = 0.4,
        dropout: BelowOne = 0.1,
        pool_scales: Annotated[Sequence[Count], Limits("one or more", (MinLen(1),))] = (1, 2, 3, 6),
        window: Count | None = None,
        stride: Count | None = None,
        scales: Annotated[Sequence[Positive], Limits("one or more", (MinLen(1),))] = (1.0,),
        flip: bool = False,
        pyramid: PyramidOptions | None = None,
        **kwargs,
    ):
        super().__init__(model, num_classes, **kwargs)

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> list[str]:
        """As `Task.conflicts`; a stride fits its window, and layers are not counted."""
        found = window_errors(values.get("window"), values.get("stride"), values.get("scales", (1.0,)))
        if values.get("layer_decay") is not None:
            found.append("layer_decay: UperNet has no layers to count; give null")
        if values.get("loss") == "dice" and values.get("class_weights") is not None:
            found.append("class_weights: not with loss='dice', in which all classes weigh the same; leave one out")
        return super().conflicts(values) + found

    def build(self, pretrained: bool = False, device: str | None = None) -> nn.Module:
        """UperNet on the named timm model."""
        h = self.hparams
        backbone = build_backbone(h.model, h.model_kwargs, h.graft, pretrained, device)
        aux_channels = h.aux_channels if h.aux_weight > 0 else None
        features = pyramid(backbone, **(h.pyramid or {}))
        return UperNet(features, h.num_classes, h.head_channels, tuple(h.pool_scales), h.dropout, aux_channels)

    def setup(self, stage: str) -> None:
        """As `Task.setup`; the batch norms of the head can't learn from one image."""
        trainer = self.trainer
        size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if stage == "fit" and size == 1 and trainer.world_size == 1:
            raise RecipeError(
                "batch_size=1: the batch norms behind the pyramid pooling need 2 images or more in a step; "
                "trainer.accumulate_grad_batches makes up for smaller batches"
            )
        super().setup(stage)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K, H, W) and labels (B, H, W). Cross-entropy and focal loss are averaged over *all* pixels,
        ignored ones among them, as mmsegmentation 0.11 of the authors does.

        So an image without a labelled pixel has the loss 0, and one that is labelled in part counts by that part.
        """
        parts = {
            "cross_entropy": lambda: cross_entropy(logits, labels, self.class_weights, ignore_index=IGNORE),
            "focal": lambda: focal_loss(logits, labels, self.class_weights, self.hparams.focal_gamma, IGNORE),
            "dice": lambda: dice_loss(logits, labels, IGNORE),
        }
        return sum(parts[name]() for name in self.hparams.loss.split("+"))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Loss of one batch (images (B, 3, H, W), labels (B, H, W), ...)."""
        images, labels = batch[0], batch[1]
        self.before_step(batch_idx)
        outputs = self(images)
        if isinstance(outputs, Tensor):
            loss = self.loss(outputs, labels)
        else:
            main, aux = (self.loss(logits, labels) for logits in outputs)
            loss = main + self.hparams.aux_weight * aux
            self.log_dict({"train/loss_main": main, "train/loss_aux": aux}, batch_size=len(images))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def make_metric(self) -> SegmentationMetrics:
        """The matrix of labeled and predicted classes."""
        return SegmentationMetrics(self.hparams.num_classes)

    def evaluate(self, model: nn.Module, metric: SegmentationMetrics, batch: Sequence[Any]) -> list[Mistake]:
        """Counts images one by one, each resized to its label's size before the classes are taken.

        A mistake is as large as the fraction of the labeled pixels that is wrong.
        """
        mistakes = []
        for image, label in zip(batch[0], batch[1], strict=True):
            found = predicted_classes(self.probabilities(model, image[None], tuple(label.shape)))[0]
            metric.update(found, label)
            labeled = (label >= 0) & (label < self.hparams.num_classes)
            wrong = ((found != label) & labeled).sum() / labeled.sum().clamp(min=1)
            mistakes.append((float(wrong), (found.short().cpu(), label.short().cpu())))
        return mistakes

    def draw_mistake(self, loaded: Any, predicted: Sequence[Tensor], title: str) -> Image.Image:
        """The predicted classes beside the labeled ones."""
        maps = zip(("predicted", "labeled"), predicted, strict=True)
        panels = [
            draw_classes(loaded[0], classes.cpu().numpy(), self.class_names, f"{word}: {title}")
            for word, classes in maps
        ]
        return side_by_side(panels)

    def probabilities(self, model: nn.Module, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, 3, H, W) to (B, K, h, w), inferred as the options are set; `size` (h, w), None: the images' own."""
        h = self.hparams
        return infer(model, images, h.window, h.stride, h.scales, h.flip, size)

    @torch.no_grad()
    def predict_step(self, batch: Sequence[Any], batch_idx: int) -> list[Tensor]:
        """Probabilities (K, H, W) of each image."""
        return [self.probabilities(self.model, image[None])[0] for image in batch[0]]

    def inference(self) -> tuple[list[str], dict[str, Any]]:
        """As `Task.inference`: sliding windows, and several scales or flips."""
        h = self.hparams
        parts = ["sliding"] if h.window else []
        parts += ["multi_scale"] if tuple(h.scales) != (1.0,) or h.flip else []
        options = {"window": h.window, "stride": h.stride, "scales": list(h.scales), "flip": h.flip}
        return parts, {"inference": options}
