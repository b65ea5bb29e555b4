"""`vitgraft predict` with a segmenter: files that it writes, inference as in the evaluation, images of any size."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_runs import predict, write_images
from torch import nn

from vitgraft.cli import main
from vitgraft.data.label_maps import decode_labels
from vitgraft.data.segmentation_transforms import SegmentationPreprocessing
from vitgraft.models.sliding_window import infer
from vitgraft.predict import segmentation
from vitgraft.predict.load import open_model
from vitgraft.predict.segmentation import Segmenter, best_classes

RECIPE = """\
model:
  class_path: Segmentation
  init_args:
    model: vit_tiny_patch16_224
    model_kwargs: {img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, dynamic_img_size: true}
    head_channels: 8
    aux_channels: null
data:
  class_path: SegmentationData
  init_args: {batch_size: 8, workers: 0, scenes: 16, val_scenes: 2, crop_size: 64, scale: [1.0, 1.0], hflip: 0.0}
trainer: {max_epochs: 1, accelerator: cpu, devices: 1, enable_progress_bar: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("pytorch_lightning")
    folder = tmp_path_factory.mktemp("segmenter")
    (folder / "tiny.yaml").write_text(RECIPE)
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def images(tmp_path):
    folder = write_images(tmp_path / "images", {"a.png": (64, 64), "more/a.jpg": (90, 50), "b.jpg": (33, 120)})
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_everything_that_predict_writes(run, images, tmp_path, capsys):
    out = tmp_path / "out"
    files = ["--visualize", out, "--output", tmp_path / "areas.csv", "--output", tmp_path / "areas.json"]
    code, printed, err = predict(capsys, "--ckpt", run, images, *files)
    assert code == 0 and "3 images predicted by vit_tiny" in printed and "broken.jpg" in err
    rows = list(csv.DictReader((tmp_path / "areas.csv").open()))
    by_image = {}
    for row in rows:
        by_image.setdefault(row["image"].removeprefix(f"{images}/"), []).append(row)
    assert set(by_image) == {"a.png", "b.jpg", "broken.jpg", "more/a.jpg"}
    assert by_image["broken.jpg"][0]["error"] and not by_image["broken.jpg"][0]["pixels"]
    for name, width, height, stem in (("a.png", 64, 64, "a"), ("b.jpg", 33, 120, "b"), ("more/a.jpg", 90, 50, "a_2")):
        assert sum(int(row["pixels"]) for row in by_image[name]) == width * height
        assert sum(float(row["fraction"]) for row in by_image[name]) == pytest.approx(1, abs=1e-4)
        png = out / "labels" / f"{stem}.png"
        values = decode_labels(png.read_bytes(), "png")
        assert values.shape == (height, width) and Image.open(png).mode == "L"
        counts = {int(row["class"]): int(row["pixels"]) for row in by_image[name]}
        assert counts == {int(v): int((values == v).sum()) for v in np.unique(values)}
        drawn = Image.open(out / "overlays" / f"{stem}.jpg")
        assert min(drawn.size) >= 400 and drawn.width > drawn.height * width / height
    assert (out / "classes.txt").read_text().splitlines() == ["background", *map(str, range(10))]
    values = json.loads((tmp_path / "areas.json").read_text())
    assert values["kind"] == "segmentations" and values["weights"] == "raw" and len(values["images"]) == 4
    assert values["images"][0]["classes"][0]["class"] == rows[0]["name"]


def test_predict_in_the_terminal_and_wrong_requests(run, images, capsys):
    code, out, _ = predict(capsys, "--ckpt", run, images / "a.png")
    assert code == 0 and "64 x 64" in out
    for arguments, named in (
        (["--html", images / "x.html"], "--visualize DIR"),
        (["--weights", "ema"], "no averaged weights"),
        (["--stride", "32"], "--stride=32"),
        (["--scales", "0,1"], "--scales=[0.0, 1.0]"),
        (["--score", "0.5"], "--score=0.5"),
    ):
        code, _, err = predict(capsys, "--ckpt", run, images, *arguments)
        assert code == 2 and named in err
    assert predict(capsys, "--ckpt", run, images / "broken.jpg")[0] == 1


def test_as_the_evaluation_and_as_the_command_line_asks(run, images, tmp_path, capsys):
    segmenter = open_model(run)
    image = Image.open(images / "more/a.jpg")
    pixels = segmenter.preprocessing.standardize(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    (found,) = segmenter.predict([image])
    assert np.array_equal(found, infer(segmenter.model, pixels[None])[0].argmax(0))
    output = tmp_path / "a.json"
    arguments = ["--scales", "0.5,1", "--flip", "--window", 48, "--visualize", tmp_path, "--output", output]
    assert predict(capsys, "--ckpt", run, images / "more/a.jpg", *arguments)[0] == 0
    expected = infer(segmenter.model, pixels[None], 48, scales=(0.5, 1.0), flip=True)[0].argmax(0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels/a.png")), expected)
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["inference"] == {"window": 48, "stride": None, "scales": [0.5, 1.0], "flip": True}


@pytest.mark.slow
def test_two_processes_count_each_image_once(run, tmp_path):
    arguments = ["validate", "--config", str(run.parent / "tiny.yaml"), "--ckpt_path", str(run / "best.ckpt")]
    arguments += ["--data.val_scenes", "5", "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    arguments += [str(tmp_path / "two"), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "vitgraft", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for name in ("one", "two"):
        (path,) = (tmp_path / name).rglob("metrics.json")
        found.append(json.loads(path.read_text()))
    assert found[0]["metrics"]["num_images"] == 5 and found[0]["metrics"]["num_pixels"] == 5 * 64 * 64
    assert found[0]["counts"] == found[1]["counts"] and found[0]["metrics"] == found[1]["metrics"]


class Colors(nn.Module):
    """Three classes: which color is strongest, in a 5 x 5 neighborhood; no score for black."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))

    def forward(self, images):
        scores = F.avg_pool2d(images * self.unit, 5, 1, 2, count_include_pad=False)
        return torch.where(scores.sum(1, keepdim=True) > -6, scores, float("nan"))


def colors(short_side=None, **settings):
    given = SegmentationPreprocessing((32, 32), (0.5,) * 3, (0.25,) * 3, short_side, None)
    return Segmenter(Colors().eval(), given, ("red", "green", "blue"), "test").with_settings(**settings)


def smooth(width, height):
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def test_a_large_image_is_an_error_that_names_the_window(monkeypatch):
    image = smooth(500, 300)
    (whole,) = colors().predict([image])
    assert set(np.unique(whole)) == {0, 1, 2}
    monkeypatch.setattr(segmentation, "MOST_VALUES", 500 * 300 * 2)
    with pytest.raises(ValueError, match=r"500 x 300 pixels .* --window"):
        colors().predict([image])
    (found,) = colors(window=64).predict([image])  # in strips
    # the model sees nothing beyond a window's edge, so pixels within two of an edge may differ
    assert found.shape == whole.shape and (found != whole).mean() < 0.02
    with pytest.raises(ValueError, match="--scales 1 --no-flip"):
        colors(window=64, flip=True).predict([image])
    monkeypatch.setattr(segmentation, "MOST_VALUES", 2 * 500 * 300 * 3)
    (again,) = colors(window=64).predict([image])  # at once
    assert np.array_equal(found, again)


def test_a_thin_image_that_would_become_huge():
    thin = Image.new("RGB", (3000, 2), "red")
    with pytest.raises(ValueError, match=r"3000 x 2 pixels, resized to 270000 x 180.* --full-size"):
        colors(short_side=180).predict([thin])
    assert (colors(short_side=180, full_size=True).predict([thin])[0] == 0).all()
    assert colors(short_side=180).predict([Image.new("RGB", (9, 9), "red")])[0].shape == (9, 9)


def test_pixels_without_a_finite_score_have_no_class():
    image = Image.new("RGB", (40, 40), "blue")
    image.paste("black", (0, 0, 40, 20))
    black, half = colors().predict([Image.new("RGB", (8, 8)), image])
    assert black is None
    assert (half[:18] == 255).all() and (half[20:] == 2).all()


def test_classes_resized_a_few_at_a_time_are_those_resized_at_once(monkeypatch):
    scores = torch.randn(5, 13, 17, generator=torch.Generator().manual_seed(0))
    scores[:, 3] = float("nan")
    for size in ((40, 61), (13, 17), (7, 200)):
        at_once = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
        expected = torch.where(at_once.isfinite().all(0), at_once.argmax(0), 255)
        for values in (1 << 28, 2 * size[0] * size[1], 1):
            monkeypatch.setattr(segmentation, "MOST_VALUES", values)
            assert torch.equal(best_classes(scores, size).long(), expected)
