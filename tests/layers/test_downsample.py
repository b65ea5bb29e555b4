import pytest
import torch
from helpers import SIZES, assert_same, grid, randomized
from reference import operators

from vitgraft.layers import Downsample, pool_grid


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pooling_equals_the_loops(size):
    x = grid(2, *size, 3)
    assert_same(pool_grid(x), operators.pool(x))


@pytest.mark.parametrize("factor", [2, 1, 3, 8])
@pytest.mark.parametrize("mode", ["avg_pool", "linear", "cross_attention"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_factors_equal_the_loops(size, mode, factor):
    module = randomized(Downsample(4, mode, num_heads=2, window_size=(2, 2), factor=factor))
    x = grid(2, *size, 4).requires_grad_()
    expected = operators.downsample(x, module.state_dict(), mode, 2, (2, 2), factor)
    assert_same(module(x).detach(), expected.detach())
    weight = grid(*expected.shape, seed=3)
    assert_same(*(torch.autograd.grad((out * weight).sum(), x)[0] for out in (module(x), expected)))


@pytest.mark.parametrize("coarse", [(1, 1), (2, 3), (4, 5), (5, 8)], ids=str)
def test_other_sizes_equal_the_loops(coarse):
    module = randomized(Downsample(4, factor=None))
    x = grid(2, 5, 8, 4)
    expected = operators.downsample(x, module.state_dict(), "avg_pool", factor=None, size=coarse)
    assert_same(module(x, size=coarse).detach(), expected)


@pytest.mark.parametrize("factor", [2, None])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 3)], ids=str)
def test_attention_to_x0_equals_the_loops(size, factor):
    """The second level of a graft: the finer level is half of X0."""
    module = randomized(Downsample(4, "cross_attention_x0", 2, (2, 2), factor=factor, x0_factor=4))
    x0 = grid(2, *size, 4)
    x = grid(2, -(-size[0] // 2), -(-size[1] // 2), 4, seed=2)
    coarse = -(-size[0] // 4), -(-size[1] // 4)
    more = {"factor": factor, "size": coarse, "x0": x0, "x0_factor": 4}
    expected = operators.downsample(x, module.state_dict(), "cross_attention_x0", 2, (2, 2), **more)
    assert_same(module(x, x0, coarse).detach(), expected)


def test_a_constant_stays_constant_on_odd_grids():
    """The last row of an odd grid is the mean of what exists, not of zeros."""
    assert torch.equal(pool_grid(torch.full((1, 5, 3, 2), 3.0)), torch.full((1, 3, 2, 2), 3.0))


@pytest.mark.parametrize("dim", [1, 2])
def test_a_flip_commutes_with_pooling(dim):
    x = grid(1, 8, 6, 3)
    assert_same(pool_grid(x.flip(dim)), pool_grid(x).flip(dim))


def test_a_strided_input():
    """Grids come as slices and permuted maps too."""
    x = grid(2, 4, 9, 7).permute(0, 2, 3, 1)
    assert_same(pool_grid(x), pool_grid(x.contiguous()))
    module = randomized(Downsample(4, "linear"))
    assert_same(module(x), module(x.contiguous()))


@pytest.mark.parametrize("mode", ["avg_pool", "linear"])
def test_gradcheck(mode):
    module = randomized(Downsample(2, mode))
    assert torch.autograd.gradcheck(module, grid(1, 3, 2, 2).requires_grad_())
