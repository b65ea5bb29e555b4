"""What is faster on a CPU gives the same numbers, only where nobody can miss what was overwritten, and can be off."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitgraft  # noqa: F401
from vitgraft.models import _cpu
from vitgraft.models._cpu import GELU, in_slices

X = torch.linspace(-6, 6, 1001)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_inference_writes_over_its_input(context, dtype):
    with context():
        x = X.to(dtype, copy=True)
        y = GELU()(x)
    assert y.data_ptr() == x.data_ptr() and torch.equal(y, F.gelu(X.to(dtype)))


def test_gradients_are_torchs():
    x, same = X.clone().requires_grad_(), X.clone().requires_grad_()
    GELU()(x).square().sum().backward()
    F.gelu(same).square().sum().backward()
    assert torch.equal(x.grad, same.grad) and torch.equal(x, X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
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
def test_the_mlps_of_this_package_have_it(name):
    model = timm.create_model(name, device="meta", **({"depth": 2} if "deit" in name else {}))
    mlps = [m for m in model.modules() if isinstance(m, timm.layers.Mlp)]
    assert mlps and all(type(mlp.act) is GELU for mlp in mlps)
    assert repr(mlps[0].act) == "GELU(approximate='none')"


def test_another_activation_is_kept():
    model = timm.create_model("graft_deit_tiny_patch16_224", depth=2, act_layer="silu", device="meta")
    assert isinstance(model.blocks[0].mlp.act, nn.SiLU)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1 << 20, [7]), (4 * 4 * 6 * 2, [2, 2, 2, 1]), (4 * 4 * 6 * 3, [3, 2, 2]), (1, [1] * 7)]
)
def test_as_many_samples_at_a_time_as_fit(limit, sizes, monkeypatch):
    monkeypatch.setattr(_cpu, "SLICE_BYTES", limit)
    seen = []

    def double(part):
        seen.append(len(part))
        return 2 * part

    x = torch.arange(42.0).view(7, 6)
    assert torch.equal(in_slices(double, x, growth=4), 2 * x)
    assert seen == sizes


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_traced_or_compiled_graph_has_no_slices(monkeypatch):
    monkeypatch.setattr(_cpu, "SLICE_BYTES", 1)
    traced = torch.jit.trace(lambda x: in_slices(torch.relu, x, 4), torch.randn(3, 2))
    assert "split" not in str(traced.graph) and traced(torch.ones(5, 2)).shape == (5, 2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert in_slices(lambda x: x.sum(0, keepdim=True), torch.ones(5, 2), 4).shape == (1, 2)


def test_the_switch(monkeypatch):
    monkeypatch.setattr(_cpu, "ENABLED", False)
    monkeypatch.setattr(_cpu, "SLICE_BYTES", 1)
    x = X.clone()
    with torch.no_grad():
        assert torch.equal(GELU()(x), F.gelu(X)) and torch.equal(x, X)
    assert in_slices(lambda x: x.sum(0, keepdim=True), torch.ones(5, 2), 4).shape == (1, 2)


def test_swin_gives_the_same_features_and_gradients(monkeypatch):
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "drop_path_rate": 0}
    model = timm.create_model("graft_swin_tiny_patch4_window7_224", num_classes=3, **size).double()
    x = torch.randn(3, 3, 64, 48, dtype=torch.double)
    monkeypatch.setattr(_cpu, "SLICE_BYTES", 1)
    results = []
    for enabled in (False, True):
        monkeypatch.setattr(_cpu, "ENABLED", enabled)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for whole, sliced in zip(*results, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-9, atol=1e-12)
