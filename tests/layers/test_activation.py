"""GELU over its input: the same numbers as torch's, and only where nobody can miss what was there."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.layers.activation import GELU, gelu

X = torch.linspace(-6, 6, 1001)


def test_inference_writes_over_its_input():
    x = X.clone()
    with torch.no_grad():
        y = gelu(x)
    assert y.data_ptr() == x.data_ptr() and torch.equal(y, F.gelu(X))
    with torch.inference_mode():
        x = X.clone()
        assert GELU()(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    with torch.no_grad():
        assert torch.equal(gelu(X.to(dtype)), F.gelu(X.to(dtype)))


def test_gradients_are_torchs():
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    gelu(x).square().sum().backward()
    F.gelu(same).square().sum().backward()
    assert torch.equal(x.grad, same.grad) and torch.equal(x, X)


@pytest.mark.parametrize("way", ["compile", "export", "trace", "vmap"])
def test_graphs_have_torchs_own(way):
    layer, x = nn.Sequential(nn.Linear(4, 8), GELU()).eval(), torch.randn(3, 4)
    want = F.gelu(layer[0](x))
    with torch.no_grad():
        if way == "compile":
            run = torch.compile(layer, fullgraph=True, backend="aot_eager")
        elif way == "export":
            program = torch.export.export(layer, (x,))
            assert not any("gelu_" in str(node.target) for node in program.graph.nodes)
            run = program.module()
        elif way == "trace":
            run = torch.jit.trace(layer, x)
            assert "gelu_" not in str(run.graph)
        else:
            run = torch.func.vmap(layer)
        torch.testing.assert_close(run(x), want)


@pytest.mark.parametrize(
    "name", ["graft_deit_tiny_patch16_224", "graft_swin_tiny_patch4_window7_224", "cswin_tiny_224"]
)
def test_the_models_of_this_package_have_it(name):
    model = timm.create_model(name, depths=(1, 1, 1, 1)) if "swin" in name else timm.create_model(name, depth=2)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.GELU)}
    assert kinds == {GELU}
    for module in model.modules():
        if type(module) is GELU:
            assert repr(module) == "GELU(approximate='none')"


def test_another_activation_is_kept():
    model = timm.create_model("graft_deit_tiny_patch16_224", depth=2, act_layer="silu")
    assert isinstance(model.blocks[0].mlp.act, nn.SiLU)
