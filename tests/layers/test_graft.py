import itertools

import pytest
import torch
from helpers import assert_same, grid, randomized
from reference import operators

from vitgraft.layers import GrafT
from vitgraft.layers.levels import nominal_sizes

DOWN = ["avg_pool", "linear", "cross_attention"]
UP = ["w_bilinear", "bilinear", "nearest", "cross_attention"]


@pytest.mark.parametrize(
    "size,levels,expected",
    [
        ((56, 56), 3, [(28, 28), (14, 14), (7, 7)]),
        ((15, 22), 3, [(8, 11), (4, 6), (2, 3)]),
        ((1, 1), 2, [(1, 1), (1, 1)]),
        ((7, 7), 0, []),
    ],
)
def test_halved_sizes(size, levels, expected):
    assert nominal_sizes(size, levels) == expected


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (8, 9), (15, 22)], ids=str)
@pytest.mark.parametrize("window", [(7, 7), (3, 3), (2, 5)], ids=str)
def test_the_papers_graft_equals_the_loops(size, window):
    """Built for 8 x 9 and run on every size: E_aa is resized, the window cut to the map."""
    module = randomized(GrafT(4, 2, (8, 9), 2, window))
    x = grid(1, *size, 4)
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 2, 2, window))


@pytest.mark.parametrize("down,up", list(itertools.product(DOWN, UP)))
def test_every_combination_equals_the_loops(down, up):
    module = randomized(GrafT(4, 2, (11, 6), 3, (3, 3), downsample=down, upsample=up))
    x = grid(2, 11, 6, 4)
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 3, 2, (3, 3), down, up))


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("right", [0, 1])
def test_levels_above_the_backbone_equal_the_loops(left, right):
    module = randomized(GrafT(4, 2, (3, 5), right, (3, 3), left_levels=left))
    x = grid(1, 3, 5, 4)
    expected = operators.left_graft(x, module.state_dict(), left, 2, (3, 3))
    if right:
        expected = expected + operators.graft(x, module.state_dict(), right, 2, (3, 3))
    assert_same(module(x).detach(), expected)


def test_a_separate_ffn_is_a_residual_of_the_finest_level():
    module = randomized(GrafT(8, 2, (4, 4), 1, (3, 3), ffn_ratio=0.375))
    x = grid(1, 4, 4, 8)
    p = module.state_dict()
    assert p["ffn.1.weight"].shape == (3, 8)
    z = operators.graft(x, p, 1, 2, (3, 3), upsampled=False)
    hidden = operators.gelu(operators.linear(operators.layer_norm(z, p, "ffn.0"), p, "ffn.1"))
    z = z + operators.linear(hidden, p, "ffn.3")
    assert_same(module(x).detach(), operators.upsample(z, x, operators.sub(p, "levels.0.up"), "w_bilinear", 2, (3, 3)))


@pytest.mark.parametrize("options", [{}, {"left_levels": 1}, {"downsample": "cross_attention"}, {"ffn_ratio": 0.5}])
def test_gradcheck(options):
    module = randomized(GrafT(2, 1, (3, 5), 2, (2, 2), **options))
    assert torch.autograd.gradcheck(module, grid(1, 3, 5, 2).requires_grad_())


@pytest.mark.parametrize(
    "options",
    [{}, {"upsample": "nearest"}, {"upsample": "cross_attention"}, {"left_levels": 2}, {"ffn_ratio": 0.5}],
)
def test_identity_gives_zeros_with_a_gradient_into_the_zeroed_weights(options):
    module = randomized(GrafT(4, 2, (6, 6), 2, (3, 3), **options))
    module.init_identity()
    x = grid(1, 6, 6, 4)
    out = module(x)
    assert torch.equal(out, torch.zeros_like(out))
    (out * grid(1, 6, 6, 4, seed=2)).sum().backward()
    assert module.levels[0].up.proj.weight.grad.abs().min() > 0
    if "left_levels" in options:
        assert module.left_levels[0].down_norm.weight.grad.abs().min() > 0


def test_identity_learns():
    """One step on the zeroed projection, and the rest gets a gradient too."""
    module = GrafT(4, 2, (4, 4), 1, (2, 2))
    module.init_identity()
    x = torch.randn(2, 4, 4, 4)
    target = torch.randn(2, 4, 4, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (module(x) * target).sum().backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_init_weights_keeps_identity():
    """timm calls init_weights after its own initialisation has run over every linear layer."""
    module = GrafT(4, 2, (4, 4), 1)
    module.init_identity()
    torch.nn.init.normal_(module.levels[0].up.proj.weight)
    module.init_weights()
    assert not module(torch.randn(1, 4, 4, 4)).any()


def count(**options) -> int:
    return sum(p.numel() for p in GrafT(8, 2, (14, 14), 1, (7, 7), **options).parameters())


def test_parameter_counts_of_each_option():
    """C = 8, one 7 x 7 level, the paper's final model; then what each alternative adds (readings.md)."""
    C, norm = 8, 16
    attention = 4 * C * C + 4 * C + 13 * 13 * 2
    default = norm + norm + attention + norm + C * C + C + 7 * 7 * C
    assert count() == default
    assert count(downsample="linear") - default == 4 * C * C + C
    # a projection of the queries and one of the result
    assert count(downsample="cross_attention") - default == 2 * (C * C + C)
    assert count(upsample="bilinear") == default
    assert count(upsample="nearest") - default == -7 * 7 * C
    # about one C x C projection more than nearest
    assert count(upsample="cross_attention") - count(upsample="nearest") == C * C + C + norm
    assert count(ffn_ratio=0.375) - default == norm + 2 * C * 3 + 3 + C


@pytest.mark.parametrize("options", [{}, {"downsample": "linear"}, {"upsample": "cross_attention"}, {"left_levels": 1}])
def test_no_token_of_the_batch_reads_another_image(options):
    module = randomized(GrafT(4, 2, (8, 9), 2, (3, 3), **options))
    x = grid(3, 8, 9, 4)
    y = x.clone()
    y[1] *= -1
    before, after = module(x), module(y)
    assert_same(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_the_coarsest_level_sees_the_whole_grid():
    """Which is what the graft is for: without it, windows never exchange anything."""
    module = randomized(GrafT(4, 2, (14, 14), 1, (7, 7)))
    x = grid(1, 14, 14, 4).requires_grad_()
    module(x)[0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_meta_device_and_dtype():
    module = GrafT(4, 2, (14, 14), 1, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())
    module = module.to_empty(device="cpu")
    for m in module.modules():
        if hasattr(m, "init_non_persistent_buffers"):
            m.init_non_persistent_buffers()
    module.init_weights()
    index = GrafT(4, 2, (14, 14), 1).levels[0].attn.relative_position_index
    assert torch.equal(module.levels[0].attn.relative_position_index, index)
    assert module(torch.randn(1, 14, 14, 4, dtype=torch.bfloat16)).isfinite().all()
