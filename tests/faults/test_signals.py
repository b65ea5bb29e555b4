"""Ctrl-C: once saves and ends, twice ends at once; 130 in all cases, in training, validation and elsewhere.

What a signal saves, and that the run resumes from it exactly, is in tests/training/callbacks/test_checkpoint.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.slow


@pytest.fixture
def start(waiting, class_folders):
    """Starts a run that waits for ever for an image of a split."""
    processes, held = [], []

    def begin(split, *words):
        needs = waiting(split)
        words = [*words, *needs.words, "--data.root", class_folders, "--data.workers", "0"]
        command = [sys.executable, "-W", "ignore", "-m", "vitgraft", *map(str, words)]
        processes.append(
            subprocess.Popen(
                command,
                env=needs.env,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's "pytest &" ignores it
            )
        )
        end = time.monotonic() + 90
        while not held:
            try:
                held.append(os.open(needs.pipe, os.O_WRONLY | os.O_NONBLOCK))  # refused until the run reads it
            except OSError:
                assert time.monotonic() < end and processes[0].poll() is None
                time.sleep(0.1)
        time.sleep(0.5)  # a signal between the opening and the reading of the pipe would not end the reading
        return processes[0]

    yield begin
    for process in processes:
        process.kill()
    for descriptor in held:
        os.close(descriptor)


def line_of(process):
    while line := process.stderr.readline():
        if line.strip():
            return line
    return ""


def test_twice_ends_at_once(start, recipe, tmp_path):
    process = start("train", "fit", "--config", recipe, "--out", tmp_path / "run")
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again to end at once, unsaved" in line_of(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


def test_in_an_evaluation(start, trained, tmp_path):
    process = start("val", "validate", "--ckpt_path", trained / "best.ckpt")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
