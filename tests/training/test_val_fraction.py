"""A validation part that `data.val_fraction` holds out: seeded, stratified, written down, and the same for every
command that belongs to the run."""

import json
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
from conftest import RECIPE
from exports import labelimg_yolo, write_image, write_table

from vitgraft.data.classification import ImageData
from vitgraft.data.detection import DetectionData
from vitgraft.data.segmentation import SegmentationData
from vitgraft.data.split import hold_out
from vitgraft.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Class folders without splits: 12 cats, 8 dogs, 4 eels."""
    for label, (name, count) in enumerate((("cat", 12), ("dog", 8), ("eel", 4))):
        for number in range(count):
            write_image(tmp_path / "set" / name / f"{number}.png", 100 * label + number, (32, 32))
    return tmp_path / "set"


def packed(path, folder):
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return path


def names(data, split):
    source = data.source(split)
    return {source.name(n) for n in range(len(source))}


def test_seeded_and_stratified(root):
    data = ImageData(str(root), val_fraction=0.25)
    train, val = data.source("train"), data.source("val")
    assert np.bincount(train.labels).tolist() == [9, 6, 3] and np.bincount(val.labels).tolist() == [3, 2, 1]
    assert not names(data, "train") & names(data, "val") and names(data, "test") == names(data, "val")
    assert names(ImageData(str(root), val_fraction=0.25), "val") == names(data, "val")
    assert names(ImageData(str(root), val_fraction=0.25, seed=1), "val") != names(data, "val")
    assert train.load(0).size == val.load(0).size == (32, 32)
    assert train.fingerprint() != val.fingerprint() and train.fingerprint()["images"] == 18


def test_the_choice_does_not_depend_on_the_order_and_keeps_one_of_each():
    files = [f"{n}.jpg" for n in range(100)]
    strata = [n % 7 for n in range(99)] + ["once"]  # 15 of class 0, 14 of the others
    held = hold_out(files, strata, 0.1, 0)
    order = np.random.default_rng(0).permutation(100)
    again = hold_out([files[n] for n in order], [strata[n] for n in order], 0.1, 0)
    assert (held[order] == again).all()
    assert Counter(strata[n] for n in np.flatnonzero(held)) == {0: 2, **dict.fromkeys(range(1, 7), 1)}
    assert hold_out(["a", "b"], [0, 0], 0.01, 0).sum() == hold_out(["a", "b"], [0, 0], 0.99, 0).sum() == 1


def test_objects_are_split_by_their_rarest_class(tmp_path):
    data = DetectionData(str(labelimg_yolo(tmp_path)), val_fraction=0.4)
    for split in ("train", "val"):
        assert all(data.source(split).per_class.values()), split


def test_what_is_refused(root, class_folders, tmp_path):
    with pytest.raises(DataError, match=r"val_fraction=0.2: there is a validation split already, 'val': leave"):
        ImageData(str(class_folders), val_fraction=0.2).source("train")
    broken = tmp_path / "broken"
    for split in ("train", "val"):
        write_image(broken / split / "cat" / "a.png")
    (broken / "val" / "dog").mkdir()  # a class without images, which is no reason to leave the split out
    with pytest.raises(DataError, match="there is a validation split already"):
        ImageData(str(broken), val_fraction=0.2).source("train")
    with pytest.raises(DataError, match=r"no split 'train'.*data\.val_fraction=0\.1"):
        ImageData(str(root)).source("train")
    with pytest.raises(ValueError, match=r"val_fraction=1\.5"):
        ImageData(str(root), val_fraction=1.5)
    write_image(tmp_path / "few" / "train" / "cat" / "a.png")
    write_image(tmp_path / "few" / "train" / "dog" / "b.png")
    with pytest.raises(DataError, match="nothing is left of 2 images for one part"):
        ImageData(str(tmp_path / "few"), val_fraction=0.5).source("train")


def test_a_run_writes_it_down_and_all_its_commands_see_it(root, tmp_path, run_command):
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    words = ["--config", recipe, "--data.root", root, "--out", out, "--seed_everything", 3, "--data.val_fraction", 0.25]
    code, text, err = run_command("fit", *words, "--checkpoints.every_n_steps", 1)
    assert code == 0, text + err
    record = json.loads((out / "split.json").read_text())
    assert (record["val_fraction"], record["seed"], record["train_images"]) == (0.25, 3, 18)
    val = names(ImageData(str(root), val_fraction=0.25, seed=3), "val")
    assert {str(root / name) for name in record["val"]} == val
    write_image(root / "cat" / "later.png", 7)  # goes to training, whatever its hash
    for command in ("validate", "test"):  # of seed 0, at another place, without naming the fraction
        moved = shutil.copytree(root, tmp_path / command)
        code, text, err = run_command(command, "--ckpt_path", out / "best.ckpt", "--data.root", moved)
        assert code == 0, text + err
        written = json.loads((out / command / "metrics.json").read_text())
        assert written["metrics"]["num_samples"] == 6, written
    assert "data.test is not set: this measures the validation set, the fraction 0.25" in text
    code, _, err = run_command("validate", "--ckpt_path", out, "--data.root", root, "--data.val_fraction", 0.5)
    assert code == 2 and "the run held out 0.25" in err
    other = tmp_path / "other"
    for name in ("cat", "dog", "eel"):
        write_image(other / name / "x.png"), write_image(other / name / "y.png")
    code, _, err = run_command("validate", "--ckpt_path", out, "--data.root", other)
    assert code == 2 and "has none of the 6 validation images of the run" in err and "data.val_fraction=null" in err
    code, _, err = run_command("fit", *words[:-1], 0.5, "--resume")
    assert code == 2 and "data.val_fraction: 0.25 then, 0.5 now" in err
    code, _, err = run_command("fit", *words, "--resume")
    assert code == 2 and "train: 18 images then, 19 now" in err
    (root / "cat" / "later.png").unlink()
    code, text, err = run_command("fit", *words, "--resume")
    assert code == 0 and "already finished" in text + err
    assert json.loads((out / "split.json").read_text()) == record
    (out / "split.json").write_text("{")
    code, _, err = run_command("validate", "--ckpt_path", out, "--data.root", root)
    assert code == 2 and "the record of the run's validation images can't be read" in err


@pytest.mark.parametrize("kind", ["tar", "tables", "pairs"])
def test_other_places_of_the_images(root, tmp_path, kind):
    if kind == "tar":
        data = ImageData(str(packed(tmp_path / "set.tar", root)), val_fraction=0.25)
    elif kind == "tables":
        rows = [(str(path.relative_to(root)), path.parent.name) for path in sorted(root.rglob("*.png"))]
        write_table(root / "train.csv", rows)
        data = ImageData(str(root), val_fraction=0.25, format="table")
    else:
        folders = [str(root / "cat"), str(root / "cat")]
        data = SegmentationData(train=folders, label_values={0: "a"}, val_fraction=0.25)
    sizes = [len(data.source(split)) for split in ("train", "val")]
    assert sizes == ([9, 3] if kind == "pairs" else [18, 6]) and not names(data, "train") & names(data, "val")
