import pytest
import timm
import torch
from torch.nn import functional as F

import vitgraft
from vitgraft.models.dense import DenseFeatures
from vitgraft.models.feature_pyramid import SimpleFeaturePyramid, feature_backbone
from vitgraft.models.swin import SwinTransformer

VIT = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True}


def vit(patch=16, graft=False):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", patch_size=patch, **VIT)
    return vitgraft.graft(model, window_size=4) if graft else model


def layer_norm(x, eps=1e-6):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + eps).sqrt()


@pytest.mark.parametrize("patch, graft", [(16, False), (8, True), (4, False), (14, False), (32, False)])
@pytest.mark.parametrize("out_channels", [None, 24])
def test_strides_and_sizes(patch, graft, out_channels):
    net = feature_backbone(vit(patch, graft), out_channels)
    assert isinstance(net, SimpleFeaturePyramid) and net.feature_info.reduction() == [4, 8, 16, 32]
    maps = net(torch.randn(1, 3, 96, 70))
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 18), (12, 9), (6, 5), (3, 3)]
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    if out_channels is None and patch == 16:
        assert net.feature_info.channels() == [8, 16, 32, 32]
    sum((m**3).sum() for m in maps).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_against_the_written_out_formula():
    net = feature_backbone(vit(), 24).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        source = net.backbone.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
        first = net.levels[0]
        up = F.conv_transpose2d(source, first[0].weight, first[0].bias, stride=2)
        up = F.conv_transpose2d(F.gelu(layer_norm(up)), first[3].weight, first[3].bias, stride=2)
        want = layer_norm(F.conv2d(layer_norm(F.conv2d(up, first[4].weight)), first[6].weight, padding=1))
        torch.testing.assert_close(net(x)[0], want, rtol=1e-4, atol=1e-4)
        last = net.levels[3]
        pooled = source.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        want = layer_norm(F.conv2d(layer_norm(F.conv2d(pooled, last[1].weight)), last[3].weight, padding=1))
        torch.testing.assert_close(net(x)[3], want, rtol=1e-4, atol=1e-4)


def test_patches_of_14_pixels_keep_their_place():
    """A map that is a ramp over the image is the same ramp at stride 16: cell i lies at pixel (i + 0.5) * 16."""
    net = feature_backbone(vit(14)).eval()
    net.levels = torch.nn.ModuleList([torch.nn.Identity()])
    net.strides = (16,)

    def ramp(x, **kwargs):
        centres = (torch.arange(x.shape[-1] // 14) + 0.5) * 14
        return [centres.expand(1, 32, x.shape[-2] // 14, -1)]

    net.backbone.forward_intermediates = ramp
    (level,) = net(torch.zeros(1, 3, 96, 800))
    want = (torch.arange(50) + 0.5) * 16
    torch.testing.assert_close(level[0, 0, 3, :-1], want[:-1])


def test_stages_by_their_stride():
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    net = feature_backbone(SwinTransformer(**small))
    assert isinstance(net, DenseFeatures) and hasattr(net, "norm3")
    assert net.feature_info.reduction() == [4, 8, 16, 32] and net.feature_info.channels() == [16, 32, 64, 128]
    net = feature_backbone(timm.create_model("resnet10t"), norm=False)  # five levels, from stride 2
    assert net.feature_info.reduction() == [4, 8, 16, 32]
    assert [m.shape[-1] for m in net(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]


def test_models_without_these_maps():
    with pytest.raises(ValueError, match=r"4, 8, 16 and 32"):
        feature_backbone(timm.create_model("levit_128s"))
    with pytest.raises(TypeError, match="Linear"):
        feature_backbone(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one stride"):
        SimpleFeaturePyramid(timm.create_model("resnet10t"))
