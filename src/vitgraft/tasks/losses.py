"""Losses of classifiers and segmenters that are neither PyTorch's nor timm's, and the weights of classes.

Logits are (N, K, ...), labels int64 (N, ...), as PyTorch has them. Sums over images or pixels are divided by their
number, not by the sum of their weights: so the gradient of a batch is the same on one process and on several.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import MinLen
from torch import Tensor
from torch.nn import functional as F

from vitgraft.errors import RecipeError
from vitgraft.options import Limits, NonNegative

__all__ = [
    "ClassWeights", "balanced_weights", "class_weights_of", "cross_entropy", "describe_weights", "dice_loss",
    "focal_loss",
]  # fmt: skip

ClassWeights = Literal["balanced"] | Annotated[list[NonNegative], Limits("one or more", (MinLen(1),))]
"""The option `class_weights`: "balanced", or a weight for each class."""
SHOWN = 12  # classes whose weights are printed one by one


def cross_entropy(
    logits: Tensor, targets: Tensor, weight: Tensor | None = None, smoothing: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """Cross-entropy, averaged over all images or pixels, ignored ones among them.

    Args:
        logits: (N, K, ...).
        targets: Labels (N, ...), or probabilities (N, K, ...).
        weight: Of each class, (K,); with probabilities, on the part of each class.
        smoothing: Fraction of the target that is spread over all classes.
        ignore_index: Label of what adds nothing to the sum.
    """
    options = {"weight": weight, "label_smoothing": smoothing, "ignore_index": ignore_index, "reduction": "sum"}
    return F.cross_entropy(logits.float(), targets, **options) / (logits.numel() / logits.shape[1])


def focal_loss(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, gamma: float = 2.0, ignore_index: int = -100
) -> Tensor:
    """-(1 - p)^gamma log p of the label's probability p (Lin et al. 2017, equation 4; with weights 5), averaged over
    all images or pixels, ignored ones among them. The paper has sigmoids, here it is a softmax over the classes.

    Args:
        logits: (N, K, ...).
        labels: (N, ...).
        weight: Of each class, (K,): the paper's alpha.
        gamma: How much less weight what is learned already has; 0 is the cross-entropy.
        ignore_index: Label of what adds nothing to the sum.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="none")
    # of an ignored pixel 0, where a power below 1 has no gradient
    missing = (1 - torch.exp(-losses)).clamp_min(torch.finfo(losses.dtype).eps)
    losses = missing**gamma * losses
    if weight is not None:
        losses = losses * weight[labels.where(labels != ignore_index, 0)]
    return losses.mean()


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """1 - Dice coefficient 2 sum(p t) / (sum(p) + sum(t)) of probabilities p and one-hot labels t (Milletari et al.
    2016, without their squares), over all pixels of the batch, averaged over the classes that have pixels in it.

    As `DiceLoss` of segmentation-models-pytorch, which divides by the number of all classes.

    Args:
        logits: (N, K, ...).
        labels: (N, ...).
        ignore_index: Label of pixels that are left out.
    """
    counted = labels != ignore_index
    labels, ones = labels.where(counted, 0), counted.float()
    probabilities = logits.float().softmax(1) * ones.unsqueeze(1)
    of_label = probabilities.gather(1, labels.unsqueeze(1)).flatten()  # no one-hot tensor, of 8 bytes for each logit
    zeros = of_label.new_zeros(logits.shape[1])
    overlap = zeros.scatter_add(0, labels.flatten(), of_label)
    pixels = zeros.scatter_add(0, labels.flatten(), ones.flatten())
    there = pixels > 0
    predicted = probabilities.transpose(0, 1).flatten(1).sum(1)
    losses = 1 - 2 * overlap / (predicted + pixels).where(there, 1)
    return losses.where(there, 0).sum() / there.sum().clamp_min(1)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """n / (k count) of each class, n the sum of the counts and k the number of classes that are there: scikit-learn's
    `compute_class_weight("balanced", ...)`. Their mean over what was counted is 1. A class that is not there has 1.

    Args:
        counts: Of images or pixels, one for each class.
    """
    counts = np.asarray(counts, dtype=np.float64)
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return [float(f"{weight:.6g}") for weight in weights]


def class_weights_of(data: Any, given: str | Sequence[float], classes: int) -> tuple[list[float], list[int] | None]:
    """The weights of a run's classes and, where they are balanced, what was counted.

    Args:
        data: The run's data module.
        given: The option `class_weights`.
        classes: How many there are.

    Raises:
        RecipeError: Balanced, of data that is drawn balanced already, or that does not count its classes; not one
            weight for each class, or fewer than two above 0.
    """
    if given != "balanced":
        if len(given) != classes:
            raise RecipeError(f"model.class_weights={list(given)}: {len(given)} weights for {classes} classes")
        if sum(weight > 0 for weight in given) < 2:
            raise RecipeError(f"model.class_weights={list(given)}: nothing to learn without two weights above 0")
        return list(given), None
    if getattr(data, "is_balanced", False):
        raise RecipeError(
            "model.class_weights='balanced': with data.sampler=balanced every class is drawn equally often already; "
            "leave one of them out"
        )
    try:
        counts = data.class_counts()
    except (AttributeError, NotImplementedError) as error:
        raise RecipeError(
            f"model.class_weights='balanced': {type(data).__name__} does not count its classes; give a list, a weight "
            "for each class"
        ) from error
    return balanced_weights(counts), [int(count) for count in counts]


def describe_weights(weights: Sequence[float], names: Sequence[str], counts: Sequence[int] | None) -> str:
    """One line: the weight of each class; of many classes the smallest and the largest."""
    order = list(range(len(weights)))
    if len(order) > SHOWN:
        order.sort(key=lambda number: weights[number])
        order = [order[0], order[-1]]
    shown = [f"{names[i]} {weights[i]:.4g}" + (f" (of {counts[i]:,})" if counts else "") for i in order]
    return f"class weights: {(' ... ' if len(weights) > SHOWN else ', ').join(shown)}"
