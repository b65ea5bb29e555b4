"""`fit` and `check-data` open the same files of a dataset and name what they pass over; names that exporters write are
understood where that is safe; each hint is followed, and leads out."""

import json
import shutil
from urllib.parse import quote

import numpy as np
import pytest
from conftest import shared
from PIL import Image
from test_learnable import check, classes, coco, fit, maps, messages, packed, picture  # noqa: F401 fixtures

pytestmark = pytest.mark.filterwarnings("ignore")
JSON = "annotations/instances_train.json"


def voc(root, masks=False):
    for number in range(4):
        picture(root / "JPEGImages" / f"{number}.jpg", number)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{number}.xml").write_text("<annotation/>")
        if masks:
            (root / "SegmentationClass").mkdir(exist_ok=True)
            labels = np.tile(np.repeat(np.array([0, 1], np.uint8), 24), (40, 1))
            Image.fromarray(labels).save(root / "SegmentationClass" / f"{number}.png")
    return root


# what another task reads, or nothing


@pytest.mark.parametrize("task", ["images", "detection", "segmentation"])
def test_pascal_voc_without_sizes(fit, check, tmp_path, task):  # noqa: F811
    root = voc(tmp_path / "voc")
    more = ["--data.num_classes", 2] if task == "segmentation" else ["--data.val_fraction", 0.5]
    code, text = fit(task, root, *more)
    words = "Annotations: Pascal VOC's layout, which DetectionData reads"
    assert code == 2 and ("4 XML files have no <size>" if task == "detection" else words) in text, text
    code, findings = check(root)
    assert code == 1 and any("4 XML files have no <size>" in message for message in messages(findings))


def test_pascal_voc_with_masks_is_read_as_label_maps(fit, check, tmp_path):  # noqa: F811
    root = voc(tmp_path / "voc", masks=True)
    code, findings = check(root, "--num-classes", 2, "--reduce-zero-label", "false")
    *warnings, splits = messages(findings, "warning")
    assert (
        code == 0
        and "name both folders" in splits
        and warnings
        == [
            "checked as semantic, passed over: voc; --data-format names another",
            "found 4 XML files: not read (DetectionData reads boxes in Pascal VOC's and YOLO's layouts)",
        ]
    )
    code, text = fit("segmentation", root, "--data.num_classes", 2)
    hint = "data.train=[JPEGImages,SegmentationClass]"
    assert code == 2 and hint in text, text
    words = [f"--{hint}", "--data.val=[JPEGImages,SegmentationClass]", "--data.num_classes", 2]
    code, text = fit("segmentation", root, *words)
    assert code == 0 and "found 4 XML files: not read (DetectionData reads boxes in Pascal VOC's" in text, text


def test_images_with_a_csv(fit, check, tmp_path):  # noqa: F811
    for number in range(4):
        picture(tmp_path / "set" / "train" / f"{number}.png", number)
    (tmp_path / "set" / "train.csv").write_text("image,label\n0.png,cat\n")
    code, text = fit("images", tmp_path / "set")
    assert code == 2 and "train.csv: no split 'val'" in text and "data.val_fraction=0.1" in text
    code, findings = check(tmp_path / "set")
    assert code == 1 and "only class 'cat' has images" in "".join(messages(findings))
    root = classes(tmp_path / "folders", {"cat": 4, "dog": 4})
    shutil.copy(tmp_path / "set" / "train.csv", root / "train.csv")
    code, text = fit("images", root)
    assert code == 0 and "found train.csv in the root: not read" in text
    code, findings = check(root)
    assert code == 0 and messages(findings, "warning") == ["found train.csv in the root: not read"]


def test_text_files_of_yolo_without_names(fit, check, tmp_path):  # noqa: F811
    for split in ("train", "val"):
        for number in range(4):
            picture(tmp_path / "set" / "images" / split / f"{number}.png", number + 9 * (split == "val"))
            label = tmp_path / "set" / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.4 0.4\n")
    words = "the names of YOLO's classes are unknown: put data.yaml"
    code, text = fit("detection", tmp_path / "set")
    assert code == 2 and words in text, text
    code, findings = check(tmp_path / "set")
    assert code == 1 and any(words in message for message in messages(findings))
    (tmp_path / "set" / "classes.txt").write_text("cat\n")
    code, text = fit("detection", tmp_path / "set")
    assert code == 0 and "not read" not in text, text
    assert check(tmp_path / "set") == (0, [])
    for path in (tmp_path / "set" / "labels").rglob("*.txt"):
        path.write_text("")
    words = "the list annotations is empty. annotate objects in some of the images"
    code, text = fit("detection", tmp_path / "set")
    assert code == 2 and words in text, text
    assert words in " ".join(messages(check(tmp_path / "set")[1]))


def test_all_kinds_at_once(fit, check, tmp_path):  # noqa: F811
    root = maps(tmp_path / "set")
    (root / "result.json").write_text("[]")
    (root / "xml").mkdir()
    for number in range(364):
        (root / "xml" / f"{number}.xml").write_text("<annotation/>")
    words = "found result.json in the root and 364 XML files: not read"
    code, text = fit("segmentation", root)
    assert code == 0 and words in text, text
    code, findings = check(root, "--reduce-zero-label", "false")
    assert code == 0 and [message.partition(" (")[0] for message in messages(findings, "warning")] == [words]


# layouts that are read


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("names", [("Train", "Valid"), ("training", "validation"), ("TRAIN", "Val")])
def test_names_of_splits_of_class_folders(fit, check, tmp_path, names, kind):  # noqa: F811
    root = classes(tmp_path / "set", {"cat": 4, "dog": 4})
    for old, new in zip(("train", "val"), names, strict=True):
        (root / old).rename(root / new)
    place = packed(root) if kind == "tar" else root
    code, text = fit("images", place)
    assert code == 0, text
    if kind == "folder":
        code, findings = check(place)
        assert (code, findings) == (0, [])


def test_names_of_splits_of_coco_and_label_maps(fit, check, tmp_path):  # noqa: F811
    root = coco(tmp_path / "roboflow")
    for split, name in (("train", "train"), ("val", "valid")):
        (root / f"annotations/instances_{split}.json").rename(root / split / "_annotations.coco.json")
        (root / split).rename(root / name)
    code, text = fit("detection", root)
    assert code == 0, text
    assert check(root) == (0, [])
    root = coco(tmp_path / "folder")
    (root / "val").rename(root / "Valid")
    assert fit("detection", root)[0] == 0 and check(root) == (0, [])
    root = maps(tmp_path / "maps")
    for kind in ("images", "annotations"):
        (root / kind / "training").rename(root / kind / "Train")
        (root / kind / "validation").rename(root / kind / "val")
    code, text = fit("segmentation", root)
    assert code == 0, text
    assert check(root, "--reduce-zero-label", "false") == (0, [])


@pytest.mark.parametrize("around", [True, False])
def test_images_beside_masks(fit, check, tmp_path, around):  # noqa: F811
    """With splits around or in the folders they are read as they lie; class folders they are not."""
    made, root = maps(tmp_path / "made"), tmp_path / "set"
    for split, name in (("training", "train"), ("validation", "val")):
        for old, new in (("images", "images"), ("annotations", "masks")):
            target = root / name / new if around else root / new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(made / old / split, target)
    shutil.copy(made / "classes.txt", root)
    code, text = fit("segmentation", root)
    assert code == 0, text
    assert check(root, "--reduce-zero-label", "false") == (0, [])
    code, text = fit("images", root)
    assert code == 2 and "SegmentationData" in text


def test_images_beside_masks_without_splits(fit, check, tmp_path):  # noqa: F811
    made, root = maps(tmp_path / "made"), tmp_path / "set"
    shutil.copytree(made / "images" / "training", root / "images")
    shutil.copytree(made / "annotations" / "training", root / "masks")
    shutil.copy(made / "classes.txt", root)
    code, text = fit("segmentation", root)
    assert code == 2 and "name both folders: data.train=[images,masks], and data.val likewise" in text, text
    assert fit("segmentation", root, "--data.train=[images,masks]", "--data.val=[images,masks]")[0] == 0
    code, findings = check(root, "--reduce-zero-label", "false")
    assert code == 0 and [kind for _, kind, _ in findings] == ["splits"]
    assert "name both folders" in messages(findings, "warning")[0]
    (root / "masks" / "0.png").write_bytes(b"")
    assert check(root, "--reduce-zero-label", "false")[0] == 1  # the masks are opened


@pytest.mark.parametrize("case", ["labelstudio", "labelstudio_win"])
def test_a_json_in_the_root(fit, check, case):  # noqa: F811
    root = shared("cases", case)
    code, text = fit("detection", root)
    assert code == 2 and "name the json: data.train=result.json, and data.val likewise" in text
    code, text = fit("detection", root, "--data.train", "result.json", "--data.val", "result.json")
    assert code == 0, text
    code, findings = check(root)
    kinds = {"splits", *(["reinterpreted"] if case.endswith("win") else [])}
    assert code == 0 and {kind for _, kind, _ in findings} == kinds
    assert all(message in text for _, kind, message in findings if kind != "splits")
    code, text = fit("images", root)
    assert code == 2 and "result.json: COCO's layout, which DetectionData reads" in text


# names of files


NAMES = {
    "backslashes": lambda name: f"sub\\{name}",
    "quoted": lambda name: quote(f"sub/{name}"),
    "windows": lambda name: f"C:\\Users\\me\\set\\train\\sub\\{name}",
    "absolute": lambda name: f"/home/me/set/train/sub/{name}",
    "url": lambda name: f"https://host/bucket/sub/{quote(name)}?token=1",
    "local": lambda name: f"file:///data/sub/{quote(name)}",
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("exporter", NAMES)
def test_names_that_exporters_write(fit, check, tmp_path, exporter, kind):  # noqa: F811
    def change(values):
        for one in values["images"]:
            one["file_name"] = NAMES[exporter](f"a {one['file_name']}")

    root = coco(tmp_path / "set", change=change)
    (root / "train" / "sub").mkdir()
    for path in sorted((root / "train").glob("*.png")):
        path.rename(root / "train" / "sub" / f"a {path.name}")
    place = packed(root) if kind == "tar" else root
    code, text = fit("detection", place)
    assert code == 0 and "4 file names (backslashes, URLs, paths of another machine) are read as files" in text, text
    code, findings = check(place)
    assert code == 0 and [kind for _, kind, _ in findings] == ["reinterpreted"]


def test_an_absolute_path_needs_a_file_of_its_own_in_the_dataset(fit, check, tmp_path):  # noqa: F811
    """Two images are never taken from one file, and none from outside, even if it is there."""
    outside = tmp_path / "outside"

    def change(values):
        for number, one in enumerate(values["images"]):
            one["file_name"] = f"/a{number}/same.png"

    root = coco(tmp_path / "twice", change=change)
    picture(root / "train" / "same.png")
    code, text = fit("detection", root)
    assert code == 2 and "4 of 4 image files are missing" in text, text
    assert check(root)[0] == 1

    def lead_out(values):
        for one in values["images"]:
            picture(outside / one["file_name"])
            one["file_name"] = str(outside / f"x{one['file_name']}")

    root = coco(tmp_path / "out", change=lead_out)
    code, text = fit("detection", root)
    assert code == 2 and "name their folder" in text, text
    assert check(root)[0] == 1


def test_the_folder_that_a_message_asks_for(fit, check, tmp_path):  # noqa: F811
    root = coco(tmp_path / "set")
    (root / "train").rename(root / "elsewhere")
    code, text = fit("detection", root)
    assert code == 2 and "name their folder" in text and "data.train_images" in text
    assert fit("detection", root, "--data.train_images", "elsewhere")[0] == 0
    code, findings = check(root)
    assert code == 1 and any("name their folder" in message for message in messages(findings))


def test_a_json_that_is_named_wrong_names_the_ones_there(fit, tmp_path):  # noqa: F811
    root = coco(tmp_path / "set")
    code, text = fit("detection", root, "--data.train", "training2")
    assert code == 2 and f"name the json: data.train={JSON}" in text, text
    assert fit("detection", root, f"--data.train={JSON}")[0] == 0
    assert json.loads((root / JSON).read_text())["images"]


@pytest.mark.parametrize("task", ["images", "detection", "segmentation"])
def test_a_folder_with_nothing_but_a_tar(fit, check, tmp_path, task):  # noqa: F811
    make = {"images": lambda root: classes(root, {"cat": 4, "dog": 4}), "detection": coco, "segmentation": maps}[task]
    folder = tmp_path / "download"
    folder.mkdir()
    tar = packed(make(tmp_path / "set")).rename(folder / "set.tar")
    hint = f"found set.tar: give {tar} instead of its folder"
    more = ["--data.reduce_zero_label", "false"] if task == "segmentation" else []
    code, text = fit(task, folder, *more)
    assert code == 2 and text.count(hint) == 1, text
    code, findings = check(folder)
    assert code == 1 and hint in messages(findings, "warning")
    code, text = fit(task, tar, *more)
    assert code == 0, text


def test_a_folder_with_nothing_but_a_zip(fit, tmp_path):  # noqa: F811
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "set.zip").write_bytes(b"PK")
    code, text = fit("images", tmp_path / "download")
    assert code == 2 and "found set.zip: unpack it" in text, text
