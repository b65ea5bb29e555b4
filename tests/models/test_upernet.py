import re

import pytest
import timm
import torch
from open_mmlab import as_open_mmlab
from torch import nn
from torch.nn import functional as F

import vitgraft
from vitgraft.errors import CheckpointError
from vitgraft.models.dense import DenseFeatures
from vitgraft.models.feature_pyramid import pyramid
from vitgraft.models.swin import SwinTransformer
from vitgraft.models.upernet import UperNet
from vitgraft.tools.count import count_params

SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
HEAD = {"channels": 24, "aux_channels": 12}


def swin(seed=0):
    torch.manual_seed(seed)
    return SwinTransformer(num_classes=0, **SWIN)


def upernet(seed=0, num_classes=5, **options):
    backbone = DenseFeatures(swin(seed))
    torch.manual_seed(seed)
    net = UperNet(backbone, num_classes, **{**HEAD, **options})
    for module in net.modules():  # statistics of their own, so that the names of all tensors matter
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def as_mmseg(net):
    """The state dict under the names of the authors' checkpoints."""
    named = {}
    for name, value in net.state_dict().items():
        name = re.sub(r"^backbone\.(backbone\.)?", "backbone.", name)
        name = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        named[name] = value
    return named


def plain_upernet(state, maps):
    """mmsegmentation's UPerHead in evaluation, written out from its parameters."""

    def block(name, x, padding):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=padding)
        stats = (
            state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        mean, var, weight, bias = stats
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()

    def up(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    last = maps[3]
    pooled = [up(block(f"psp_modules.{i}.1", F.adaptive_avg_pool2d(last, s), 0), last.shape[2:])
              for i, s in enumerate((1, 2, 3, 6))]  # fmt: skip
    p3 = block("bottleneck", torch.cat([last, *pooled], 1), 1)
    p2 = block("lateral_convs.2", maps[2], 0) + up(p3, maps[2].shape[2:])
    p1 = block("lateral_convs.1", maps[1], 0) + up(p2, maps[1].shape[2:])
    p0 = block("lateral_convs.0", maps[0], 0) + up(p1, maps[0].shape[2:])
    outs = [block(f"fpn_convs.{i}", level, 1) for i, level in enumerate((p0, p1, p2))] + [p3]
    merged = block("fpn_bottleneck", torch.cat([outs[0], *(up(o, p0.shape[2:]) for o in outs[1:])], 1), 1)
    return F.conv2d(merged, state["conv_seg.weight"], state["conv_seg.bias"])


def test_the_function_is_the_authors():
    net, image = upernet(), torch.randn(2, 3, 70, 101)
    state = {k.removeprefix("decode_head."): v for k, v in net.state_dict().items() if k.startswith("decode_head.")}
    with torch.no_grad():
        maps = net.backbone(image)
        expected = F.interpolate(plain_upernet(state, maps), size=(70, 101), mode="bilinear", align_corners=False)
        torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-5)


def test_training_gives_both_heads_and_every_parameter_a_gradient():
    net = upernet().train()
    logits, aux = net(torch.randn(2, 3, 64, 96))
    assert logits.shape == aux.shape == (2, 5, 64, 96)
    (logits.square().mean() + aux.square().mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert isinstance(upernet(aux_channels=None).train()(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_start_values():
    net = UperNet(DenseFeatures(swin()), 300, channels=200)
    assert net.decode_head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.05)
    conv = net.decode_head.fpn_bottleneck.conv.weight
    assert conv.std().item() == pytest.approx((2 / (200 * 9)) ** 0.5, rel=0.02)
    assert not net.decode_head.conv_seg.bias.any()


@pytest.mark.parametrize("name", ["graft_swin", "vit", "resnet"])
def test_other_backbones(name):
    if name == "vit":
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2)
        model.set_input_size((64, 96))
    elif name == "resnet":
        model = timm.create_model("resnet10t")
    else:
        model = vitgraft.graft(swin(), window_size=4)
    net = UperNet(pyramid(model), 3, **HEAD).eval()
    assert net(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)
    assert bool(net.no_weight_decay()) == (name != "resnet")


def test_registered_name_without_grafts_is_the_authors_backbone():
    model = timm.create_model("graft_swin_tiny_patch4_window7_224", graft={"blocks": []}, num_classes=0, **SWIN)
    source = swin(3).eval()
    vitgraft.load_official(model, source.state_dict())
    image = torch.randn(1, 3, 50, 66)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), source(image), rtol=0, atol=0)
    assert not vitgraft.is_grafted(model)


def test_sync_batch_norm_keeps_the_function():
    net, image = upernet(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(image)
        after = nn.SyncBatchNorm.convert_sync_batchnorm(net)(image)
    torch.testing.assert_close(after, before)


def test_frozen_backbone_and_weight_decay_by_name():
    net = UperNet(DenseFeatures(vitgraft.graft(swin(), window_size=4)), 5, **HEAD)
    vitgraft.train_grafts_only(net)
    trains = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {n for n in trains if n.startswith("backbone.backbone.")} == {
        n for n, _ in net.named_parameters() if ".graft." in n
    }
    assert {n.split(".")[0] for n in trains} == {"backbone", "decode_head", "auxiliary_head"}
    assert "backbone.norm2.weight" in trains
    names = dict(net.named_parameters())
    assert net.no_weight_decay() and set(net.no_weight_decay()) <= set(names)


def test_bad_options():
    with pytest.raises(ValueError, match=r"channels=0.*dropout=1.0.*aux_index=4: there are 4 maps"):
        UperNet(DenseFeatures(swin()), 2, channels=0, dropout=1.0, aux_index=4)
    with pytest.raises(TypeError, match="DenseFeatures"):
        UperNet(nn.Linear(2, 2), 2)


def same(one, other):
    other = other.state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


def test_official_names_load():
    source, model = upernet(1), upernet(2)
    state = as_mmseg(source)
    assert "backbone.layers.0.downsample.reduction.weight" in state and "backbone.norm3.weight" in state
    assert "decode_head.psp_modules.3.1.bn.running_var" in state and "auxiliary_head.convs.0.conv.weight" in state
    state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    report = vitgraft.load_official(model, {"state_dict": state, "meta": {"epoch": 1}})
    assert same(source, model)
    assert report.missing == report.unexpected == [] and len(report.loaded) == len(model.state_dict())
    assert report.skipped == ["layers.0.blocks.0.attn.relative_position_index: computed, not loaded"]


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "segmentor."])
def test_names_of_wrappers(prefix):
    source = upernet(1)
    for names in (source.state_dict(), as_mmseg(source), as_open_mmlab(as_mmseg(source), "")):
        model = upernet(2)
        vitgraft.load_official(model, {"state_dict": {prefix + name: value for name, value in names.items()}})
        assert same(source, model)


def test_own_names_and_another_window_load():
    source, model = upernet(1), upernet(2)
    vitgraft.load_official(model, source.state_dict())
    assert same(source, model)
    torch.manual_seed(4)
    wide = SwinTransformer(num_classes=0, **{**SWIN, "window_size": 6})
    model = UperNet(DenseFeatures(wide), 5, **HEAD)
    report = vitgraft.load_official(model, as_mmseg(source))
    assert len(report.reshaped) == 4 and report.reshaped[0].startswith("backbone.backbone.layers.0.blocks.0.attn.")


def test_imagenet_weights_leave_the_heads():
    model = upernet(2)
    before = model.decode_head.conv_seg.weight.clone()
    report = vitgraft.load_official(model, {"model": swin(1).state_dict()})
    torch.testing.assert_close(
        model.backbone.backbone.patch_embed.proj.weight, swin(1).patch_embed.proj.weight, rtol=0, atol=0
    )
    assert torch.equal(model.decode_head.conv_seg.weight, before)
    assert {name.split(".")[0] for name in report.missing} == {"backbone", "decode_head", "auxiliary_head"}
    assert [name for name in report.missing if name.startswith("backbone.backbone.")] == []


def test_a_grafted_model_takes_the_ungrafted_weights():
    source = upernet(1)
    model = UperNet(DenseFeatures(vitgraft.graft(swin(2), window_size=4)), 5, **HEAD)
    report = vitgraft.load_official(model, as_mmseg(source))
    assert report.missing and all(".graft." in name for name in report.missing)


def test_other_classes_and_other_heads():
    source, model = upernet(1, num_classes=7), upernet(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"conv_seg.*7 classes, the model has 5; strict=False"):
        vitgraft.load_official(model, as_mmseg(source))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = vitgraft.load_official(model, as_mmseg(source), strict=False)
    assert len(report.skipped) == 4 and len(report.missing) == 4
    with pytest.raises(CheckpointError, match="heads of other widths"):
        vitgraft.load_official(upernet(2, channels=20), as_mmseg(source), strict=False)
    partial = {name: value for name, value in as_mmseg(upernet(1)).items() if "fpn_bottleneck" not in name}
    with pytest.raises(CheckpointError, match="6 tensors of the heads are missing"):
        vitgraft.load_official(model, partial)
    report = vitgraft.load_official(upernet(2, aux_channels=None), as_mmseg(upernet(1)))
    assert all(line.endswith("the model has no auxiliary_head") for line in report.skipped)


def test_parameters_of_the_head_as_published():
    """ConvModules and classifiers of the head at 512 channels, counted by hand."""
    with torch.device("meta"):
        net = UperNet(pyramid(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)), 150)
    widths, c, k = (96, 192, 384, 768), 512, 150
    norms = 2 * c
    pooling = 4 * (768 * c + norms) + (768 + 4 * c) * c * 9 + norms
    levels = sum(width * c + norms for width in widths[:3]) + 3 * (c * c * 9 + norms)
    assert count_params(net.decode_head) == pooling + levels + 4 * c * c * 9 + norms + c * k + k
    assert count_params(net.auxiliary_head) == 384 * 256 * 9 + 512 + 256 * k + k
