"""The command line: help that teaches, errors without a traceback, each command on a small model."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import run_main

import vitgraft
from vitgraft import __version__
from vitgraft.cli import main

MICRO = "vit_tiny_patch16_224:depth=1:embed_dim=48:img_size=32:num_classes=5"
COMMANDS = [
    "init",
    "check-data",
    "convert",
    "predict",
    "demo",
    "info",
    "bench",
    "export",
    "families",
    "fit",
    "validate",
    "test",
]
run = partial(run_main, main)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_and_needs_no_torch(tmp_path, command):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    path = os.pathsep.join((str(tmp_path), str(Path(vitgraft.__file__).parents[1])))
    arguments = [sys.executable, "-m", "vitgraft", command, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    assert f"examples:\n  vitgraft {command}" in done.stdout


def test_version_and_no_command(capsys):
    assert run(capsys, "--version")[:2] == (0, f"vitgraft {__version__}\n")
    code, out, _ = run(capsys)
    assert code == 2 and "graft.levels=1" in out and all(f"    {command} " in out for command in COMMANDS)


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "vitgraft", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vitgraft {__version__}\n"


@pytest.mark.parametrize("arguments", [["info"], ["bench", "--no-memory"], ["export"]])
def test_unknown_model(capsys, tmp_path, arguments):
    tail = [str(tmp_path / "a.onnx")] if arguments == ["export"] else []
    code, out, err = run(capsys, *arguments, "deit_tny_patch16_224", *tail)
    assert code == 2 and out == ""
    assert err.startswith(f"vitgraft {arguments[0]}: error: unknown model 'deit_tny_patch16_224'; close names: ")
    assert "deit_tiny_patch16_224" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "deit_tiny_patch16_224:dept=1"], "dept"),
        (["info", "deit_tiny_patch16_224:a=1:a=1"], "given twice"),
        (["bench", MICRO, "--device", "gpu"], "gpu"),
        (["bench", MICRO, "--batch-size", "0"], "at least 1"),
        (["export", MICRO, "/nowhere/a.onnx"], "the folder /nowhere does not exist"),
        (["export", MICRO, "a.onnx", "--checkpoint", "/nowhere/b.pth"], "no such file"),
    ],
)
def test_errors_have_no_traceback(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and message in err and out == "" and "Traceback" not in err


def test_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    code, _, err = run(capsys, "info", MICRO)
    assert code == 2 and "rich is not installed" in err and "vitgraft[report]" in err


def test_info(capsys):
    code, out, _ = run(capsys, "info", MICRO)
    assert code == 0 and "at 32 x 32" in out and "no grafts" in out and "M parameters" in out


def test_info_of_a_grafted_model(capsys):
    code, out, _ = run(capsys, "info", "graft_deit_tiny_patch16_224:graft.blocks=[3,5]")
    assert code == 0 and "2 grafts" in out and "blocks.3  14 x 14" in out and "blocks.5  14 x 14" in out
    code, _, err = run(capsys, "info", "graft_deit_tiny_patch16_224:graft.blox=3")
    assert code == 2 and "did you mean 'blocks'?" in err


def test_families(capsys, tmp_path):
    code, out, _ = run(capsys, "families", "pit", "repvit")
    assert code == 0 and "1 of 2 families grafted" in out and "convolutions and no attention" in out
    path = tmp_path / "families.md"
    assert run(capsys, "families", "repvit", "--output", str(path))[0] == 0
    assert "| `repvit` |" in path.read_text()
    code, _, err = run(capsys, "families", "reptil")
    assert code == 2 and "unknown family reptil; there are timm," in err


def test_bench(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ["--rounds", "1", "--round-seconds", "0.001", "--batch-size", "1", "--img-size", "32", "--no-memory"]
    code, out, _ = run(capsys, "bench", MICRO, *arguments, "--output", str(path))
    assert code == 0 and "images/s" in out and "matmul peak in this run" in out
    assert json.loads(path.read_text())["results"][0]["model"] == MICRO


GRAFTED = "graft_deit_tiny_patch16_224:depth=2:embed_dim=48:num_heads=3:img_size=32:graft.window_size=1"


@pytest.mark.parametrize("model", [MICRO, GRAFTED])
def test_export(capsys, tmp_path, model):
    path = tmp_path / "micro.onnx"
    code, out, _ = run(capsys, "export", model, str(path))
    assert code == 0 and path.stat().st_size > 10_000
    assert "random weights" in out and all(f"batch {batch}: largest difference" in out for batch in (1, 2, 5))
    assert "(batch, 3, 32, 32)" in out and "TOO LARGE" not in out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["check-data", "x", "--strickt"], "vitgraft check-data: error: .*--strickt; did you mean '--strict'?"),
        (["predict", "--ckpt", "x", "--s_allign", "-1", "a.png"], "vitgraft predict: error: .*arguments: --s_allign$"),
        (["--foo"], "vitgraft: error: unrecognized arguments: --foo$"),
    ],
)
def test_misspelt_options(run_command, words, shown):
    code, _, err = run_command(*words)
    assert code == 2 and re.search(shown, err.strip()), err
