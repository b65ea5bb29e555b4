"""Exact resume: a run that was killed and resumed ends with the checkpoints of one that never was, bit for bit.

14 batches an epoch, 2 epochs, validation of 3 batches; a signal at ["train", n] comes before batch n of the whole run,
one at ["val", n] before the n-th validation batch of that process.
"""

import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("pytorch_lightning")
from small_run import assert_same_run, difference, make_images, runs

from vitgraft.weights.files import read_checkpoint

pytestmark = pytest.mark.slow

CASES = {
    "mid-epoch, two workers": ({"workers": 2}, "SIGKILL", [["train", 7]]),
    "two kills in one epoch": ({"workers": 1}, "SIGKILL", [["train", 17], ["train", 21]]),
    "in both validations": ({}, "SIGKILL", [["val", 1], ["val", 4]]),
    "accumulated gradients": ({"accumulate": 4, "every_n_steps": 1}, "SIGKILL", [["train", 6], ["train", 19]]),
    "validation inside the epoch": ({"val_check_interval": 0.5, "every_n_steps": 2}, "SIGKILL", [
        ["train", 6], ["val", 1], ["train", 9], ["train", 22]]),
    "max_steps": ({"max_steps": 36, "epochs": 3, "every_n_steps": 2}, "SIGKILL", [["train", 14], ["train", 20]]),
    "without saves inside the epoch": ({"every_n_steps": 0}, "SIGKILL", [["train", 8], ["train", 20]]),
    "SIGTERM": ({"every_n_steps": 0}, "SIGTERM", [["train", 6], ["train", 13], ["val", 1], ["train", 20]]),
    "Ctrl-C": ({"every_n_steps": 0, "accumulate": 3}, "SIGINT", [["train", 6], ["val", 0], ["train", 24]]),
    "SIGTERM, validation inside the epoch": ({"val_check_interval": 0.5, "every_n_steps": 0}, "SIGTERM", [
        ["train", 6], ["val", 1], ["train", 9], ["train", 22]]),
}  # fmt: skip
DENSE = {
    f"{task}, {signal}": ({"task": task, "workers": workers, "every_n_steps": steps}, signal, places)
    for task in ("detection", "segmentation")
    for signal, workers, steps, places in (
        ("SIGKILL", 2, 3, [["train", 7], ["train", 21]]),
        ("SIGTERM", 0, 0, [["train", 5], ["val", 1]]),
    )
}
DENSE["segmentation, frozen backbone"] = (
    {"task": "segmentation", "freeze_epochs": 1}, "SIGKILL", [["train", 7], ["train", 21]],
)  # fmt: skip
CODES = {"SIGKILL": 137, "SIGTERM": 143, "SIGINT": 130}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(make_images(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of the run that is never killed; one for all numbers of workers and of saves, which change nothing."""
    folders = {}

    def make(options):
        options = {name: value for name, value in options.items() if name not in ("out", "workers", "every_n_steps")}
        key = json.dumps(options, sort_keys=True)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("whole")
            codes, text = runs({**options, "out": str(folders[key])})
            assert codes == [0], text
        return folders[key]

    return make


@pytest.mark.parametrize("case", [*CASES, *DENSE])
def test_killed_and_resumed_is_never_killed(case, root, whole_run, tmp_path):
    if case.startswith("detection"):
        pytest.importorskip("faster_coco_eval")
    options, signal, places = {**CASES, **DENSE}[case]
    options = {**options, "out": str(tmp_path), "root": root}
    attempts = [{"at": place, "signal": signal, "resume": n > 0} for n, place in enumerate(places)] + [{"resume": True}]
    codes, text = runs(*({**options, **attempt} for attempt in attempts))
    assert codes == [*[CODES[signal]] * len(places), 0], text
    assert_same_run(whole_run(options), tmp_path)


def test_resumes_from_the_one_before_when_the_last_is_damaged(root, whole_run, tmp_path):
    options, cut = {"root": root}, tmp_path
    codes, _ = runs({**options, "out": str(cut), "at": ["train", 11]})
    assert codes == [137]
    last = cut / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    codes, text = runs({**options, "out": str(cut), "resume": True})
    assert codes == [0], text
    assert "last.ckpt is cut short" in text and "Using the one before it" in text
    assert "last-previous.ckpt (epoch 0, step 6)" in text
    assert_same_run(whole_run(options), cut)


def test_two_processes_resume(tmp_path):
    """DDP over gloo; the first process of the group gets the signal, and all save and leave."""
    options = {"root": str(make_images(tmp_path / "data", train=22)), "devices": 2, "every_n_steps": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    codes, text = runs(
        {**options, "out": str(whole)},
        {**options, "out": str(cut), "at": ["train", 5], "signal": "SIGTERM"},
        {**options, "out": str(cut), "resume": True},
    )
    assert codes == [0, 143, 0], text
    assert_same_run(whole, cut)
    metrics = json.loads((whole / "metrics.json").read_text())
    assert 0 <= metrics["val/acc"] <= 1


def test_sigterm_to_the_command_and_resume(recipe, class_folders, tmp_path):
    """A real `vitgraft fit` gets SIGTERM from outside: 143, saved, and the resumed run is the whole run."""
    command = [sys.executable, "-W", "ignore", "-m", "vitgraft", "fit", "--config", recipe]
    command += ["--data.root", class_folders, "--data.workers", "1", "--ema.decay", "0.9"]
    command += ["--trainer.max_epochs", "40", "--trainer.log_every_n_steps", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "--out", whole], check=True, env=env, capture_output=True)
    process = subprocess.Popen([*command, "--out", cut], env=env, stderr=subprocess.PIPE, text=True)
    while not (cut / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    stopped = read_checkpoint(cut / "last.ckpt")["global_step"]
    assert 3 <= stopped < 120
    done = subprocess.run([*command, "--out", cut, "--resume"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    a, b = (read_checkpoint(folder / "last.ckpt") for folder in (whole, cut))
    assert a["global_step"] == b["global_step"] == 120
    for key in ("state_dict", "state_dict_ema", "optimizer_states"):
        assert not difference(a[key], b[key])
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, cut)]
    assert rows[0] == rows[1], "the log of the run that was stopped is the whole log"
