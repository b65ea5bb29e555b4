"""What is recorded of the machine and of the code, and what times and memory are measured with."""

import re
import subprocess

import torch
from torch import nn

from vitgraft import machine

CPU = torch.device("cpu")


def test_the_commit_is_that_of_the_clone_and_marks_changed_files(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    module = tmp_path / "machine.py"
    monkeypatch.setattr(machine, "__file__", str(module))
    assert machine.source_commit() is None  # no clone
    git("init", "-q")
    (tmp_path / "other.py").write_text("")
    git("add", "other.py")
    git("commit", "-qm", "somebody else's")
    module.write_text("a = 1\n")
    assert machine.source_commit() is None  # in a clone, but not of it
    git("add", "machine.py")
    git("commit", "-qm", "ours")
    assert machine.source_commit() == git("rev-parse", "--short=12", "HEAD")
    module.write_text("a = 2\n")
    assert re.fullmatch("[0-9a-f]{12}[+]", machine.source_commit())


def test_description_of_a_cpu():
    found = machine.describe(CPU)
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads() and found["device_name"]


def test_the_allocator_is_described_without_paths(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4000000000")
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libjemalloc.so:/opt/lib/libiomp5.so")
    found = machine.describe(CPU)["allocator"]
    assert found["MALLOC_TRIM_THRESHOLD_"] == "4000000000" and found["LD_PRELOAD"] == "libjemalloc.so libiomp5.so"


def test_cpu_peak_is_what_is_held_at_once():
    def step() -> None:
        first = torch.ones(2**18)
        second = torch.ones(2**18)
        del first, second
        torch.ones(2**18)

    assert machine.peak_bytes(step, CPU) == 2**21


def test_cpu_peak_of_a_linear_layer():
    layer, x = nn.Linear(256, 1024, bias=False), torch.ones(64, 256)
    with torch.no_grad():
        assert machine.peak_bytes(lambda: layer(x), CPU) == 64 * 1024 * 4


def test_rates_and_times():
    assert machine.matmul_rate(CPU, torch.float32, seconds=0.001) > 1e8
    calls = []
    assert machine.timed(lambda: calls.append(1), 3, CPU) > 0 and len(calls) == 3
