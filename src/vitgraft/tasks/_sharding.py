"""FSDP2: weights, gradients and optimizer state spread over the processes, block by block."""

from typing import Any

from torch import nn

from vitgraft.errors import RecipeError

__all__ = ["shard"]


def shard(model: nn.Module, device_mesh: Any) -> None:
    """Applies `fully_shard` to each block and to the rest of the model, over the mesh's data-parallel dimension.

    A block is gathered while it runs. The graft goes with its block, whose feed-forward network it uses too.

    Args:
        device_mesh: That of Lightning's ModelParallelStrategy: dimensions "data_parallel" and "tensor_parallel".

    Raises:
        RecipeError: Tensor parallelism is asked for, for which there is no plan.
    """
    from torch.distributed.fsdp import fully_shard

    if device_mesh["tensor_parallel"].size() > 1:
        raise RecipeError(
            "trainer.strategy: the models have no plan for tensor parallelism; give ModelParallelStrategy "
            "tensor_parallel_size: 1 and data_parallel_size: the number of all processes"
        )
    mesh = device_mesh["data_parallel"]
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that timm or vitgraft call a block."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if module is not model and id(module) not in inside and "Block" in type(module).__name__:
            found.append(module)
            inside.update(id(child) for child in module.modules())
    return found
