"""The Triton kernels in Triton's interpreter, beside plain PyTorch."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest


def test_the_kernels_are_right(tmp_path):
    """At odd shapes, in float32 and bfloat16; in a process of its own, since the interpreter is chosen at import."""
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", "--output", str(tmp_path / "found.json")]
    run = subprocess.run(
        [*command, "--device", "cpu"], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    checks = json.loads((tmp_path / "found.json").read_text())["checks"]
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}
    assert all(row["error"] < tolerance[row["dtype"]] for row in checks)
    assert Counter((row["kernel"], row["dtype"]) for row in checks) == {
        (kernel, dtype): count
        for kernel, count in (("norm_and_pool", 4), ("upsample_add_norm", 5), ("window_attention", 5))
        for dtype in tolerance
    }


def test_without_the_interpreter_a_cpu_is_refused():
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", "--device", "cpu"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 2 and "TRITON_INTERPRET=1" in run.stderr
