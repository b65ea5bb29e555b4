"""`norm_gelu`: the values and gradients of the three operators, from their input alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.layers import norm_gelu, pool_grid


def plain(norm, x, factor):
    return pool_grid(F.gelu(norm(x)), factor)


def make(bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    norm = nn.LayerNorm(6, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm, torch.randn(2, 5, 4, 6, dtype=dtype, requires_grad=True)


def gradients(function, norm, x, factor):
    out = function(norm, x, factor)
    inputs = [one for one in (x, *norm.parameters()) if one.requires_grad]
    return [out, *torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=torch.manual_seed(1)).to(out))]


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_same_as_the_operators(factor, bias):
    norm, x = make(bias)
    for one, other in zip(gradients(norm_gelu, norm, x, factor), gradients(plain, norm, x, factor), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    norm.requires_grad_(False)
    for one, other in zip(gradients(norm_gelu, norm, x, factor), gradients(plain, norm, x, factor), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_differentiable_twice():
    norm, x = make()
    function = lambda x, weight, bias: norm_gelu(norm, x, 2)  # noqa: E731 gradcheck perturbs the parameters in place
    assert torch.autograd.gradcheck(function, (x, norm.weight, norm.bias))
    assert torch.autograd.gradgradcheck(function, (x, norm.weight, norm.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast(dtype):
    norm, x = make(dtype=torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients(norm_gelu, norm, x, 2), gradients(plain, norm, x, 2)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_gradient_of_each_sample():
    norm, x = make()
    parameters = dict(norm.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(Both(norm), {f"norm.{k}": v for k, v in parameters.items()}, (x[None],)).sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x.detach())
    for at in range(2):
        one = torch.autograd.grad(plain(norm, x[at : at + 1], 2).sum(), norm.weight)[0]
        torch.testing.assert_close(each["weight"][at], one)


class Both(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return norm_gelu(self.norm, x, 2)


def kept(function, norm, x):
    """Bytes that are kept for the backward pass, without the parameters."""
    storages = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in norm.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function(norm, x, 2)
    return sum(storage.nbytes() for storage in storages.values())


def test_the_input_alone_is_kept():
    norm, x = make()
    assert kept(norm_gelu, norm, x) == x.nbytes
    assert kept(plain, norm, x) > 2 * x.nbytes, "else there is nothing to save"


def test_other_norms_and_hooks_are_called():
    norm, x = make()
    seen = []
    hooked = copy.deepcopy(norm)
    hooked.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(norm_gelu(hooked, x, 2), norm_gelu(norm, x, 2))
    assert len(seen) == 1
    assert torch.equal(norm_gelu(nn.Identity(), x), F.gelu(x))
