"""Exact resume: a run that was killed and resumed ends with the checkpoints of one that never was, bit for bit.

14 batches an epoch, 2 epochs, validation of 3 batches; a signal at ["train", n] comes before batch n of the whole run,
one at ["val", n] before the n-th validation batch of that process.
"""

import json

import pytest

pytest.importorskip("pytorch_lightning")
from small_run import assert_same_run, make_images, runs

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
CODES = {"SIGKILL": 137, "SIGTERM": 143, "SIGINT": 130}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(make_images(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of the run that is never killed; one for all numbers of workers and of saves, which change nothing."""
    folders = {}

    def make(options):
        options = {name: value for name, value in options.items() if name not in ("workers", "every_n_steps")}
        key = json.dumps(options, sort_keys=True)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("whole")
            codes, text = runs({**options, "out": str(folders[key])})
            assert codes == [0], text
        return folders[key]

    return make


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_never_killed(case, root, whole_run, tmp_path):
    options, signal, places = CASES[case]
    kill_and_compare({**options, "root": root}, signal, places, whole_run, tmp_path)


@pytest.mark.parametrize("case", DENSE)
def test_detectors_and_segmenters_too(case, whole_run, tmp_path):
    if case.startswith("detection"):
        pytest.importorskip("faster_coco_eval")
    kill_and_compare(*DENSE[case], whole_run, tmp_path)


def kill_and_compare(options, signal, places, whole_run, folder):
    """A run with these signals, resumed after each, and one without."""
    attempts = [{"at": place, "signal": signal, "resume": n > 0} for n, place in enumerate(places)] + [{"resume": True}]
    codes, text = runs(*({**options, "out": str(folder), **attempt} for attempt in attempts))
    assert codes == [*[CODES[signal]] * len(places), 0], text
    assert_same_run(whole_run(options), folder)


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
