"""`vitgraft check-data`: every kind of finding, the exit codes and the formats."""

import pytest
from datasets_on_disk import check_data as check
from datasets_on_disk import image_bytes, write_folder, write_tar

from vitgraft.cli import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    write_folder(tmp_path / "set" / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "set" / "val", {"cat": 2, "dog": 2}, seed=50)
    return tmp_path / "set"


def test_a_good_set(root, capsys):
    code, report, findings = check(capsys, root)
    assert code == 0 and report["ok"] and not findings
    assert [(one["images"], one["per_class"]) for one in report["sets"]] == [
        (6, {"cat": 3, "dog": 3}),
        (4, {"cat": 2, "dog": 2}),
    ]
    assert main(["check-data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "6 images, 2 classes, 3 to 3 of each class" in out and "nothing is wrong" in out


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_files(root, capsys, workers):
    (root / "train" / "cat" / "001.jpg").write_bytes(b"")
    (root / "train" / "dog" / "002.jpg").write_bytes(image_bytes()[:-60])
    code, _, findings = check(capsys, root, "--workers", workers)
    found = findings["error", "unreadable"]
    assert code == 1 and found["message"].startswith("2 of 6 files") and found["where"].endswith("train")
    assert "cat/001.jpg: empty file" in found["items"][0] and "dog/002.jpg: " in found["items"][1]


def test_duplicates_between_splits_and_within(root, capsys):
    data = (root / "train" / "cat" / "000.jpg").read_bytes()
    (root / "val" / "dog" / "000.jpg").write_bytes(data)
    (root / "train" / "dog" / "copy.jpg").write_bytes(data)
    code, _, findings = check(capsys, root)
    assert code == 1
    between, within = findings["error", "duplicate"], findings["warning", "duplicate"]
    assert between["where"].endswith("val") and len(between["items"]) == 1
    assert "val/dog/000.jpg = " in between["items"][0] and between["items"][0].endswith("train/cat/000.jpg")
    assert within["where"].endswith("train") and "dog/copy.jpg" in within["items"][0]


def test_the_same_pixels_in_another_file_are_found(root, capsys):
    (root / "train" / "cat" / "a.png").write_bytes(image_bytes(99, format="PNG"))
    (root / "val" / "cat" / "b.bmp").write_bytes(image_bytes(99, format="BMP"))
    code, _, findings = check(capsys, root)
    assert code == 1 and len(findings["error", "duplicate"]["items"]) == 1


def test_classes_that_differ_and_empty_classes(root, capsys):
    (root / "val" / "dog").rename(root / "val" / "fox")
    (root / "train" / "eel").mkdir()
    code, _, findings = check(capsys, root)
    assert code == 1 and findings["error", "empty class"]["items"] == ["eel"]
    assert "only in" in findings["error", "classes"]["message"] and "fox" in findings["error", "classes"]["message"]


def test_a_class_that_validation_lacks_is_a_warning(root, capsys):
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    (root / "val" / "cat").rmdir()
    (root / "val" / "eel").mkdir()
    (root / "val" / "eel" / "0.png").write_bytes(image_bytes(5))
    (root / "train" / "eel").mkdir()
    (root / "train" / "eel" / "0.png").write_bytes(image_bytes(6))
    code, _, findings = check(capsys, root)
    assert code == 0 and findings["warning", "absent class"]["items"] == ["cat"]


def test_imbalance_and_odd_images_are_warnings(root, capsys):
    for number in range(8):
        (root / "train" / "cat" / f"more{number}.jpg").write_bytes(image_bytes(700 + number))
    odd = {
        "cmyk.jpg": {"mode": "CMYK"},
        "palette.png": {"mode": "P", "format": "PNG"},
        "alpha.png": {"mode": "RGBA", "format": "PNG"},
    }
    for seed, (name, options) in enumerate(odd.items()):
        (root / "val" / "cat" / name).write_bytes(image_bytes(800 + seed, **options))
    code, report, findings = check(capsys, root, "--imbalance", "3")
    assert code == 0 and set(findings) == {("warning", "imbalance"), ("warning", "mode")}
    modes = [one["message"] for one in report["findings"] if one["kind"] == "mode"]
    assert sorted(modes) == ["1 image: CMYK", "1 image: palette", "1 image: transparent (laid on white)"]
    assert "cat has 3.7 times the images of dog (11 and 3)" in findings["warning", "imbalance"]["message"]
    assert check(capsys, root, "--strict")[0] == 1


def test_tars_and_sets_that_are_not_there(root, tmp_path, capsys):
    packed = write_tar(tmp_path / "train.tar", root / "train")
    assert check(capsys, packed, root / "val")[0] == 0
    code, report, findings = check(capsys, packed, tmp_path / "nowhere")
    assert code == 1 and "no such file or folder" in findings["error", "set"]["message"] and len(report["sets"]) == 1


def test_markdown_and_wrong_requests(root, tmp_path, capsys):
    (root / "val" / "cat" / "000.jpg").write_bytes(b"")
    assert main(["check-data", str(root), "--output", str(tmp_path / "check.md")]) == 1
    text = (tmp_path / "check.md").read_text()
    assert "## error: unreadable" in text and "cat/000.jpg: empty file (0 bytes)" in text
    assert main(["check-data", str(root), "--imbalance", "0"]) == 2
    assert main(["check-data", str(root), "--output", "/nowhere/a.md"]) == 2
    assert "at least 1" in capsys.readouterr().err
