"""One suite over every registered name: they behave as timm's models do. Small: few blocks, few channels."""

import itertools
import re
import warnings

import pytest
import timm
import torch
from small_models import images, wake
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm_interface import (
    check_empty_batch,
    check_features_only,
    check_forward_and_backward,
    check_gradient_checkpointing,
    check_images_do_not_mix,
    check_intermediates_take_indices,
    check_pruned_features_have_gradients,
    check_reset_classifier,
    check_sizes_change_from_batch_to_batch,
)
from torch import nn

import vitgraft
from vitgraft.errors import GraftError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm")

GRAFTED = sorted(timm.list_models("graft_*"))
CSWIN = sorted(timm.list_models("cswin_*"))
NAMES = GRAFTED + CSWIN
# the sizes of a family share their code: where a test is long, the smallest stands for all
TINY = [n for n in NAMES if "tiny" in n or "xxs" in n]
GRAFTED_TINY = [n for n in TINY if n in GRAFTED]

SMALL = {
    "deit": {"depth": 3, "embed_dim": 24, "num_heads": 3},
    "swin": {"depths": (2, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)},
    "cswin": {"depths": (2, 1, 2, 1), "embed_dim": 16, "num_heads": (2, 2, 4, 8)},
    "mobilevit": {},
}
# side of a patch, and reductions of the feature maps
PATCH = {"deit": 16, "swin": 4, "cswin": 4, "mobilevit": 32}
REDUCTIONS = {"deit": [16, 16, 16], "swin": [4, 8, 16, 32], "cswin": [4, 8, 16, 32], "mobilevit": [2, 4, 8, 16, 32]}


def family(name: str) -> str:
    return next(f for f in ("cswin", "swin", "deit", "mobilevit") if f in name)


def make(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **SMALL[family(name)], **options}).eval()


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> nn.Module:
    """Not to be changed."""
    return make(name)


def test_the_names_are_those_of_the_issue():
    assert set(NAMES) == {
        "graft_deit_tiny_patch16_224",
        "graft_deit_small_patch16_224",
        "graft_mobilevit_xxs",
        "graft_swin_tiny_patch4_window7_224",
        "graft_swin_small_patch4_window7_224",
        "graft_swin_base_patch4_window7_224",
        "graft_cswin_tiny_224",
        "graft_cswin_small_224",
        "graft_cswin_base_224",
        "cswin_tiny_224",
        "cswin_small_224",
        "cswin_base_224",
    }


def test_default_cfg(name):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.input_size == ((3, 256, 256) if "mobilevit" in name else (3, 224, 224)) and cfg.num_classes == 1000
    assert cfg.crop_pct == (0.875 if family(name) in ("deit", "swin") else 0.9)  # as the backbones' authors evaluate
    model = make(name)
    modules = dict(model.named_modules())
    assert isinstance(modules[cfg.first_conv], nn.Conv2d)
    assert isinstance(modules[cfg.classifier], nn.Linear)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=str)
def test_an_empty_batch(name, size):
    if family(name) == "mobilevit":
        pytest.skip("timm's MobileViT takes none")
    check_empty_batch(make(name), images(2, 3, *size))


def test_forward_and_backward(name):
    model = make(name)
    check_forward_and_backward(model, images(2, 3, 64, 64))
    assert bool(vitgraft.grafts(model)) == name.startswith("graft_")
    for graft in vitgraft.grafts(model).values():
        assert graft.levels[0].up.proj.weight.grad.abs().sum() > 0


def test_any_size_from_one_patch_up(name, model):
    """Odd, not square, under a window, not a multiple of the patch; the model sees one size after the other."""
    patch = PATCH[family(name)]
    for size, rest in itertools.product([(1, 1), (1, 3), (2, 1), (5, 7), (13, 9)], (0, 1)):
        H, W = (n * patch + rest for n in size)
        with torch.no_grad():
            out = model(images(2, 3, H, W))
        assert out.shape == (2, 5) and out.isfinite().all(), (H, W)


def test_sizes_change_from_batch_to_batch(model):
    sizes = [(64, 64), (33, 90), (224, 32), (64, 64)]
    check_sizes_change_from_batch_to_batch(model, [images(1, 3, *size) for size in sizes])


def test_images_of_a_batch_do_not_mix(model):
    check_images_do_not_mix(model, images(3, 3, 40, 72))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (70, 45)], ids=str)
def test_features_only(name, model, size):
    check_features_only(make(name, features_only=True), model, images(2, 3, *size), REDUCTIONS[family(name)])


def test_intermediates_take_indices_and_stop_early(model):
    check_intermediates_take_indices(model, images(1, 3, 64, 64))


@pytest.mark.parametrize("name", TINY)
def test_pruned_features_have_gradients_everywhere(name):
    features = make(name, features_only=True, out_indices=(0, 1))
    check_pruned_features_have_gradients(features, images(1, 3, 64, 64))


@pytest.mark.parametrize("name", TINY)
def test_reset_classifier(name):
    check_reset_classifier(make(name), images(2, 3, 64, 64))


def test_set_input_size(name, model):
    """Of no consequence for the function: every model here takes every size anyway."""
    if family(name) == "mobilevit":
        pytest.skip("timm's MobileViT needs none")
    other = make(name)
    other.load_state_dict(model.state_dict())
    if family(name) == "deit":
        with torch.no_grad():  # resizing a position embedding there and back loses something; zeros stay
            for m in (other, model):
                m.pos_embed.zero_()
    other.set_input_size(img_size=(96, 160))
    x = images(1, 3, 96, 160)
    torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("name", TINY)
def test_gradient_checkpointing(name):
    check_gradient_checkpointing(make(name), images(2, 3, 60, 36))


@pytest.mark.parametrize("name", GRAFTED)
def test_state_dict_is_the_backbones_plus_grafts(name):
    own = make(name).state_dict()
    base = name.removeprefix("graft_")
    backbone = timm.create_model(base, num_classes=5, **SMALL[family(name)]).state_dict()
    expected = {n: tuple(t.shape) for n, t in backbone.items()}
    if family(name) == "deit":  # neither the class token nor its position
        del expected["cls_token"]
        expected["pos_embed"] = (1, 196, 24)
    assert {n: tuple(t.shape) for n, t in own.items() if ".graft." not in n} == expected
    assert all(re.search(r"\.\d+\.graft\.", n) for n in own.keys() - expected.keys())


def test_layer_decay_puts_grafts_with_their_block(name):
    model = make(name)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5, verbose=False)
    scale = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(scale) == len(list(model.parameters()))
    depth = len({round(s, 9) for s, _ in scale.values()})
    assert depth > 3
    by_block: dict[str, set] = {}
    for parameter_name, p in model.named_parameters():
        # timm decays MobileViT by its blocks of convolutions and transformer layers together
        block = re.match(r"(.*?blocks\.\d+|stage\d+\.\d+|stages\.\d+\.\d+)\.", parameter_name)
        if block:
            by_block.setdefault(block[1], set()).add(scale[id(p)][0])
    assert by_block and all(len(scales) == 1 for scales in by_block.values())
    assert len(set.union(*by_block.values())) == len(by_block)


def test_weight_decay_by_name(name):
    model = make(name)
    names = set(dict(model.named_parameters()))
    skipped = model.no_weight_decay()
    assert {n for n in skipped if ".graft." in n} <= names
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.75)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith(("anti_alias", "relative_position_bias_table", ".bias")):
            assert id(p) not in decayed, parameter_name
        elif parameter_name.endswith(("qkv.weight", "proj.weight")):
            assert id(p) in decayed, parameter_name


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "graft", [None, {"upsample": "nearest", "levels": 1, "blocks": [1, 2]}], ids=["default", "own"]
)
def test_hub_round_trip(name, graft, tmp_path):
    if graft and not name.startswith("graft_"):
        pytest.skip("a backbone has no graft options")
    options = {**SMALL[family(name)], **({"graft": graft} if graft else {})}
    model = wake(make(name, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm.models.save_for_hf(model, str(tmp_path), model_args=options)
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(other) is type(model)
    assert getattr(other, "graft_config", None) == getattr(model, "graft_config", None)
    x = images(2, 3, 64, 64)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", TINY)
def test_checkpoint_path(name, tmp_path):
    model = wake(make(name))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    other = make(name, checkpoint_path=str(tmp_path / "weights.pth"))
    x = images(2, 3, 64, 64)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", GRAFTED_TINY)
def test_backbone_weights_and_identity(name, tmp_path):
    """timm's own weights of the backbone, and the grafts at identity: the function of the backbone."""
    base = name.removeprefix("graft_")
    torch.manual_seed(1)
    backbone = timm.create_model(base, num_classes=5, **SMALL[family(name)]).eval()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    graft = {"init": "identity"}
    if family(name) == "deit":
        graft["backbone_window_size"] = 14
    model = make(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "backbone.pth")}, graft=graft)
    own = model.state_dict()
    for key, value in backbone.state_dict().items():
        # the classifier is new: the name's weights have 1000 classes, this one 5
        if key not in ("cls_token", "pos_embed") and not key.startswith("head."):
            assert torch.equal(own[key], value), key
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        if family(name) == "deit":
            assert torch.equal(own["pos_embed"], backbone.pos_embed[:, 1:])
            # what a class token read is gone: the same ViT without one is the backbone to compare with
            options = {**SMALL["deit"], "num_classes": 5, "class_token": False, "global_pool": "avg", "fc_norm": False}
            backbone = timm.create_model("vit_tiny_patch16_224", **options).eval()
            backbone.load_state_dict({k: v for k, v in own.items() if ".graft." not in k})
        actual, expected = model.forward_features(x), backbone.forward_features(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GRAFTED_TINY)
def test_pretrained_with_another_number_of_classes(name, tmp_path):
    """As users fine-tune: the classifier is new, all else comes from the file."""
    source = wake(make(name, num_classes=1000))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = make(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}, num_classes=3)
    x = images(1, 3, 64, 64)
    assert model(x).shape == (1, 3)
    assert torch.equal(model.forward_features(x), source.forward_features(x))


@pytest.mark.parametrize("name", GRAFTED_TINY)
def test_grafts_strip_to_the_backbone(name):
    model = make(name)
    vitgraft.strip(model)
    assert not any("graft" in n for n in model.state_dict())
    assert model(images(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("name", GRAFTED_TINY)
def test_levels_of_224_at_another_image_size(name, tmp_path):
    shapes = {n: t.shape for n, t in make(name, img_size=224).state_dict().items() if ".graft." in n}
    nominal = make(name, img_size=448, graft={"img_size": 224})
    assert shapes == {n: t.shape for n, t in nominal.state_dict().items() if ".graft." in n}
    source = make(name, img_size=224)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    cfg = {"file": str(tmp_path / "w.pth"), "input_size": (3, 224, 224)}
    loaded = make(name, img_size=448, pretrained=True, pretrained_cfg_overlay=cfg)
    assert shapes == {n: t.shape for n, t in loaded.state_dict().items() if ".graft." in n}
    deeper = make(name, img_size=448)
    assert deeper.pretrained_cfg["input_size"] == (3, 448, 448)
    assert len(next(iter(vitgraft.grafts(deeper).values())).levels) > len(
        next(iter(vitgraft.grafts(make(name)).values())).levels
    )


@pytest.mark.parametrize("name", GRAFTED_TINY)
@pytest.mark.parametrize(
    "graft,said",
    [
        ({"window": 7}, "did you mean 'window_size'"),
        ({"window_size": 0}, "window_size=0"),
        ({"blocks": [99]}, "no block 99"),
        ({"levels": [1] * 9}, "9 entries"),
        ("linear", "mapping"),
    ],
    ids=str,
)
def test_bad_graft_options(name, graft, said):
    with pytest.raises(GraftError, match=re.escape(said)):
        make(name, graft=graft)


# readings.md, column "counted", and the sizes that the paper does not have
PARAMETERS = [
    ("graft_deit_tiny_patch16_224", {}, 7_876_849),
    ("graft_deit_tiny_patch16_224", {"blocks": 8}, 7_287_808),
    ("graft_deit_tiny_patch16_224", {"blocks": 4}, 6_502_420),
    ("graft_deit_tiny_patch16_224", {"blocks": []}, 5_717_032),
    ("graft_deit_small_patch16_224", {}, 30_424_570),
    ("graft_swin_tiny_patch4_window7_224", {}, 33_948_019),
    ("graft_swin_tiny_patch4_window7_224", {"levels": 1}, 33_435_505),
    ("graft_swin_small_patch4_window7_224", {}, 64_414_099),
    ("graft_swin_base_patch4_window7_224", {}, 113_799_372),
    ("graft_cswin_tiny_224", {}, 29_951_520),
    ("graft_cswin_small_224", {}, 46_591_742),
    ("graft_cswin_base_224", {}, 103_731_604),
    ("graft_mobilevit_xxs", {}, 1_457_328),
    ("graft_mobilevit_xxs", {"blocks": []}, 1_272_024),
    ("cswin_tiny_224", None, 22_320_552),
    ("cswin_small_224", None, 34_643_304),
    ("cswin_base_224", None, 77_382_184),
]


@pytest.mark.parametrize("name,graft,parameters", PARAMETERS)
def test_parameter_counts(name, graft, parameters):
    options = {} if graft is None else {"graft": graft}
    model = timm.create_model(name, device="meta", **options)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    "name,levels",
    [
        ("graft_deit_tiny_patch16_224", [1] * 11),
        ("graft_swin_tiny_patch4_window7_224", [3] + [2] * 2 + [1] * 6),
        ("graft_cswin_tiny_224", [2] * 2 + [1] * 21),
    ],
)
def test_levels_and_blocks_of_the_papers_models(name, levels):
    model = timm.create_model(name, device="meta")
    assert [len(g.levels) for g in vitgraft.grafts(model).values()] == levels
