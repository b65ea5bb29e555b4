"""Every format gives the same images, names and labels; errors name what is wrong with a set."""

import gzip
import io
import os
import pickle
import sys
import tarfile
import types

import numpy as np
import pytest
from datasets_on_disk import add_bytes, image_bytes, write_folder, write_tar

from vitgraft.data.readers.base import Names, check_same_classes
from vitgraft.data.readers.open import open_files, open_source
from vitgraft.errors import DataError, ImageError

COUNTS = {"cat": 3, "dog": 2, "eel": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(source):
    return [(source.read(i), int(source.labels[i])) for i in range(len(source))]


def expected(folder):
    source = open_source(folder)
    assert source.class_names == ("cat", "dog", "eel") and source.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    return contents(source)


def test_folder(tmp_path):
    root = write_folder(tmp_path / "set" / "train", COUNTS)
    (root / "cat" / "deeper").mkdir()
    (root / "cat" / "000.jpg").rename(root / "cat" / "deeper" / "a.PNG")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._001.jpg").write_text("macOS")
    (root / ".hidden").mkdir()
    source = open_source(tmp_path / "set", "train")
    assert len(source) == 9 and source.name(2) == str(root / "cat" / "deeper" / "a.PNG")
    os.unlink(root / "dog" / "000.jpg")
    with pytest.raises(ImageError, match=r"dog/000\.jpg: No such file"):
        source.read(3)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
)
@pytest.mark.parametrize("prefix", ["", "./", "set/"])
def test_tar_is_the_folder(tmp_path, name, mode, prefix, cache):
    folder = write_folder(tmp_path / "images", COUNTS)
    source = open_source(write_tar(tmp_path / name, folder, mode, prefix))
    assert contents(source) == expected(folder) and source.class_names == ("cat", "dog", "eel")
    assert source.name(0).endswith(f"{name}/{prefix.removeprefix('./')}cat/000.jpg")
    assert contents(pickle.loads(pickle.dumps(source))) == expected(folder)
    assert len(list(cache.glob("*.tar"))) == (name != "a.tar")


def test_compressed_tar_is_unpacked_once_for_each_state(tmp_path, cache, caplog):
    path = write_tar(tmp_path / "train.tar.gz", write_folder(tmp_path / "images", COUNTS), "w:gz")
    for _ in range(2):
        open_source(tmp_path, "train")
    assert caplog.text.count("unpacking it once") == 1
    write_folder(tmp_path / "more", {"cat": 1})
    write_tar(path, tmp_path / "more", "w:gz")
    assert len(open_source(tmp_path, "train")) == 1


def test_splits_inside_one_tar(tmp_path):
    folder = tmp_path / "all"
    write_folder(folder / "set" / "train", COUNTS)
    write_folder(folder / "set" / "val", {"cat": 1, "dog": 1})
    path = write_tar(tmp_path / "all.tar", folder)
    assert len(open_source(path, "train")) == 9 and len(open_source(path, "val")) == 2
    with pytest.raises(DataError, match="no folder 'test' in it; there is train, val"):
        open_source(path, "test")


def test_large_tars_keep_their_index(tmp_path, cache, monkeypatch):
    folder = write_folder(tmp_path / "images", COUNTS)
    path = write_tar(tmp_path / "a.tar", folder)
    monkeypatch.setattr("vitgraft.data.readers.tar.KEEP_INDEX_FROM", 0)
    first = contents(open_source(path))
    monkeypatch.setattr("vitgraft.data.readers.tar.scan_tar", None)
    assert contents(open_source(path)) == first == expected(folder)


@pytest.mark.parametrize("damage", ["cut", "no tar", "no images", "flat", "gz cut"])
def test_broken_tars(tmp_path, damage, cache):
    path = write_tar(tmp_path / "a.tar", write_folder(tmp_path / "images", COUNTS))
    data, message = path.read_bytes(), "not a readable tar"
    if damage == "cut":
        data, message = data[: len(data) // 2], "cut short|unexpected end"
    elif damage == "no tar":
        data = b"something else" * 100
    elif damage in ("no images", "flat"):
        with tarfile.open(path, "w") as tar:
            add_bytes(tar, "a.txt" if damage == "no images" else "a.jpg", b"x")
        data, message = path.read_bytes(), "no images in it" if damage == "no images" else "outside of class folders"
    elif damage == "gz cut":
        path, data, message = tmp_path / "a.tar.gz", gzip.compress(data)[:-2000], "broken or cut short"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_source(path)
    assert not cache.exists() or not list(cache.iterdir())  # nothing half-written


def test_empty_class_folder(tmp_path):
    write_folder(tmp_path, COUNTS)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "readme.txt").write_text("no image")
    with pytest.raises(DataError, match=r"1 of 4 class folders hold no image: fox\. Remove them"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("root", "split", "format", "message"),
    [
        ("nowhere", None, None, "no such file or folder"),
        ("", None, None, "no class folders"),
        ("", "train", None, "no split 'train' .*train.tar.gz.*; the folder is empty"),
        ("", None, "zip", "format='zip': one of folder, tar"),
        ("a-{0..2}.tar", None, None, r"3 of 3 shards are not there: .*a-0\.tar"),
        ("a-{2..0}.tar", None, None, "counts down"),
    ],
)
def test_nothing_there(tmp_path, root, split, format, message):
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / root), split, format)


def test_class_sets_that_differ(tmp_path):
    one = open_source(write_folder(tmp_path / "train", {"cat": 1, "dog": 1, "eel": 1}))
    other = open_source(write_folder(tmp_path / "val", {"cat": 1, "dog": 1, "fox": 1}))
    check_same_classes(one, one)
    with pytest.raises(DataError, match=r"different classes \(3 and 3\): only in .*train: eel; only in .*val: fox"):
        check_same_classes(one, other)
    other.class_names = ("dog", "cat", "eel")
    with pytest.raises(DataError, match="in another order"):
        check_same_classes(one, other)


def test_files_to_predict(tmp_path):
    folder = write_folder(tmp_path / "images", COUNTS)
    single = tmp_path / "single.bmp"
    single.write_bytes(image_bytes(format="BMP"))
    source = open_files([str(single), folder])
    assert len(source) == 10 and source.name(0) == str(single) and source.labels.tolist() == [-1] * 10
    assert source.name(1) == str(folder / "cat" / "000.jpg") and source.read(1)
    assert len(open_files([write_tar(tmp_path / "a.tar", folder)])) == 9
    for paths, message in (([tmp_path / "no"], "no such file"), ([tmp_path / "empty"], "no image found")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            open_files(paths)


def test_names_of_any_kind():
    names = ["a", "", "ü/日本.jpg", os.fsdecode(b"not utf-8 \xff")]
    assert [Names(names)[i] for i in range(4)] == names


def imagenet(folder, truth=(3, 1, 2, 3), ids=None):
    """Four flat validation images and the devkit's two files, with 3 classes and one group above them."""
    from scipy.io import savemat

    ids = ids or {1: "n03", 2: "n01", 3: "n02", 4: "n00group"}
    folder.mkdir(exist_ok=True)
    for number in range(1, 5):
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(image_bytes(number))
    data = folder.parent / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")]
    rows = np.array([(number, name, float(number == 4)) for number, name in ids.items()], dtype=kinds)
    savemat(data / "meta.mat", {"synsets": rows[:, None]})
    return data


def test_imagenets_flat_validation_set(tmp_path):
    data = imagenet(tmp_path / "val")
    source = open_source(tmp_path, "val")
    assert source.class_names == ("n01", "n02", "n03")  # the labels everybody uses count these
    assert source.labels.tolist() == [1, 2, 0, 1] and source.read(2) == image_bytes(3)
    packed = write_tar(tmp_path / "ILSVRC2012_img_val.tar", tmp_path / "val")
    assert open_source(packed, format="imagenet-val").labels.tolist() == [1, 2, 0, 1]
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(data, "ILSVRC2012_devkit_t12/data")
    meta = (data / "meta.mat").rename(tmp_path / "elsewhere.mat")
    assert open_source(tmp_path, "val").labels.tolist() == [1, 2, 0, 1]
    os.unlink(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    with pytest.raises(DataError, match=r"counts classes in the devkit's order, and meta\.mat"):
        open_source(tmp_path, "val")
    meta.rename(data / "meta.mat")
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n")
    with pytest.raises(DataError, match=r"val_00000004\.JPEG is not among the 3 images"):
        open_source(tmp_path, "val")
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n9\n")
    with pytest.raises(DataError, match="class 9 is not in meta"):
        open_source(tmp_path, "val")
    os.unlink(data / "ILSVRC2012_validation_ground_truth.txt")
    with pytest.raises(DataError, match="classes of the flat validation images are missing"):
        open_source(tmp_path, "val")
    rows = ["ImageId,PredictionString"]
    rows += [f"ILSVRC2012_val_{n:08},{wnid} 1 2 3 4" for n, wnid in ((1, "n02"), (2, "n03"), (3, "n01"), (4, "n02"))]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    assert open_source(tmp_path, "val").labels.tolist() == [1, 2, 0, 1]


def test_hugging_face_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        open_source("hf:some/set", "train")


class Rows:
    """A stand-in for `datasets.Dataset`."""

    def __init__(self, package, rows):
        self.rows = rows
        self.features = {"image": package.Image(), "label": package.ClassLabel()}

    def with_format(self, _):
        return {"label": np.array([label for _, label in self.rows])}

    def select_columns(self, _):
        return self

    def cast_column(self, *_):
        return self

    def __getitem__(self, index):
        return {"image": self.rows[index][0]}


def test_hugging_face_through_a_stand_in(monkeypatch, tmp_path):
    package = types.ModuleType("datasets")
    package.Image = type("Image", (), {"__init__": lambda self, decode=True: None})
    package.ClassLabel = type("ClassLabel", (), {"names": ["cat", "dog"]})
    (tmp_path / "b.jpg").write_bytes(b"b")
    images = [{"bytes": b"a", "path": None}, {"bytes": None, "path": str(tmp_path / "b.jpg")}, None]
    rows = Rows(package, [(image, i % 2) for i, image in enumerate(images)])
    package.load_dataset = lambda name, configuration: {"train": rows, "validation": rows}
    monkeypatch.setitem(sys.modules, "datasets", package)
    source = open_source("hf:some/set", "val")
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1, 0]
    assert [source.read(0), source.read(1)] == [b"a", b"b"]
    with pytest.raises(ImageError, match=r"hf:some/set\[validation\]\[2\]: the row has no image"):
        source.read(2)
    with pytest.raises(DataError, match="no split 'test'; there is train, validation"):
        open_source("hf:some/set", "test")
    rows.features["second"] = package.Image()
    with pytest.raises(DataError, match="one image column, there are 2"):
        open_source("hf:some/set", "val")


def test_hugging_face_itself(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": image_bytes(i), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set", "val")
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 1, 1, 0]
    assert source.read(2) == image_bytes(2)
    assert io.BytesIO(pickle.loads(pickle.dumps(source)).read(3)).getvalue() == image_bytes(3)
