"""`vitgraft predict` with a detector: files that other tools read, pictures that show what was found."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitgraft.cli import main
from vitgraft.data.detection_targets import decode_mask
from vitgraft.data.detection_transforms import DetectionPreprocessing
from vitgraft.predict import detection as command
from vitgraft.predict.detection import Detector, detect
from vitgraft.predict.draw_boxes import draw_detections


class Fixed(nn.Module):
    """Finds a bolt in the upper left quarter and, less surely, a nut in the lower right one, and what is not finite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, images, sizes):
        self.seen += [tuple(image.shape) for image in images]
        found = []
        for height, width in sizes:
            boxes = torch.tensor([[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 1, 1], [0, float("nan"), 1, 1]])
            masks = torch.zeros(4, height, width, dtype=torch.bool)
            masks[0, height // 2 :, width // 2 :] = True
            masks[1, : height // 2, : width // 2] = True
            scores = torch.tensor([0.3, 0.9, float("nan"), 0.8])
            scaled = boxes * torch.tensor([width, height] * 2)
            found.append({"boxes": scaled, "scores": scores, "labels": torch.tensor([1, 2, 1, 1]), "masks": masks})
        return found


@pytest.fixture
def detector():
    return Detector(Fixed(), DetectionPreprocessing((32, 200)), ("nut", "bolt"), "fixed", "raw")


@pytest.fixture
def photos(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        Image.new("RGB", (60, 40), "green").save(tmp_path / "photos" / folder / "one.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"text")
    return tmp_path / "photos"


def test_the_surest_first_and_nothing_that_is_not_finite(detector):
    found = detect(detector, Image.new("RGB", (60, 40)))
    assert detector.model.seen == [(3, 32, 48)]
    assert found["labels"].tolist() == [2, 1] and found["boxes"].tolist() == [[0, 0, 30, 20], [30, 20, 60, 40]]
    assert found["masks"].shape == (2, 40, 60)


def test_files_and_pictures(detector, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_detector", lambda what, weights: detector)
    monkeypatch.setattr("vitgraft.predict.run.task_of_run", lambda what: "Detection")
    out, pictures = tmp_path / "out.json", tmp_path / "pictures"
    words = ["predict", "--ckpt", "RUN", str(photos), "--output", str(out), "--output", str(tmp_path / "out.csv")]
    assert main([*words, "--pictures", str(pictures), "--score", "0.2"]) == 0
    values = json.loads(out.read_text())
    assert values["kind"] == "detections" and values["weights"] == "raw"
    by_name = {one["image"].removeprefix(f"{photos}/"): one for one in values["images"]}
    assert "not an image" in by_name["broken.jpg"]["error"]
    one = by_name["a/one.png"]
    assert [found["class"] for found in one["objects"]] == ["bolt", "nut"] and (one["width"], one["height"]) == (60, 40)
    assert one["objects"][1]["bbox"] == [30, 20, 30, 20] and one["objects"][1]["score"] == pytest.approx(0.3)
    assert decode_mask(one["objects"][0]["segmentation"])[:20, :30].all()
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["name"] for row in rows if not row["error"]] == ["bolt", "nut"] * 2
    # files of the same name in two folders have pictures of their own
    assert {path.name for path in pictures.iterdir()} == {"one.jpg", "one_2.jpg"}
    printed = capsys.readouterr()
    assert "2 images predicted by fixed, with a score of 0.2 or more: bolt (2), nut (2)" in printed.out
    assert "broken.jpg" in printed.err


def test_terminal_alone_and_options_of_other_tasks(detector, photos, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_detector", lambda what, weights: detector)
    monkeypatch.setattr("vitgraft.predict.run.task_of_run", lambda what: "Detection")
    assert main(["predict", "--ckpt", "RUN", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert "bolt (1)" in printed and "nut" not in printed  # below the score of 0.5
    assert main(["predict", "--ckpt", "RUN", str(photos / "broken.jpg")]) == 1
    assert main(["predict", "--ckpt", "RUN", str(photos), "--html", str(photos / "a.html")]) == 2
    assert "--pictures DIR draws" in capsys.readouterr().err
    assert main(["predict", "--ckpt", "RUN", str(photos), "--score", "2"]) == 2


def test_the_detector_of_a_run(tmp_path):
    """A checkpoint as a run leaves it: the same detections as the model that was saved."""
    pl = pytest.importorskip("pytorch_lightning")
    from vitgraft.data.detection import DetectionData
    from vitgraft.predict.detection import open_detector
    from vitgraft.tasks.detection import Detection
    from vitgraft.training.callbacks.checkpoint import Checkpoints

    vit = {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    heads = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "mask_convs": 1, "proposals": [40, 40]}
    heads["score_threshold"] = 0.0
    task = Detection("vit_tiny_patch16_224", model_kwargs=vit, detector=heads, warmup_steps=1)
    data = DetectionData(scenes=2, val_scenes=2, scene_size=64, batch_size=2, workers=0, mean=(0.1, 0.2, 0.3))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Checkpoints()],
        default_root_dir=tmp_path,
    )
    trainer.fit(task, datamodule=data)
    opened = open_detector(str(tmp_path / "last.ckpt"))
    assert opened.class_names == tuple("0123456789") and opened.weights == "raw"
    assert opened.preprocessing.native and opened.preprocessing.mean == (0.1, 0.2, 0.3)
    image, objects = data.source("val").load(0)
    found = detect(opened, image)
    with torch.inference_mode():
        own = task.model.eval()([data.samples("val", False)[0][0]], sizes=[objects.size])[0]
    assert len(found["boxes"]) > 0 and torch.equal(torch.from_numpy(found["boxes"]), own["boxes"])
    assert torch.equal(torch.from_numpy(found["masks"]), own["masks"])


def test_what_a_picture_shows():
    image = Image.new("RGB", (100, 80), "black")
    masks = np.zeros((2, 80, 100), dtype=bool)
    masks[0, 20:60, 10:40] = True
    boxes = np.array([[10, 20, 40, 60], [60, 20, 90, 60]])
    picture = draw_detections(image, boxes, [1, 2], ["nut", "bolt"], [0.9, 0.8], masks)
    assert min(picture.width, picture.height) >= 640  # enlarged, with a strip below
    pixels = np.asarray(picture).astype(int)
    assert pixels[8 * 40, 8 * 25].sum() > 100  # inside the mask
    assert pixels[8 * 40, 8 * 75].sum() == 0  # a box without a mask is empty
    assert pixels[8 * 40, 8 * 60 : 8 * 60 + 3].sum() > 100  # its frame
    assert pixels[645:, :].max() == 255 and (pixels[645:] < 100).any()  # a white strip with letters
    empty = draw_detections(image, np.zeros((0, 4)), [], ["nut"], [])
    assert np.asarray(empty)[:640].max() == 0 and (np.asarray(empty)[645:] < 100).any()
    many = np.tile([[0, 0, 5, 5]], (1000, 1))
    assert draw_detections(image, many, [1] * 1000, ["nut"], [0.5] * 1000).size == picture.size
