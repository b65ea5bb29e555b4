"""Effective receptive fields (ERF): figure 2 (a) of the paper, as a measurement."""

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["effective_receptive_fields", "erf_area"]


def effective_receptive_fields(
    model: nn.Module, modules: Sequence[nn.Module], images: torch.Tensor
) -> list[torch.Tensor]:
    """Mean size of the gradient of the center token of each module's output with respect to the input.

    Args:
        model: Runs on `images`, once.
        modules: Blocks or stages inside it whose output is (B, N, C) tokens of a square grid without prefix tokens, or
            a (B, H, W, C) grid.
        images: (B, 3, H, W).

    Returns:
        Of each module (H, W), not negative, largest value 1: |gradient| summed over channels, averaged over the images.

    Raises:
        ValueError: A module's output has no such layout, or it does not run.
    """
    outputs: dict[nn.Module, torch.Tensor] = {}
    handles = [module.register_forward_hook(lambda m, _args, output: outputs.update({m: output})) for module in modules]
    training = model.training
    model.eval()
    try:
        images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            model(images)
            centers = [_center(module, outputs.get(module)) for module in modules]
            fields = [torch.autograd.grad(center.sum(), images, retain_graph=True)[0] for center in centers]
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    fields = [gradient.abs().sum(1).mean(0) for gradient in fields]
    return [field / field.max().clamp_min(torch.finfo(field.dtype).tiny) for field in fields]


def _center(module: nn.Module, out: torch.Tensor | None) -> torch.Tensor:
    """The center token (B, C) of a module's output."""
    if out is None:
        raise ValueError(f"{type(module).__name__} did not run when the model did: give a module of this model")
    if out.dim() == 3:
        side = round(out.shape[1] ** 0.5)
        if side * side != out.shape[1]:
            raise ValueError(f"{out.shape[1]} tokens are no square grid: give a module without prefix tokens")
        out = out.reshape(out.shape[0], side, side, out.shape[2])
    if out.dim() != 4:
        raise ValueError(f"an output of shape {tuple(out.shape)} is neither (B, N, C) nor (B, H, W, C)")
    return out[:, out.shape[1] // 2, out.shape[2] // 2]


def erf_area(field: torch.Tensor, threshold: float = 0.001) -> float:
    """Fraction of the pixels of a receptive field (H, W) whose value is above `threshold` of the largest."""
    return (field > threshold * field.max()).float().mean().item()
