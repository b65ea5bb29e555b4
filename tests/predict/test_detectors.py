"""`vitgraft predict` with a detector: files that other tools read, drawings, the detections of the run's own model."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import predict, write_images
from torch import nn

from vitgraft.data.detection_targets import decode_mask
from vitgraft.data.detection_transforms import DetectionPreprocessing
from vitgraft.predict import run as command
from vitgraft.predict.detection import Detector
from vitgraft.predict.load import open_model


class Fixed(nn.Module):
    """A bolt in the upper left quarter, with a lower score a nut in the lower right one, and what is not finite."""

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
def detector(monkeypatch):
    """What `vitgraft predict` opens."""
    made = Detector(Fixed(), DetectionPreprocessing((32, 200)), ("nut", "bolt"), "fixed", "raw")
    monkeypatch.setattr(command, "open_model", lambda *_, **__: made)
    return made


@pytest.fixture
def photos(tmp_path):
    folder = write_images(tmp_path / "photos", {"a/one.png": (60, 40), "b/one.png": (60, 40)})
    (folder / "broken.jpg").write_bytes(b"text")
    return folder


def test_by_descending_score_and_nothing_that_is_not_finite(detector):
    (found,) = detector.predict([Image.new("RGB", (60, 40))])
    assert detector.model.seen == [(3, 32, 48)]
    assert found["labels"].tolist() == [2, 1] and found["boxes"].tolist() == [[0, 0, 30, 20], [30, 20, 60, 40]]
    assert found["masks"].shape == (2, 40, 60)


def test_files_and_drawings(detector, photos, tmp_path, capsys):
    folder = tmp_path / "drawn"
    files = ["--output", tmp_path / "out.json", "--output", tmp_path / "out.csv", "--visualize", folder]
    code, out, err = predict(capsys, "--ckpt", "RUN", photos, *files, "--score", "0.2")
    assert code == 0
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["kind"] == "detections" and values["weights"] == "raw"
    by_name = {one["image"].removeprefix(f"{photos}/"): one for one in values["images"]}
    assert "not an image" in by_name["broken.jpg"]["error"]
    one = by_name["a/one.png"]
    assert [found["class"] for found in one["objects"]] == ["bolt", "nut"] and (one["width"], one["height"]) == (60, 40)
    assert one["objects"][1]["bbox"] == [30, 20, 30, 20] and one["objects"][1]["score"] == pytest.approx(0.3)
    assert decode_mask(one["objects"][0]["segmentation"])[:20, :30].all()
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["name"] for row in rows if not row["error"]] == ["bolt", "nut"] * 2
    # files of the same name in two folders have drawings of their own
    assert {path.name for path in folder.iterdir()} == {"one.jpg", "one_2.jpg"}
    assert one["visualization"] == str(folder / "one.jpg")
    assert "2 images predicted by fixed: bolt (2), nut (2) (score 0.2 or more)" in out and "broken.jpg" in err


def test_terminal_alone_and_options_of_other_tasks(detector, photos, capsys):
    code, out, _ = predict(capsys, "--ckpt", "RUN", photos)
    assert code == 0 and "bolt (1)" in out and "nut" not in out  # below the score of 0.5
    assert predict(capsys, "--ckpt", "RUN", photos / "broken.jpg")[0] == 1
    for arguments, named in (
        (["--html", photos / "a.html"], "--visualize DIR"),
        (["--score", "2"], "--score=2"),
        (["--top", "3"], "--top=3"),
    ):
        code, _, err = predict(capsys, "--ckpt", "RUN", photos, *arguments)
        assert code == 2 and named in err


def test_the_detector_of_a_run(tmp_path):
    """A checkpoint as a run leaves it: the same detections as the model that was saved."""
    pl = pytest.importorskip("pytorch_lightning")
    from vitgraft.data.detection import DetectionData
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
    opened = open_model(tmp_path / "last.ckpt", task="detection")
    assert opened.class_names == tuple("0123456789") and opened.weights == "raw"
    assert opened.preprocessing.native and opened.preprocessing.mean == (0.1, 0.2, 0.3)
    image, objects = data.source("val").load(0)
    (found,) = opened.predict([image])
    with torch.inference_mode():
        own = task.model.eval()([data.samples("val", False)[0][0]], sizes=[objects.size])[0]
    assert len(found["boxes"]) > 0 and np.array_equal(found["boxes"], own["boxes"])
    assert np.array_equal(found["masks"], own["masks"])
