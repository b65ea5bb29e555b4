"""LayerNorm, GELU and pooling that keep only their input for the backward pass (equation 1, and alpha in equation 2).

PyTorch keeps the result of each of the three, a tenth of what a whole grafted DeiT-T keeps. Here the LayerNorm is
computed a second time in the backward pass instead: 1 % of a training step in float32, 3 % under bfloat16 autocast
(DeiT-T, batch of 8, one CPU thread).
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["norm_gelu", "pool_grid"]


def pool_grid(x: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Average over f x f tokens: (B, H, W, C) -> (B, ceil(H / f), ceil(W / f), C).

    Where f does not divide the grid, the last row or column is averaged over the tokens that exist.
    """
    if factor == 1:
        return x
    # an NHWC grid seen as NCHW is in channels_last order, for which the kernel needs no copy
    x = F.avg_pool2d(x.permute(0, 3, 1, 2), factor, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1)


class _NormGELU(torch.autograd.Function):
    """pool_grid(GELU(LN(x))); differentiable twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, eps, factor):
        return pool_grid(F.gelu(F.layer_norm(x, weight.shape, weight, bias, eps)), factor)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.eps, ctx.factor = inputs
        ctx.dtype = output.dtype
        ctx.save_for_backward(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        aten = torch.ops.aten
        x, weight, bias = inputs = ctx.saved_tensors
        if x.dtype != ctx.dtype:  # autocast normalized in another precision
            x, weight, bias = (one.to(ctx.dtype) for one in inputs)
        shape = list(weight.shape)
        normalized, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, ctx.eps)
        if (f := ctx.factor) > 1:  # of the map that was pooled, the kernel needs the shape alone
            pooled = normalized.permute(0, 3, 1, 2)
            grad = aten.avg_pool2d_backward(
                grad.permute(0, 3, 1, 2), pooled, [f, f], [f, f], [0, 0], True, False, None
            ).permute(0, 2, 3, 1)
        grad = aten.gelu_backward(grad, normalized)
        mask = list(ctx.needs_input_grad[:3])
        grads = aten.native_layer_norm_backward(grad, x, shape, mean, rstd, weight, bias, mask)
        grads = (None if grad is None else grad.to(one.dtype) for grad, one in zip(grads, inputs, strict=True))
        return *grads, None, None


def norm_gelu(norm: nn.Module, x: torch.Tensor, factor: int = 1) -> torch.Tensor:
    """pool_grid(GELU(norm(x)), factor): (B, H, W, C) -> (B, ceil(H / f), ceil(W / f), C)."""
    saves = torch.is_grad_enabled() and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if saves and type(norm) is nn.LayerNorm and type(norm.weight) is nn.Parameter and type(x) is torch.Tensor:
        hooks = norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks
        if not hooks:
            return _NormGELU.apply(x, norm.weight, norm.bias, norm.eps, factor)
    return pool_grid(F.gelu(norm(x)), factor)
