"""What the tests of the layers share."""

import torch
from torch import nn

# (H, W): one token, odd, one window of 7, one more than that, many
SIZES = [(1, 1), (1, 4), (3, 5), (7, 7), (8, 9), (15, 22)]
WINDOWS = [(7, 7), (3, 3), (2, 5)]


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in float64 with all parameters drawn anew: start values of 0 and 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5
    return module


def grid(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random float64 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-10 in float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
