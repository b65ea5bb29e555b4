"""`vitgraft.freeze`: a model for inference alone on a CPU, its linear layers packed for oneDNN.

A packed weight has the order in which the matrix product reads it, and bias and GELU are applied to the result while it
is in the cache. Everything else of the model stays as it is: hooks, names, state dict.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn

from vitgraft.errors import FrozenModelError

__all__ = ["PackedLinear", "freeze"]


class PackedLinear(nn.Linear):
    """A linear layer of fixed weights and, where it has one, the GELU after it, as one call of oneDNN.

    In traced and compiled graphs, under autocast and where a gradient is wanted it computes as PyTorch's own does.

    Args:
        linear: The layer, whose parameters are taken over.
        gelu: `approximate` of the GELU; None: there is none.

    Raises:
        FrozenModelError: In forward, where the weight has changed since; in train.
    """

    def __init__(self, linear: nn.Linear, gelu: str | None = None):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.gelu = gelu
        self.training = False
        self._pack()

    def _pack(self) -> None:
        # a tuple, since a module takes tensors only as parameters and buffers, which would be saved
        weight = self.weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight) if _packable(weight) else None
        self._packed = packed, self.weight, self.weight._version, weight.data_ptr()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            raise FrozenModelError("a model from vitgraft.freeze is for inference: train the one it was made from")
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)"""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._plain(x)
        packed, parameter, version, pointer = self._packed
        weight = self.weight
        if weight is not parameter or weight._version != version or weight.data_ptr() != pointer:
            raise FrozenModelError(
                "a weight has changed since vitgraft.freeze, which keeps it in another order: change the model that it "
                "was made from, then freeze that again"
            )
        plain = packed is None or x.dtype != weight.dtype or x.numel() == 0 or type(x) is not torch.Tensor
        if plain or torch.is_autocast_enabled("cpu") or (x.requires_grad and torch.is_grad_enabled()):
            return self._plain(x)
        after = ("none", [], "") if self.gelu is None else ("gelu", [], self.gelu)
        return torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, *after)

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x if self.gelu is None else F.gelu(x, approximate=self.gelu)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.gelu is None else f", gelu={self.gelu!r}")


def _packable(weight: torch.Tensor) -> bool:
    """Whether oneDNN computes with this weight here at full speed."""
    if weight.device.type != "cpu" or weight.numel() == 0 or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _pack_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and not _hooked(child):
            activation = _activation_after(module, name)
            gelu = None
            if activation and isinstance(module.get_submodule(activation), nn.GELU):
                gelu = module.get_submodule(activation).approximate
                setattr(module, activation, nn.Identity())
            setattr(module, name, PackedLinear(child, gelu))
        else:
            _pack_children(child)


def _activation_after(parent: nn.Module, name: str) -> str | None:
    """The child that gets what the child `name` returns, and nothing else, where the parent's class settles that."""
    following = None
    if type(parent) is Mlp and name == "fc1":
        following = "act"
    elif type(parent) is nn.Sequential:
        names = list(parent._modules)
        following = names[names.index(name) + 1] if name != names[-1] else None
    return following if following and not _hooked(parent.get_submodule(following)) else None


def freeze(model: nn.Module) -> nn.Module:
    """A copy of a model for inference on a CPU, of the same function; the model itself is left alone.

    Any model of linear layers, grafted or not. The copy is in eval mode and of fixed weights: to train, to load other
    weights or to convert it, take the original and freeze it again. It has the original's state dict, can be copied and
    pickled, and takes twice the memory for the weights of linear layers. Freeze a model in bfloat16 for inference in
    bfloat16: under autocast nothing is gained.

    Args:
        model: The model, on a CPU, in float32 or bfloat16.

    Returns:
        The copy, in eval mode.

    Raises:
        FrozenModelError: A parameter is not on a CPU, or oneDNN is not available.
    """
    if not torch.backends.mkldnn.is_available():
        raise FrozenModelError("vitgraft.freeze packs weights for oneDNN, which this PyTorch was built without")
    devices = sorted({str(parameter.device) for parameter in model.parameters()} - {"cpu"})
    if devices:
        raise FrozenModelError(
            f"vitgraft.freeze packs weights for CPUs, and this model is on {devices[0]}: move it with model.cpu(), or "
            "use torch.compile on a GPU"
        )
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    _pack_children(frozen)
    return frozen
