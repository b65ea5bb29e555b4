"""Slices of a batch: the same numbers as in one go, and no tensor over the limit."""

import pytest
import timm
import torch

import vitgraft  # noqa: F401
from vitgraft.layers import slices
from vitgraft.layers.slices import in_slices


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1 << 20, [7]), (4 * 4 * 6 * 2, [2, 2, 2, 1]), (4 * 4 * 6 * 3, [3, 2, 2]), (1, [1] * 7)]
)
def test_as_many_samples_at_a_time_as_fit(limit, sizes, monkeypatch):
    monkeypatch.setattr(slices, "SLICE_BYTES", limit)
    seen = []

    def double(part):
        seen.append(len(part))
        return 2 * part

    x = torch.arange(42.0).view(7, 6)
    assert torch.equal(in_slices(double, x, growth=4), 2 * x)
    assert seen == sizes


def test_a_traced_or_compiled_graph_has_no_slices(monkeypatch):
    monkeypatch.setattr(slices, "SLICE_BYTES", 1)
    traced = torch.jit.trace(lambda x: in_slices(torch.relu, x, 4), torch.randn(3, 2))
    assert "split" not in str(traced.graph) and traced(torch.ones(5, 2)).shape == (5, 2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert in_slices(lambda x: x.sum(0, keepdim=True), torch.ones(5, 2), 4).shape == (1, 2)


def test_swin_gives_the_same_features_and_gradients(monkeypatch):
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "drop_path_rate": 0}
    model = timm.create_model("graft_swin_tiny_patch4_window7_224", num_classes=3, **size).double()
    x = torch.randn(3, 3, 64, 48, dtype=torch.double)
    results = []
    for limit in (1 << 40, 1):
        monkeypatch.setattr(slices, "SLICE_BYTES", limit)
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for whole, sliced in zip(*results, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-9, atol=1e-12)
