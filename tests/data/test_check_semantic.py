"""`vitgraft check-data` on label maps: everything that is wrong, at once."""

import numpy as np
import pytest
from conftest import shared
from datasets_on_disk import SIZE, blocks, image_bytes, label_bytes, write_pairs, write_tar
from datasets_on_disk import check_data as check

from vitgraft.cli import main


def test_a_good_set_as_folder_and_tar(tmp_path, capsys):
    root = write_pairs(tmp_path / "set")
    for place in (root, write_tar(tmp_path / "set.tar", root)):
        code, report, findings = check(capsys, place, "--reduce-zero-label", "true")
        assert code == 0 and not findings
        assert [one["images"] for one in report["sets"]] == [3, 2]
        assert report["sets"][0]["per_class"] == {"cat": 960, "dog": 960, "eel": 960}
    assert main(["check-data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "reduce_zero_label is not set: inferred as true" in out
    assert "33.3 to 33.3 % of the pixels of each class" in out


@pytest.mark.parametrize("workers", [1, 2])
def test_all_faults_at_once(tmp_path, capsys, workers):
    root = write_pairs(tmp_path / "set", {"training": 9, "validation": 2})
    labels, images = root / "annotations" / "training", root / "images" / "training"
    (labels / "0.png").write_bytes(label_bytes(blocks(0, size=(20, 32))))
    (labels / "1.png").write_bytes(image_bytes(0, SIZE, "PNG"))
    (labels / "2.png").write_bytes(label_bytes(np.full((32, 40), 255, np.uint8)))
    (labels / "3.png").write_bytes(label_bytes(blocks(0, (1, 77))))
    (labels / "4.png").unlink()
    (labels / "extra.png").write_bytes(label_bytes(blocks(0)))
    (labels / "5.png").write_bytes(b"")
    (images / "6.jpg").write_bytes(image_bytes(6)[:-80])
    (root / "images" / "validation" / "0.jpg").write_bytes((images / "7.jpg").read_bytes())
    code, _, findings = check(capsys, root, "--reduce-zero-label", "true", "--workers", workers)
    assert code == 1
    assert set(findings) == {
        ("error", "missing"),
        ("warning", "missing"),
        ("error", "unreadable"),
        ("error", "size"),
        ("error", "colors"),
        ("error", "values"),
        ("warning", "ignored"),
        ("error", "duplicate"),
    }
    items = {key: one["items"] for key, one in findings.items()}
    assert "4.jpg: no " in items["error", "missing"][0] and "extra.png" in items["warning", "missing"][0]
    assert len(items["error", "unreadable"]) == 2 and "5.png: empty file" in items["error", "unreadable"][0]
    assert "0.png: labels of 20 x 32 pixels for an image of 40 x 32" in items["error", "size"][0]
    assert "1.png: a label file in RGB" in items["error", "colors"][0]
    assert "3.png: 77 (640 pixels)" in items["error", "values"][0]
    assert items["warning", "ignored"][0].endswith("2.png")


def test_labels_without_images(tmp_path, capsys):
    root = write_pairs(tmp_path / "set", {"training": 3, "validation": 2})
    (root / "images" / "training").rename(tmp_path / "elsewhere")
    code, _, findings = check(capsys, root, "--reduce-zero-label", "true")
    assert code == 1 and "training" in str(findings["error", "set"])


def test_ignored_only_sets_and_wrong_numberings(tmp_path, capsys):
    root = write_pairs(tmp_path / "a", {"training": 2}, values=(255, 255))
    code, _, findings = check(capsys, root)
    assert code == 1 and "not one pixel of a class" in findings["error", "ignored"]["message"]
    root = write_pairs(tmp_path / "b", {"training": 2})
    code, _, findings = check(capsys, root, "--reduce-zero-label", "false")
    assert code == 1 and "0 to 2 are the 3 classes" in findings["error", "values"]["message"]
    root = write_pairs(tmp_path / "c", {"training": 2}, values=(0, 1), names=None)
    code, report, findings = check(capsys, root)
    assert code == 1 and report["sets"][0]["per_class"] == {"0": 1280, "1": 1280}
    assert "inferred here as 2, by the largest value (1)" in findings["error", "classes"]["message"]
    code, _, findings = check(capsys, root, "--num-classes", "4", "--reduce-zero-label", "false")
    assert code == 0 and findings["warning", "empty class"]["items"] == ["2", "3"]


def test_options_that_can_not_be(tmp_path, capsys):
    code, _, findings = check(capsys, tmp_path / "nowhere", "--data-format", "semantic")
    assert code == 1 and "no such file or folder" in findings["error", "set"]["message"]
    assert main(["check-data", str(write_pairs(tmp_path / "set")), "--ignore-index", "2"]) == 2
    assert "--ignore-index=2 is the value of a class" in capsys.readouterr().err


@pytest.mark.slow
def test_camvid_is_sound(capsys):
    code, report, findings = check(capsys, shared("data", "camvid", "camvid.tar"), "--reduce-zero-label", "true")
    assert code == 0 and [one["images"] for one in report["sets"]] == [367, 101]
    assert not [key for key in findings if key[0] == "error"]
