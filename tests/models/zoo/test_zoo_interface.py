"""One suite over the families of the zoo: they behave as timm's models do. Small: few blocks, few channels."""

import copy
import pickle
import re
import warnings

import pytest
import timm
import torch
from reference.zoo_plain import plain
from timm.optim import param_groups_layer_decay
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
from vitgraft.errors import CheckpointError, GraftError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm")

# a model of each family and code path -> options that make it small, sizes of images that it takes (the first is its
# own; families with one size only have one), reductions of its maps
PYRAMID = [4, 8, 16, 32]
FAMILIES = {
    "pvt_tiny": (
        {"embed_dims": (8, 16, 24, 32), "depths": (2, 1, 2, 1), "num_heads": (1, 2, 3, 4), "img_size": 64},
        [(64, 64), (32, 32), (33, 71), (96, 160)],
        PYRAMID,
    ),
    "t2t_vit_14": ({"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": 64}, [(64, 64)], [16, 16, 16]),
    "t2t_vit_t_14": (
        {"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": (48, 64), "dynamic_img_size": True},
        [(48, 64), (16, 16), (3, 5), (70, 33)],
        [16, 16, 16],
    ),
    "regionvit_tiny": (
        {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 56},
        [(56, 56), (64, 64), (4, 4), (56, 61), (33, 112)],
        PYRAMID,
    ),
    "vil_tiny": (
        {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "img_size": 64},
        [(64, 64)],
        PYRAMID,
    ),
    "vil_tiny_rpb": (
        {
            "embed_dims": (8, 16, 24, 32),
            "depths": (1, 2, 1, 1),
            "num_heads": (1, 2, 3, 4),
            "img_size": (64, 96),
            "window_size": 5,
        },
        [(64, 96)],
        PYRAMID,
    ),
    "regionvit_medium": (
        {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 56},
        [(56, 56), (30, 58)],
        PYRAMID,
    ),
}
# one of each family that is traced, and what else makes that quick
TRACED = {
    "pvt_tiny": {"depths": (1, 1, 1, 1)},
    "t2t_vit_14": {"depth": 2},
    "t2t_vit_t_14": {"depth": 2},
    "vil_tiny_rpb": {"window_size": 8, "depths": (1, 1, 1, 1), "img_size": 64},
    "regionvit_tiny": {"depths": (1, 1, 1, 1)},
}
REGISTERED = {
    "pvt_tiny", "pvt_small", "pvt_medium", "pvt_large", "t2t_vit_14", "t2t_vit_t_14", "t2t_vit_t_19",
    "regionvit_tiny", "regionvit_small", "regionvit_medium", "regionvit_base",
    "vil_tiny", "vil_tiny_rpb", "vil_small_rpb", "vil_medium_deep_rpb",
}  # fmt: skip


def make(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **FAMILIES[name][0], **options}).eval()


def images(name: str, batch: int = 2, size: tuple[int, int] | None = None, chans: int = 3) -> torch.Tensor:
    return torch.randn(batch, chans, *(size or FAMILIES[name][1][0]), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name) -> nn.Module:
    """Not to be changed."""
    return make(name)


def test_registered_names():
    here = {n for family in ("pvt_*", "t2t_*", "vil_*", "regionvit_*") for n in timm.list_models(family)}
    assert {n for n in here if not n.startswith("pvt_v2")} == REGISTERED


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_default_cfg(name):
    cfg = timm.get_pretrained_cfg(name)
    model = timm.create_model(name, device="meta")
    modules = dict(model.named_modules())
    assert cfg.input_size == (3, 224, 224) and cfg.license
    assert modules[cfg.classifier].out_features == cfg.num_classes == 1000
    first = (cfg.first_conv,) if isinstance(cfg.first_conv, str) else cfg.first_conv or ()
    assert all(modules[conv].in_channels == 3 for conv in first)


def test_forward_and_backward(name):
    check_forward_and_backward(make(name), images(name))


def test_an_empty_batch(name):
    check_empty_batch(make(name), images(name))


def test_sizes_change_from_batch_to_batch(name, model):
    check_sizes_change_from_batch_to_batch(model, [images(name, size=size) for size in FAMILIES[name][1]])


def test_images_of_a_batch_do_not_mix(name, model):
    check_images_do_not_mix(model, images(name, 3))


def test_plain_formulas(name):
    model, x = make(name).double(), images(name).double()
    for p in model.parameters():  # the start values make attention nearly uniform
        if p.ndim > 1 and p.requires_grad:
            p.data.mul_(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(model)(x), rtol=1e-10, atol=1e-10)


def test_features_only(name, model):
    features = make(name, features_only=True)
    for size in FAMILIES[name][1]:
        check_features_only(features, model, images(name, size=size), FAMILIES[name][2])


def test_intermediates(name, model):
    x = images(name)
    check_intermediates_take_indices(model, x)
    if not name.startswith("regionvit"):  # there the norm is one of the regional tokens
        with torch.no_grad():
            last = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
            normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(normed, model.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_output_formats(name, model):
    x = images(name)
    nchw = model.forward_intermediates(x, intermediates_only=True)
    if not name.startswith("t2t"):
        nhwc = model.forward_intermediates(x, intermediates_only=True, output_fmt="NHWC")
        assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(nchw, nhwc, strict=True))
    with pytest.raises((ValueError, AssertionError), match="NCHW"):
        model.forward_intermediates(x, output_fmt="NCL")


def test_pruned_features_have_gradients_everywhere(name):
    check_pruned_features_have_gradients(make(name, features_only=True, out_indices=(0, 1)), images(name))


def test_reset_classifier(name):
    model = make(name)
    check_reset_classifier(model, images(name))
    model.reset_classifier(3, "avg")
    assert model(images(name)).shape == (2, 3)


def test_gradient_checkpointing(name):
    check_gradient_checkpointing(make(name), images(name))


def test_layer_decay(name):
    model = make(name)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = {n: scale[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    by_block: dict[str, set] = {}
    for parameter_name, (lr_scale, _) in named.items():
        block = re.match(r"blocks\.\d+\.|(?:block|layer|layers\.)\d+\.(?:block\.)?\d+\.", parameter_name)
        if block:
            by_block.setdefault(block[0], set()).add(lr_scale)
    assert len(by_block) >= 3 and all(len(scales) == 1 for scales in by_block.values())
    depth = len(getattr(model, "blocks", None) or model.feature_info)
    assert len({s for s, _ in named.values()}) > depth
    assert named["head.weight"][0] == 1 and min(s for s, _ in named.values()) < 0.5**3
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) >= 4
    decayed = timm.optim.param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for g in decayed if g["weight_decay"] for p in g["params"]}
    for parameter_name, p in model.named_parameters():
        if re.search(r"pos_embed\d?$|cls_token$|rel_pos$|bias_table$|position_bias$", parameter_name):
            assert id(p) not in decayed, parameter_name


def test_weights_travel(name, tmp_path):
    """As safetensors through timm's hub format, as a checkpoint, as a copy, pickled."""
    model, x = make(name), images(name)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm.models.save_for_hf(model, str(tmp_path), model_args=FAMILIES[name][0])
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(other(x), expected)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    torch.manual_seed(1)
    assert torch.equal(make(name, checkpoint_path=str(tmp_path / "weights.pth"))(x), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
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
    assert make(name, in_chans=1)(images(name, chans=1)).shape == (2, 5)


def test_drop_rates_act_in_training_only(name):
    rates = {"drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}
    model, x = make(name, **rates), images(name)
    assert torch.equal(model(x), make(name)(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_checkpoint_of_another_image_size(name):
    """Position embeddings and tables are resized, and said to be."""
    if name.startswith("regionvit"):
        pytest.skip("no tensor depends on the size")
    source, model = make(name, img_size=64), make(name, img_size=(96, 64))
    report = vitgraft.load_official(model, {"state_dict": source.state_dict()})
    assert report.reshaped and not report.missing and not report.unexpected
    assert model(images(name, size=(96, 64))).isfinite().all()
    same = make(name, img_size=64, num_classes=5)
    assert not vitgraft.load_official(same, source.state_dict()).reshaped


def test_set_input_size(name):
    if name.startswith("regionvit"):
        pytest.skip("no tensor depends on the size")
    model = make(name, img_size=64)
    want = {n: p.shape for n, p in make(name, img_size=(96, 64)).named_parameters()}
    model.set_input_size(img_size=(96, 64))
    assert {n: p.shape for n, p in model.named_parameters()} == want
    assert model(images(name, size=(96, 64))).shape == (2, 5)


def test_weights_of_another_family_are_named(name):
    other = next(n for n in FAMILIES if n[:3] != name[:3])
    model = make(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    family = {"pvt": "PVT v1", "t2t": "T2T-ViT", "reg": "RegionViT", "vil": "Vision Longformer"}[other[:3]]
    with pytest.raises(CheckpointError, match=f"looks like a {family}"):
        vitgraft.load_official(model, make(other).state_dict())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["vil_tiny_rpb", "regionvit_tiny"])
def test_second_names(name, tmp_path):
    """The authors store some tensors twice; both ways to load take that, if the two are the same."""
    source, x = make(name), images(name)
    pairs = {"vil_tiny_rpb": (".query.", ".query_global."), "regionvit_tiny": (".proj.2.", ".proj_cls.2.")}
    first, second = pairs[name]
    official = dict(source.state_dict())
    twice = [n for n in official if first in n and not n.startswith("patch_embed")]
    official.update({n.replace(first, second): official[n].clone() for n in twice})
    assert len(official) > len(source.state_dict())
    model = make(name, num_classes=5)
    for p in model.parameters():
        p.data.zero_()
    report = vitgraft.load_official(model, {"net": official})
    assert any("the same tensor as" in line for line in report.skipped) and not report.unexpected
    assert torch.equal(model(x), source(x))
    make(name).load_state_dict(official)

    key = next(n for n in official if second in n)
    official[key] = official[key] + 1
    with pytest.raises(CheckpointError, match=re.escape(key) + " and .* differ"):
        vitgraft.load_official(make(name), official)
    with pytest.raises(RuntimeError, match="are one tensor here"):
        make(name).load_state_dict(official)


@pytest.mark.parametrize(
    "name,options,said",
    [
        ("pvt_tiny", {"depths": (2, 1, 3, 1)}, "have no place in the model"),
        ("pvt_tiny", {"embed_dims": (16, 16, 24, 32)}, "shapes differ"),
        ("t2t_vit_14", {"performer": False}, "T2T-ViT"),
        ("vil_tiny_rpb", {"rel_pos": False}, "absolute positions"),
        ("regionvit_tiny", {"single_conv": True}, "patch_embed.proj"),
        ("regionvit_tiny", {"num_classes": 6}, "6 classes against 5"),
    ],
)
def test_a_checkpoint_of_another_size_changes_nothing(name, options, said):
    model, other = make(name), make(name, **options)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=said):
        vitgraft.load_official(model, other.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_wrappers(name):
    """Averaged weights come first, and what was passed over is said."""
    raw, averaged = make(name), make(name)
    for p in averaged.parameters():
        p.data.add_(0.1)
    content = {
        "state_dict": {f"module.{n}": t for n, t in raw.state_dict().items()},
        "state_dict_ema": {f"module.{n}": t for n, t in averaged.state_dict().items()},
    }
    model = make(name)
    report = vitgraft.load_official(model, content)
    assert report.wrapper == "state_dict_ema" and report.passed_over == ["state_dict"]
    assert torch.equal(model(images(name)), averaged(images(name)))
    with pytest.raises(CheckpointError, match="wrapper='net'"):
        vitgraft.load_official(model, content, wrapper="net")


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
        ("vil_tiny", {"img_size": 31}, "img_size=(31, 31): ViL needs 32 pixels or more"),
        ("vil_tiny_rpb", {"global_tokens": (1, 1, 1, 1)}, "none in the last stage"),
        ("vil_tiny_rpb", {"windowed": (True, False)}, "one value per stage is needed"),
        ("t2t_vit_14", {"patch_size": 8}, "patch_size=8"),
        ("t2t_vit_14", {"img_size": 2}, "needs 3 x 3 pixels"),
    ],
)
def test_bad_options(name, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make(name, **options)


@pytest.mark.parametrize(
    "name,size,said",
    [
        ("pvt_tiny", (64, 31), "64 x 31"),
        ("t2t_vit_14", (64, 80), "64 x 80"),
        ("regionvit_tiny", (64, 3), "64 x 3"),
        ("vil_tiny", (64, 96), "64 x 96"),
    ],
)
def test_sizes_that_cannot_work(name, size, said):
    with pytest.raises(ValueError, match=said):
        make(name)(images(name, size=size))


def test_grafts_work_or_say_why_not(name):
    model, x = make(name), images(name)
    expected = model(x)
    try:
        vitgraft.graft(model, window_size=2, init="identity")
    except GraftError as error:
        assert not name.startswith("t2t") and "has no block that can carry a graft" in str(error)
        assert torch.equal(model(x), expected)
    else:
        assert vitgraft.grafts(model) and torch.equal(model(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_compile_and_export(name):
    size = (64, 64) if name.startswith("vil") else None
    model, x = make(name, **TRACED.get(name, {})), images(name, size=size)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    y = images(name, 3, size)
    torch.testing.assert_close(exported(y), model(y), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxruntime")
    from vitgraft.tools.export import export_onnx

    size = (64, 64) if name.startswith("vil") else FAMILIES[name][1][0]
    done = export_onnx(make(name, **TRACED.get(name, {})), tmp_path / "model.onnx", (3, *size))
    assert done.ok, done.differences


@pytest.mark.parametrize("name", ["pvt_tiny", "regionvit_tiny", "vil_tiny_rpb"])
def test_dense_features(name):
    """Classification weights go into a backbone for dense tasks: the maps are the model's own, after new norms."""
    source = make(name)
    dense = vitgraft.DenseFeatures(make(name), norm=False)
    report = vitgraft.load_official(dense, {"model": source.state_dict()})
    assert not report.unexpected and any("no classifier" in line for line in report.skipped)
    x = images(name)
    for a, b in zip(dense(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(a, b)
    normed = vitgraft.DenseFeatures(make(name), out_indices=(0, 2))
    assert [m.shape[1] for m in normed(x)] == [source.feature_info[i]["num_chs"] for i in (0, 2)]


@pytest.mark.parametrize("name", ["pvt_tiny", "t2t_vit_14", "vil_tiny_rpb", "regionvit_tiny"])
def test_pretrained_at_another_size(name, tmp_path):
    """timm's own way to weights resizes what depends on the image's size, as `load_official` does."""
    small = {"pvt": {"depths": (1, 1, 1, 1)}, "t2t": {"depth": 1}}.get(name.partition("_")[0], {})
    source = timm.create_model(name, num_classes=5, **small)
    torch.save({"state_dict_ema": source.state_dict()}, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, img_size=160, **small
    ).eval()
    other = timm.create_model(name, num_classes=5, img_size=160, **small).eval()
    vitgraft.load_official(other, tmp_path / "weights.pth")
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(image), other(image), rtol=0, atol=0)
