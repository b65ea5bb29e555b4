"""GELU that needs no second tensor where no gradient is wanted."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["GELU", "gelu"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU of a tensor that nobody else holds, (...) -> (...): in eager inference it is written over its input.

    The hidden layer of an MLP is the largest tensor of a block. Two of them at a time make glibc give memory back to
    the kernel after each block, and the next block pay for it in page faults.
    """
    if (
        torch.is_grad_enabled()
        or type(x) is not torch.Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    ):
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)


class GELU(nn.GELU):
    """`gelu` as the activation of an MLP. A forward hook on the layer before it sees its output overwritten."""

    def __init__(self):
        super().__init__()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(...) -> (...)"""
        return gelu(input)
