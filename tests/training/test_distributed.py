"""Two processes on the CPU through the command line: the same weights as one process at the same total batch."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("pytorch_lightning")

FSDP2 = """\
strategy:
    class_path: ModelParallelStrategy
    init_args: {data_parallel_size: 2, tensor_parallel_size: 1, save_distributed_checkpoint: false}
"""


def _fit(recipe, data, out, processes, trainer):
    text = recipe.read_text().replace("devices: 1\n", f"devices: {processes}\n  {trainer}")
    path = recipe.with_name(f"{out.name}.yaml")
    path.write_text(text.replace("lr: 1e-2", "lr: 0.1\n    opt: sgd\n    momentum: 0.9\n    graft: {window_size: 2}"))
    words = ["--data.root", str(data), "--out", str(out), "--data.batch_size", str(8 // processes)]
    done = subprocess.run(
        [sys.executable, "-m", "vitgraft", "fit", "--config", str(path), *words, "--trainer.gradient_clip_val", "1.0"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    file = sorted(out.rglob("last.ckpt")) or sorted(out.rglob("*.ckpt"))
    weights = torch.load(file[0], weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in weights.items()}, done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(recipe, class_folders, tmp_path):
    alone, _ = _fit(recipe, class_folders, tmp_path / "one", 1, "strategy: auto\n")
    for name, trainer in (("ddp", "strategy: ddp\n"), ("fsdp2", FSDP2)):
        weights, printed = _fit(recipe, class_folders, tmp_path / name, 2, trainer)
        assert "total batch 8 = 4 images x 2 processes x 1 accumulated" in printed
        assert printed.count("written to") == 1  # by the first process alone
        assert weights.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
