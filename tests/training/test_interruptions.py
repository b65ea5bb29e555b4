"""What the user of `vitgraft fit` sees when a run is stopped, damaged, or can't go on."""

import errno
import os
import subprocess
import sys
import time

import pytest
import torch
from small_run import difference

from vitgraft.cli import main
from vitgraft.weights import files as checkpoint_files

pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def run(capsys, *words):
    """Exit code and stderr of the command line."""
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err


@pytest.fixture
def words(recipe, class_folders):
    return ["fit", "--config", recipe, "--data.root", class_folders, "--ema.decay", "0.9"]


def test_folder_of_a_run_is_refused_and_resumed(capsys, words, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, *words, "--out", out)[0] == 0
    before = (out / "last.ckpt").read_bytes()
    code, err = run(capsys, *words, "--out", out)
    assert code == 2 and "holds a run already" in err and "--resume" in err
    code, err = run(capsys, *words, "--out", out, "--resume", "--model.lr", "0.5")
    assert code == 2 and "model.lr: 0.01 then, 0.5 now" in err
    assert run(capsys, *words, "--out", out, "--resume")[0] == 0, "a finished run is finished"
    assert (out / "last.ckpt").read_bytes() == before


def test_evil_and_damaged_checkpoints(capsys, words, class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    assert run(capsys, *words, "--out", out)[0] == 0
    sound = (out / "last.ckpt").read_bytes()
    for harm, message in ((b"", "is empty"), (sound[:5000], "cut short")):
        (out / "last.ckpt").write_bytes(harm)
        (out / "last-previous.ckpt").unlink(missing_ok=True)
        code, err = run(capsys, "validate", "--ckpt_path", out / "last.ckpt", "--data.root", class_folders)
        assert code == 2 and message in err and "last.ckpt" in err
    torch.save({"task": "x", "hyper_parameters": {}, "state_dict": Evil()}, out / "last.ckpt")
    for request in (
        ["validate", "--ckpt_path", out / "last.ckpt", "--data.root", class_folders],
        [*words, "--out", out, "--resume"],
        ["export", out / "last.ckpt", tmp_path / "exported"],
    ):
        code, err = run(capsys, *request)
        assert code == 2 and "could run code" in err, request
    assert not (tmp_path / "ran-code").exists()


def test_disk_full_while_saving(capsys, words, tmp_path, monkeypatch):
    """The third save fails: the second is still there, and the run goes on from it."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    more = ["--trainer.max_epochs", "3"]
    assert run(capsys, *words, *more, "--out", whole)[0] == 0
    save, saves = torch.save, []

    def full(content, file):
        saves.append(file)
        if len(saves) > 2:
            file.write(b"a part of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    code, err = run(capsys, *words, *more, "--out", out)
    assert code == 1 and "no space is left" in err and "--resume" in err
    assert checkpoint_files.read_checkpoint(out / "last.ckpt")["global_step"] == 6
    assert not list(out.glob(".*")), "nothing half-written is left"
    monkeypatch.undo()
    assert run(capsys, *words, *more, "--out", out, "--resume")[0] == 0
    a, b = (checkpoint_files.read_checkpoint(folder / "last.ckpt") for folder in (whole, out))
    assert not difference(a["state_dict_ema"], b["state_dict_ema"]) and not difference(a["state_dict"], b["state_dict"])


def test_read_only_folder_before_training(capsys, words, tmp_path):
    (tmp_path / "file").write_text("")
    code, err = run(capsys, *words, "--out", tmp_path / "file" / "run")
    assert code == 2 and "can't be written" in err


def test_out_of_memory_names_what_to_try(capsys, words, tmp_path, monkeypatch):
    from vitgraft.tasks.classification import Classification

    def full(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Classification, "training_step", full)
    code, err = run(capsys, *words, "--out", tmp_path / "run")
    assert code == 1 and "Traceback" not in err
    assert "--data.batch_size 4 --trainer.accumulate_grad_batches 2" in err and "Tried to allocate 20.00 GiB" in err


@pytest.mark.slow
def test_sigterm_to_the_command_and_resume(words, tmp_path):
    """A real `vitgraft fit` gets SIGTERM from outside: 143, saved, and the resumed run is the whole run."""
    command = [sys.executable, "-W", "ignore", "-m", "vitgraft", *map(str, words), "--trainer.max_epochs", "40"]
    command += ["--data.workers", "1", "--trainer.log_every_n_steps", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "--out", whole], check=True, env=env, capture_output=True)
    process = subprocess.Popen([*command, "--out", cut], env=env, stderr=subprocess.PIPE, text=True)
    while not (cut / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    stopped = checkpoint_files.read_checkpoint(cut / "last.ckpt")["global_step"]
    assert 3 <= stopped < 120
    done = subprocess.run([*command, "--out", cut, "--resume"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    a, b = (checkpoint_files.read_checkpoint(folder / "last.ckpt") for folder in (whole, cut))
    assert a["global_step"] == b["global_step"] == 120
    for key in ("state_dict", "state_dict_ema", "optimizer_states"):
        assert not difference(a[key], b[key])
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, cut)]
    assert rows[0] == rows[1], "the log of the run that was stopped is the whole log"
