"""What is the zoo's own: the formulas, the authors' checkpoints, sizes, errors, compiling and export."""

import re

import pytest
import torch
from reference.zoo_plain import plain
from registered import MODELS, ZOO, images, make

import vitgraft
from vitgraft.errors import CheckpointError, GraftError
from vitgraft.tools.export import export_onnx

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm")

# one of each family that is traced, and what else makes that quick
TRACED = {
    "pvt_tiny": {"depths": (1, 1, 1, 1)},
    "t2t_vit_14": {"depth": 2},
    "t2t_vit_t_14": {"depth": 2},
    "vil_tiny_rpb": {"window_size": 8, "depths": (1, 1, 1, 1), "img_size": 64},
    "regionvit_tiny": {"depths": (1, 1, 1, 1)},
}


@pytest.fixture(params=ZOO)
def name(request) -> str:
    return request.param


def test_plain_formulas(name):
    model, x = make(name).double(), images(name).double()
    for p in model.parameters():  # the start values make attention nearly uniform
        if p.ndim > 1 and p.requires_grad:
            p.data.mul_(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(model)(x), rtol=1e-10, atol=1e-10)


def test_checkpoint_of_another_image_size(name, tmp_path):
    """Position embeddings and tables are resized, in timm's own way to weights too; `load_official` reports them."""
    source, model, x = make(name, img_size=64), make(name, img_size=(96, 64)), images(name, size=(96, 64))
    report = vitgraft.load_official(model, {"state_dict": source.state_dict()})
    assert bool(report.reshaped) != name.startswith("regionvit") and not report.missing and not report.unexpected
    assert model(x).isfinite().all()
    assert not vitgraft.load_official(make(name, img_size=64), source.state_dict()).reshaped

    torch.save({"state_dict_ema": source.state_dict()}, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    other = make(name, img_size=(96, 64), pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(other(x), model(x))


def test_weights_of_another_family_are_named(name):
    other = next(n for n in ZOO if n[:3] != name[:3])
    model = make(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    family = {"pvt": "PVT v1", "t2t": "T2T-ViT", "reg": "RegionViT", "vil": "Vision Longformer"}[other[:3]]
    with pytest.raises(CheckpointError, match=f"looks like a {family}"):
        vitgraft.load_official(model, make(other).state_dict())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["vil_tiny_rpb", "regionvit_tiny"])
def test_second_names(name, tmp_path):
    """The authors store some tensors twice; both ways to load take that, if the two are the same."""
    source, x = make(name), images(name)
    pairs = {"vil_tiny_rpb": (".query.", ".query_global."), "regionvit_tiny": (".proj.2.", ".proj_cls.2.")}
    first, second = pairs[name]
    official = dict(source.state_dict())
    twice = [n for n in official if first in n and not n.startswith("patch_embed")]
    official.update({n.replace(first, second): official[n].clone() for n in twice})
    assert len(official) > len(source.state_dict())
    model = make(name, num_classes=5)
    for p in model.parameters():
        p.data.zero_()
    report = vitgraft.load_official(model, {"net": official})
    assert any("the same tensor as" in line for line in report.skipped) and not report.unexpected
    assert torch.equal(model(x), source(x))
    make(name).load_state_dict(official)

    key = next(n for n in official if second in n)
    official[key] = official[key] + 1
    with pytest.raises(CheckpointError, match=re.escape(key) + " and .* differ"):
        vitgraft.load_official(make(name), official)
    with pytest.raises(RuntimeError, match="are one tensor here"):
        make(name).load_state_dict(official)


@pytest.mark.parametrize(
    "name,options,said",
    [
        ("pvt_tiny", {"depths": (2, 1, 3, 1)}, "have no place in the model"),
        ("pvt_tiny", {"embed_dims": (16, 16, 24, 32)}, "shapes differ"),
        ("t2t_vit_14", {"performer": False}, "T2T-ViT"),
        ("vil_tiny_rpb", {"rel_pos": False}, "absolute positions"),
        ("regionvit_tiny", {"single_conv": True}, "patch_embed.proj"),
        ("regionvit_tiny", {"num_classes": 6}, "6 classes against 5"),
    ],
)
def test_a_checkpoint_of_another_size_changes_nothing(name, options, said):
    model, other = make(name), make(name, **options)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=said):
        vitgraft.load_official(model, other.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    "name,size,said",
    [
        ("pvt_tiny", (64, 31), "64 x 31"),
        ("t2t_vit_14", (64, 80), "64 x 80"),
        ("regionvit_tiny", (64, 3), "64 x 3"),
        ("vil_tiny", (64, 96), "64 x 96"),
    ],
)
def test_sizes_that_cannot_work(name, size, said):
    with pytest.raises(ValueError, match=said):
        make(name)(images(name, size=size))


def test_grafts_work_or_say_why_not(name):
    model, x = make(name), images(name)
    expected = model(x)
    try:
        vitgraft.graft(model, window_size=2, init="identity")
    except GraftError as error:
        assert not name.startswith("t2t") and "has no block that can carry a graft" in str(error)
        assert torch.equal(model(x), expected)
    else:
        assert vitgraft.grafts(model) and torch.equal(model(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_compile_and_onnx(name, tmp_path):
    """In one graph; exported with any number of images."""
    pytest.importorskip("onnxruntime")
    size = (64, 64) if name.startswith("vil") else MODELS[name].sizes[0]
    model, x = make(name, **TRACED[name]), images(name, size=size)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    done = export_onnx(model, tmp_path / "model.onnx", (3, *size))
    assert done.ok, done.differences


@pytest.mark.parametrize("name", ["pvt_tiny", "regionvit_tiny", "vil_tiny_rpb"])
def test_dense_features(name):
    """Classification weights go into a backbone for dense tasks: the maps are the model's own, after new norms."""
    source = make(name)
    dense = vitgraft.DenseFeatures(make(name), norm=False)
    report = vitgraft.load_official(dense, {"model": source.state_dict()})
    assert not report.unexpected and any("no classifier" in line for line in report.skipped)
    x = images(name)
    for a, b in zip(dense(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(a, b)
    normed = vitgraft.DenseFeatures(make(name), out_indices=(0, 2))
    assert [m.shape[1] for m in normed(x)] == [source.feature_info[i]["num_chs"] for i in (0, 2)]
