"""Tables of files and labels, as Kaggle and others give them, and each fault named before a run."""

import sys

import pytest
from datasets_on_disk import check_data
from exports import write_image, write_table

from vitgraft.data.classification import ImageData
from vitgraft.data.readers.open import open_source
from vitgraft.errors import DataError, MissingExtraError

ROWS = [(f"{name}.jpg", "cat" if number % 2 else "dog") for number, name in enumerate("abcdefgh")]


def images(folder, names="abcdefgh", seed=0):
    for name in names:
        write_image(folder / f"{name}.jpg", ord(name) + seed, (32, 32))
    return folder


def content(source):
    return {source.name(n).rpartition("/")[2]: source.class_names[source.labels[n]] for n in range(len(source))}


def opened(root, split="train", **options):
    return ImageData(str(root), **options).source(split)


@pytest.fixture
def pair(tmp_path):
    """train.csv and val.csv beside train/ and val/; val lacks no class, but train has one more."""
    root = tmp_path / "set"
    images(root / "train"), images(root / "val", "xyz")
    write_table(root / "train.csv", [*ROWS[:-1], ("h.jpg", "eel")])
    write_table(root / "val.csv", [("x.jpg", "cat"), ("y.jpg", "dog"), ("z.jpg", "cat")])
    return root


def test_a_table_for_each_split(pair, capsys):
    data = ImageData(str(pair))
    train, val = data.source("train"), data.source("val")
    assert content(train) == dict([*ROWS[:-1], ("h.jpg", "eel")])
    assert content(val) == {"x.jpg": "cat", "y.jpg": "dog", "z.jpg": "cat"}
    assert train.class_names == val.class_names == ("cat", "dog", "eel")
    assert data.passed_over() == ""
    _, report, findings = check_data(capsys, pair)
    assert [one["images"] for one in report["sets"]] == [8, 3] and ("warning", "passed over") not in findings
    for words in ({"train": "train.csv", "val": "val.csv"}, {"train": str(pair / "train.csv")}):
        assert content(opened(pair, **words)) == content(train)


@pytest.mark.parametrize(
    ("header", "rows", "options"),
    [
        (("id", "breed"), [(name[:-4], label) for name, label in ROWS], {}),  # dog breeds: ids without an ending
        (("image_id", "label"), ROWS, {}),  # cassava
        (("Image", "Id"), ROWS, {}),  # whales
        (None, ROWS, {}),
        (("label", "path"), [(label, f"train_images/{name}") for name, label in ROWS], {}),
        (("file", "width", "class"), [(f"/content/me/{name}", 32, label) for name, label in ROWS], {}),
        (("file", "a", "b"), [(name, 7, label) for name, label in ROWS], {"label_column": "b"}),
        (("a", "b"), ROWS, {"file_column": "a", "label_column": "b"}),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns(tmp_path, header, rows, options, delimiter):
    root = tmp_path / "set"
    images(root / "train_images")
    write_table(root / "train.csv", rows, header, delimiter)
    write_table(root / "sample_submission.csv", [("x.jpg", "cat")])
    source = opened(root, **options)
    assert content(source) == dict(ROWS) and source.class_names == ("cat", "dog")


def test_a_column_of_splits(tmp_path, capsys):
    images(tmp_path / "set" / "images")
    rows = [(*row, "valid" if number < 3 else "train") for number, row in enumerate(ROWS)]
    write_table(tmp_path / "set" / "labels.csv", rows, ("file", "label", "split"))
    data = ImageData(str(tmp_path / "set"))
    assert content(data.source("train")) == dict(ROWS[3:]) and content(data.source("val")) == dict(ROWS[:3])
    code, report, findings = check_data(capsys, tmp_path / "set")
    assert code == 0 and [one["images"] for one in report["sets"]] == [5, 3] and not findings


def test_a_table_without_splits_is_split(tmp_path, capsys):
    images(tmp_path / "set" / "images")
    write_table(tmp_path / "set" / "labels.csv", ROWS)
    with pytest.raises(DataError, match=r"no split 'val'.*data\.val_fraction=0\.1 holds"):
        opened(tmp_path / "set", "val")
    data = ImageData(str(tmp_path / "set"), val_fraction=0.25)
    parts = [content(data.source(split)) for split in ("train", "val")]
    assert parts[0] | parts[1] == dict(ROWS) and sorted(parts[1].values()) == ["cat", "dog"]
    assert check_data(capsys, tmp_path / "set")[:1] == (0,)


def test_numbers_as_labels(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "train.csv", [(name, 10 if number % 2 else 2) for number, (name, _) in enumerate(ROWS)])
    assert opened(tmp_path).class_names == ("2", "10")
    write_table(tmp_path / "train.csv", [(name, number % 2) for number, (name, _) in enumerate(ROWS)])
    assert content(opened(tmp_path, class_names=["dog", "cat"])) == dict(ROWS)
    with pytest.raises(DataError, match=r"none of the 1 data\.class_names: 1"):
        opened(tmp_path, class_names=["dog"])


FAULTS = {
    "missing": ([*ROWS, ("nowhere.jpg", "cat")], r"1 of 9 rows name no file.*in image.*line 10 'nowhere.jpg'\. Copy"),
    "twice": ([*ROWS, ("a.jpg", "dog")], r"1 image is in several rows: line 2 'a.jpg' 'dog', line 10.*Keep one row"),
    "labels": ([*ROWS, ("a.jpg", "cat")], r"in several rows, 1 of them with different labels \(an image has one label"),
    "empty": ([*ROWS[1:], ("a.jpg", " ")], r"1 row has no label: line 9 'a.jpg'"),
    "short": ([*ROWS[1:], ("a.jpg",)], r"1 row has not the 2 columns of the heading, the first is line 9"),
    "none": (
        [("nowhere.jpg", "cat")],
        "no column names images that are there .image, label; the first row is 'nowhere",
    ),
    "no rows": ([], "no rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault, capsys):
    rows, words = FAULTS[fault]
    images(tmp_path / "set" / "train")
    write_table(tmp_path / "set" / "train.csv", rows)
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "set")
    code, _, findings = check_data(capsys, tmp_path / "set")
    assert code == 1 and findings["error", "set"]


def test_columns_that_are_not_plain(tmp_path):
    images(tmp_path)
    write_table(tmp_path / "train.csv", [(name, label, 5) for name, label in ROWS], ("file", "kind", "age"))
    with pytest.raises(DataError, match=r"which column is the label\? Set data.label_column; there is kind, age"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"data\.label_column='kinds': there is file, kind, age"):
        opened(tmp_path, label_column="kinds")
    assert content(opened(tmp_path, label_column="kind")) == dict(ROWS)


def test_class_folders_beside_a_table(tmp_path, capsys):
    for name, label in ROWS:
        write_image(tmp_path / label / name, ord(name[0]), (32, 32))
    write_table(tmp_path / "labels.csv", [("x", 1)], ("a", "b"))
    assert content(opened(tmp_path, val_fraction=0.25)).items() <= dict(ROWS).items()
    write_table(tmp_path / "labels.csv", ROWS)
    with pytest.raises(
        DataError, match=r"class folders \(cat, dog\), and a table that names images \(labels.csv\): set"
    ):
        opened(tmp_path, val_fraction=0.25)
    assert check_data(capsys, tmp_path)[0] == 1
    for name in ("folder", "table"):
        assert content(opened(tmp_path, val_fraction=0.25, format=name)).items() <= dict(ROWS).items()


def test_parquet_needs_an_extra(tmp_path, monkeypatch):
    images(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed.*vitgraft\[parquet\]"):
        open_source(tmp_path, "train")
    monkeypatch.undo()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"image": [name for name, _ in ROWS], "label": [label for _, label in ROWS]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    assert content(open_source(tmp_path, "train")) == dict(ROWS)
