"""Grafts alone: saved, put on a fresh backbone, and refused by one that they do not fit."""

import json
import shutil

import pytest
import timm
import torch

import vitgraft
from vitgraft.cli import main
from vitgraft.errors import CheckpointError, GraftError
from vitgraft.weights import files

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 6}
GRAFT = {"window_size": 2}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def backbone(seed=0, **more):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, **more}).eval()


def trained(seed=0, **more):
    """A grafted backbone of which grafts, classifier and norms have moved."""
    model = vitgraft.graft(backbone(seed, **more), **GRAFT)
    vitgraft.train_grafts_only(model, norms=True)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("parts", [{}, {"head": True}, {"head": True, "norms": True}])
def test_grafts_on_a_fresh_backbone(tmp_path, capsys, parts):
    model = trained()
    assert vitgraft.save_grafts(model, tmp_path / "adapter", **parts) == tmp_path / "adapter"
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["adapter_model.safetensors", "graft_config.json"]
    fresh = backbone()
    assert vitgraft.load_grafts(fresh, tmp_path / "adapter") is fresh
    own, loaded = model.state_dict(), fresh.state_dict()
    assert own.keys() == loaded.keys() and fresh.graft_config.to_dict() | {"img_size": None} == (
        model.graft_config.to_dict() | {"img_size": None}
    )
    for name, value in own.items():
        kind = next((kind for kind in ("graft", "norms", "head") if kind.rstrip("s") in name), None)
        if kind in (None, "graft") or kind in parts:
            assert torch.equal(value, loaded[name]), name
    warned = "weights of this backbone are not those" in capsys.readouterr().err
    assert warned == ("norms" not in parts)  # the fresh backbone has not the norms that were trained
    if len(parts) == 2:
        with torch.no_grad():
            assert torch.equal(model(IMAGES), fresh(IMAGES))
    whole = sum(value.numel() for value in own.values()) * 4
    assert sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir()) < whole


def test_a_second_save_replaces_the_first(tmp_path):
    for seed in (0, 1):
        vitgraft.save_grafts(trained(seed), tmp_path)
    expected, loaded = trained(1).state_dict(), vitgraft.load_grafts(backbone(1), tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items() if ".graft." in name)


def test_another_backbone_of_the_same_shape_is_a_warning(tmp_path, capsys):
    vitgraft.save_grafts(trained(), tmp_path, head=True, norms=True)
    vitgraft.load_grafts(backbone(seed=1), tmp_path)
    err = capsys.readouterr().err
    assert "are not those that the grafts were trained beside" in err and "patch_embed.proj.weight" in err
    torch.manual_seed(0)

    class Other(timm.models.vision_transformer.VisionTransformer):
        pass

    vitgraft.load_grafts(Other(**SMALL), tmp_path)
    assert "trained on a timm.VisionTransformer, and this is a test_graft_files.Other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"embed_dim": 64}, r"shapes differ: .*\.graft\..* \(.*32.*\), here \(.*64"),
        ({"depth": 2}, r"has no place for .*blocks\.\d\.graft"),
        ({"depth": 6}, r"the folder lacks .*blocks\.[345]\.graft"),
        ({"num_classes": 10}, r"head\.weight \(6, 32\), here \(10, 32\).*as many classes"),
        ({"img_size": 64}, "do not fit this VisionTransformer"),
    ],
)
def test_a_backbone_that_does_not_fit_is_left_as_it_was(tmp_path, more, message):
    vitgraft.save_grafts(trained(), tmp_path, head=True)
    model = backbone(**more)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        vitgraft.load_grafts(model, tmp_path)
    after = model.state_dict()
    assert not vitgraft.is_grafted(model) and before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_bad_folders(tmp_path):
    good = vitgraft.save_grafts(trained(), tmp_path / "good")
    config = json.loads((good / "graft_config.json").read_text())
    for change, message in (
        (None, "no grafts here"),
        ("[]", "not of vitgraft.save_grafts"),
        ("{", "can't be read"),
        (json.dumps({**config, "format": 99}), "of a newer vitgraft"),
        (json.dumps({**config, "graft": {"leves": 1}}), "leves"),
        (json.dumps({**config, "graft": {"class_path": "os.system"}}), "class_path"),
    ):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(good, tmp_path / "bad")
        if change is None:
            (tmp_path / "bad" / "graft_config.json").unlink()
        else:
            (tmp_path / "bad" / "graft_config.json").write_text(change)
        with pytest.raises(CheckpointError, match=message):
            vitgraft.load_grafts(backbone(), tmp_path / "bad")
    (tmp_path / "bad" / "graft_config.json").write_text(json.dumps(config))
    (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"text")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        vitgraft.load_grafts(backbone(), tmp_path / "bad")
    with pytest.raises(GraftError, match="grafted already"):
        vitgraft.load_grafts(trained(), good)
    with pytest.raises(GraftError, match="no graft to save"):
        vitgraft.save_grafts(backbone(), tmp_path / "x")
    with pytest.raises(GraftError, match="no classifier"):
        vitgraft.save_grafts(trained(num_classes=0), tmp_path / "x", head=True)
    with pytest.raises(CheckpointError, match=r"grafts alone, without a backbone: vitgraft\.load_grafts"):
        vitgraft.load(good)


def test_grafts_of_the_backbone_inside_another_model(tmp_path, capsys):
    model = trained(num_classes=0)
    features = vitgraft.pyramid(model)
    vitgraft.save_grafts(torch.nn.Sequential(features), tmp_path)
    fresh = vitgraft.load_grafts(backbone(num_classes=0), tmp_path)
    for name, module in vitgraft.grafts(model).items():
        for one, other in zip(module.parameters(), vitgraft.grafts(fresh)[name].parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("frozen", [True, False])
def test_export_of_a_run(tmp_path, capsys, frozen):
    model = trained()
    options = {"model": "vit_tiny_patch16_224", "num_classes": 6, "graft": GRAFT, "train_grafts_only": frozen}
    options["model_kwargs"] = {name: value for name, value in SMALL.items() if name != "num_classes"}
    content = {"task": "vitgraft.tasks.classification.Classification", "hyper_parameters": options}
    (tmp_path / "run").mkdir()
    files.write({**content, "state_dict": model.state_dict()}, tmp_path / "run" / "best.ckpt")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--grafts-only"]) == 0
    out = capsys.readouterr().out
    assert "vitgraft.load_grafts(model, " in out and ("trained its backbone too" in out) != frozen
    fresh = vitgraft.load_grafts(backbone(), tmp_path / "adapter")
    assert torch.equal(fresh.head.weight, model.head.weight) == frozen
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--grafts-only"]) == 2
    assert "is not empty" in capsys.readouterr().err
