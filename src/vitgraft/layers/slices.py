"""Running a function over slices of a batch, where a CPU is faster that way."""

from collections.abc import Callable

import torch

__all__ = ["SLICE_BYTES", "in_slices"]

# glibc takes blocks of over 32 MiB from the kernel one by one and gives each back at once, so that every use of one
# pays a page fault for each 4 KiB: a matrix product that writes one then runs at half its speed. Half of that also
# leaves room in the caches.
SLICE_BYTES = 16 << 20


def in_slices(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, growth: int) -> torch.Tensor:
    """function(x), for a function that treats the samples of a batch alike and apart.

    In eager mode on a CPU it gets as many samples at a time as keep its largest tensor within 16 MiB; elsewhere all.

    Args:
        function: (b, ...) -> (b, ...) for any b.
        x: (B, ...).
        growth: Size of the largest tensor that the function makes, as a multiple of its input's.
    """
    if x.device.type != "cpu" or type(x) is not torch.Tensor or torch.compiler.is_compiling():
        return function(x)
    # a graph that is traced or exported should not depend on the size of the batch
    if torch.jit.is_tracing():
        return function(x)
    samples = max(1, SLICE_BYTES // max(1, growth * x[:1].numel() * x.element_size()))
    if samples >= x.shape[0]:
        return function(x)
    # of nearly equal size: a small last one would make poor matrix products
    return torch.cat([function(part) for part in x.tensor_split(-(-x.shape[0] // samples))])
