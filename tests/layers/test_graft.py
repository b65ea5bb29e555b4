import itertools

import pytest
import torch
from helpers import assert_same, grid, randomized
from reference import operators

from vitgraft import GraftError
from vitgraft.layers import GrafT

DOWN = ["avg_pool", "linear", "cross_attention", "cross_attention_x0"]
UP = ["w_bilinear", "bilinear", "nearest", "cross_attention"]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (8, 9), (15, 22)], ids=str)
@pytest.mark.parametrize("window", [7, 3])
def test_the_papers_graft_equals_the_loops(size, window):
    """Built for 8 x 9 and run on every size: E_aa is resized, the window cut to the map."""
    module = randomized(GrafT(4, 2, (8, 9), 2, window_size=window))
    x = grid(1, *size, 4)
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 2, 2, (window, window)))


@pytest.mark.parametrize("down,up", list(itertools.product(DOWN, UP)))
def test_every_combination_equals_the_loops(down, up):
    module = randomized(GrafT(4, 2, (11, 6), 3, window_size=3, downsample=down, upsample=up))
    x = grid(2, 11, 6, 4)
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 3, 2, (3, 3), down, up))


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("right", [0, 1])
def test_levels_above_the_backbone_equal_the_loops(left, right):
    module = randomized(GrafT(4, 2, (3, 5), right, window_size=3, left_levels=left))
    x = grid(1, 3, 5, 4)
    expected = operators.left_graft(x, module.state_dict(), left, 2, (3, 3))
    if right:
        expected = expected + operators.graft(x, module.state_dict(), right, 2, (3, 3))
    assert_same(module(x).detach(), expected)


def test_a_separate_ffn_is_a_residual_of_the_finest_level():
    module = randomized(GrafT(8, 2, (4, 4), 1, window_size=3, ffn="separate"))
    x = grid(1, 4, 4, 8)
    p = module.state_dict()
    assert p["ffn.1.weight"].shape == (3, 8)
    z = operators.graft(x, p, 1, 2, (3, 3), upsampled=False)
    hidden = operators.gelu(operators.linear(operators.layer_norm(z, p, "ffn.0"), p, "ffn.1"))
    z = z + operators.linear(hidden, p, "ffn.3")
    assert_same(module(x).detach(), operators.upsample(z, x, operators.sub(p, "levels.0.up"), "w_bilinear", 2, (3, 3)))


def test_a_separate_ffn_at_full_resolution():
    module = randomized(GrafT(8, 2, (4, 4), 1, window_size=3, ffn_ratio=0.5, ffn="separate_full"))
    x = grid(1, 4, 4, 8)
    p = module.state_dict()
    assert p["ffn.1.weight"].shape == (4, 8)
    out = operators.graft(x, p, 1, 2, (3, 3))
    hidden = operators.gelu(operators.linear(operators.layer_norm(out, p, "ffn.0"), p, "ffn.1"))
    assert_same(module(x).detach(), out + operators.linear(hidden, p, "ffn.3"))


@pytest.mark.parametrize("options", [{}, {"left_levels": 1}, {"ffn": "separate"}], ids=str)
def test_a_width_is_a_graft_between_two_linear_layers(options):
    module = randomized(GrafT(6, 2, (8, 9), 2, window_size=3, width=4, **options))
    inner = GrafT(4, 2, (8, 9), 2, window_size=3, **options).double()
    p = module.state_dict()
    inner.load_state_dict({name: t for name, t in p.items() if not name.startswith("proj_")})
    x = grid(2, 8, 9, 6)
    expected = operators.linear(inner(operators.linear(x, p, "proj_in")), p, "proj_out")
    assert_same(module(x), expected)
    assert [z.shape[-1] for z in module.pyramid(x)] == [4, 4]
    shapes = {name: tuple(t.shape) for name, t in p.items() if name.startswith("proj_")}
    assert shapes == {
        "proj_in.weight": (4, 6),
        "proj_in.bias": (4,),
        "proj_out.weight": (6, 4),
        "proj_out.bias": (6,),
    }


@pytest.mark.parametrize(
    "options",
    [{"relative_position_bias": False}, {"shifted_windows": True}, {"attention": "cross_shaped"}, {"gate": False}],
    ids=str,
)
@pytest.mark.parametrize("size", [(11, 6), (14, 17)], ids=str)
def test_options_of_the_levels_equal_the_loops(size, options):
    module = randomized(GrafT(4, 2, (11, 6), 2, window_size=3, **options))
    x = grid(1, *size, 4)
    how = {"attention": options.get("attention", "window"), "shift": options.get("shifted_windows", False)}
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 2, 2, (3, 3), **how))


FACTORS = [1, 3, 4]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("down,up", [*zip(DOWN, UP, strict=True), ("avg_pool", "nearest"), ("linear", "w_bilinear")])
def test_factors_equal_the_loops(factor, down, up):
    module = randomized(GrafT(4, 2, (11, 6), 2, window_size=2, downsample=down, upsample=up, level_sizes=factor))
    x = grid(1, 9, 13, 4)
    more = {"factors": [factor] * 2, "x0_factors": [factor, factor**2]}
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 2, 2, (2, 2), down, up, **more))


@pytest.mark.parametrize("size", [(12, 12), (6, 6), (13, 25), (1, 2)], ids=str)
@pytest.mark.parametrize("up", ["w_bilinear", "bilinear", "nearest"])
@pytest.mark.parametrize("down", ["avg_pool", "cross_attention_x0"])
def test_given_sizes_equal_the_loops(size, down, up):
    """12 -> 6 by a whole factor, 6 -> 4 by none; 12 -> 4 by one again."""
    module = randomized(GrafT(4, 2, (12, 12), 2, window_size=5, downsample=down, upsample=up, level_sizes=(6, 4)))
    assert module.nominal_sizes == [(6, 6), (4, 4)]
    x = grid(1, *size, 4)
    sizes = module.sizes(size)
    more = {"factors": [2, None], "x0_factors": [2, 3], "sizes": sizes}
    assert_same(module(x).detach(), operators.graft(x, module.state_dict(), 2, 2, (5, 5), down, up, **more))
    assert [tuple(z.shape[1:3]) for z in module.pyramid(x)] == sizes


def test_sizes_not_below_the_grid_are_left_out():
    assert GrafT(4, 2, (7, 7), 1, level_sizes=(14, 7, 2)).nominal_sizes == [(2, 2)]
    assert GrafT(4, 2, (56, 56), 2, level_sizes=(14, 7, 2)).nominal_sizes == [(14, 14), (7, 7)]
    assert GrafT(4, 2, (56, 28), 1, level_sizes=(14,)).nominal_sizes == [(14, 7)]


@pytest.mark.parametrize(
    "options,said",
    [
        ({"width": 10, "num_heads": 4}, "width=10 is no multiple of num_heads=4: the nearest that are: 8 or 12"),
        ({"width": 2, "num_heads": 4}, "num_heads=4: the nearest that are: 4"),
        ({"num_heads": 3}, "num_heads=3 does not divide the 8 channels"),
        ({"num_heads": 1, "attention": "cross_shaped"}, "num_heads=1 is odd"),
        ({"level_sizes": (7,), "levels": 2}, "levels=2 needs 2"),
        ({"level_sizes": (2, 7)}, "sizes that do not fall"),
        ({"level_sizes": (7, 2), "downsample": "linear"}, "use downsample='avg_pool'|or downsample='avg_pool'"),
        ({"level_sizes": (7, 2), "downsample": "cross_attention"}, "downsample='cross_attention' needs"),
        ({"level_sizes": (7, 2), "upsample": "cross_attention"}, "upsample='cross_attention' needs"),
        ({"level_sizes": (6, 2), "downsample": "cross_attention_x0"}, "14 x 14 to 6 x 6 is no whole factor"),
        ({"level_sizes": (8, 2)}, "14 x 14 to 8 x 8 .*several windows needs.*upsample='bilinear'"),
        ({"level_sizes": ((7, 2),), "levels": 1, "downsample": "linear"}, "14 x 14 to 7 x 2 is no whole factor"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(GraftError, match=said):
        GrafT(**{"dim": 8, "num_heads": 2, "feat_size": (14, 14), "levels": 2, **options})


def test_a_level_of_one_window_takes_any_size():
    GrafT(8, 2, (14, 14), 2, level_sizes=(7, 2))
    GrafT(8, 2, (14, 14), 2, level_sizes=(8, 2), upsample="bilinear")
    GrafT(8, 2, (14, 14), 1, level_sizes=((7, 2),))


OPTIONS = [
    {},
    *({"downsample": mode} for mode in DOWN[1:]),
    *({"upsample": mode} for mode in UP[1:]),
    {"left_levels": 2},
    {"ffn": "separate"},
    {"ffn": "separate_full"},
    {"width": 2},
    {"width": 6, "left_levels": 1, "ffn": "separate_full"},
    {"gate": False},
    {"gate": True, "upsample": "cross_attention"},
    {"relative_position_bias": False},
    {"attention": "cross_shaped"},
    {"shifted_windows": True},
    {"level_sizes": 1},
    {"level_sizes": 4, "feat_size": (20, 20)},
    {"level_sizes": (3, 2), "window_size": 3},
    {"level_sizes": (4, 2), "upsample": "bilinear", "downsample": "cross_attention_x0", "feat_size": (8, 8)},
]


def build(**options) -> GrafT:
    return GrafT(**{"dim": 4, "num_heads": 2, "feat_size": (6, 7), "levels": 2, "window_size": 2, **options})


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_empty_batch(options, grad):
    module = build(**options)
    for size in (module.feat_size, (5, 9), (1, 1)):
        x = torch.zeros(0, *size, 4, requires_grad=grad)
        with torch.set_grad_enabled(grad):
            out = module(x)
        assert out.shape == x.shape
        if grad:
            out.sum().backward()
            assert x.grad.shape == x.shape
            assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_keeps_identity_and_learns(options):
    module = build(**options)
    module.init_identity()
    module.init_weights()  # as timm does afterwards
    x = torch.randn(2, *module.feat_size, 4)
    target = torch.randn(2, *module.feat_size, 4)
    assert torch.equal(module(x), torch.zeros_like(x))
    randomized(module, seed=3).init_identity()
    assert torch.equal(module(x.double()), torch.zeros_like(x.double()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (module(x.double()) * target).sum().backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_in_bf16_and_autocast(options):
    module = build(**options)
    x = torch.randn(1, 6, 7, 4)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            exact = module(x)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(module(x).float(), exact, rtol=0.1, atol=0.05)
    with torch.inference_mode():
        assert module.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_traces(options):
    module = build(**options).eval()
    traced = torch.jit.trace(module, torch.randn(2, 6, 7, 4))
    x = torch.randn(3, 6, 7, 4)
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torch_jit_script_is_refused():
    for module in (build(), torch.nn.Sequential(torch.nn.Identity(), build())):
        with pytest.raises(GraftError, match=r"torch\.jit\.script is not supported.*torch\.jit\.trace"):
            torch.jit.script(module)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"left_levels": 1},
        {"downsample": "cross_attention"},
        {"ffn": "separate"},
        {"ffn": "separate_full"},
        {"width": 3},
        {"level_sizes": (2, 1)},
        {"level_sizes": 3, "downsample": "cross_attention_x0"},
        {"shifted_windows": True},
    ],
    ids=str,
)
def test_gradcheck(options):
    module = randomized(GrafT(2, 1, (3, 5), 2, window_size=2, **options))
    assert torch.autograd.gradcheck(module, grid(1, 3, 5, 2).requires_grad_())


def count(**options) -> int:
    return sum(p.numel() for p in GrafT(8, 2, (14, 14), 1, **options).parameters())


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
    assert count(ffn="separate") - default == norm + 2 * C * 3 + 3 + C
    assert count(ffn="separate_full") == count(ffn="separate")
    assert count(downsample="cross_attention_x0") - count(downsample="cross_attention") == norm
    assert count(gate=False) == count(upsample="nearest")
    assert count(gate=True, upsample="nearest") == default
    assert default - count(relative_position_bias=False) == 13 * 13 * 2
    # LePE, a 3 x 3 kernel and a bias per channel, instead of the table
    assert default - count(attention="cross_shaped") == 13 * 13 * 2 - 10 * C
    assert count(shifted_windows=True) == default
    assert count(level_sizes=1) - default == (14 * 14 - 7 * 7) * C
    assert count(level_sizes=(2,)) - default == (2 * 2 - 7 * 7) * C
    assert count(width=4) < default


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"downsample": "linear"},
        {"upsample": "cross_attention"},
        {"left_levels": 1},
        {"shifted_windows": True},
        {"downsample": "cross_attention_x0"},
        {"attention": "cross_shaped"},
        {"level_sizes": (3, 2)},
    ],
)
def test_no_token_of_the_batch_reads_another_image(options):
    module = randomized(GrafT(4, 2, (8, 9), 2, window_size=3, **options))
    x = grid(3, 8, 9, 4)
    y = x.clone()
    y[1] *= -1
    before, after = module(x), module(y)
    assert_same(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_the_coarsest_level_sees_the_whole_grid():
    """Which is what the graft is for: without it, windows never exchange anything."""
    module = randomized(GrafT(4, 2, (14, 14), 1, window_size=7))
    x = grid(1, 14, 14, 4).requires_grad_()
    module(x)[0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_meta_device_and_dtype():
    module = GrafT(4, 2, (14, 14), 1, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())
    module = module.to_empty(device="cpu")
    module.init_weights()
    assert not list(module.buffers())
    assert module(torch.randn(1, 14, 14, 4, dtype=torch.bfloat16)).isfinite().all()


# every value of an option once, in as few graphs as possible
TRACED = [
    {},
    {"downsample": "linear", "upsample": "bilinear", "left_levels": 2, "ffn": "separate"},
    {"downsample": "cross_attention", "upsample": "nearest", "gate": True, "shifted_windows": True, "width": 2},
    {"downsample": "cross_attention_x0", "upsample": "cross_attention", "attention": "cross_shaped"},
    {"level_sizes": (3, 2), "window_size": 3, "relative_position_bias": False, "ffn": "separate_full"},
    {"level_sizes": 4, "feat_size": (20, 20), "gate": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", TRACED, ids=str)
def test_every_option_compiles_and_exports(options):
    """Without graph breaks, with gradients, and with any number of images."""
    torch.compiler.reset()
    module = build(**options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(2, 6, 7, 4)
    torch.testing.assert_close(compiled(x), module(x))
    x = torch.randn(2, 5, 9, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(5, 5, 9, 4)
    torch.testing.assert_close(program(x), module(x), rtol=1e-4, atol=1e-5)
