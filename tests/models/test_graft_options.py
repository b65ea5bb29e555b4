"""Every option of GraftConfig on a real backbone: what it changes, and that the model still runs and trains."""

import pytest
import timm
import torch
from small_models import backbone, image, images, wake
from timm.layers import Attention

import vitgraft
from vitgraft import GraftConfig, GraftError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def grow(key: str = "swin", **options):
    return vitgraft.graft(backbone(key), **{"window_size": 2, **options})


def levels(model) -> dict[str, int]:
    return {name: len(g.levels) for name, g in vitgraft.grafts(model).items()}


# the maps of the Swin in zoo.py have 16, 8 and 4 tokens a side; blocks 2, 2 and 1
@pytest.mark.parametrize(
    "options,expected",
    [
        ({}, [3, 2, 2, 1]),
        ({"level_sizes": 4}, [2, 1, 1, 1]),
        ({"level_sizes": 1}, [1, 1, 1, 1]),
        ({"level_sizes": (8, 2)}, [2, 1, 1, 1]),
        ({"level_sizes": (8, 3, 1), "levels": (2, 2, 1), "upsample": "bilinear"}, [2, 2, 2, 1]),
        ({"levels": 1}, [1, 1, 1, 1]),
        ({"levels": 2}, [2, 2, 2, 1]),
        ({"levels": (1, 0, 2)}, [1, 2]),
        ({"levels": (0, 3, 0)}, [3, 3]),
        ({"window_size": 4}, [2, 1, 1]),
        ({"window_size": 7}, [2, 1, 1]),
        ({"img_size": (64, 128)}, [4, 3, 3, 2]),
        ({"blocks": 1}, [1]),
        ({"blocks": 3}, [2, 2, 1]),
        ({"blocks": (0, 4)}, [3, 1]),
        ({"blocks": [3]}, [2]),
        ({"levels": 0, "left_levels": 1}, [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_levels_and_blocks(options, expected):
    # timm's Swin checks the size of its images unless it is told not to
    model = vitgraft.graft(backbone("swin", strict_img_size=False), **{"window_size": 2, **options})
    assert list(levels(model).values()) == expected
    assert model(image("swin")).shape == (2, 5)


def test_blocks_are_named_in_the_order_they_run():
    assert list(levels(grow(blocks=(4, 0, 2)))) == ["layers.0.blocks.0", "layers.1.blocks.0", "layers.2.blocks.0"]


def test_the_first_block_is_left_alone_unless_it_is_named():
    assert list(levels(grow("vit average pooling"))) == ["blocks.1", "blocks.2"]
    assert list(levels(grow("vit average pooling", blocks=2))) == ["blocks.1", "blocks.2"]
    assert list(levels(grow("vit class token", blocks=(0,)))) == ["blocks.0"]


def test_grids_that_are_not_square():
    model = vitgraft.graft(backbone("vit class token", img_size=(32, 96)), window_size=2)
    graft = vitgraft.grafts(model)["blocks.1"]
    assert graft.feat_size == (2, 6)
    assert [tuple(level.up.anti_alias.shape[:2]) for level in graft.levels] == [(1, 3), (1, 2)]
    assert model(images(2, 3, 32, 96)).shape == (2, 5)


@pytest.mark.parametrize("key", ["vit class token", "swin"])
@pytest.mark.parametrize(
    "options",
    [
        {"downsample": "linear"},
        {"downsample": "cross_attention"},
        {"upsample": "bilinear"},
        {"upsample": "nearest"},
        {"upsample": "cross_attention"},
        {"downsample": "linear", "upsample": "cross_attention"},
        {"ffn": "separate"},
        {"ffn": "separate", "ffn_ratio": 2},
        {"left_levels": 1},
        {"left_levels": 2, "levels": 0},
        {"num_heads": 8},
        {"width": 12, "num_heads": 3},
        {"gate": False},
        {"gate": True, "upsample": "nearest"},
        {"relative_position_bias": False},
        {"attention": "cross_shaped", "num_heads": 2},
        {"shifted_windows": True},
        {"level_sizes": 1},
        {"level_sizes": 4},
        {"level_sizes": (3, 2), "upsample": "bilinear"},
        {"downsample": "cross_attention_x0"},
        {"ffn": "separate_full"},
    ],
    ids=str,
)
def test_each_option_keeps_identity_and_trains(key, options):
    options = {"window_size": 2, **options}
    model, x = backbone(key), image(key)
    expected = model(x).detach()
    vitgraft.graft(model, init="identity", **options)
    assert torch.equal(model(x), expected)
    out = wake(model)(x)
    assert not torch.equal(out, expected)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.graft_config == GraftConfig(init="identity", **options)
    vitgraft.strip(model)
    assert torch.equal(model(x), expected)


def test_a_separate_ffn_is_fused_after_the_block():
    model = wake(grow("swin", ffn="separate"))
    block = model.layers[1].blocks[0]
    x = images(2, 8, 8, 32)
    expected = type(backbone("swin").layers[1].blocks[0]).forward(block, x) + block.graft(x)
    torch.testing.assert_close(block(x), expected)


def test_every_second_graft_is_shifted():
    model = grow(shifted_windows=True)
    assert [g.levels[0].attn.shift for g in vitgraft.grafts(model).values()] == [False, True, False, True]
    assert not any(g.levels[0].attn.shift for g in vitgraft.grafts(grow()).values())


@pytest.mark.parametrize(
    "options,said",
    [
        ({"width": 10}, "width=10 is no multiple of num_heads=4: the nearest that are: 8 or 12"),
        ({"attention": "cross_shaped"}, "num_heads=1 is odd"),
        ({"level_sizes": (5, 3)}, "several windows"),
        ({"level_sizes": (5, 3), "levels": (2, 2, 2)}, r"levels=\(2, 2, 2\) asks for 2 levels below the 4 x 4 map"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_leave_the_model_alone(options, said):
    model = backbone("swin")
    with pytest.raises(vitgraft.GraftError, match=said):
        vitgraft.graft(model, window_size=2, **options)
    assert not vitgraft.is_grafted(model)


def test_heads_are_the_blocks_own():
    model = grow()
    assert [g.levels[0].attn.num_heads for g in vitgraft.grafts(model).values()] == [1, 2, 2, 4]
    assert {g.levels[0].attn.num_heads for g in vitgraft.grafts(grow(num_heads=8)).values()} == {8}


def test_paper_init_is_not_zero_and_half_gated():
    model = grow(init="paper")
    x = image("swin")
    assert not torch.equal(model(x), backbone("swin")(x))
    for graft in vitgraft.grafts(model).values():
        assert not graft.levels[0].up.anti_alias.any()


def windows_alone(attn: Attention, x: torch.Tensor, grid: tuple[int, int], window: int) -> torch.Tensor:
    """timm's own attention, window after window; the padding right and bottom are zero tokens."""
    B, _, C = x.shape
    H, W = grid
    h, w = min(window, H), min(window, W)
    x = x.view(B, H, W, C)
    out = torch.zeros_like(x)
    for top in range(0, H, h):
        for left in range(0, W, w):
            tokens = torch.zeros(B, h, w, C)
            part = x[:, top : top + h, left : left + w]
            tokens[:, : part.shape[1], : part.shape[2]] = part
            result = attn(tokens.flatten(1, 2)).view(B, h, w, C)
            out[:, top : top + h, left : left + w] = result[:, : part.shape[1], : part.shape[2]]
    return out.flatten(1, 2)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (16, 16)], ids=str)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_window_attention_of_the_backbone(size, qk_norm):
    model = backbone("vit average pooling", dynamic_img_size=True, qk_norm=qk_norm)
    plain = backbone("vit average pooling", dynamic_img_size=True, qk_norm=qk_norm)
    vitgraft.graft(model, init="identity", window_size=2, backbone_attention="window", backbone_window_size=3)
    grid = size[0] // 16, size[1] // 16
    for block in plain.blocks:
        attn = block.attn
        block.attn = torch.nn.Module()
        block.attn.forward = lambda x, attn=attn, **_: windows_alone(attn, x, grid, 3)
    x = images(2, 3, *size)
    torch.testing.assert_close(model(x), plain(x))


def test_windows_only():
    """`blocks=()` with window attention is the paper's ablation "DeiT-T, windows, no graft": no parameter more."""
    model = backbone("vit average pooling")
    x = image("vit average pooling")
    names, expected = list(model.state_dict()), model(x)
    vitgraft.graft(model, backbone_attention="window", blocks=(), window_size=2)
    assert list(model.state_dict()) == names
    assert vitgraft.is_grafted(model) and not vitgraft.grafts(model)
    assert not torch.equal(model(x), expected)
    assert torch.equal(vitgraft.strip(model)(x), expected)


def test_the_window_of_the_backbone_is_its_own():
    x = image("vit average pooling")
    options = {"backbone_attention": "window", "init": "identity", "window_size": 2}
    two, four = (grow("vit average pooling", **options, backbone_window_size=n)(x) for n in (None, 4))
    # 4 x 4 tokens are one window of 4: nothing changes
    torch.testing.assert_close(four, backbone("vit average pooling")(x))
    assert not torch.allclose(two, four)


def test_nominal_levels_are_those_of_224():
    """Also of a model that is no registered name."""
    model = backbone("swin", strict_img_size=False)
    plan = levels(vitgraft.graft(model, img_size=224, window_size=7))
    assert list(plan.values()) == [3, 2, 2, 1]  # maps of 56, 28 and 14 tokens; at 64 pixels they have 16, 8 and 4
    assert vitgraft.grafts(model)["layers.0.blocks.1"].feat_size == (56, 56)


def test_authors_padding_is_taken_off_as_it_was_put_on():
    """The blocks are timm's again, of the size that was set in between."""
    model, other = backbone("swin"), backbone("swin")
    kinds = [type(m) for m in model.modules()]
    vitgraft.graft(model, swin_padding="authors", window_size=2)
    for each in (model, other):
        each.set_input_size((96, 160), window_size=4)
    vitgraft.strip(model)
    assert [type(m) for m in model.modules()] == kinds
    x = images(1, 3, 96, 160)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("name", "width", "slim", "full"),
    [
        ("vit_small_patch14_dinov2", 48, 0.0453, 1.095),
        ("vit_small_patch16_dinov3", 48, 0.0343, 0.772),
        ("swin_tiny_patch4_window7_224", 48, 0.0193, 0.206),
        ("swin_tiny_patch4_window7_224", 96, 0.0488, 0.206),
        ("mobilevit_xxs", 16, 0.0293, 0.198),
    ],
)
def test_slim_grafts_train_at_most_a_twentieth(name, width, slim, full):
    for options, expected in (({"width": width}, slim), ({}, full)):
        model = timm.create_model(name, num_classes=0, device="meta")
        backbone_size = sum(p.numel() for p in model.parameters())
        vitgraft.graft(model, init="identity", **options)
        report = vitgraft.train_grafts_only(model, head=False)
        assert report.trained == report.grafts
        assert report.grafts / backbone_size == pytest.approx(expected, abs=5e-4)
        if options:
            assert report.grafts / backbone_size <= 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"levels": 99}, "gets more than"),
        ({"levels": 99, "level_sizes": 4}, "gets more than 2"),
        ({"levels": 2, "level_sizes": 1}, "gets more than 1"),
        ({"level_sizes": (16,)}, "level_sizes=.*: give smaller sizes"),
        ({"level_sizes": (16,), "levels": (1,)}, "at most 0 with level_sizes="),
        ({"levels": 0}, "levels=0: give a larger number"),
        ({"window_size": 16}, "a smaller window_size"),
    ],
    ids=str,
)
def test_an_option_that_gives_no_level_is_named(options, said):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=4, depth=2, class_token=False, global_pool="avg"
    )
    with pytest.raises(GraftError, match=said):
        vitgraft.graft(model, **{"window_size": 2, **options})


def test_the_blocks_that_the_warning_gives():
    def make():
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3)

    with pytest.warns(UserWarning, match=r"blocks=\(1, 2\) grafts it too"):
        assert list(vitgraft.grafts(vitgraft.graft(make(), window_size=2))) == ["blocks.1"]
    assert list(vitgraft.grafts(vitgraft.graft(make(), window_size=2, blocks=(1, 2)))) == ["blocks.1", "blocks.2"]
