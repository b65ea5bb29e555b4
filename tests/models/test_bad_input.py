"""What cannot be grafted is refused by name, before anything of the model is changed."""

import pytest
import timm
import torch
from small_models import assert_unchanged, backbone, snapshot
from torch import nn

import vitgraft
from vitgraft import GraftError, NoGraftPointError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def refuse(model: nn.Module, kind: type = GraftError, **options) -> str:
    """The message of the error that `graft` must raise, having changed nothing."""
    before = snapshot(model)
    with pytest.raises(kind) as error:
        vitgraft.graft(model, **options)
    assert type(error.value) is kind
    assert_unchanged(before, snapshot(model))
    return str(error.value)


# Swin: maps of 16, 8, 4 tokens a side, blocks 2, 2, 1; what the message must say
@pytest.mark.parametrize(
    "options,said",
    [
        ({"blocks": (1, 5)}, ["blocks=(1, 5)", "no block 5", "0 to 4"]),
        ({"blocks": 5}, ["blocks=5", "only 4", "at most 4"]),
        ({"blocks": (4,), "window_size": 4}, ["block 4", "layers.2.blocks.0", "4 x 4", "smaller window"]),
        ({"levels": (1, 1)}, ["levels=(1, 1)", "2 entries", "3 stages", "16 x 16, 8 x 8, 4 x 4", "give 3"]),
        ({"levels": (5, 1, 1)}, ["levels=(5, 1, 1)", "5 levels", "16 x 16", "at most 4"]),
        ({"window_size": 0}, ["window_size=0", "greater than or equal to 1"]),
        ({"window": 7}, ["'window'", "did you mean 'window_size'"]),
        ({"levels": "all"}, ["levels='all'", "'auto'"]),
        ({"num_heads": 5}, ["num_heads=5", "16 channels", "layers.0.blocks.1"]),
        ({"backbone_attention": "window"}, ["backbone_attention='window'", "WindowAttention", "'keep'"]),
        ({"upsample": "bicubic"}, ["upsample='bicubic'", "'w_bilinear'"]),
        ({"img_size": 0}, ["img_size=0"]),
        ({"img_size": -32}, ["img_size=-32"]),
        ({"img_size": "64"}, ["img_size='64'"]),
        ({"img_size": (64,)}, ["img_size=(64,)"]),
        ({"img_size": 224.0}, ["img_size=224.0"]),
        ({"img_size": 80}, ["80", "img_size"]),
        ({"config": 7}, ["config=7"]),
    ],
    ids=str,
)
def test_options_that_do_not_fit_a_swin(options, said):
    message = refuse(backbone("swin"), **{"window_size": 2, **options})
    for part in said:
        assert part in message


def test_nothing_would_be_grafted():
    message = refuse(backbone("swin"), NoGraftPointError, window_size=16)
    assert "window_size=16" in message and "16 x 16, 8 x 8, 4 x 4" in message and "smaller window_size" in message
    message = refuse(backbone("swin"), NoGraftPointError, levels=0)
    assert "levels=0" in message
    message = refuse(backbone("swin"), NoGraftPointError, blocks=())
    assert "blocks=()" in message


@pytest.mark.parametrize("key,tokens", [("vit class token", 1), ("vit registers", 5), ("deit distilled", 2)])
def test_prefix_tokens_cannot_live_in_windows(key, tokens):
    message = refuse(backbone(key), backbone_attention="window", window_size=2)
    assert f"{tokens} prefix token" in message and "class_token=False" in message


@pytest.mark.parametrize("key", ["eva 02", "beit", "pvt v2", "swin v2", "cait", "xcit"])
def test_window_attention_is_for_plain_vits(key):
    assert "backbone_attention='keep'" in refuse(backbone(key), backbone_attention="window", window_size=2)


@pytest.mark.parametrize(
    "name,options",
    [("xcit_nano_12_p8_224", {"depth": 2}), ("tnt_s_legacy_patch16_224", {"depth": 3})],
    ids=["xcit", "tnt"],
)
def test_a_separate_ffn_needs_blocks_of_one_tensor(name, options):
    model = timm.create_model(name, **options)
    if name.startswith("tnt"):
        assert "ffn='separate'" in refuse(model, ffn="separate")
    else:
        vitgraft.graft(model, ffn="separate")


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential], ids=["alone", "wrapped"])
def test_dropped_patches(wrap):
    assert "patch_drop_rate" in refuse(wrap(backbone("vit class token", patch_drop_rate=0.5)), window_size=2)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "vgg11"])
def test_convolutional_networks(name):
    model = timm.create_model(name, num_classes=3)
    message = refuse(model, NoGraftPointError)
    assert type(model).__name__ in message and "vitgraft families" in message


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(3, 4), nn.Identity(), nn.Sequential()],
    ids=["convolution", "no image model", "no parameters", "empty"],
)
def test_models_from_elsewhere(model):
    before = snapshot(model)
    with pytest.raises(GraftError, match=type(model).__name__):
        vitgraft.graft(model)
    assert_unchanged(before, snapshot(model))


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", None, nn.Conv2d, torch.zeros(3)], ids=str)
def test_what_is_no_model(model):
    with pytest.raises(GraftError, match=r"nn\.Module"):
        vitgraft.graft(model)


def test_not_graftable_families_say_why():
    model = timm.create_model("naflexvit_base_patch16_gap", depth=2, embed_dim=24, num_heads=3)
    assert "different grids" in refuse(model, NoGraftPointError)


def test_grafted_twice():
    """Neither as a whole nor in parts, nor after windows without grafts."""
    model = vitgraft.graft(backbone("swin"), window_size=2)
    assert "grafted already" in refuse(model) and "strip" in refuse(model)
    for part in (nn.Sequential(model), model.layers):
        assert "grafted already" in refuse(part)
    model = vitgraft.graft(backbone("vit average pooling"), backbone_attention="window", blocks=(), window_size=2)
    assert "grafted already" in refuse(model)


@pytest.mark.parametrize("call", [vitgraft.strip, vitgraft.train_grafts_only])
def test_nothing_to_strip_or_train(call):
    model = backbone("swin")
    before = snapshot(model)
    with pytest.raises(GraftError, match="carries no graft"):
        call(model)
    assert_unchanged(before, snapshot(model))


def test_tokens_of_another_grid():
    """A block that is called alone has the grid of the last image, and no other."""
    model = vitgraft.graft(backbone("vit class token"), window_size=2)
    with pytest.raises(ValueError, match="no image was read in this thread"):
        model.blocks[1](torch.randn(1, 17, 24))
    model(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="10 tokens for a 4 x 4 grid with 1 prefix tokens"):
        model.blocks[1](torch.randn(1, 10, 24))


@pytest.mark.parametrize("mode", [True, False])
def test_a_model_that_fails_is_left_in_its_mode(mode):
    model = backbone("swin").train(mode)
    refuse(model, window_size=2, img_size=33)
    assert all(m.training is mode for m in model.modules())


def test_window_attention_refuses_a_mask_and_keeps_dropout():
    model = timm.create_model("graft_deit_tiny_patch16_224", depth=2, attn_drop_rate=0.5)
    x = torch.randn(1, 3, 224, 224)
    with pytest.raises(ValueError, match="attn_mask"):
        model.forward_features(x, attn_mask=torch.zeros(196, 196))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_torch_func_runs_on_a_grafted_swin():
    model = timm.create_model("graft_swin_tiny_patch4_window7_224", depths=(1, 2, 1, 1), img_size=64).eval()
    x = torch.randn(1, 3, 112, 112)
    gradient = torch.func.grad(lambda image: model(image).sum())(x)
    assert gradient.shape == x.shape and gradient.abs().sum() > 0
