import pytest
import torch
from helpers import SIZES, WINDOWS, assert_same, grid, randomized
from reference import operators
from reference.stripe_attention import stripe_attention

from vitgraft import GraftError
from vitgraft.layers import CrossShapedAttention


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cross_shaped_attention_equals_the_loops(size, window, grad):
    module = randomized(CrossShapedAttention(8, 4, window))
    x = grid(2, *size, 8)
    with torch.set_grad_enabled(grad):
        actual = module(x)
    assert_same(actual.detach(), operators.cross_shaped_attention(x, module.state_dict(), 4, window))


@pytest.mark.parametrize("size", [(7, 7), (3, 5)], ids=str)
def test_a_grid_of_one_window_gets_cswins_full_attention(size):
    """Which CSWin computes in one branch of all heads."""
    module = randomized(CrossShapedAttention(8, 4, (7, 7)))
    x = grid(2, *size, 8)
    weight, bias = (torch.cat([getattr(attn.get_v, name) for attn in module.attns]) for name in ("weight", "bias"))
    qkv = module.qkv(x).unflatten(-1, (3, 8))
    full = stripe_attention(qkv, weight, bias, 4, 7, "full")
    assert_same(module(x), module.proj(full))


def test_stripes_cross():
    """A token sees its row and column of stripes, and nothing else."""
    module = randomized(CrossShapedAttention(4, 2, (2, 3)))
    x = grid(1, 6, 9, 4).requires_grad_()
    module(x)[0, 3, 4].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(6, 9, dtype=torch.bool)
    expected[2:4] = True
    expected[:, 3:6] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("heads", [1, 3])
def test_an_odd_number_of_heads(heads):
    with pytest.raises(GraftError, match=f"num_heads={heads} is odd: use an even num_heads, or attention='window'"):
        CrossShapedAttention(12, heads, (7, 7))


def test_gradcheck():
    module = randomized(CrossShapedAttention(4, 2, (2, 2)))
    assert torch.autograd.gradcheck(module, grid(1, 3, 4, 4).requires_grad_())
