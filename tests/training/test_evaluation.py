"""`vitgraft validate` and `test`: what is shown and written, and that more processes change nothing."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitgraft.cli import main

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as pl

from vitgraft.tasks.classification import Classification

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture
def trained(recipe, class_folders, tmp_path, capsys):
    """A checkpoint of a short run."""
    assert (
        main(["fit", "--config", str(recipe), "--data.root", str(class_folders), "--out", str(tmp_path / "run")]) == 0
    )
    capsys.readouterr()
    found = sorted((tmp_path / "run").rglob("last.ckpt")) or sorted((tmp_path / "run").rglob("*.ckpt"))
    return found[0]


def words(command, recipe, class_folders, checkpoint):
    return [command, "--config", str(recipe), "--data.root", str(class_folders), "--ckpt_path", str(checkpoint)]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_table_and_files(command, trained, recipe, class_folders, capsys):
    assert main(words(command, recipe, class_folders, trained)) == 0
    out = capsys.readouterr().out
    folder = trained.parent / command
    assert "top-1 accuracy" in out and "expected calibration error" in out and str(folder) in out.replace("\n", "")
    values = json.loads((folder / "metrics.json").read_text())
    assert values["metrics"]["num_samples"] == 9 and values["counts"]["class_counts"] == [3, 3, 3]
    assert values["class_names"] == ["cat", "dog", "eel"] and values["stage"] == command
    assert values["weights"] == "raw" and values["checkpoint"] == str(trained)
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["name"] for row in rows] == ["cat", "dog", "eel"]
    assert (folder / "confusion.png").stat().st_size > 1000 and (folder / "calibration.png").stat().st_size > 1000


def test_a_part_of_the_set_does_not_replace_the_whole(trained, recipe, class_folders, capsys):
    assert main(words("validate", recipe, class_folders, trained)) == 0
    whole = (trained.parent / "validate" / "metrics.json").read_bytes()
    capsys.readouterr()
    part = [*words("validate", recipe, class_folders, trained), "--trainer.limit_val_batches", "1"]
    assert main([*part, "--data.batch_size", "4"]) == 0
    assert "ONLY A PART of the dataset" in capsys.readouterr().out
    assert (trained.parent / "validate" / "metrics.json").read_bytes() == whole
    values = json.loads((trained.parent / "validate_part" / "metrics.json").read_text())
    assert values["metrics"]["num_samples"] == 4 and "limited" in values


def test_unreadable_images_are_named_and_left_out(trained, recipe, class_folders, tmp_path, capsys):
    import shutil

    root = tmp_path / "with_broken"
    shutil.copytree(class_folders, root)
    (root / "val" / "eel" / "broken.png").write_bytes(b"nothing")
    assert main(words("validate", recipe, root, trained)) == 0
    values = json.loads((trained.parent / "validate" / "metrics.json").read_text())
    assert values["metrics"]["num_samples"] == 9
    assert len(values["unreadable"]) == 1 and "broken.png" in values["unreadable"][0]


def test_both_sets_of_weights_are_measured_under_their_names(class_folders):
    def model(seed):
        import timm

        torch.manual_seed(seed)
        made = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3
        )
        torch.nn.init.normal_(made.head.weight)
        return made.eval()

    from vitgraft.data.classification import ImageData

    raw, averaged = model(0), model(1)
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
def test_two_processes_give_the_same_files(trained, recipe, class_folders, tmp_path):
    """9 samples over 2 processes, by real gloo."""
    assert main(words("validate", recipe, class_folders, trained)) == 0
    out = tmp_path / "two"
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitgraft", *words("validate", recipe, class_folders, trained), *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one = json.loads((trained.parent / "validate" / "metrics.json").read_text())
    two = json.loads((out / "validate" / "metrics.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("num_samples", "top1", "mean_class_accuracy"):
        assert one["metrics"][name] == two["metrics"][name]
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], abs=1e-6)
    assert one["counts"]["confusion"] == two["counts"]["confusion"]
    assert done.stdout.count("top-1 accuracy") == 1  # said once, not by each process
