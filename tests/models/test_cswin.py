"""What is CSWin's own: stripes, layers of merges, errors. Its vector is compared in `zoo/test_conformance.py`."""

import pytest
import timm
import torch
from reference.stripe_attention import stripe_attention
from timm.optim import param_groups_layer_decay

from vitgraft.models.cswin import StripeAttention

SMALL = {"embed_dim": 16, "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4), "num_classes": 7}


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


def test_layer_decay_of_merges():
    """A merge counts to the block after it."""
    model = timm.create_model("cswin_tiny_224", **SMALL)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    of = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert of["stage1.0.qkv.weight"] < of["merge1.conv.weight"] == of["stage2.0.qkv.weight"]
    assert of["norm.weight"] == of["stage4.0.qkv.weight"] < of["head.weight"]


def test_bad_direction():
    with pytest.raises(ValueError, match="direction='diagonal'"):
        StripeAttention(8, 2, direction="diagonal")
