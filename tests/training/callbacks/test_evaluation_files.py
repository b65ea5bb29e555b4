"""`vitgraft validate` and `test`: what is shown and written, and that more processes change nothing."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as pl

from vitgraft.data.classification import ImageData
from vitgraft.tasks.classification import Classification

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SOURCE = Path(__file__).resolve().parents[3] / "src"


@pytest.fixture
def words(trained, class_folders):
    """Of an evaluation of the trained run."""
    return ["--data.root", str(class_folders), "--ckpt_path", str(trained / "last.ckpt")]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("command", ["validate", "test"])
def test_table_and_files(command, run_command, trained, words):
    code, out, err = run_command(command, *words)
    assert code == 0, err
    folder = trained / command
    assert "top-1 accuracy" in out and "expected calibration error" in out and str(folder) in out.replace("\n", "")
    values = metrics_of(folder)
    assert values["metrics"]["num_samples"] == 9 and values["counts"]["class_counts"] == [3, 3, 3]
    assert values["class_names"] == ["cat", "dog", "eel"] and values["stage"] == command
    assert values["weights"] == "raw" and values["checkpoint"] == str(trained / "last.ckpt")
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["name"] for row in rows] == ["cat", "dog", "eel"]
    assert (folder / "confusion.png").stat().st_size > 1000 and (folder / "calibration.png").stat().st_size > 1000


def test_a_part_of_the_dataset_does_not_replace_the_whole(run_command, trained, words):
    assert run_command("validate", *words)[0] == 0
    whole = (trained / "validate" / "metrics.json").read_bytes()
    code, out, _ = run_command("validate", *words, "--trainer.limit_val_batches", 1, "--data.batch_size", 4)
    assert code == 0 and "ONLY A PART of the dataset" in out
    assert (trained / "validate" / "metrics.json").read_bytes() == whole
    values = metrics_of(trained / "validate_part")
    assert values["metrics"]["num_samples"] == 4 and "limited" in values


def test_unreadable_images_are_named_and_left_out(run_command, words, class_folders, tmp_path):
    root = tmp_path / "with_broken"
    shutil.copytree(class_folders, root)
    (root / "val" / "eel" / "broken.png").write_bytes(b"nothing")
    assert run_command("validate", *words, "--data.root", root, "--out", tmp_path)[0] == 0
    values = metrics_of(tmp_path / "validate")
    assert values["metrics"]["num_samples"] == 9
    assert len(values["unreadable"]) == 1 and "broken.png" in values["unreadable"][0]


def _model(seed):
    torch.manual_seed(seed)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def test_raw_and_averaged_weights_are_measured_under_their_names(class_folders):
    raw, averaged = _model(0), _model(1)
    task = Classification(raw)
    task.__dict__["averaged_model"] = averaged
    data = ImageData(root=str(class_folders), batch_size=4, workers=0, input_size=32)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (logged,) = trainer.validate(task, data, verbose=False)
    data.setup("validate")
    batches = list(data.val_dataloader())
    for suffix, one in (("", raw), ("_ema", averaged)):
        with torch.no_grad():
            logits = torch.cat([one(batch.images) for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        assert logged[f"val/acc{suffix}"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
        loss = float(torch.nn.functional.cross_entropy(logits, labels))
        assert logged[f"val/loss{suffix}"] == pytest.approx(loss, abs=1e-5)
    assert task.reports["raw"].loss != task.reports["ema"].loss


@pytest.mark.slow
def test_two_processes_give_the_same_files(run_command, trained, words, tmp_path):
    """9 samples over 2 processes, by real gloo."""
    assert run_command("validate", *words)[0] == 0
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitgraft", "validate", *words, *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = metrics_of(trained / "validate"), metrics_of(tmp_path / "validate")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("num_samples", "top1", "mean_class_accuracy"):
        assert one["metrics"][name] == two["metrics"][name]
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], abs=1e-6)
    assert one["counts"]["confusion"] == two["counts"]["confusion"]
    assert done.stdout.count("top-1 accuracy") == 1, "printed by one process alone"
