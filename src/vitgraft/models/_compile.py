"""How the backbones behave under torch.compile."""

import torch

__all__ = ["one_graph_per_size"]


def one_graph_per_size(x: torch.Tensor) -> None:
    """Makes torch.compile treat the height and width of images (B, C, H, W) as constants.

    By default it would make them symbols at the second size, and carry them through every padding and partition:
    measured with torch 2.15, compiling two stages of Swin that way took over a minute, four did not end. A graph per
    size takes seconds. The batch stays free. Beyond 8 sizes torch.compile gives up (with fullgraph=True it raises):
    set torch._dynamo.config.recompile_limit to the number of sizes in use. torch.export is left alone.
    """
    if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        for side in x.shape[-2:]:
            for _ in range(side):  # a loop's length is guarded upon, as torch.compile unrolls it
                break
