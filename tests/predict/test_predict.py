"""`vitgraft predict` with a classifier: what is written and shown, and what is reported of bad images and requests."""

import csv
import json
import re
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import NAMES, checkpoint, predict, tiny, write_images

from vitgraft.data.readers.open import open_files
from vitgraft.data.transforms import Preprocessing
from vitgraft.errors import ImageError
from vitgraft.predict.base import Prediction
from vitgraft.predict.classification import Classifier
from vitgraft.predict.load import open_model
from vitgraft.predict.run import predictions, unused_stem
from vitgraft.predict.writers import CsvWriter, HtmlWriter


@pytest.fixture
def photos(tmp_path):
    """A folder with images in two depths, a broken one and a text."""
    sizes = {"b.png": (32, 40), "a.jpg": (48, 64), "deep/er/c.png": (90, 32), "deep/d.webp": (33, 33)}
    root = write_images(tmp_path / "photos", sizes)
    (root / "deep" / "broken.png").write_bytes((root / "b.png").read_bytes()[:200])
    (root / "notes.txt").write_text("no image")
    return root


def by_hand(model: torch.nn.Module, path) -> list[float]:
    """Probabilities of one image: shorter side to 32 (bicubic), the middle 32 x 32, in the model's range."""
    from torchvision.transforms import functional as T

    image = T.center_crop(T.resize(Image.open(path).convert("RGB"), 32, T.InterpolationMode.BICUBIC), 32)
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.5
    with torch.no_grad():
        return model(pixels[None]).softmax(1)[0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_csv_and_json_are_what_the_model_computes(capsys, tmp_path, photos, workers):
    model = tiny()
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", model)
    files = ["--output", tmp_path / "p.csv", "--output", tmp_path / "p.json", "--top", 3, "--batch-size", 2]
    code, out, err = predict(capsys, "--ckpt", ckpt.parent, photos, *files, "--workers", workers)
    assert code == 0
    assert "4 images predicted by vit_tiny_patch16_224 of " in out and "best.ckpt" in out
    assert "broken.png" in err and out.count("written: ") == 2
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    content = json.loads((tmp_path / "p.json").read_text())
    expected = [photos / "a.jpg", photos / "b.png", photos / "deep/broken.png", photos / "deep/d.webp"]
    assert [row["image"] for row in rows] == [*map(str, expected), str(photos / "deep/er/c.png")]
    assert [entry["image"] for entry in content["images"]] == [row["image"] for row in rows]
    for row, entry in zip(rows, content["images"], strict=True):
        if row["image"].endswith("broken.png"):
            assert row["error"] and row["class_1"] == "" and entry["predictions"] == [] and entry["error"]
            continue
        probabilities = by_hand(model, row["image"])
        order = np.argsort(probabilities)[::-1][:3]
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [NAMES[i] for i in order]
        assert [p["index"] for p in entry["predictions"]] == order.tolist()
        for k, i in enumerate(order):
            assert float(row[f"probability_{k + 1}"]) == pytest.approx(probabilities[i], abs=1e-4)
            assert entry["predictions"][k]["probability"] == float(row[f"probability_{k + 1}"])
    assert content["kind"] == "predictions" and content["weights"] == "raw" and content["top"] == 3
    assert content["preprocessing"]["mean"] == [0.5] * 3


def test_a_tar_gives_what_its_files_give(capsys, tmp_path, photos):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, "photos")
    ckpt = checkpoint(tmp_path / "run" / "last.ckpt", tiny())
    for source, name in ((photos, "folder.csv"), (tmp_path / "photos.tar", "tar.csv")):
        assert predict(capsys, "--ckpt", ckpt, source, "--output", tmp_path / name)[0] == 0
    folder, tar = (list(csv.reader((tmp_path / name).open())) for name in ("folder.csv", "tar.csv"))
    assert [row[1:-1] for row in folder] == [row[1:-1] for row in tar]
    assert [row[0].endswith("broken.png") for row in tar].count(True) == 1


def test_a_grafted_run_in_python(tmp_path, photos):
    graft = {"levels": 1, "window_size": 2}
    model = tiny(graft=graft)
    predictor = open_model(checkpoint(tmp_path / "best.ckpt", model, graft=graft))
    paths = [photos / "b.png", photos / "a.jpg"]
    for images in (paths, [Image.open(path) for path in paths]):
        found = predictor.predict(images, batch_size=1)
        assert np.allclose([one["probabilities"] for one in found], [by_hand(model, path) for path in paths], atol=1e-5)
    assert len(predictor.predict([])) == 0
    with pytest.raises(ImageError, match=r"broken\.png"):
        predictor.predict([photos / "deep/broken.png"])


def test_bad_requests_write_nothing(capsys, tmp_path, photos):
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    for arguments, message in (
        ([photos / "none.jpg"], "no such file or folder"),
        ([photos, "--output", tmp_path / "p.txt"], "must end in .csv or .json"),
        ([photos, "--output", tmp_path / "none" / "p.csv"], "does not exist"),
        ([photos, "--html", tmp_path], "is a folder"),
        ([photos, "--weights", "ema"], "weights=raw would work"),
        ([photos, "--visualize", tmp_path / "out"], "--html"),
        ([photos, "--flip"], "--flip=True"),
        ([photos, "--full-size"], "--full-size=True"),
        ([photos, "--score", "0.5"], "--score=0.5"),
    ):
        code, _, err = predict(capsys, "--ckpt", ckpt, *arguments)
        assert code == 2 and message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]


def test_no_readable_image_is_a_failure(capsys, tmp_path, photos):
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    code, out, err = predict(capsys, "--ckpt", ckpt, photos / "deep" / "broken.png", "--html", tmp_path / "s.html")
    assert code == 1 and "0 images" in out and "broken.png" in err
    assert "broken.png" in (tmp_path / "s.html").read_text()


class Broken(torch.nn.Module):
    """Not finite for dark images; no memory for more than one."""

    def forward(self, images):
        if len(images) > 1:
            raise RuntimeError("out of memory")
        return torch.full((1, 3), float("nan") if images.mean() < 0 else 0.0)


def test_a_model_that_fails_for_some_images(tmp_path):
    for name, color in (("a.png", "white"), ("b.png", "black"), ("c.png", "white")):
        Image.new("RGB", (32, 32), color).save(tmp_path / name)
    broken = Classifier(Broken(), Preprocessing((32, 32)), ("a", "b", "c"))
    first, second, third = predictions(broken, open_files([tmp_path]), batch_size=1)
    assert first.result is not None and third.result is not None and third.error is None
    assert second.error == "the model's output is not finite" and second.result is None
    first, *_ = predictions(broken, open_files([tmp_path]), batch_size=2)
    assert "out of memory" in first.error and "--batch-size" in first.error


def classifier(names=NAMES):
    return Classifier(torch.nn.Identity(), Preprocessing((32, 32)), tuple(names))


def test_an_interrupted_file_is_not_left_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), CsvWriter(tmp_path / "p.csv", classifier()) as writer:
        writer.add(Prediction("a.jpg", 1, 1, np.ones(6) / 6))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


class Page(HTMLParser):
    """The tags of a page with their attributes, and its open tags at the end."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_has_everything_inside(capsys, tmp_path, photos):
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    arguments = ["--ckpt", ckpt, photos, "--html", tmp_path / "page.html", "--output", tmp_path / "p.csv"]
    assert predict(capsys, *arguments)[0] == 0
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not re.search(r'(src|href)="(?!data:image/jpeg;base64,|#)', text)  # nothing to be fetched
    rows = [row for row in csv.DictReader((tmp_path / "p.csv").open()) if not row["error"]]
    cards = page.all("figure")
    assert [card["title"] for card in cards] == [row["image"] for row in rows]
    assert [NAMES[int(card["data-class"])] for card in cards] == [row["class_1"] for row in rows]
    assert [float(card["data-p"]) for card in cards] == pytest.approx(
        [float(row["probability_1"]) for row in rows], 1e-3
    )
    assert len(page.all("img")) == 4 and "broken.png" in text
    options = [option["value"] for option in page.all("option")]
    assert {card["data-class"] for card in cards} <= set(options)
    code, out, _ = predict(capsys, *arguments, "--html-images", 1)
    assert code == 0 and "--html-images" in out
    assert len(Page((tmp_path / "page.html").read_text()).all("figure")) == 1


def test_the_page_is_safe_and_counts_what_it_does_not_show(tmp_path):
    evil = "</script><script>alert(1)</script>"
    with HtmlWriter(tmp_path / "s.html", classifier((evil, "b")), most=1) as writer:
        for _ in range(8):
            writer.add(Prediction(evil, 1, 1, np.array([0.9, 0.1])))
        writer.add(Prediction(evil, error=evil))
    text = (tmp_path / "s.html").read_text()
    assert evil not in text
    assert "8 images" in text and "first 1 " in text
    assert Page(text).open == []


def test_table_in_the_terminal(capsys, tmp_path, photos):
    pytest.importorskip("rich")
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    broken = photos / "deep" / "broken.png"
    code, out, _ = predict(capsys, "--ckpt", ckpt, photos / "a.jpg", broken, "--top", 2)
    (row,) = [line for line in out.splitlines() if "a.jpg" in line]
    assert code == 0 and row.count("%") == 2 and "48 x 64" in row
    assert "broken.png" in out


def test_no_two_files_of_one_name():
    """Endings and folders differ, a name may look like a numbered one, and some systems take A and a for one name."""
    used: set[str] = set()
    images = ["x/a.jpg", "x/a.png", "x/a_2.jpg", "y/a.jpg", "x/A.jpg", "b.tif"]
    assert [unused_stem(name, used) for name in images] == ["a", "a_2", "a_2_2", "a_3", "A_4", "b"]
