"""Exported folders of all tasks: the same predictions bit for bit, cards, the hub, and folders of strangers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from dense_runs import dense_run
from fake_hub import fake_hub
from tiny_runs import checkpoint, tiny

import vitgraft
from vitgraft.cli import main
from vitgraft.errors import CheckpointError, UntrustedError

IMAGE = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
RECORD = {
    "recipe": {
        "model": {"init_args": {"checkpoint_path": "/home/me/secret/start.ckpt", "lr": 0.1}},
        "data": {"init_args": {"root": "/home/me/secret/bolts", "batch_size": 2}},
        "out": "/home/me/secret/run",
    },
    "data": {"train": {"images": 1200, "classes": ["a"]}, "val": {"images": 30}},
}


def make_run(folder, task):
    if task == "classification":
        checkpoint(folder / "best.ckpt", tiny(graft={"window_size": 2}), graft={"window_size": 2})
    else:
        dense_run(folder, task)
    (folder / "run.json").write_text(json.dumps(RECORD))
    rows = ("epoch,step,train/loss,val/acc,val/acc_ema", "0,3,1.0,,", "0,6,,0.5,0.6", "1,9,,0.7,0.8")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    return np.array_equal(one, other)


@pytest.fixture(params=["classification", "detection", "segmentation"])
def run(request, tmp_path):
    return make_run(tmp_path / "run", request.param)


def test_an_export_predicts_the_same(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--license", "mit"]) == 0
    assert f"vitgraft.load('{out}')" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    original, exported = vitgraft.load(run), vitgraft.load(out)
    assert equal(original.predict(IMAGE), exported.predict(IMAGE))
    assert exported.class_names == original.class_names and exported.preprocessing == original.preprocessing
    assert exported.task == original.task and exported.weights == original.weights
    exported.save_pretrained(tmp_path / "again")  # of the export, once more
    for name in ("README.md", "config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes().replace(b"again", b"out") == (out / name).read_bytes()


def test_the_card(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "out"), "--license", "mit"]) == 0
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "out" / "README.md")
    task = vitgraft.load(run).task
    assert card.data.license == "mit" and card.data.library_name == "vitgraft"
    assert card.data.pipeline_tag.endswith({"classification": "classification"}.get(task, task))
    text = card.content
    assert "bolts (1,200 of train, 30 of val images)" in text and "vitgraft fit --config" in text
    # of the last validation before the checkpoint's step, where that is known
    assert f"| val/acc | {'0.7000' if task == 'classification' else '0.5000'} |" in text
    assert "/home" not in text + (tmp_path / "out" / "config.json").read_text()
    assert all(name in text for name in vitgraft.load(run).class_names if "<" not in name)


def test_metrics_of_an_evaluation_come_first(tmp_path):
    run = make_run(tmp_path / "run", "segmentation")
    (run / "validate").mkdir()
    values = {"checkpoint": "elsewhere/best.ckpt", "weights": "raw", "metrics": {"miou": 0.25, "num_images": 3}}
    (run / "validate" / "metrics.json").write_text(json.dumps(values))
    assert vitgraft.load(run).details["metrics"] == {"val/miou": 0.25}
    (run / "validate" / "metrics.json").write_text(json.dumps({**values, "weights": "ema"}))
    assert vitgraft.load(run).details["metrics"] == {"val/acc": 0.5}
    for name in ("run.json", "metrics.csv", "validate/metrics.json"):
        (run / name).write_bytes(b"\xff{")
    assert vitgraft.load(run).details == {}  # what is damaged is no reason not to load the model


def test_settings_go_with_the_export(tmp_path):
    run = vitgraft.load(dense_run(tmp_path / "run", "segmentation"), window=48, scales=(0.5, 1.0), flip=False)
    run.save_pretrained(tmp_path / "out")
    exported = vitgraft.load(tmp_path / "out")
    assert (exported.window, exported.scales, exported.flip) == (48, (0.5, 1.0), False)
    assert equal(exported.predict(IMAGE), run.predict(IMAGE))


LOADS = """
import sys
import numpy as np, torch, vitgraft
run = vitgraft.load(sys.argv[1])
torch.save(run.predict(np.load(sys.argv[2])), sys.argv[3])
assert not {"pytorch_lightning", "matplotlib", "onnx", "torchmetrics"} & set(sys.modules)
"""


def test_the_hub_and_a_fresh_process(tmp_path):
    """`push_to_hub` and `from_pretrained` against a hub of this machine, each in a process of its own."""
    run = make_run(tmp_path / "run", "detection")
    np.save(tmp_path / "image.npy", IMAGE)
    pushes = f"import vitgraft; print(vitgraft.load({str(run)!r}).push_to_hub('me/bolts', license='mit'))"
    with fake_hub() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_x"}

        def python(code, *arguments):
            command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
            return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

        done = python(pushes)
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/me/bolts" in done.stdout
        assert {"README.md", "config.json", "model.safetensors"} <= hub.repos["me/bolts"].keys()
        done = python(LOADS, "hf-hub:me/bolts", tmp_path / "image.npy", tmp_path / "found.pt")
        assert done.returncode == 0, done.stderr
        expected = vitgraft.load(run).predict(IMAGE)
        assert equal(torch.load(tmp_path / "found.pt"), expected)
        repositories = "run = vitgraft.from_pretrained('me/bolts', score=0.7); print(run.source, run.score)"
        done = python(f"import vitgraft; {repositories}; vitgraft.from_pretrained('me/nothing')")
        assert done.stdout.split() == ["me/bolts", "0.7"], done.stderr
        assert "CheckpointError: me/nothing: can't be had from the hub" in done.stderr


def test_folders_of_strangers(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('code ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    vitgraft.load(dense_run(tmp_path / "run", "detection")).save_pretrained(tmp_path / "good")
    good = json.loads((tmp_path / "good" / "config.json").read_text())
    section, options = good["vitgraft"], good["vitgraft"]["options"]
    for change, error, message in (
        ({"task": "stranger.Task"}, CheckpointError, "task='stranger.Task' is none of"),
        ({"options": {**options, "graft": {"class_path": "stranger.G"}}}, UntrustedError, "stranger.G"),
        ({"options": {**options, "model": "hf-hub:evil/model"}}, CheckpointError, "leads to files elsewhere"),
        ({"options": {**options, "model": "stranger.Model"}}, ValueError, "unknown model"),
        ({"options": {**options, "model_kwargs": {"checkpoint_path": "x.pth"}}}, CheckpointError, "files elsewhere"),
        ({"options": {**options, "num_classes": "7"}}, CheckpointError, "no num_classes"),
        ({"options": {**options, "num_classes": 7}}, CheckpointError, "do not fit the model"),
        ({"options": {**options, "detector": {"no_such": 1}}}, CheckpointError, "no_such"),
        ({"options": {**options, "detector": [1]}}, CheckpointError, "bad: neither an export"),
    ):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        (tmp_path / "bad" / "config.json").write_text(json.dumps({**good, "vitgraft": {**section, **change}}))
        with pytest.raises(error, match=message):
            vitgraft.load(tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text(json.dumps(good))
    weights = tmp_path / "bad" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cut short"):
        vitgraft.load(tmp_path / "bad")
    weights.unlink()
    torch.save({"a": torch.zeros(1)}, tmp_path / "bad" / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        vitgraft.load(tmp_path / "bad")


def test_what_can_not_be_exported(tmp_path, capsys):
    run = dense_run(tmp_path / "run", "detection")
    for arguments, message in (
        ([str(run)], "is not empty"),
        ([str(tmp_path / "x"), "--img-size", "64"], "--img-size is for ONNX"),
        ([str(tmp_path / "x.onnx"), "--license", "mit"], "--license is for a folder"),
        ([str(tmp_path / "x.onnx"), "--grafts-only"], "--grafts-only is for a folder"),
    ):
        assert main(["export", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err
    options = {"model": "local-dir:elsewhere"}
    opened = vitgraft.load(run)
    opened.hyper_parameters = {**opened.hyper_parameters, **options}
    with pytest.raises(CheckpointError, match="files elsewhere"):
        opened.save_pretrained(tmp_path / "x")
    opened.hyper_parameters = {**opened.hyper_parameters, "model": "vit_tiny_patch16_224", "detector": {"a": object()}}
    with pytest.raises(CheckpointError, match="no form in JSON"):
        opened.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".x*"))
