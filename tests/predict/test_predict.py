"""`vitgraft predict`: every kind of model and of input, what is written, and what is said of bad ones."""

import csv
import json
import re
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vitgraft
from vitgraft.cli import main
from vitgraft.data.readers.open import open_files
from vitgraft.data.transforms import Preprocessing
from vitgraft.predict.classification import predict
from vitgraft.predict.contact_sheet import write_contact_sheet
from vitgraft.predict.load import Classifier, open_classifier
from vitgraft.predict.writers import Prediction, writer_for

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
GRAFT = {"levels": 1, "window_size": 2}
NAMES = ["cat", "dog", "eel", "fox, red", "<gnu>", "hen"]


def tiny(seed: int = 0, graft: dict | None = None) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=6, **KWARGS)
    model = vitgraft.graft(model, **graft) if graft else model
    torch.nn.init.normal_(model.head.weight)  # random features alone make no difference between images
    return model.eval()


@pytest.fixture
def photos(tmp_path):
    """A folder with images in two depths, a broken one and a text."""
    generator = np.random.default_rng(0)
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    for name, size in (
        ("b.png", (40, 32)),
        ("a.jpg", (64, 48)),
        ("deep/er/c.png", (32, 90)),
        ("deep/d.webp", (33, 33)),
    ):
        pixels = generator.integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "deep" / "broken.png").write_bytes((root / "b.png").read_bytes()[:200])
    (root / "notes.txt").write_text("no image")
    return root


def checkpoint(path, model, ema=None, prefix="", **more):
    options = {"model": "vit_tiny_patch16_224", "num_classes": 6, "model_kwargs": KWARGS, "class_names": NAMES}
    options["data_config"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    content = {
        "task": "vitgraft.tasks.classification.Classification",
        "hyper_parameters": {**options, **more},
        "state_dict": {prefix + name: value for name, value in model.state_dict().items()},
    }
    if ema is not None:
        content["state_dict_ema"] = ema.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def by_hand(model: torch.nn.Module, path, mean: float = 0.5) -> list[float]:
    """Probabilities of one image: shorter side to 32 (bicubic), the middle 32 x 32, in the model's range."""
    from torchvision.transforms import functional as T

    image = T.center_crop(T.resize(Image.open(path).convert("RGB"), 32, T.InterpolationMode.BICUBIC), 32)
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / 0.5
    with torch.no_grad():
        return model(pixels[None]).softmax(1)[0].tolist()


def run(capsys, *words):
    code = main(["predict", *map(str, words)])
    return code, *capsys.readouterr()


def test_csv_and_json_say_what_the_model_computes(capsys, tmp_path, photos):
    model = tiny()
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", model)
    files = ["--output", tmp_path / "p.csv", "--output", tmp_path / "p.json", "--top", 3, "--batch-size", 2]
    code, out, err = run(capsys, "--ckpt", ckpt.parent, photos, *files)
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
    assert content["weights"] == "raw" and content["preprocessing"]["mean"] == [0.5] * 3


def test_a_tar_gives_what_its_files_give(capsys, tmp_path, photos):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, "photos")
    ckpt = checkpoint(tmp_path / "run" / "last.ckpt", tiny())
    for source, name in ((photos, "folder.csv"), (tmp_path / "photos.tar", "tar.csv")):
        assert run(capsys, "--ckpt", ckpt, source, "--output", tmp_path / name)[0] == 0
    folder, tar = (list(csv.reader((tmp_path / name).open())) for name in ("folder.csv", "tar.csv"))
    assert [row[1:-1] for row in folder] == [row[1:-1] for row in tar]
    assert [row[0].endswith("broken.png") for row in tar].count(True) == 1


def test_which_weights(tmp_path):
    raw, averaged = tiny(0), tiny(1)
    path = checkpoint(tmp_path / "best.ckpt", raw, averaged)
    for weights, model, name in (("raw", raw, "raw"), ("ema", averaged, "ema"), (None, averaged, "ema")):
        found = open_classifier(str(path), weights)
        assert found.weights == name
        assert torch.equal(found.model.head.weight, model.head.weight)
        assert not found.model.training
    path = checkpoint(tmp_path / "only_raw.ckpt", raw, prefix="model.")
    assert torch.equal(open_classifier(str(path)).model.head.weight, raw.head.weight)
    with pytest.raises(vitgraft.errors.CheckpointError, match="kept no averaged weights"):
        open_classifier(str(path), "ema")


def test_best_comes_before_last(tmp_path):
    checkpoint(tmp_path / "last.ckpt", tiny(0))
    checkpoint(tmp_path / "best.ckpt", tiny(1))
    assert torch.equal(open_classifier(str(tmp_path)).model.head.weight, tiny(1).head.weight)


def test_a_grafted_run(tmp_path, photos):
    model = tiny(graft=GRAFT)
    path = checkpoint(tmp_path / "best.ckpt", model, graft=GRAFT)
    (one,) = predict(open_classifier(str(path)), open_files([photos / "b.png"]), top=6)
    probabilities = by_hand(model, photos / "b.png")
    assert one.probabilities == pytest.approx(sorted(probabilities, reverse=True), abs=1e-5)


def test_an_export_in_hub_format(tmp_path, photos):
    from timm.models import save_for_hf

    model = timm.create_model("vit_tiny_patch16_224", num_classes=6, **KWARGS)
    model.eval()
    config = {"label_names": NAMES, "input_size": [3, 32, 32]}
    save_for_hf(model, tmp_path / "export", model_config={**config}, model_args=KWARGS, safe_serialization=True)
    for what in (str(tmp_path / "export"), f"local-dir:{tmp_path / 'export'}"):
        found = open_classifier(what)
        assert found.class_names == tuple(NAMES)
        assert torch.equal(found.model.head.weight, model.head.weight)


def test_a_model_by_name_with_its_file(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found = open_classifier(f"vit_tiny_patch16_224:checkpoint_path={tmp_path / 'weights.pth'}")
    assert torch.equal(found.model.head.weight, model.head.weight)
    assert found.class_names[0].startswith("tench") and len(found.class_names) == 1000
    assert found.preprocessing.input_size == (224, 224) and found.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "what, message",
    [
        ("graft_deit_tiny_patch16_224", "no published weights"),
        ("deit_tny_patch16_224", "close names: deit_tiny_patch16_224"),
        ("runs/nothing.ckpt", "no such file or folder"),
        ("local-dir:nothing", "no such file or folder"),
        ("deit_tiny_patch16_224:checkpoint_path=none.pth", "no such file"),
        ("{tmp}/empty", "neither a run"),
        ("{tmp}/runs", "there are checkpoints in {tmp}/runs/one, {tmp}/runs/two: name one"),
        ("{tmp}/zero.ckpt", "is empty"),
        ("{tmp}/other.ckpt", "not a checkpoint of a vitgraft run"),
        ("{tmp}/weights.pth", "MODELNAME:checkpoint_path="),
        ("{tmp}/misfit.ckpt", "do not fit the model"),
    ],
)
def test_models_that_can_not_be_had(capsys, tmp_path, photos, what, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.ckpt").touch()
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    torch.save({}, tmp_path / "weights.pth")
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "best.ckpt").touch()
    checkpoint(tmp_path / "misfit.ckpt", tiny(), num_classes=7)
    code, _, err = run(capsys, "--ckpt", what.format(tmp=tmp_path), photos, "--output", tmp_path / "p.csv")
    assert code == 2 and message.format(tmp=tmp_path) in err
    assert not (tmp_path / "p.csv").exists()


def test_bad_requests_write_nothing(capsys, tmp_path, photos):
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    for words, message in (
        ([photos / "none.jpg"], "no such file or folder"),
        ([photos, "--output", tmp_path / "p.txt"], "must end in .csv or .json"),
        ([photos, "--output", tmp_path / "none" / "p.csv"], "does not exist"),
        ([photos, "--html", tmp_path], "is a folder"),
        ([photos, "--weights", "ema"], "raw would work"),
    ):
        code, _, err = run(capsys, "--ckpt", ckpt, *words)
        assert code == 2 and message.format(tmp=tmp_path) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]


def test_no_readable_image_is_a_failure(capsys, tmp_path, photos):
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    code, out, err = run(capsys, "--ckpt", ckpt, photos / "deep" / "broken.png", "--html", tmp_path / "s.html")
    assert code == 1 and "0 images" in out and "broken.png" in err
    assert "broken.png" in (tmp_path / "s.html").read_text()


def test_outputs_that_are_no_numbers(photos):
    class Broken(torch.nn.Module):
        def forward(self, images):
            return torch.full((len(images), 3), float("nan"))

    broken = Classifier(Broken(), Preprocessing((32, 32)), ("a", "b", "c"), "broken", "raw")
    (one,) = predict(broken, open_files([photos / "a.jpg"]))
    assert one.error == "the model's output is not finite" and one.classes == ()


def test_an_interrupted_file_is_not_left_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer_for(tmp_path / "p.csv", NAMES, 1, {}) as writer:
        writer.add(Prediction("a.jpg", (0,), (1.0,)))
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


def test_contact_sheet_has_everything_inside(capsys, tmp_path, photos):
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    code, *_ = run(capsys, "--ckpt", ckpt, photos, "--html", tmp_path / "sheet.html", "--output", tmp_path / "p.csv")
    assert code == 0
    text = (tmp_path / "sheet.html").read_text()
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


def test_contact_sheet_is_safe_and_says_what_is_missing(tmp_path):
    evil = "</script><script>alert(1)</script>"
    names = (evil, "b")
    write_contact_sheet(
        tmp_path / "s.html", [Prediction(evil, (0, 1), (0.9, 0.1)), Prediction(evil, error=evil)], names, {}, left_out=7
    )
    text = (tmp_path / "s.html").read_text()
    assert evil not in text
    assert "8 images in 1 classes" in text and "only the first 1 are shown" in text
    assert Page(text).open == []


def test_table_in_the_terminal(capsys, tmp_path, photos):
    pytest.importorskip("rich")
    ckpt = checkpoint(tmp_path / "run" / "best.ckpt", tiny())
    code, out, _ = run(capsys, "--ckpt", ckpt, photos / "a.jpg", photos / "deep" / "broken.png", "--top", 2)
    assert code == 0 and "a.jpg" in out and "not read" in out and "%" in out


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "vitgraft predict --ckpt runs/NAME photos/" in out and "--html" in out
