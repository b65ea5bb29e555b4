import pytest
import torch
from helpers import SIZES, WINDOWS, assert_same, grid, randomized
from reference import operators
from torch import nn

from vitgraft.layers import Upsample, bilinear_upsample, window_bilinear_upsample

MODES = ["w_bilinear", "bilinear", "nearest", "cross_attention"]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_window_bilinear_equals_the_loops(size, window):
    x = grid(2, *size, 3)
    assert_same(window_bilinear_upsample(x, window), operators.window_bilinear(x, window))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bilinear_equals_the_loops(size):
    x = grid(2, *size, 3)
    assert_same(bilinear_upsample(x), operators.bilinear(x))


@pytest.mark.parametrize("factor", [2, 1, 3, 8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 9), (13, 6)], ids=str)
def test_whole_factors_equal_the_loops(size, mode, factor):
    """The finer grid is odd too, and E_aa was made for another size."""
    module = randomized(Upsample(4, 2, (3, 4), (2, 2), mode, factor))
    fine = grid(2, *size, 4)
    z = grid(2, -(-size[0] // factor), -(-size[1] // factor), 4, seed=2)
    expected = operators.upsample(z, fine, module.state_dict(), mode, 2, (2, 2), factor)
    assert_same(module(z, fine).detach(), expected)


@pytest.mark.parametrize("mode", ["w_bilinear", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(4, 5), (7, 11), (3, 9)], ids=str)
def test_other_sizes_equal_the_loops(size, mode):
    module = randomized(Upsample(4, 2, (3, 4), (7, 7), mode, factor=None))
    z, fine = grid(2, 3, 4, 4), grid(2, *size, 4)
    assert_same(module(z, fine).detach(), operators.upsample(z, fine, module.state_dict(), mode, 2, (7, 7), None))


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_gate_apart_from_the_interpolation(mode, gate):
    module = randomized(Upsample(4, 2, (2, 3), (2, 2), mode, gate=gate))
    assert ("anti_alias" in module.state_dict()) == gate
    z, fine = grid(2, 2, 3, 4), grid(2, 3, 6, 4, seed=2)
    assert_same(module(z, fine).detach(), operators.upsample(z, fine, module.state_dict(), mode, 2, (2, 2)))


@pytest.mark.parametrize("size", [(7, 7), (8, 9), (3, 5)], ids=str)
def test_a_constant_stays_constant(size):
    x = torch.full((1, *size, 2), 2.5, dtype=torch.float64)
    assert torch.equal(window_bilinear_upsample(x, (3, 3)), torch.full((1, 2 * size[0], 2 * size[1], 2), 2.5).double())


def test_a_ramp_stays_a_ramp_inside_a_window():
    ramp = torch.arange(8.0, dtype=torch.float64).view(1, 1, 8, 1).expand(1, 8, 8, 1)
    row = window_bilinear_upsample(ramp, (4, 4))[0, 0, :, 0]
    # half steps inside, flat at the borders of the window
    inside = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert row.tolist() == inside + [4 + v for v in inside]


def test_align_corners_is_false():
    """With align_corners the four values between 0 and 1 would be 0, 1/3, 2/3, 1."""
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1)
    assert window_bilinear_upsample(x, (7, 7))[0, 0, :, 0].tolist() == [0, 0.25, 0.75, 1]
    assert bilinear_upsample(x)[0, 0, :, 0].tolist() == [0, 0.25, 0.75, 1]


@pytest.mark.parametrize("size", [(6, 9), (7, 8)], ids=str)
def test_a_window_never_reads_its_neighbor(size):
    x = grid(1, *size, 2)
    y = x.clone()
    y[:, 3:6, 3:6] += 1
    before, after = window_bilinear_upsample(x, (3, 3)), window_bilinear_upsample(y, (3, 3))
    touched = torch.zeros(2 * size[0], 2 * size[1], dtype=torch.bool)
    touched[6:12, 6:12] = True
    assert torch.equal(before[:, ~touched], after[:, ~touched])
    assert (before != after)[:, touched].all()
    assert not torch.equal(bilinear_upsample(x)[:, ~touched], bilinear_upsample(y)[:, ~touched])


@pytest.mark.parametrize("dim", [1, 2])
def test_a_flip_commutes(dim):
    x = grid(1, 6, 9, 2)
    assert_same(window_bilinear_upsample(x.flip(dim), (3, 3)), window_bilinear_upsample(x, (3, 3)).flip(dim))


def test_a_strided_input():
    x = grid(2, 4, 8, 7).permute(0, 2, 3, 1)
    assert_same(window_bilinear_upsample(x, (3, 3)), window_bilinear_upsample(x.contiguous(), (3, 3)))


def test_upsampling_gradcheck():
    x = grid(1, 3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: window_bilinear_upsample(x, (2, 3)), x)


@pytest.mark.parametrize("mode", MODES)
def test_upsample_gradcheck(mode):
    module = randomized(Upsample(2, 1, (2, 2), (2, 2), mode))
    z, fine = grid(1, 2, 3, 2).requires_grad_(), grid(1, 3, 5, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(module, (z, fine))


@pytest.mark.parametrize("mode", ["w_bilinear", "bilinear"])
def test_the_gate_is_one_half_at_the_start(mode):
    """So a fresh module passes half of a constant alpha(Z) everywhere."""
    module = Upsample(3, 1, (4, 4), (2, 2), mode).double()
    nn.init.zeros_(module.proj.weight)
    nn.init.constant_(module.proj.bias, 4.0)
    out = module(grid(1, 4, 4, 3), grid(1, 8, 8, 3))
    assert torch.equal(out, torch.full((1, 8, 8, 3), 2.0, dtype=torch.float64))


def test_the_gate_is_learned_per_position_and_channel():
    module = Upsample(3, 1, (4, 5), (7, 7))
    assert module.anti_alias.shape == (4, 5, 3)
    assert Upsample(3, 1, (4, 5), (7, 7), "nearest").anti_alias is None


@pytest.mark.parametrize("size", [(4, 5), (2, 3), (9, 7)], ids=str)
def test_the_gate_is_resized_as_logits(size):
    module = randomized(Upsample(3, 1, (4, 5), (7, 7)))
    assert_same(module.gate(size).detach(), operators.gate(module.anti_alias.detach(), size))


@pytest.mark.parametrize("mode", MODES)
def test_identity_gives_zeros_and_a_gradient(mode):
    module = randomized(Upsample(4, 2, (2, 3), (2, 2), mode))
    module.init_identity()
    out = module(grid(1, 2, 3, 4), grid(1, 4, 6, 4))
    assert torch.equal(out, torch.zeros_like(out))
    (out * grid(1, 4, 6, 4, seed=3)).sum().backward()
    assert module.proj.weight.grad.abs().min() > 0
