"""benchmarks/gpu.py on a CPU, with micro models: its parts, what a second call does, and the time it takes."""

import dataclasses
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu

MICRO = dataclasses.replace(gpu.SCALES["cpu"], shrink=14, round_seconds=1e-4)


@pytest.fixture
def micro(monkeypatch):
    monkeypatch.setitem(gpu.SCALES, "cpu", MICRO)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr("vitgraft.tools.bench.matmul_rate", lambda device, dtype: 1e9)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


# without the kernels, which tests/benchmarks/test_kernels.py runs in a process of their own
PARTS = [name for name in gpu.PLAN if not name.startswith("kernel_")]
QUICK = ("profile_deit_tiny", "infer_deit_tiny", "train_deit_tiny", "compiled_deit_tiny_bf16")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in PARTS])
def test_every_part_runs(name, micro, tmp_path):
    gpu.measure(name, "cpu", tmp_path)
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert file.stem == name and found["kind"] == "gpu" and found["seconds"] > 0
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["float32_matmul_precision"] == "high"
    for table in found.get("tables", ()):
        models = {row["model"] for row in table["results"]}
        assert len(models) == 2 and {row["run"] for row in table["results"]} == set(table["config"]["runs"])
        assert all(row["images_per_second"]["median"] > 0 for row in table["results"])


def test_a_profile_is_of_the_whole_pass_and_knows_the_graft(tmp_path):
    spec = MICRO.pairs["deit_tiny"][1]
    found = gpu.profile_model(spec, 32, 2, "float32", torch.device("cpu"), steps=1)
    assert found["microseconds"] == pytest.approx(sum(found["by_role"].values()))
    assert {"norm1", "norm2", "linear layers", "graft: norm", "block: additions and partitions"} <= set(
        found["by_role"]
    )
    roles = {row["role"] for row in found["by_kernel"] if row["kernel"] == "aten::native_layer_norm"}
    assert {"norm1", "norm2", "graft: norm"} < roles and any(role.startswith("graft: down") for role in roles)
    assert any(
        row["kernel"] == "aten::upsample_bilinear2d" and row["role"].startswith("graft: up")
        for row in found["by_kernel"]
    )


def test_a_profile_of_a_gpu_counts_its_kernels_by_the_nearest_range():
    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA

    def event(name, above=None, kernels=(), device=cpu):
        kernels = [SimpleNamespace(name=name, duration=duration) for name, duration in kernels]
        return SimpleNamespace(name=name, cpu_parent=above, kernels=kernels, device_type=device)

    block = event(gpu.PREFIX + "block", kernels=[(gpu.PREFIX + "block", 100)])
    norm = event(gpu.PREFIX + "norm1", block)
    events = [
        block,
        norm,
        event("aten::add", block, [("add", 3)]),
        event("aten::layer_norm", event("aten::native", norm), [("norm", 5)]),
        event("aten::mean", None, [("mean", 7)]),
        event("add", device=cuda),
    ]
    found = gpu._own_times(SimpleNamespace(events=lambda: events), torch.device("cuda"))
    assert list(found) == [("add", "block", 3), ("norm", "norm1", 5), ("mean", gpu.REST, 7)]


def _call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", *arguments],
        cwd=gpu.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_a_second_call_does_what_is_missing(tmp_path):
    """In processes, as on a GPU: of two parts one is there."""
    (tmp_path / "infer_deit_tiny.json").write_text("{}")
    run = _call("--output", str(tmp_path), "--only", "infer_deit_tiny", "profile_deit_tiny")
    assert run.returncode == 0, run.stderr
    assert "done: profile_deit_tiny\n" in run.stdout and "infer_deit_tiny" not in run.stdout
    assert json.loads((tmp_path / "profile_deit_tiny.json").read_text())["profiles"]
    assert (tmp_path / "infer_deit_tiny.json").read_text() == "{}"


def test_no_part_begins_without_the_time_for_it(tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path), "--device", "cpu", "--minutes", "0.01"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"not begun: {' '.join(gpu.PLAN)}"
    assert not list(tmp_path.iterdir())


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    assert gpu.run([sys.executable, "-c", parent], 0.5) == "out of time"
    assert time.monotonic() - start < 2.5
    time.sleep(3)
    assert not list(tmp_path.iterdir())
    assert gpu.run([sys.executable, "-c", "raise SystemExit(3)"], 60) == "failed"
    assert gpu.run([sys.executable, "-c", ""], 60) == "done"


def test_a_failed_part_is_an_exit_code_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    names = ["profile_deit_tiny", "train_deit_tiny"]
    monkeypatch.setattr(gpu, "run", lambda command, seconds: "failed" if names[0] in command else "done")
    assert gpu.main(["--output", str(tmp_path), "--device", "cpu", "--only", *names]) == 1
    assert "failed: profile_deit_tiny" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--only", "infer_vit"], ["--device", "cuda"], ["--minutes", "0"]])
def test_arguments_that_are_wrong(arguments, tmp_path, capsys):
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as end:
        gpu.main(["--output", str(tmp_path), *arguments])
    assert end.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_it_needs_no_more_than_the_package_needs():
    """A machine with a GPU may have torch, timm and the package's other requirements alone."""
    lines = "import benchmarks.gpu, json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", lines], cwd=gpu.ROOT, capture_output=True, text=True, check=True)
    extras = {"pytorch_lightning", "lightning", "jsonargparse", "torchmetrics", "sklearn", "rich", "matplotlib", "onnx"}
    assert not extras & set(json.loads(run.stdout))


def test_every_role_is_one_of_a_module():
    """Names of parts change: each pattern still finds one in one of the two models."""
    from vitgraft.models.spec import ModelSpec
    from vitgraft.weights.create import create_at

    models = [create_at(ModelSpec.parse(both[1]), 32, "meta") for both in MICRO.pairs.values()]
    found = {gpu._role(name) for model in models for name, _ in model.named_modules()}
    assert len(found - {None}) == len(gpu.ROLES) + 1  # norm1 and norm2 have one pattern
