"""The notebooks of docs/ run as scripts in an empty folder, at their smallest settings, and write what they show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, shared

NOTEBOOKS = ROOT / "docs/notebooks"
# notebook -> the files that it leaves in its folder
FILES = {
    "graft_and_fine_tune": (
        "data.png losses.png predictions.png run/best.ckpt run/validate/metrics.json grafts/graft_config.json"
    ),
    "boxes": "data.png curves.png predictions.png recipe.yaml run/best.ckpt run/validate_part/precision_recall.png",
    "segmentation": (
        "data.png curves.png predictions.png sliding.png areas.csv drawn/overlays/large.jpg run/validate/confusion.png"
    ),
    "slim_grafts_beside_lora": "tasks.png losses.png grafts/adapter_model.safetensors lora/adapter_model.safetensors",
    "export_and_serve": "digits_vit/README.md digits.onnx grafts/adapter_model.safetensors served.png",
}
EXTRAS = {"boxes": "faster_coco_eval", "slim_grafts_beside_lora": "peft", "export_and_serve": "onnxruntime"}


def run_notebook(name: str, folder: Path, **environment: str) -> str:
    """Runs a notebook in an empty folder, and returns what it printed."""
    pytest.importorskip(EXTRAS.get(name, "pytorch_lightning"))
    environment = {
        **{key: value for key, value in os.environ.items() if key != "VITGRAFT_SHARED"},
        "VITGRAFT_NOTEBOOK_QUICK": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
        **environment,
    }
    command = [sys.executable, "-W", "ignore", str(NOTEBOOKS / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    (out,) = (folder / "runs").iterdir()
    assert [path.name for path in folder.iterdir()] == ["runs"]  # nothing beside
    missing = [file for file in FILES[name].split() if not (out / file).is_file()]
    assert not missing
    return done.stdout


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == set(FILES)
    assert not list(NOTEBOOKS.glob("*.ipynb"))  # kept as text


@pytest.mark.parametrize("name", FILES)
def test_a_notebook_has_text_between_its_cells(name):
    cells = (NOTEBOOKS / f"{name}.py").read_text().split("# %%")
    assert not cells[0] and len(cells) > 10
    code = [cell for cell in cells[1:] if not cell.startswith(" [markdown]")]
    assert len(cells) - 1 - len(code) >= len(code) / 2
    for cell in code:
        compile(cell, name, "exec")


@pytest.mark.slow
def test_graft_and_fine_tune(tmp_path):
    assert "the same outputs, bit for bit: True" in run_notebook("graft_and_fine_tune", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["made", "pcb"])
def test_boxes(data, tmp_path):
    given = {"VITGRAFT_SHARED": str(shared("data", "pcb").parents[1])} if data == "pcb" else {}
    run_notebook("boxes", tmp_path, **given)
    metrics = json.loads((tmp_path / "runs/notebook_boxes/run/validate_part/metrics.json").read_text())["metrics"]
    assert 0 <= metrics["box_ap"] <= 1 and metrics["mask_ap"] is None


@pytest.mark.slow
def test_segmentation(tmp_path):
    run_notebook("segmentation", tmp_path)
    metrics = json.loads((tmp_path / "runs/notebook_segmentation/run/validate/metrics.json").read_text())["metrics"]
    assert 0 <= metrics["miou"] <= 1


@pytest.mark.slow
def test_slim_grafts_beside_lora(tmp_path):
    assert "loaded again, the same: True" in run_notebook("slim_grafts_beside_lora", tmp_path)


@pytest.mark.slow
def test_export_and_serve(tmp_path):
    printed = run_notebook("export_and_serve", tmp_path)
    assert "the same, bit for bit: True" in printed and "backbone + grafts = the whole model: True" in printed
    assert "(400, {'error': 'not an image'})" in printed
