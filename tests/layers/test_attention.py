import pytest
import torch
from helpers import SIZES, WINDOWS, assert_same, grid, randomized
from reference import operators

from vitgraft.layers import WindowAttention, WindowCrossAttention


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])  # two paths: fused attention or written out
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_window_attention_equals_the_loops(size, window, grad):
    module = randomized(WindowAttention(6, 2, window))
    x = grid(2, *size, 6)
    with torch.set_grad_enabled(grad):
        actual = module(x)
    assert_same(actual.detach(), operators.window_attention(x, module.state_dict(), 2, window).detach())


def test_a_window_never_reads_its_neighbor():
    module = randomized(WindowAttention(6, 2, (3, 3)))
    x = grid(1, 6, 9, 6)
    y = x.clone()
    y[:, 3:, 3:6] += 1
    before, after = module(x), module(y)
    touched = torch.zeros(6, 9, dtype=torch.bool)
    touched[3:, 3:6] = True
    assert torch.equal(before[:, ~touched], after[:, ~touched])
    assert (before != after)[:, touched].all()


def test_padding_takes_part():
    """As in the Swin authors' code: a padded token is a zero vector, so its key and value are the biases."""
    module = randomized(WindowAttention(4, 1, (2, 2)))
    x = grid(1, 2, 3, 4)
    padded = torch.cat((x, torch.zeros(1, 2, 1, 4, dtype=x.dtype)), dim=2)
    assert_same(module(x), module(padded)[:, :, :3])


def test_without_bias_and_without_relative_position():
    module = randomized(WindowAttention(6, 2, (3, 3), qkv_bias=False, rel_pos=False))
    assert module.qkv.bias is None
    assert "relative_position_bias_table" not in module.state_dict()
    p = {**module.state_dict(), "relative_position_bias_table": torch.zeros(25, 2, dtype=torch.float64)}
    x = grid(1, 4, 5, 6)
    assert_same(module(x).detach(), operators.window_attention(x, p, 2, (3, 3)))


@pytest.mark.parametrize("rel_pos", [True, False])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shifted_windows_equal_the_loops(size, window, grad, rel_pos):
    module = randomized(WindowAttention(6, 2, window, rel_pos=rel_pos, shift=True))
    x = grid(2, *size, 6)
    with torch.set_grad_enabled(grad):
        actual = module(x)
    assert_same(actual.detach(), operators.shifted_window_attention(x, module.state_dict(), 2, window))


def test_the_shift_is_that_of_the_swin_authors():
    """On a map of several windows in both directions, with Swin's own block as the witness."""
    from vitgraft.models.swin import SwinBlock

    block = SwinBlock(8, (16, 16), num_heads=2, window_size=4, shift_size=2)
    module = WindowAttention(8, 2, (4, 4), shift=True)
    module.load_state_dict({name: t for name, t in block.attn.state_dict().items() if name in module.state_dict()})
    x = torch.randn(2, 10, 13, 8)
    torch.testing.assert_close(module(x), block._attn(x))


def test_one_window_is_not_shifted():
    plain, shifted = (randomized(WindowAttention(6, 2, (3, 4), shift=shift)) for shift in (False, True))
    assert_same(shifted(grid(1, 3, 4, 6)), plain(grid(1, 3, 4, 6)))
    assert not torch.allclose(shifted(grid(1, 4, 4, 6)), plain(grid(1, 4, 4, 6)))


def test_window_attention_gradcheck():
    module = randomized(WindowAttention(4, 2, (2, 2)))
    x = grid(1, 3, 2, 4).requires_grad_()
    table = module.relative_position_bias_table

    def run(x, table):
        return torch.func.functional_call(module, {"relative_position_bias_table": table}, (x,))

    assert torch.autograd.gradcheck(run, (x, table.detach().clone().requires_grad_()))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("factor", [2, 1, 3, 8])
def test_cross_attention_equals_the_loops(size, window, up, factor):
    module = randomized(WindowCrossAttention(4, 2, window, out_proj=not up, factor=factor))
    fine = grid(2, *size, 4)
    coarse = grid(2, -(-size[0] // factor), -(-size[1] // factor), 4, seed=2)
    x, context = (fine, coarse) if up else (coarse, fine)
    expected = operators.cross_attention(x, context, module.state_dict(), 2, window, x_is_fine=up, factor=factor)
    assert_same(module(x, context).detach(), expected)


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_cross_attention_gradcheck(up):
    module = randomized(WindowCrossAttention(2, 1, (2, 2), out_proj=not up))
    fine, coarse = grid(1, 3, 5, 2).requires_grad_(), grid(1, 2, 3, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(module, (fine, coarse) if up else (coarse, fine))


def test_state_dict_holds_parameters_only():
    """Indices of any window size would make weights depend on it twice."""
    assert set(WindowAttention(4, 2, (7, 7)).state_dict()) == {
        "relative_position_bias_table",
        "qkv.weight",
        "qkv.bias",
        "proj.weight",
        "proj.bias",
    }
