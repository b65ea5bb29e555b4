"""Detectors and segmenters in onnxruntime: equal to PyTorch, or an error that leaves nothing behind."""

import json

import numpy as np
import pytest
import torch
from dense_runs import dense_run
from PIL import Image
from torch import nn

import vitgraft
from vitgraft.cli import main
from vitgraft.errors import ExportError
from vitgraft.models._rcnn import paste_masks
from vitgraft.tools.export_dense import (
    DetectorGraph,
    ImageCheck,
    _check_objects,
    export_dense,
    input_size_of_run,
    paste,
)

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a detector's and a segmenter's run."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: dense_run(folder / task, task) for task in ("detection", "segmentation")}


def smooth(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def open_file(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    stored = session.get_modelmeta().custom_metadata_map
    return session, {name: json.loads(stored[name]) for name in ("class_names", "input_size", "mean", "std")}


def normalized(image, metadata):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(metadata[name])[:, None, None] for name in ("mean", "std"))
    return ((pixels - mean) / std)[None].numpy()


@pytest.mark.slow
def test_a_detector(runs, tmp_path, capsys):
    path = tmp_path / "a.onnx"
    assert main(["export", str(runs["detection"]), str(path)]) == 0
    out = capsys.readouterr().out
    assert "input images (1, 3, 64, 96), outputs boxes, labels, scores, masks" in out
    assert [line.split(":")[0] for line in out.splitlines()[1:]] == [
        "  onnxruntime, image 64 x 96",
        "  onnxruntime, image 48 x 96",
        "  onnxruntime, image 64 x 60",
    ]
    assert "12 objects" in out and [one.name for one in tmp_path.iterdir()] == ["a.onnx"]
    session, metadata = open_file(path)
    assert metadata == {
        "class_names": ["nut", "bolt"],
        "input_size": [64, 96],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.3],
    }
    run = vitgraft.load(runs["detection"])
    image = smooth(64, 96, seed=5)  # of the file's size: no padding
    expected = run.predict(image)
    boxes, labels, scores, masks = session.run(None, {"images": normalized(image, metadata)})
    assert len(scores) == 12 and np.abs(boxes - expected["boxes"].numpy()).max() < 0.5
    assert labels.tolist() == expected["labels"].tolist() and np.abs(scores - expected["scores"].numpy()).max() < 1e-3
    assert (masks == expected["masks"].numpy()).mean() > 0.999
    run.model.roi_heads.box_predictor.cls_score.bias.data[0] = 60.0  # all is background
    done = export_dense(run, path, (40, 72))  # no multiple of 32
    assert [check.objects for check in done.checks] == [0, 0, 0] and done.inputs == (1, 3, 40, 72)


@pytest.mark.slow
def test_a_segmenter_with_a_free_batch(runs, tmp_path, capsys):
    path = tmp_path / "a.onnx"
    images = [tmp_path / f"{i}.png" for i in range(2)]
    for i, image in enumerate(images):
        smooth(64, 64 - 16 * i, seed=i).save(image)
    options = ["--img-size", "64", "--images", *map(str, images)]
    assert main(["export", str(runs["segmentation"]), str(path), *options]) == 0
    out = capsys.readouterr().out
    assert "input images (batch, 3, 64, 64), outputs logits, classes" in out
    assert "image 64 x 64: 100.0000% of the pixels equal" in out and "image 64 x 48" in out
    session, metadata = open_file(path)
    batch = np.concatenate([normalized(smooth(64, 64, seed), metadata) for seed in range(3)])
    logits, classes = session.run(None, {"images": batch})
    assert logits.shape == (3, 3, 64, 64) and (logits.argmax(1) == classes).all()
    run = vitgraft.load(runs["segmentation"], flip=False)
    expected = run.predict([smooth(64, 64, seed) for seed in range(3)])
    assert (classes == np.stack(expected)).mean() > 0.999


class OneOperator(nn.Module):
    """A segmenter of one operator."""

    def __init__(self, operator):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))
        self.operator = operator

    def forward(self, images):
        return self.operator(images * self.unit)


def segmenter_of(runs, operator):
    run = vitgraft.load(runs["segmentation"])
    run.model = OneOperator(operator).eval()
    return run


def eigenvalues(x):
    return torch.linalg.eigvals(x).real[:, :, None].expand(-1, -1, 64, 64) * x


def branch_on_values(x):
    return x if x.sum() > 0 else -x


def half_convolution(x):
    return nn.functional.conv2d(x.bfloat16(), torch.ones(3, 3, 1, 1).bfloat16()).float()


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (eigenvalues, "PyTorch cannot export.*linalg_eig"),
        (branch_on_values, "PyTorch cannot export.*data-dependent"),
        (half_convolution, "onnxruntime cannot run"),
    ],
)
def test_operators_that_lack(runs, tmp_path, capfd, operator, message):
    with pytest.raises(ExportError, match=message) as error:
        export_dense(segmenter_of(runs, operator), tmp_path / "a.onnx", (64, 64))
    assert str(error.value).endswith("nothing was written") and len(str(error.value)) < 700
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr().err == ""


def branch_on_size(x):
    return x if x.shape[2] < 70 else -x


def test_free_sizes(runs, tmp_path):
    """A convolution allows them; what is decided by the size in Python does not, as windows and levels of grafts."""
    kernel = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    run = segmenter_of(runs, lambda x: nn.functional.conv2d(x, kernel, padding=1))
    done = export_dense(run, tmp_path / "a.onnx", free_size=True)
    assert done.inputs == (0, 3, 0, 0) and len({check.size for check in done.checks}) == 3
    assert open_file(tmp_path / "a.onnx")[1]["input_size"] is None
    with pytest.raises(ExportError, match=r"(?s)nothing was written.*leave the free size out"):
        export_dense(segmenter_of(runs, branch_on_size), tmp_path / "b.onnx", free_size=True)
    assert [one.name for one in tmp_path.iterdir()] == ["a.onnx"]


def test_a_difference_leaves_nothing(runs, tmp_path, monkeypatch):
    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args, **kwargs):
            logits, classes = super().run(*args, **kwargs)
            classes[:, :1, :8] = 2 - classes[:, :1, :8]
            return [logits, classes]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(ExportError, match=r"something else than PyTorch; nothing was written\n  image 64 x 64: 99\.8"):
        export_dense(segmenter_of(runs, lambda x: x), tmp_path / "a.onnx", (64, 64))
    assert list(tmp_path.iterdir()) == []


def test_the_graph_is_the_detector(runs):
    model = vitgraft.load(runs["detection"]).model
    pixels = torch.randn(1, 3, 50, 70, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = model([pixels[0]])[0], DetectorGraph(model)(pixels)
    for name, value in zip(("boxes", "labels", "scores"), found, strict=False):
        assert torch.equal(value, expected[name]), name
    assert (found[3] == expected["masks"]).float().mean() > 0.9999


def test_masks_are_pasted_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 4, generator=generator) * 60 - 5
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:].abs() + 0.5], 1)
    probs = torch.rand(40, 28, 28, generator=generator)
    assert (paste(probs, boxes, (48, 64)) == paste_masks(probs, boxes, (48, 64))).float().mean() > 0.9999
    assert paste(probs[:0], boxes[:0], (48, 64)).shape == (0, 48, 64)


def test_how_detections_are_compared(runs):
    model = vitgraft.load(runs["detection"]).model
    pixels = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = model([pixels])[0]

    class File:
        def __init__(self, **changes):
            self.outputs = [{**own, **changes}[name] for name in ("boxes", "labels", "scores", "masks")]

        def run(self, images):
            return self.outputs

    def check(**changes):
        return _check_objects(model, File(**changes), pixels, (64, 96))

    assert check() == ImageCheck((64, 96), 12) and check().ok
    turned = {name: value.flip(0) for name, value in own.items() if name != "mask_probs"}
    assert check(**turned).ok
    assert check(boxes=own["boxes"] + 0.4).ok and check(boxes=own["boxes"] + 0.6).unmatched
    assert not check(scores=own["scores"] + 2e-3).ok and not check(labels=3 - own["labels"]).ok
    assert not check(masks=~own["masks"]).ok
    assert check(**{name: value[:6] for name, value in own.items()}).unmatched  # half of them are missing


def test_sizes(runs):
    assert input_size_of_run(vitgraft.load(runs["detection"])) == (64, 96)
    assert input_size_of_run(vitgraft.load(runs["segmentation"])) == (64, 64)
    assert input_size_of_run(vitgraft.load(runs["segmentation"], window=48)) == (48, 48)
