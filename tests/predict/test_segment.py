"""`vitgraft predict` with a segmenter: files that it writes, images of any size, and the limit of memory."""

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
from torch import nn

from vitgraft.cli import main
from vitgraft.data.label_maps import decode_labels
from vitgraft.data.segmentation_transforms import SegmentationPreprocessing
from vitgraft.models.sliding_window import infer
from vitgraft.predict.segmentation import LiveBytes, Segmenter, classes_at_size, open_segmenter, peak_bytes, segment

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
    folder = tmp_path_factory.mktemp("segmenter")
    (folder / "tiny.yaml").write_text(RECIPE)
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (64, 64)), ("more/a.jpg", (90, 50)), ("b.jpg", (33, 120))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_everything_that_predict_writes(run, images, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["predict", "--ckpt", run, images, "--pictures", out]
    for name in ("areas.csv", "areas.json"):
        words += ["--output", tmp_path / name]
    assert main(list(map(str, words))) == 0
    shown = capsys.readouterr()
    assert "3 images segmented by vit_tiny" in shown.out and "broken.jpg" in shown.err
    rows = list(csv.DictReader((tmp_path / "areas.csv").open()))
    by_image = {}
    for row in rows:
        by_image.setdefault(row["image"].removeprefix(f"{images}/"), []).append(row)
    assert set(by_image) == {"a.png", "b.jpg", "broken.jpg", "more/a.jpg"}
    assert by_image["broken.jpg"][0]["error"] and not by_image["broken.jpg"][0]["pixels"]
    for name, width, height, stem in (("a.png", 64, 64, "a"), ("b.jpg", 33, 120, "b"), ("more/a.jpg", 90, 50, "a_2")):
        assert sum(int(row["pixels"]) for row in by_image[name]) == width * height
        assert sum(float(row["share"]) for row in by_image[name]) == pytest.approx(1, abs=1e-4)
        png = out / "labels" / f"{stem}.png"
        values = decode_labels(png.read_bytes(), "png")
        assert values.shape == (height, width) and Image.open(png).mode == "L"
        counts = {int(row["class"]): int(row["pixels"]) for row in by_image[name]}
        assert counts == {int(v): int((values == v).sum()) for v in np.unique(values)}
        drawn = Image.open(out / "overlays" / f"{stem}.jpg")
        assert drawn.height >= 320 and drawn.width > drawn.height * width / height
    assert (out / "classes.txt").read_text().splitlines() == ["background", *map(str, range(10))]
    values = json.loads((tmp_path / "areas.json").read_text())
    assert values["kind"] == "segmentations" and values["weights"] == "raw" and len(values["images"]) == 4
    assert values["images"][0]["classes"][0]["class"] == rows[0]["name"]


def test_predict_in_the_terminal_and_wrong_requests(run, images, capsys):
    assert main(["predict", "--ckpt", str(run), str(images / "a.png")]) == 0
    assert "64 x 64" in capsys.readouterr().out
    assert main(["predict", "--ckpt", str(run), str(images), "--html", str(images / "x.html")]) == 2
    assert main(["predict", "--ckpt", str(run), str(images), "--memory", "0"]) == 2
    assert main(["predict", "--ckpt", str(run), str(images), "--weights", "ema"]) == 2
    assert main(["predict", "--ckpt", "vit_tiny_patch16_224:pretrained=false", str(images), "--pictures", "x"]) == 2
    assert main(["predict", "--ckpt", "vit_tiny_patch16_224:pretrained=false", str(images), "--flip"]) == 2
    assert main(["predict", "--ckpt", str(run), str(images), "--stride", "32"]) == 2
    assert main(["predict", "--ckpt", str(run), str(images), "--scales", "0,1"]) == 2
    error = capsys.readouterr().err
    for words in (
        "--pictures DIR writes overlays",
        "--memory 0",
        "no averaged weights",
        "--pictures is for",
        "--flip is for",
        "--stride=32",
        "--scales=[0.0, 1.0]",
    ):
        assert words in error
    assert main(["predict", "--ckpt", str(run), str(images / "broken.jpg")]) == 1


def test_scales_and_flips_of_the_command_line(run, images, tmp_path, capsys):
    segmenter = open_segmenter(str(run))
    image = Image.open(images / "a.png")
    pixels = segmenter.preprocessing.standardize(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    expected = infer(segmenter.model, pixels[None], scales=(0.5, 1.0), flip=True)[0].argmax(0).numpy()
    picture(304, 400).save(images / "large.png")
    words = [
        "predict",
        "--ckpt",
        str(run),
        str(images / "a.png"),
        str(images / "large.png"),
        "--scales",
        "0.5,1",
        "--flip",
    ]
    words += ["--pictures", str(tmp_path / "out"), "--output", str(tmp_path / "a.json"), "--memory"]
    assert main([*words, "4"]) == 0 and "larger than" not in capsys.readouterr().out
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/labels/a.png")), expected)
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["inference"] == {"window": None, "stride": None, "scales": [0.5, 1.0], "flip": True}
    assert all("inference" not in one for one in values["images"])
    # more than the windows take, less than the image: said, and written beside the image that it is true of
    limit = 0.9 * segmenter.needed(segmenter.inner_size(Image.open(images / "large.png"))) / 1e9
    assert main([*words, f"{limit:.9f}"]) == 0
    assert "1 image larger than --memory" in (shown := capsys.readouterr().out), shown
    assert "in windows of 64 pixels, at scale 1 only, without flips" in shown
    smaller, larger = json.loads((tmp_path / "a.json").read_text())["images"]
    assert "inference" not in smaller
    assert larger["inference"] == {"window": 64, "stride": None, "scales": [1.0], "flip": False}


@pytest.mark.slow
def test_two_processes_count_each_image_once(run, tmp_path):
    words = ["validate", "--config", str(run.parent / "tiny.yaml"), "--ckpt_path", str(run / "best.ckpt")]
    words += ["--data.val_scenes", "5", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    words += [str(tmp_path / "two"), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "vitgraft", *words],
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


def test_predict_says_what_the_task_says(run):
    segmenter = open_segmenter(str(run))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 96, 3), dtype=np.uint8))
    pixels = segmenter.preprocessing.standardize(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    expected = infer(segmenter.model, pixels[None])[0].argmax(0)
    assert np.array_equal(segment(segmenter, image), expected.numpy())


class Colours(nn.Module):
    """Three classes: which colour is strongest, in a 5 x 5 neighbourhood."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return F.avg_pool2d(images * self.unit, 5, 1, 2, count_include_pad=False)


def colours(window=None, size=(32, 32)):
    given = SegmentationPreprocessing(size, (0.5,) * 3, (0.25,) * 3, None, None)
    how = {"window": window, "stride": None, "scales": (1.0,), "flip": False}
    return Segmenter(Colours().eval(), given, ("red", "green", "blue"), "test", "raw", how)


def picture(height, width):
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def test_parts_within_a_limit_are_the_whole_image():
    image = picture(300, 500)
    segmenter = colours()
    whole = segment(segmenter, image)
    assert set(np.unique(whole)) == {0, 1, 2}
    least = segmenter.bytes_of_window + 64 * (64 * 48 + 64 * 24)
    for limit in (2e6, 1.01 * least):
        assert limit < 300 * 500 * 48
        found = segment(segmenter, image, limit)
        # the model sees zeros beyond a window's edge, so pixels within two of an edge may differ
        assert found.shape == whole.shape and (found != whole).mean() < 0.02
    with pytest.raises(ValueError, match="windows of 32 pixels need"):
        segment(segmenter, image, 0.5 * least)


def test_the_limit_of_memory_is_kept():
    segmenter, image = colours(), picture(608, 800)
    limit = 3e6

    class Watched(Colours):
        largest = 0

        def forward(self, images):
            Watched.largest = max(Watched.largest, images.shape[2] * images.shape[3])
            return super().forward(images)

    whole = 608 * 800 * 3 * 4
    watched = Segmenter(Watched().eval(), *(getattr(segmenter, name) for name in list(vars(segmenter))[1:6]))
    with LiveBytes() as live:
        segment(watched, image, limit)
    assert Watched.largest == 32 * 32
    # the image as bytes and the result are not counted in the limit
    assert live.peak < limit + 608 * 800 * 4 and live.peak < whole


def test_resized_in_bands_is_resized_at_once():
    scores = torch.randn(5, 13, 17, generator=torch.Generator().manual_seed(0))
    for size in ((40, 61), (13, 17), (7, 200)):
        at_once = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
        banded = classes_at_size(scores, size, limit=4 * 4 * 5 * 200 * 3)
        assert (banded != at_once.numpy()).mean() < 0.001
    scores[:, 3] = float("nan")
    assert (classes_at_size(scores, (13, 17))[3] == 255).all()


def test_live_bytes_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    # input of the model is not its own; 8 maps before and 8 behind the ReLU are alive together
    assert peak_bytes(model, torch.zeros(1, 3, 20, 20)) == 2 * 8 * 400 * 4


def test_a_thin_image_that_would_become_huge_is_an_error_of_its_own():
    base = colours()
    given = SegmentationPreprocessing((32, 32), short_side=180, long_side=None)
    thin = Segmenter(base.model, given, *(getattr(base, name) for name in list(vars(base))[2:6]))
    with pytest.raises(ValueError, match="3000 x 2 pixels would become 270000 x 180"):
        segment(thin, Image.new("RGB", (3000, 2)))
    assert segment(thin, Image.new("RGB", (9, 9))).shape == (9, 9)
