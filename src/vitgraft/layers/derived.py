"""Tensors that follow from parameters alone, kept between forward passes where no gradient is wanted."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["derived"]

# id of a parameter -> (reference to it, key, copy of its values, result). Not on the modules: neither state dicts nor
# pickles get larger.
_KEPT: dict[int, tuple[weakref.ref, tuple, torch.Tensor | None, torch.Tensor | None]] = {}
_NOTHING = (lambda: None), (), None, None


def derived(function: Callable[..., torch.Tensor], parameter: nn.Parameter, *key: Any) -> torch.Tensor:
    """function(parameter, *key), kept until the parameter or the key changes.

    A comparison with a copy of the values notices every change, also those that version counters miss (`.data`); it
    pays where the function costs more than reading the parameter. On a GPU, where a comparison would wait for the
    device, in traced code and where gradients are wanted nothing is kept.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(parameter) is not nn.Parameter
    if torch.is_grad_enabled() or traced or parameter.device.type != "cpu":
        return function(parameter, *key)
    number, key = id(parameter), (function, parameter.dtype, *key)
    known, known_key, values, result = _KEPT.get(number, _NOTHING)
    if known() is not parameter or known_key != key or not torch.equal(values, parameter):
        # a tensor made in inference mode could never be used in training again
        with torch.inference_mode(False), torch.no_grad():
            values, result = parameter.detach().clone(), function(parameter, *key[2:])
        _KEPT[number] = weakref.ref(parameter, lambda _: _KEPT.pop(number, None)), key, values, result
    return result
