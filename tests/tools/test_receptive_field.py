"""Effective receptive fields: of known size for windows, full attention and grafts; layouts; what is refused."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitgraft
from vitgraft.tools.receptive_field import effective_receptive_fields, erf_area

WINDOW = {"backbone_attention": "window", "window_size": 2}


def _vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    base = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**{**base, "class_token": False, "global_pool": "avg", "weight_init": "jax", **options})


def _images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def field_of(model, module, images) -> torch.Tensor:
    (field,) = effective_receptive_fields(model, [module], images)
    return field


def test_windows_reach_their_window_full_attention_and_grafts_the_whole_image():
    full, windows = _vit(), vitgraft.graft(_vit(), blocks=(), **WINDOW)
    grafted = vitgraft.graft(_vit(), **WINDOW)
    field = field_of(windows, windows.blocks[1], _images())
    # the center token (4, 4) of 8 x 8 lies in the window of tokens 4 and 5, pixels 16 to 23
    assert field[16:24, 16:24].min() > 0
    field[16:24, 16:24] = 0
    assert field.max() == 0
    for model in (full, grafted):
        assert field_of(model, model.blocks[1], _images()).min() > 0


def test_convolution_reaches_its_kernel_and_the_largest_value_is_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 5, padding=2), nn.Identity()

        def forward(self, x):
            return self.last(self.conv(x).permute(0, 2, 3, 1))  # (B, H, W, C)

    net = Net()
    field = field_of(net, net.last, torch.randn(3, 3, 12, 10))
    assert field.shape == (12, 10) and field.max() == 1
    inside = torch.zeros(12, 10, dtype=torch.bool)
    inside[4:9, 3:8] = True  # 5 x 5 about the center (6, 5)
    assert (field[inside] > 0).all() and (field[~inside] == 0).all()
    weights = net.conv.weight.sum(0).abs().sum(0)  # the gradient of the summed channels is the kernel
    torch.testing.assert_close(field[inside].reshape(5, 5), (weights / weights.max()).detach())


def test_model_and_images_are_left_as_they_were():
    model, images = _vit().train(), _images()
    field_of(model, model.blocks[0], images)
    assert model.training and not images.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not model.blocks[0]._forward_hooks


def test_works_under_no_grad():
    model = _vit()
    with torch.no_grad():
        assert field_of(model, model.blocks[0], _images()).max() == 1


@pytest.mark.parametrize(
    "pick, message",
    [
        (lambda model: nn.Linear(2, 2), "Linear did not run"),
        (lambda model: model.head, "neither"),
        (lambda model: model.blocks[0], "65 tokens are no square grid"),
    ],
)
def test_modules_without_a_grid_are_refused(pick, message):
    model = _vit(class_token=True, global_pool="token")
    with pytest.raises(ValueError, match=message):
        field_of(model, pick(model), _images())
    assert not any(module._forward_hooks for module in model.modules())


def test_erf_area():
    field = torch.tensor([[0.0, 0.0009], [0.0011, 1.0]])
    assert erf_area(field) == 0.5  # 0.1 % of the largest
    assert erf_area(7 * field) == 0.5
    assert erf_area(field, threshold=0.0001) == 0.75
    assert erf_area(field, threshold=0.01) == 0.25
