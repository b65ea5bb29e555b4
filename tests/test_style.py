"""Style checks see the project's code alone, not what stands in the folder beside it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ruff")
ROOT = Path(__file__).resolve().parent.parent


def test_folders_in_the_root_do_not_change_the_style_check(tmp_path):
    """A run, a data set or a checkout may have the name of any module that the code imports."""
    for name in ("src", "tests", "reproduction", "benchmarks", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    modules = {path.stem for path in (tmp_path / "tests").rglob("*.py")} | {"numpy", "timm", "torch"}
    for name in {"runs", *modules} - {"tests", "src", "reproduction", "benchmarks"}:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "results.json").write_text("{}")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "src", "tests", "reproduction", "benchmarks"]
    check = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
