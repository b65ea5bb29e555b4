"""Gates and position biases that are kept between forward passes follow their parameters."""

import copy
import io

import pytest
import torch

from vitgraft.layers.attention import WindowAttention
from vitgraft.layers.upsample import Upsample


def modules():
    """A module whose forward pass uses kept tensors, its parameter, and a call of it."""
    attn = WindowAttention(8, 2, (4, 4))
    up = Upsample(8, 2, (4, 4), (4, 4))
    x = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(0))
    return [
        pytest.param(attn, attn.relative_position_bias_table, lambda m: m(x), id="bias"),
        pytest.param(up, up.anti_alias, lambda m: m(x, x.new_empty(2, 12, 10, 0)), id="gate"),
    ]


def fresh(module, call):
    """The output of a copy, for which nothing has been kept."""
    with torch.no_grad():
        return call(copy.deepcopy(module))


CHANGES = {
    "in place": lambda p: p.add_(1),
    "data in place": lambda p: p.data.sub_(2),
    "data": lambda p: setattr(p, "data", torch.randn_like(p)),
    "one value": lambda p: p.view(-1)[-1:].fill_(3),
    "not a number": lambda p: p.view(-1)[0:1].fill_(float("nan")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("module, parameter, call", modules())
def test_every_change_of_a_parameter_is_noticed(module, parameter, call, change):
    module.init_weights()
    with torch.no_grad():
        before = call(module)
        assert torch.equal(call(module), before)
        change(parameter)
        after = call(module)
        assert not torch.equal(after, before)
        assert torch.equal(after.nan_to_num(), fresh(module, call).nan_to_num())


def test_another_precision_is_noticed():
    attn = WindowAttention(8, 2, (4, 4))
    x = torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        attn(x)
        output = attn.double()(x.double())
        assert torch.equal(output, fresh(attn, lambda m: m(x.double())))


@pytest.mark.parametrize("module, parameter, call", modules())
def test_training_after_inference_mode(module, parameter, call):
    with torch.inference_mode():
        inferred = call(module)
    output = call(module)
    torch.testing.assert_close(output, inferred)
    output.square().sum().backward()
    assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("module, parameter, call", modules())
def test_nothing_kept_is_saved(module, parameter, call):
    def size():
        buffer = io.BytesIO()
        torch.save(module, buffer)
        return buffer.tell()

    before = size()
    with torch.no_grad():
        call(module)
    assert size() == before
