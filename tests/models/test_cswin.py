import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from conftest import shared
from reference.stripe_attention import stripe_attention
from timm.optim import param_groups_layer_decay

import vitgraft.models.cswin  # noqa: F401 (registers the names)
from vitgraft.models.cswin import StripeAttention
from vitgraft.weights import official as checkpoints

SMALL = {"embed_dim": 16, "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4), "num_classes": 7}


def small(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("cswin_tiny_224", **{**SMALL, **kwargs}).eval()


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(shared("conformance")))
    return __import__("compare")


@torch.no_grad()
def test_official_vector(compare):
    meta, reference = compare.load_vector("cswin_tiny_224")
    model = timm.create_model("cswin_tiny_224").eval()
    assert list(model.state_dict()) == [name for name, _, _ in meta["state_dict"]]
    report = compare.check(model, "cswin_tiny_224", load=checkpoints.load_official)
    assert report["ok"], report
    checkpoints.load_official(model, compare.official_state_dict(meta))
    x = torch.from_numpy(__import__("fill").make_input(224, 224))
    embed = model.stage1_conv_embed(x)
    maps = {"embed": embed, "block1": model.stage1[0](embed)}
    maps = {name: grid.permute(0, 3, 1, 2) for name, grid in maps.items()}
    stages = model.forward_intermediates(x, intermediates_only=True)
    maps.update({f"stage{i + 1}": stage for i, stage in enumerate(stages)})
    assert sorted(maps) == sorted(meta["intermediates"])
    for name, grid in maps.items():
        assert compare.check_intermediate(grid.numpy(), "cswin_tiny_224", name) < 5e-5, name
    np.testing.assert_allclose(
        model.forward_head(model.norm(stages[-1].permute(0, 2, 3, 1)), pre_logits=True).numpy(),
        reference["features"],
        atol=1e-5,
    )


@pytest.mark.parametrize("direction", ["vertical", "horizontal", "full"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("size", [(5, 8), (2, 3), (6, 6), (1, 1)])
def test_stripes_against_reference(direction, grad, size):
    torch.manual_seed(1)
    attn = StripeAttention(8, 2, stripe_size=3, direction=direction).double()
    qkv = torch.randn(2, *size, 3, 8, dtype=torch.float64)
    expected = stripe_attention(qkv, attn.get_v.weight, attn.get_v.bias, 2, 3, direction)
    with torch.set_grad_enabled(grad):  # two paths: fused attention or written out
        actual = attn(qkv)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_a_stripe_never_reads_its_neighbour():
    attn = StripeAttention(8, 2, stripe_size=2, direction="vertical")
    qkv = torch.randn(1, 4, 6, 3, 8)
    other = qkv.clone()
    other[:, :, 2:] += 1
    torch.testing.assert_close(attn(qkv)[:, :, :2], attn(other)[:, :, :2], rtol=0, atol=0)
    assert not torch.allclose(attn(qkv)[:, :, 2:], attn(other)[:, :, 2:])


def test_every_size_in_any_order_on_one_model():
    model = small()
    for size in [(4, 4), (37, 61), (224, 32), (64, 64), (5, 130), (4, 4)]:
        x = torch.randn(2, 3, *size)
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert torch.isfinite(model(x)).all()
        model.set_input_size(size)
        assert [tuple(m.shape[2:]) for m in maps] == model.feat_sizes
        assert [b.feat_size for b in model.stage3] == [model.feat_sizes[2]] * 2
    fresh = small()
    torch.testing.assert_close(model(x), fresh(x), rtol=0, atol=0)


def test_timm_interface():
    model = small()
    x = torch.randn(2, 3, 64, 96)
    assert model.get_classifier() is model.head
    features = model.forward_features(x)
    assert features.shape == (2, 2, 3, 128)
    assert model.forward_head(features, pre_logits=True).shape == (2, 128)
    torch.testing.assert_close(model.forward_head(features), model(x))
    last, maps = model.forward_intermediates(x, indices=[1, 3], norm=True, output_fmt="NHWC")
    assert [tuple(m.shape) for m in maps] == [(2, 8, 12, 32), (2, 2, 3, 128)]
    torch.testing.assert_close(last, features)
    torch.testing.assert_close(maps[1], features)
    early, maps = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert len(maps) == 1 and early is None
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and not model.head.training
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 2, 3, 128)


def test_features_only():
    x = torch.randn(2, 3, 64, 96)
    net = small(features_only=True, num_classes=0)
    assert net.feature_info.channels() == [16, 32, 64, 128] and net.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(m.shape) for m in net(x)] == [(2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
    expected = small(num_classes=0).forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    pruned = small(features_only=True, out_indices=(0, 2), num_classes=0)
    assert not any(name.startswith(("model.stage4", "model.norm", "model.head")) for name in pruned.state_dict())
    torch.testing.assert_close(pruned(x), expected)


def test_checkpointing_gives_the_same_gradients():
    model, x = small().train(), torch.randn(2, 3, 32, 40)
    model(x).sum().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(g.abs().sum() > 0 for name, g in want.items() if "qkv.bias" not in name)
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], msg=name)


def test_layer_decay_groups():
    model = small()
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    of = {name: scale[id(p)] for name, p in model.named_parameters()}
    order = [
        "stage1_conv_embed.0.weight",
        "stage1.0.qkv.weight",
        "merge1.conv.weight",
        "stage2.1.qkv.weight",
        "merge2.conv.weight",
        "stage3.1.qkv.weight",
        "stage4.0.qkv.weight",
        "head.weight",
    ]
    values = [of[name] for name in order]
    assert values == sorted(values) and len(set(values)) == len(values)
    assert of["merge1.conv.weight"] == of["stage2.0.qkv.weight"] and of["norm.weight"] == of["stage4.0.qkv.weight"]
    param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    assert len(timm.models.group_parameters(model, model.group_matcher(coarse=True))) >= 4


def test_device_dtype_pickle_deepcopy():
    model = small(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in small(device="meta").parameters())
    model, x = small(), torch.randn(1, 3, 40, 24)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"drop_paht_rate": 0.1}, TypeError, "drop_paht_rate"),
        ({"depths": (1, 2)}, ValueError, "one value per stage"),
        ({"num_heads": (1, 2, 4, 4)}, ValueError, "must both be even"),
        ({"num_heads": (2, 2, 4, 3)}, ValueError, "num_heads=3 does not divide dim=128"),
        ({"split_sizes": (0, 2, 7, 7)}, ValueError, "stripe_size=0"),
        ({"img_size": 3}, ValueError, "3 x 3 pixels is too small"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        small(**options)


def test_bad_arguments():
    with pytest.raises(ValueError, match="direction='diagonal'"):
        StripeAttention(8, 2, direction="diagonal")
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        small().forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NLC")


def test_default_configuration():
    cfg = timm.models.get_pretrained_cfg("cswin_base_224")
    assert (cfg.crop_pct, cfg.interpolation, cfg.input_size) == (0.9, "bicubic", (3, 224, 224))
    sizes = {"cswin_small_224": 34_643_304, "cswin_base_224": 77_382_184}  # published: 35 M and 78 M
    for name, count in sizes.items():
        assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == count


@pytest.mark.slow
def test_compile_fullgraph():
    model = small(depths=(1, 1, 1), num_heads=(2, 2, 4), split_sizes=(1, 2, 7))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in [(44, 36), (64, 64)]:
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_onnx_with_a_dynamic_batch(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    model, path = small(depths=(1, 1, 1), num_heads=(2, 2, 4), split_sizes=(1, 2, 7)), tmp_path / "model.onnx"
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 44, 36),),
        path,
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["x"],
        verbose=False,
    )
    x = torch.randn(5, 3, 44, 36)
    (y,) = ort.InferenceSession(path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), atol=1e-4)
