"""`open_model`: every kind of source, which weights, and the errors of those that can't be had."""

import subprocess
import sys

import pytest
import timm
import torch
from tiny_runs import KWARGS, NAMES, checkpoint, predict, tiny, write_images

from vitgraft.errors import CheckpointError
from vitgraft.predict.load import open_model


def test_which_weights(tmp_path):
    raw, averaged = tiny(0), tiny(1)
    path = checkpoint(tmp_path / "best.ckpt", raw, averaged)
    for weights, model, name in (("raw", raw, "raw"), ("ema", averaged, "ema"), (None, averaged, "ema")):
        found = open_model(path, weights)
        assert found.weights == name and found.task == "classification"
        assert torch.equal(found.model.head.weight, model.head.weight)
        assert not found.model.training
    path = checkpoint(tmp_path / "only_raw.ckpt", raw, None, "model.")
    assert torch.equal(open_model(path).model.head.weight, raw.head.weight)
    with pytest.raises(CheckpointError, match="weights=raw would work"):
        open_model(path, "ema")
    with pytest.raises(ValueError, match="weights='both'"):
        open_model(path, "both")


def test_best_comes_before_last(tmp_path):
    checkpoint(tmp_path / "last.ckpt", tiny(0))
    checkpoint(tmp_path / "best.ckpt", tiny(1))
    assert torch.equal(open_model(tmp_path).model.head.weight, tiny(1).head.weight)


def test_an_export_in_hub_format(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=6, **KWARGS)
    config = {"label_names": NAMES, "input_size": [3, 32, 32]}
    timm.models.save_for_hf(model, tmp_path / "export", model_config=config, model_args=KWARGS, safe_serialization=True)
    for source in (tmp_path / "export", f"local-dir:{tmp_path / 'export'}"):
        found = open_model(source)
        assert found.class_names == tuple(NAMES)
        assert torch.equal(found.model.head.weight, model.head.weight)
    with pytest.raises(CheckpointError, match="weights=ema"):
        open_model(tmp_path / "export", "ema")


def test_a_model_by_name_with_its_file(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found = open_model(f"vit_tiny_patch16_224:checkpoint_path={tmp_path / 'weights.pth'}")
    assert torch.equal(found.model.head.weight, model.head.weight)
    assert found.class_names[0].startswith("tench") and len(found.class_names) == 1000
    assert found.preprocessing.input_size == (224, 224) and found.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "source, message",
    [
        ("graft_deit_tiny_patch16_224", "no published weights"),
        ("deit_tny_patch16_224", "close names: deit_tiny_patch16_224"),
        ("runs/nothing.ckpt", "no such file or folder"),
        ("local-dir:nothing", "no such file or folder"),
        ("deit_tiny_patch16_224:checkpoint_path=none.pth", "no such file"),
        ("deit_tiny_patch16_224:pretrained=false:num_classes=0", "num_classes=0"),
        ("{tmp}/empty", "neither a run"),
        ("{tmp}/runs", "there are checkpoints in {tmp}/runs/one, {tmp}/runs/two: name one"),
        ("{tmp}/zero.ckpt", "is empty"),
        ("{tmp}/other.ckpt", "not a checkpoint of a vitgraft run"),
        ("{tmp}/weights.pth", "MODELNAME:checkpoint_path="),
        ("{tmp}/misfit.ckpt", "do not fit the model"),
        ("{tmp}/own.ckpt", "its model is NoneType"),
    ],
)
def test_models_that_can_not_be_had(capsys, tmp_path, source, message):
    photos = write_images(tmp_path / "photos", {"a.png": (32, 32)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.ckpt").touch()
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    torch.save({}, tmp_path / "weights.pth")
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "best.ckpt").touch()
    checkpoint(tmp_path / "misfit.ckpt", tiny(), num_classes=7, class_names=None)
    checkpoint(tmp_path / "own.ckpt", tiny(), model=None)  # of a module, which no name makes again
    code, _, err = predict(capsys, "--ckpt", source.format(tmp=tmp_path), photos, "--output", tmp_path / "p.csv")
    assert code == 2 and message.format(tmp=tmp_path) in err
    assert not (tmp_path / "p.csv").exists()


def test_settings_and_tasks_that_do_not_fit(tmp_path):
    path = checkpoint(tmp_path / "best.ckpt", tiny())
    assert open_model(path, top=2).top == 2
    for settings, message in (({"flip": True}, "flip=True"), ({"top": 0}, "top=0"), ({"score": 0.5}, "score=0.5")):
        with pytest.raises(ValueError, match=message):
            open_model(path, **settings)
    with pytest.raises(CheckpointError, match=r"classifier.*segmentation"):
        open_model(path, task="segmentation")


def test_prediction_needs_neither_lightning_nor_torchmetrics():
    code = (
        "import sys; from vitgraft.predict.load import open_model; "
        "sys.exit(any(name in sys.modules for name in ('pytorch_lightning', 'torchmetrics', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
