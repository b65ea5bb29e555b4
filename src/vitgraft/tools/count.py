"""Parameters and multiply-accumulates (MAC), the two costs that do not depend on the machine.

What counts as a MAC: the products of matrix multiplications, convolutions and attention, for one image: PyTorch's own
FLOP counter (`torch.utils.flop_counter`), halved. Not counted: norms, activations, softmax, additions of biases,
pooling and interpolation. The published "FLOPs" of vision transformers are MAC of about this kind.

Attention is counted alike whether it is written out or fused: on the meta device, where the counting happens,
`scaled_dot_product_attention` is decomposed into its two matrix products.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


def count_params(model: nn.Module) -> int:
    """Number of parameter values; a tensor that is shared counts once, a frozen one counts too."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: Sequence[int], training: bool = False) -> int:
    """MAC of one image. The model is neither run nor changed: a copy without data is.

    Args:
        model: Any model that takes one image tensor.
        input_size: (channels, height, width) of the image.
        training: Count the forward and the backward pass of a training step, instead of inference.

    Returns:
        The count, e.g. 1_253_683_200 for timm's deit_tiny_patch16_224 at (3, 224, 224).
    """
    return count_macs_by_module(model, input_size, training)[""]


def count_macs_by_module(model: nn.Module, input_size: Sequence[int], training: bool = False) -> dict[str, int]:
    """MAC of one image for every module that has any, children included in their parents; "" is the whole model.

    Args:
        model: Any model that takes one image tensor.
        input_size: (channels, height, width) of the image.
        training: Count the forward and the backward pass of a training step, instead of inference.
    """
    if len(input_size) != 3:
        raise ValueError(f"input_size must be (channels, height, width), got {tuple(input_size)}")
    try:
        counted = _count(_meta_copy(model), torch.zeros(1, *input_size, device="meta"), training)
    except (NotImplementedError, RuntimeError):
        # an operator without a meta kernel, or a tensor that is neither parameter nor buffer: run it for real
        tensor = next(model.parameters(), torch.zeros(()))
        real = torch.zeros(1, *input_size, device=tensor.device, dtype=tensor.dtype)
        counted = _count(copy.deepcopy(model), real, training)
    root = f"{type(model).__name__}."
    modules = {
        name.removeprefix(root): sum(flops.values()) // 2 for name, flops in counted.items() if name.startswith(root)
    }
    return {"": sum(counted["Global"].values()) // 2, **modules}


def count_parts(model: nn.Module, input_size: Sequence[int], parts: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Parameters and MAC of parts of a model: {part: {"params": ..., "macs": ...}}; a part that is not run has no MAC.

    Args:
        model: Any model that takes one image tensor.
        input_size: (channels, height, width) of the image.
        parts: Name of each part -> name of its module, "" for the whole model; what the model lacks is left out.
    """
    macs, modules = count_macs_by_module(model, input_size), dict(model.named_modules())
    return {
        part: {"params": count_params(modules[name]), "macs": macs.get(name, 0)}
        for part, name in parts.items()
        if name in modules
    }


def _count(model: nn.Module, image: Tensor, training: bool) -> dict:
    model.train(training)
    if not training:
        model.requires_grad_(False)  # the counter hooks into the gradients of what has any
    # older PyTorch releases do not count this operator: the fused attention that a CPU runs
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.set_grad_enabled(training), FlopCounterMode(display=False, custom_mapping=fused) as counter:
        output = model(
            image.expand(2, -1, -1, -1) if training else image
        )  # BatchNorm refuses to train on one 1 x 1 map
        if training:
            labels = torch.zeros(2, dtype=torch.long, device=image.device)
            F.cross_entropy(output, labels).backward()
    images = 2 if training else 1
    return {name: {op: flops // images for op, flops in ops.items()} for name, ops in counter.get_flop_counts().items()}


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes and no data; tensors that are shared stay shared."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach().to("meta")
        for tensor in tensors
    }
    return copy.deepcopy(model, memo=empty)


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args, **kwargs) -> int:
    """Two matrix products: query (B, heads, N, D) by key (B, heads, S, D), weights by value (B, heads, S, Dv)."""
    batch, heads, queries, dim = query
    return 2 * batch * heads * queries * key[2] * (dim + value[3])
