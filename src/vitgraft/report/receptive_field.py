"""Effective receptive fields: how far a token really looks (figure 2 a of the paper, as a measurement)."""

import torch
from torch import nn

__all__ = ["effective_receptive_field", "reached_share"]


def effective_receptive_field(model: nn.Module, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Mean size of the gradient of the centre token of `module`'s output with respect to the input.

    Args:
        model: Runs on `images`.
        module: A block or stage inside it whose output is (B, N, C) tokens of a square grid without prefix tokens, or a
            (B, H, W, C) grid.
        images: (B, 3, H, W).

    Returns:
        (H, W), not negative, largest value 1: |gradient| summed over colours, averaged over the images.

    Raises:
        ValueError: The module's output has no such layout, or it does not run.
    """
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    training = model.training
    model.eval()
    try:
        images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            model(images)
            if not outputs:
                raise ValueError(f"{type(module).__name__} did not run when the model did: give a module of this model")
            out = outputs[-1]
            if out.dim() == 3:
                side = round(out.shape[1] ** 0.5)
                if side * side != out.shape[1]:
                    raise ValueError(f"{out.shape[1]} tokens are no square grid: give a module without prefix tokens")
                out = out.reshape(out.shape[0], side, side, out.shape[2])
            if out.dim() != 4:
                raise ValueError(f"an output of shape {tuple(out.shape)} is neither (B, N, C) nor (B, H, W, C)")
            centre = out[:, out.shape[1] // 2, out.shape[2] // 2]
            (gradient,) = torch.autograd.grad(centre.sum(), images)
    finally:
        handle.remove()
        model.train(training)
    field = gradient.abs().sum(1).mean(0)
    return field / field.max().clamp_min(torch.finfo(field.dtype).tiny)


def reached_share(field: torch.Tensor, threshold: float = 0.001) -> float:
    """Share of the pixels (0 to 1) whose value in `field` (H, W) is above `threshold` of the largest."""
    return (field > threshold * field.max()).float().mean().item()
