import pytest
import timm
import torch

from vitgraft.models.dense import DenseFeatures
from vitgraft.models.swin import SwinTransformer

SMALL = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}


def small():
    torch.manual_seed(0)
    return SwinTransformer(**SMALL).eval()


def test_each_map_has_its_own_norm():
    x = torch.randn(2, 3, 50, 66)
    raw = small().forward_intermediates(x, intermediates_only=True)
    net = DenseFeatures(small(), out_indices=(0, -2))
    assert net.out_indices == (0, 2) and net.feature_info.channels() == [16, 64]
    net.norm2.weight.data.fill_(3.0)
    maps = net(x)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 13, 17), (2, 64, 4, 5)]
    for level, source, scale in zip(maps, (raw[0], raw[2]), (1, 3), strict=True):
        mean, var = source.mean(1, keepdim=True), source.var(1, keepdim=True, correction=0)
        torch.testing.assert_close(level, scale * (source - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient():
    net = DenseFeatures(small(), out_indices=(0, 1, 2))
    assert sorted({name.split(".")[0] for name in net.state_dict()}) == ["backbone", "norm0", "norm1", "norm2"]
    sum((m**3).sum() for m in net(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_without_norm_and_with_another_family():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=2)
    x = torch.randn(1, 3, 32, 32)
    net = DenseFeatures(model.eval(), out_indices=(0, 2), norm=False, prune=False)
    torch.testing.assert_close(net(x), model.forward_intermediates(x, indices=[0, 2], intermediates_only=True))
    assert hasattr(model.head, "weight")  # not pruned


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_of_timm_takes_any_size(name):
    small = {**SMALL, "depths": (2, 2, 2, 2)}
    model = timm.create_model(name, img_size=64, **small).eval()
    x = torch.randn(1, 3, 64, 64)
    want = model.forward_intermediates(x, intermediates_only=True)
    net = DenseFeatures(model, norm=False)
    torch.testing.assert_close(net(x), want, rtol=0, atol=0)
    free = timm.create_model(name, img_size=64, strict_img_size=False, **small).eval()
    free.load_state_dict(model.state_dict(), strict=False)
    other = torch.randn(1, 3, 96, 160)
    want = free.forward_intermediates(other, intermediates_only=True)
    torch.testing.assert_close(net(other), want, rtol=0, atol=0)
    assert [tuple(m.shape[2:]) for m in net(torch.randn(1, 3, 70, 101))] == [(18, 26), (9, 13), (5, 7), (3, 4)]


def test_a_model_of_one_size_names_it():
    beit = timm.create_model("beit_base_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2)
    net = DenseFeatures(beit, (0, 1), norm=False)
    with pytest.raises(ValueError, match="64 x 64 pixels only, not 96 x 64"):
        net(torch.randn(1, 3, 96, 64))


@pytest.mark.parametrize("indices", [(0, 4), (1, 0), (1, 1), (), (-5,)])
def test_bad_indices(indices):
    model = small()
    with pytest.raises(ValueError, match="0 to 3"):
        DenseFeatures(model, indices)
    assert len(model.layers) == 4


def test_bad_models():
    with pytest.raises(TypeError, match="features_only"):
        DenseFeatures(timm.create_model("graft_swin_tiny_patch4_window7_224", features_only=True, **SMALL))
    with pytest.raises(TypeError, match="Linear"):
        DenseFeatures(torch.nn.Linear(2, 2))
