"""One suite over every registered name: they behave as timm's models do.

Sizes of a family share their code: the smallest stands for all, and the counts of parameters for the rest.
"""

import copy
import pickle
import re
import warnings

import pytest
import timm
import torch
from registered import GRAFTED, MODELS, ZOO, images, make
from small_models import wake
from timm.optim import create_optimizer_v2
from torch import nn

import vitgraft
from vitgraft.errors import GraftError
from vitgraft.models._pyramid import Pyramid
from vitgraft.tools.count import count_params

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm")

NAMES = {
    "graft_deit_tiny_patch16_224", "graft_deit_small_patch16_224", "graft_mobilevit_xxs",
    "graft_swin_tiny_patch4_window7_224", "graft_swin_small_patch4_window7_224", "graft_swin_base_patch4_window7_224",
    "graft_cswin_tiny_224", "graft_cswin_small_224", "graft_cswin_base_224",
    "cswin_tiny_224", "cswin_small_224", "cswin_base_224",
    "pvt_tiny", "pvt_small", "pvt_medium", "pvt_large", "t2t_vit_14", "t2t_vit_t_14", "t2t_vit_t_19",
    "regionvit_tiny", "regionvit_small", "regionvit_medium", "regionvit_base",
    "vil_tiny", "vil_tiny_rpb", "vil_small_rpb", "vil_medium_deep_rpb",
}  # fmt: skip

# readings.md, column "counted", and the sizes that the paper does not have; those of the zoo are in its own tests
PARAMETERS = {
    "graft_deit_tiny_patch16_224": 7_876_849,
    "graft_deit_small_patch16_224": 30_424_570,
    "graft_swin_tiny_patch4_window7_224": 33_948_019,
    "graft_swin_small_patch4_window7_224": 64_414_099,
    "graft_swin_base_patch4_window7_224": 113_799_372,
    "graft_cswin_tiny_224": 29_951_520,
    "graft_cswin_small_224": 46_591_742,
    "graft_cswin_base_224": 103_731_604,
    "graft_mobilevit_xxs": 1_457_328,
    "cswin_tiny_224": 22_320_552,
    "cswin_small_224": 34_643_304,
    "cswin_base_224": 77_382_184,
}
# of each graft of the paper's models
LEVELS = {
    "graft_deit_tiny_patch16_224": [1] * 11,
    "graft_swin_tiny_patch4_window7_224": [3] + [2] * 2 + [1] * 6,
    "graft_cswin_tiny_224": [2] * 2 + [1] * 21,
}


def without(*beginnings: str) -> list[str]:
    """The models but those that cannot do something."""
    return [name for name in MODELS if not name.startswith(beginnings)]


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> nn.Module:
    """Not to be changed."""
    return make(name)


def test_registered_names():
    families = ("graft_*", "cswin_*", "pvt_*", "t2t_*", "vil_*", "regionvit_*")
    found = {name for family in families for name in timm.list_models(family)}
    assert {name for name in found if not name.startswith("pvt_v2")} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_configuration_and_parameter_count(name):
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.input_size == ((3, 256, 256) if "mobilevit" in name else (3, 224, 224))
    assert cfg.license or "cswin" in name or "mobilevit" in name
    if name.startswith("graft_"):  # no weights without a tag
        assert cfg.tag == "untrained" and not cfg.has_weights
    if name.startswith(("graft_", "cswin_")):  # as the backbones' authors evaluate
        assert cfg.crop_pct == (0.9 if "cswin" in name or "mobilevit" in name else 0.875)
    model = timm.create_model(name, device="meta")
    modules = dict(model.named_modules())
    assert modules[cfg.classifier].out_features == cfg.num_classes == 1000
    first = (cfg.first_conv,) if isinstance(cfg.first_conv, str) else cfg.first_conv or ()
    assert all(modules[conv].in_channels == 3 for conv in first)
    if name in PARAMETERS:
        assert count_params(model) == PARAMETERS[name]
    if name in LEVELS:
        assert [len(graft.levels) for graft in vitgraft.grafts(model).values()] == LEVELS[name]


def test_forward_and_backward(name):
    """Logits, and a finite gradient for the image and for all that is trained."""
    model, x = make(name).train(), images(name).requires_grad_()
    out = model(x)
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert x.grad.abs().sum() > 0
    for parameter_name, p in model.named_parameters():
        if p.requires_grad:  # T2T-ViT has fixed random features and a fixed position embedding
            assert p.grad is not None and p.grad.isfinite().all(), parameter_name
    assert bool(vitgraft.grafts(model)) == (name in GRAFTED)
    for graft in vitgraft.grafts(model).values():
        assert graft.levels[0].up.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", without("graft_mobilevit"))  # timm's takes none
def test_an_empty_batch(name):
    model, x = make(name), images(name, 0)
    with torch.no_grad():
        assert model(x).shape == (0, 5)
    out = model.train()(x)
    assert out.shape == (0, 5)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_sizes_change_from_batch_to_batch(name, model):
    """One size after the other, and back: nothing of a size stays behind."""
    batches = [images(name, size=size) for size in MODELS[name].sizes]
    with torch.no_grad():
        first = [model(x) for x in batches]
        again = [model(x) for x in reversed(batches)]
    assert all(y.shape == (2, 5) and y.isfinite().all() for y in first)
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_images_of_a_batch_do_not_mix(name, model):
    x = images(name, 3, MODELS[name].sizes[-1])
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(one[None]) for one in x]), rtol=1e-4, atol=1e-5)


def test_features_only(name, model):
    """The maps are the intermediates, of the shapes that `feature_info` gives."""
    features, reductions = make(name, features_only=True), MODELS[name].reductions
    assert features.feature_info.reduction() == reductions
    for size in MODELS[name].sizes:
        x = images(name, size=size)
        with torch.no_grad():
            maps = features(x)
            final, intermediates = model.forward_intermediates(x)
            torch.testing.assert_close(final, model.forward_features(x))
        assert all(torch.equal(a, b) for a, b in zip(maps, intermediates[-len(maps) :], strict=True))
        for level, channels, reduction in zip(maps, features.feature_info.channels(), reductions, strict=True):
            assert level.shape[:2] == (2, channels)
            for side, pixels in zip(level.shape[2:], size, strict=True):
                # rounded up, or down where the first convolution has no padding to whole patches
                assert side in (-(-pixels // reduction), pixels // reduction)


def test_intermediates(name, model):
    """Some of them are some of all, also where the rest is not run; other layouts and the final norm."""
    x = images(name)
    with torch.no_grad():
        _, every = model.forward_intermediates(x)
        some = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True, stop_early=True)
        assert [torch.equal(a, b) for a, b in zip(some, every, strict=False)] == [True, True]
        if isinstance(getattr(model, "norm", None), nn.LayerNorm) and not name.startswith("regionvit"):
            # RegionViT's is one of the regional tokens
            (normed,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
            torch.testing.assert_close(normed, model.norm(every[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        if isinstance(model, Pyramid):
            nhwc = model.forward_intermediates(x, intermediates_only=True, output_fmt="NHWC")
            assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(every, nhwc, strict=True))
            assert model.forward_intermediates(x, indices=[1], stop_early=True)[0] is None
            with pytest.raises(ValueError, match="output_fmt='NCL'"):
                model.forward_intermediates(x, output_fmt="NCL")


def test_pruned_features_have_gradients_everywhere(name):
    """As DistributedDataParallel wants: what is not needed for the maps is gone; the norms that timm leaves are not."""
    features = make(name, features_only=True, out_indices=(0, 1))
    sum(level.square().sum() for level in features(images(name))).backward()
    for parameter_name, p in features.named_parameters():
        assert p.grad is not None or not p.requires_grad or "norm" in parameter_name, parameter_name


def test_reset_classifier(name):
    model, x = make(name), images(name)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.get_classifier().out_features == 7
    assert not model.get_classifier().training
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


def test_gradient_checkpointing(name):
    """The same outputs and gradients with and without."""
    model, x = make(name).train(), images(name, size=MODELS[name].sizes[-1])
    runs = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)  # stochastic depth draws the same
        out = model(x)
        out.square().sum().backward()
        runs.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(*runs)


def test_layer_and_weight_decay(name):
    """A graft counts to its block, an embedding to the first of its stage; tokens, positions, tables do not decay."""
    model = make(name)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = {n: group_of[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    by_block: dict[str, set] = {}
    for parameter_name, group in groups.items():
        # timm decays MobileViT by its blocks of convolutions and transformer layers together
        block = re.match(
            r"(.*?blocks\.\d+|(?:stage|block|layer)\d+\.\d+|stages\.\d+\.\d+|layers\.\d+\.block\.\d+)\.", parameter_name
        )
        if block:
            by_block.setdefault(block[1], set()).add(group["lr_scale"])
    assert len(by_block) >= 3 and all(len(scales) == 1 for scales in by_block.values())
    if not name.startswith(("vil", "regionvit")):  # an MLP, or a down-sampling, by itself
        assert len(set.union(*by_block.values())) == len(by_block)
    scales = {group["lr_scale"] for group in groups.values()}
    assert len(scales) > len(getattr(model, "blocks", None) or model.feature_info) and min(scales) < 0.5**3
    classifier = model.get_classifier().weight
    assert group_of[id(classifier)]["lr_scale"] == 1
    assert len(timm.models.group_parameters(model, model.group_matcher(coarse=True))) >= 4
    assert {n for n in model.no_weight_decay() if ".graft." in n} <= set(groups)
    undecayed = r"(pos_embed\d?|cls_token|rel_pos|bias_table|position_bias|anti_alias)$"
    for parameter_name, group in groups.items():
        if re.search(undecayed, parameter_name):
            assert not group["weight_decay"], parameter_name
        elif parameter_name.endswith(("qkv.weight", "proj.weight")):
            assert group["weight_decay"], parameter_name


def test_weights_travel(name, tmp_path):
    """As safetensors through timm's hub format, as a checkpoint, as a copy, pickled."""
    options = MODELS[name].options
    if name in GRAFTED:
        options = {**options, "graft": {"upsample": "nearest", "levels": 1, "blocks": [1, 2]}}
    model, x = wake(make(name, **options)), images(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm.models.save_for_hf(model, str(tmp_path), model_args=options)
        hub = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(hub) is type(model) and getattr(hub, "graft_config", None) == getattr(model, "graft_config", None)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    loaded = make(name, checkpoint_path=str(tmp_path / "weights.pth"), **options)
    with torch.no_grad():
        expected = model(x)
        for other in (hub, loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)


def test_device_and_dtype(name):
    assert {p.dtype for p in make(name, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    model = make(name, device="meta")
    assert all(p.is_meta for p in model.parameters())
    source, x = make(name), images(name)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    model.load_state_dict(source.state_dict())
    assert torch.equal(model(x), source(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = source(x).float()
    torch.testing.assert_close(half, source(x), atol=0.1, rtol=0.1)
    assert source.bfloat16()(x.bfloat16()).isfinite().all()


def test_in_chans(name):
    assert make(name, in_chans=1)(images(name, channels=1)).shape == (2, 5)


@pytest.mark.parametrize("name", without("graft_mobilevit"))  # timm's has not these options
def test_drop_rates_act_in_training_only(name):
    rates = {"drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}
    model, x = make(name, **rates), images(name)
    assert torch.equal(model(x), make(name)(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", without("graft_mobilevit", "regionvit"))  # nothing there depends on the size
def test_set_input_size(name):
    """Models of any size stay the same function; the others become those of that size."""
    size = (96, 160)
    model, x = make(name), images(name, size=size)
    if name in ZOO:
        expected = {n: p.shape for n, p in make(name, img_size=size).named_parameters()}
        model.set_input_size(img_size=size)
        assert {n: p.shape for n, p in model.named_parameters()} == expected
        assert model(x).isfinite().all()
        return
    if hasattr(model, "pos_embed"):
        model.pos_embed.data.zero_()  # resizing one there and back loses something; zeros stay
    with torch.no_grad():
        expected = model(x)
        model.set_input_size(img_size=size)
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", without("graft_mobilevit"))  # timm's takes any
def test_unknown_options(name):
    with pytest.raises(TypeError, match="drop_paht_rate"):
        make(name, drop_paht_rate=0.1)


@pytest.mark.parametrize(
    "name,options,said",
    [
        ("pvt_tiny", {"img_size": 31}, "31 x 31 pixels is too small"),
        ("pvt_tiny", {"depths": (1, 2)}, "one value per stage is needed"),
        ("pvt_tiny", {"num_heads": (1, 2, 3, 5)}, "num_heads=5 does not divide dim=32"),
        ("pvt_tiny", {"sr_ratios": (8, 4, 2, 2)}, "1 is needed in the last stage"),
        ("pvt_tiny", {"global_pool": "map"}, "global_pool='map'"),
        ("regionvit_tiny", {"global_pool": "token"}, "RegionViT has '', 'avg', 'max', 'avgmax'"),
        ("regionvit_tiny", {"num_heads": (1, 2, 4, 9)}, "num_heads=9 does not divide dim=64"),
        ("regionvit_tiny", {"embed_dim": 9}, "embed_dim=9"),
        ("vil_tiny", {"img_size": 31}, "31 x 31 pixels is too small"),
        ("vil_tiny_rpb", {"global_tokens": (1, 1, 1, 1)}, "none in the last stage"),
        ("vil_tiny_rpb", {"windowed": (True, False)}, "one value per stage is needed"),
        ("t2t_vit_14", {"patch_size": 8}, "patch_size=8"),
        ("t2t_vit_14", {"img_size": 2}, "needs 3 x 3 pixels"),
        ("cswin_tiny_224", {"depths": (1, 2)}, "one value per stage"),
        ("cswin_tiny_224", {"num_heads": (1, 2, 4, 8)}, "must both be even"),
        ("cswin_tiny_224", {"num_heads": (2, 2, 4, 3)}, "num_heads=3 does not divide dim=128"),
        ("cswin_tiny_224", {"split_sizes": (0, 2, 7, 7)}, "stripe_size=0"),
        ("cswin_tiny_224", {"img_size": 3}, "3 x 3 pixels is too small"),
        ("graft_swin_tiny_patch4_window7_224", {"strict_img_size": True}, "strict_img_size=True"),
        ("graft_swin_tiny_patch4_window7_224", {"always_partition": False}, "only True works"),
    ],
)
def test_bad_options(name, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make(name, **options)


# the grafted names


@pytest.mark.parametrize("name", GRAFTED)
def test_state_dict_is_the_backbones_plus_grafts(name):
    own = make(name).state_dict()
    backbone = timm.create_model(name.removeprefix("graft_"), num_classes=5, **MODELS[name].options).state_dict()
    expected = {n: tuple(t.shape) for n, t in backbone.items()}
    if "deit" in name:  # neither the class token nor its position
        del expected["cls_token"]
        expected["pos_embed"] = (1, 196, 24)
    assert {n: tuple(t.shape) for n, t in own.items() if ".graft." not in n} == expected
    assert all(re.search(r"\.\d+\.graft\.", n) for n in own.keys() - expected.keys())


@pytest.mark.parametrize("name", GRAFTED)
def test_backbone_weights_and_identity(name, tmp_path):
    """timm's own weights of the backbone, and the grafts at identity: the function of the backbone."""
    base = name.removeprefix("graft_")
    torch.manual_seed(1)
    backbone = timm.create_model(base, num_classes=5, **MODELS[name].options).eval()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    graft = {"init": "identity"}
    if "deit" in name:
        graft["backbone_window_size"] = 14
    model = make(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "backbone.pth")}, graft=graft)
    own = model.state_dict()
    for key, value in backbone.state_dict().items():
        # the classifier is new: the name's weights have 1000 classes, this one 5
        if key not in ("cls_token", "pos_embed") and not key.startswith("head."):
            assert torch.equal(own[key], value), key
    x = images(name, 1, (224, 224))
    with torch.no_grad():
        if "deit" in name:
            assert torch.equal(own["pos_embed"], backbone.pos_embed[:, 1:])
            # what a class token read is gone: the same ViT without one is the backbone to compare with
            options = {"num_classes": 5, "class_token": False, "global_pool": "avg", "fc_norm": False}
            backbone = timm.create_model("vit_tiny_patch16_224", **MODELS[name].options, **options).eval()
            backbone.load_state_dict({k: v for k, v in own.items() if ".graft." not in k})
        actual, expected = model.forward_features(x), backbone.forward_features(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GRAFTED)
def test_pretrained_with_another_number_of_classes(name, tmp_path):
    """As users fine-tune: the classifier is new, all else comes from the file."""
    source = wake(make(name, num_classes=1000))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = make(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}, num_classes=3)
    x = images(name, 1)
    assert model(x).shape == (1, 3)
    assert torch.equal(model.forward_features(x), source.forward_features(x))


@pytest.mark.parametrize("name", GRAFTED)
def test_grafts_strip_to_the_backbone(name):
    model = make(name)
    vitgraft.strip(model)
    assert not any("graft" in n for n in model.state_dict())
    assert model(images(name, 1)).shape == (1, 5)


@pytest.mark.parametrize("name", GRAFTED)
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


@pytest.mark.parametrize("name", GRAFTED)
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


@pytest.mark.parametrize(
    "name,graft,parameters",
    [
        ("graft_deit_tiny_patch16_224", {"blocks": 8}, 7_287_808),
        ("graft_deit_tiny_patch16_224", {"blocks": 4}, 6_502_420),
        ("graft_deit_tiny_patch16_224", {"blocks": []}, 5_717_032),
        ("graft_swin_tiny_patch4_window7_224", {"levels": 1}, 33_435_505),
        ("graft_mobilevit_xxs", {"blocks": []}, 1_272_024),
    ],
)
def test_parameter_counts_with_other_grafts(name, graft, parameters):
    assert count_params(timm.create_model(name, device="meta", graft=graft)) == parameters
