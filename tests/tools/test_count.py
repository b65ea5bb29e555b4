"""Counts against published ones, and the same whatever path the attention takes."""

import copy
import json

import pytest
import timm
import torch
from conftest import shared
from timm.layers import set_fused_attn
from torch import nn

from vitgraft.tools.count import _attention_flops, _count, count_macs, count_macs_by_module, count_params

FAMILIES = ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]


@pytest.fixture
def fused_attn(monkeypatch):
    """Sets timm's attention switch for models created in the test, and puts it back."""
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", timm.layers.config._USE_FUSED_ATTN)
    return lambda on: set_fused_attn(on, experimental=on)


@pytest.mark.parametrize(
    ("name", "params", "macs"), [(FAMILIES[0], 5_717_416, 1_253_683_200), (FAMILIES[1], 28_288_354, 4_490_566_656)]
)
@pytest.mark.parametrize("fused", [False, True])
def test_known_counts(name, params, macs, fused, fused_attn):
    fused_attn(fused)
    model = timm.create_model(name)
    assert count_params(model) == params
    assert count_macs(model, (3, 224, 224)) == macs


def test_reference_counts():
    rows = json.loads(shared("conformance", "reference_counts.json").read_text())["models"]
    rows = [row for row in rows if row["library"].startswith("timm") and timm.is_model(row["model"])]
    assert len(rows) >= 10
    for row in rows:
        with torch.device("meta"):
            model = timm.create_model(row["model"])
        counted = count_params(model), count_macs(model, (3, row["input"], row["input"]))
        assert counted == (row["params"], row["macs"]), row["model"]


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_attention_on_a_real_device_counts_the_same(name, fused_attn):
    fused_attn(True)
    model = timm.create_model(name, img_size=112, num_classes=10).eval()
    real = _count(copy.deepcopy(model), torch.zeros(1, 3, 112, 112), training=False)["Global"]
    assert torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in real
    assert sum(real.values()) // 2 == count_macs(model, (3, 112, 112))


def test_attention_formula():
    # scores 4 x 5 from 8 channels, outputs 4 x 6 from 5 weights; 2 images, 3 heads, 2 FLOPs a MAC
    assert _attention_flops((2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6)) == 2 * 2 * 3 * (4 * 5 * 8 + 4 * 6 * 5)


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(8 * 4, 10))
    assert count_params(model) == 3 * 16 * 8 + 8 + 320 + 10
    parts = count_macs_by_module(model, (3, 8, 8))
    assert parts == {"": 48 * 8 * 4 + 320, "0": 48 * 8 * 4, "2": 320}


def test_training_counts_forward_and_backward():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(8 * 4, 10))
    # each layer costs as much again for its weights, and the second one also for its input
    assert count_macs(model, (3, 8, 8), training=True) == 48 * 8 * 4 * 2 + 320 * 3


def test_the_model_stays_as_it_was():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.blocks[0].eval()
    count_macs(model, (3, 32, 32), training=True)
    assert model.training and not model.blocks[0].training
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_shared_and_frozen_parameters():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    first.weight.requires_grad_(False)
    assert count_params(nn.Sequential(first, second)) == 16


def test_falls_back_to_the_real_device():
    class Constant(nn.Module):
        """Holds a tensor that is neither parameter nor buffer, so it can't follow to the meta device."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 5))
            self.table = torch.ones(3)

        def forward(self, x):
            return (x.mean((2, 3)) * self.table) @ self.weight

    assert count_macs(Constant(), (3, 8, 8)) == 15


def test_wrong_input_size():
    with pytest.raises(ValueError, match="channels, height, width"):
        count_macs(nn.Linear(2, 2), (224, 224))
