"""ONNX files: the check sees a wrong file, and the model stays as it was."""

import json
import sys

import pytest
import timm
import torch

from vitgraft.errors import MissingExtraError
from vitgraft.tools.export import TOLERANCE, OnnxExport, export_onnx


@pytest.fixture
def model():
    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, img_size=32, num_classes=5).train()


def test_export_takes_the_opset_and_leaves_the_model_alone(model, tmp_path):
    done = export_onnx(model, tmp_path / "a.onnx", (3, 32, 32), opset=18)
    assert done.ok and done.opset == 18 and set(done.differences) == {1, 2, 5}
    assert done.size_bytes == (tmp_path / "a.onnx").stat().st_size > 4 * sum(p.numel() for p in model.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]  # the weights are inside
    assert model.training


def test_a_difference_is_seen(model, tmp_path, monkeypatch):
    import onnxruntime

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args, **kwargs):
            return [output * (1 + 2 * TOLERANCE) for output in super().run(*args, **kwargs)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    done = export_onnx(model, tmp_path / "a.onnx", (3, 32, 32))
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 3, 32, 32)).abs().max() < 1  # relative: the outputs are small
    assert not done.ok


def test_ok_is_every_batch(tmp_path):
    assert OnnxExport(tmp_path, 18, 1, {1: TOLERANCE, 2: 0.0}).ok
    assert not OnnxExport(tmp_path, 18, 1, {1: 0.0, 2: 2 * TOLERANCE}).ok


def test_missing_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime is not installed.*vitgraft\[export\]"):
        export_onnx(model, tmp_path / "a.onnx", (3, 32, 32))


@pytest.mark.slow
def test_the_metadata_of_a_run(trained, tmp_path, run_command):
    import onnxruntime

    code, _, error = run_command("export", trained, tmp_path / "a.onnx")
    assert code == 0, error
    stored = onnxruntime.InferenceSession(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    found = {name: json.loads(stored[name]) for name in ("class_names", "input_size", "mean", "std", "preprocessing")}
    assert found["class_names"] == ["cat", "dog", "eel"] and found["input_size"] == [32, 32]
    assert found["preprocessing"] == {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"}
    assert stored["task"] == "classification"
