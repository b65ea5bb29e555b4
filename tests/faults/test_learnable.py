"""A run proves before its first step that there is something to learn, and `check-data` finds the same in the same
words: each set through both, with the exit code, and what is named."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from conftest import RECIPE, shared
from PIL import Image

from vitgraft.data.learnable import REASONS

pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = "{img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, dynamic_img_size: true}"
DETECTION = f"""\
model:
  class_path: Detection
  init_args:
    model: vit_tiny_patch16_224
    model_kwargs: {MODEL}
    detector: {{fpn_channels: 16, box_channels: 32, mask_channels: 16, mask_convs: 1, proposals: [20, 20]}}
data: {{class_path: DetectionData, init_args: {{workers: 0, batch_size: 2, short_side: 32, max_size: 64}}}}
trainer: {{max_epochs: 1, accelerator: cpu, devices: 1, enable_progress_bar: false, num_sanity_val_steps: 0}}
"""
SEGMENTATION = f"""\
model:
  class_path: Segmentation
  init_args: {{model: vit_tiny_patch16_224, model_kwargs: {MODEL}, head_channels: 16}}
data:
  class_path: SegmentationData
  init_args: {{workers: 0, batch_size: 2, crop_size: 32, reduce_zero_label: false}}
trainer: {{max_epochs: 1, accelerator: cpu, devices: 1, enable_progress_bar: false, num_sanity_val_steps: 0}}
"""
RECIPES = {"detection": DETECTION, "segmentation": SEGMENTATION, "images": RECIPE}


@pytest.fixture
def fit(run_command, tmp_path):
    """Runs `vitgraft fit` of a task on a root; the exit code, and stdout and stderr as one text."""

    def run(task, root, *more, command="fit"):
        recipe = tmp_path / f"{task}.yaml"
        recipe.write_text(RECIPES[task])
        out = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        words = ["--config", recipe, "--data.root", root, "--out", out, "--trainer.limit_train_batches", 1]
        code, stdout, stderr = run_command(command, *words, "--trainer.limit_val_batches", 1, *more)
        assert "Traceback" not in stderr
        if code:
            assert not out.exists()  # stopped before anything was written
        return code, stdout + stderr

    return run


@pytest.fixture
def check(run_command):
    """Runs `vitgraft check-data`; the exit code, and level, kind, message of each finding."""

    def run(*words):
        code, stdout, _ = run_command("check-data", *words, "--format", "json")
        return code, [(one["level"], one["kind"], one["message"]) for one in json.loads(stdout)["findings"]]

    return run


def messages(findings, level="error"):
    return [message for own, _, message in findings if own == level]


def both(fit, check, task, root, words, *more, options=()):
    """The set stops `fit` with exit code 2 and `check-data` with 1, and each of some words is in both."""
    code, text = fit(task, root, *more)
    assert code == 2, text
    found, findings = check(root, *options)
    assert found == 1, findings
    shown = " ".join(messages(findings))
    for word in words:
        assert word in text and word in shown, (word, text, shown)
    return text


# objects


def picture(path, seed=0, size=(48, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def square(number, image, category=1, x=4, y=5, side=12, **more):
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    one = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, side, side], "iscrowd": 0}
    return {**one, "area": side * side, "segmentation": [corners], **more}


def coco(root, count=4, change=None, per_image=2, categories=("cat",), splits=("train", "val")):
    """COCO's layout: `count` images of 48 x 40 in each split; `change` takes and may change the json of the first."""
    for split in splits:
        images = [{"id": n + 1, "file_name": f"{split}{n}.png", "width": 48, "height": 40} for n in range(count)]
        objects = [
            square(n * per_image + k + 1, n + 1, k % len(categories) + 1, 4 + 8 * k)
            for n in range(count)
            for k in range(per_image)
        ]
        values = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": number + 1, "name": name} for number, name in enumerate(categories)],
        }
        for number, one in enumerate(images):
            picture(root / split / one["file_name"], number + 100 * (split != "train"))
        if change is not None and split == splits[0]:
            change(values)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(values))
    return root


def packed(root):
    path = root.parent / f"{root.name}.tar"
    with tarfile.open(path, "w") as tar:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                tar.add(file, file.relative_to(root))
    return path


def test_one_class_of_objects_is_enough(fit, check, tmp_path):
    root = coco(tmp_path / "set")
    code, text = fit("detection", root)
    assert code == 0, text
    assert check(root) == (0, [])


FIRST = "annotations[0]"
UNUSABLE = {
    "crowd": {"iscrowd": 1},
    "category": {"category_id": None},
    "unknown image": {"image_id": 77},
    "unknown category": {"category_id": 5},
    "box without area": {"bbox": [4, 4, 0, 0]},
    "normalized": {"bbox": [0.1, 0.1, 0.3, 0.4], "segmentation": [[0.1, 0.1, 0.4, 0.1, 0.4, 0.5]]},
    "box outside": {"bbox": [400, 4, 20, 20]},
    "segmentation": {"segmentation": [[4, 4], [9, 4], [9, 9]]},
    "keys": {"bbox": "box"},
}


@pytest.mark.parametrize("reason", UNUSABLE)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_annotations_that_are_all_unusable(fit, check, tmp_path, reason, kind):
    def change(values):
        values["annotations"] = [{**one, **UNUSABLE[reason]} for one in values["annotations"]]

    root = coco(tmp_path / "set", change=change)
    root = packed(root) if kind == "tar" else root
    words = ["nothing to learn", f"all 8 annotations are left out: 8 {REASONS[reason].words}", REASONS[reason].remedy]
    text = both(fit, check, "detection", root, words)
    assert "no objects" not in text


ODD = {
    "normalized polygons": (
        lambda one: one.update(segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.5]]),
        REASONS["normalized"].words,
    ),
    "a number beyond every float": (
        lambda one: one.update(segmentation=[[10**400, 1, 2, 3, 4, 5]]),
        "8 have a segment",
    ),
    "an id beyond 64 bits": (lambda one: one.update(image_id=2**70), "image_id"),
}


@pytest.mark.parametrize("case", ODD)
def test_annotations_with_odd_numbers(fit, check, tmp_path, case):
    change, words = ODD[case]
    root = coco(tmp_path / "set", change=lambda values: [change(one) for one in values["annotations"]])
    both(fit, check, "detection", root, ["nothing to learn", words])


def test_ids_and_names_of_images_beyond_limits(fit, check, tmp_path):
    root = coco(tmp_path / "ids", change=lambda values: [one.update(id=2**70) for one in values["images"]])
    both(fit, check, "detection", root, ["id"])
    root = coco(
        tmp_path / "names", change=lambda v: [one.update(file_name="a" * 300 + "/b.png") for one in v["images"]]
    )
    assert fit("detection", root)[0] == 2 and check(root)[0] == 1


def test_splits_without_a_common_class(fit, check, tmp_path):
    root = coco(tmp_path / "set", change=lambda v: [one.update(category_id=2) for one in v["annotations"]])
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}.json"
        values = json.loads(path.read_text())
        values["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        path.write_text(json.dumps(values))
    both(fit, check, "detection", root, ["no class that has objects here (cat) has any in", "divide the dataset anew"])


def test_two_categories_of_one_name_keep_their_objects(fit, tmp_path):
    def change(values):
        values["categories"].append({"id": 2, "name": "cat"})

    root = coco(tmp_path / "set", change=change)
    assert "annotations are left out" not in fit("detection", root)[1]


def test_all_images_of_another_size_than_annotated(fit, check, tmp_path):
    root = coco(tmp_path / "set")
    for path in sorted((root / "train").iterdir()):
        picture(path, size=(40, 48))
    both(fit, check, "detection", root, ["more than half of the dataset can't be used"])


def test_escapes_in_names_are_shown_in_the_first_lines(fit, tmp_path):
    def change(values):
        values["categories"] = [{"id": 1, "name": "cat"}]
        values["annotations"][0]["category_id"] = "\x1b[31mRED"

    assert "\x1b" not in fit("detection", coco(tmp_path / "set", change=change))[1]


def test_a_run_without_an_update(fit, class_folders):
    for option in ("max_epochs", "max_steps", "limit_train_batches"):
        code, text = fit("images", class_folders, f"--trainer.{option}", 0)
        assert code == 1 and "not one update was made" in text, text


def test_text_as_category_and_no_annotation_at_all(fit, check, tmp_path):
    def names(values):
        values["annotations"] = [{**one, "category_id": "cat"} for one in values["annotations"]]

    root = coco(tmp_path / "text", change=names)
    both(fit, check, "detection", root, [f"8 {REASONS['category'].words}"])
    root = coco(tmp_path / "none", change=lambda values: values["annotations"].clear())
    both(fit, check, "detection", root, ["the list annotations is empty"])


@pytest.mark.parametrize("reason", UNUSABLE)
def test_objects_that_are_dropped_in_part(fit, check, tmp_path, reason):
    """Below the limit they are counted in the first lines, with the remedy; above it the run stops, unless an option
    allows more."""

    def change(values):
        values["annotations"][:3] = [{**one, **UNUSABLE[reason]} for one in values["annotations"][:3]]

    root = coco(tmp_path / "set", change=change)
    code, text = fit("detection", root)
    assert code == 0, text
    first = text.splitlines()[0]
    assert REASONS[reason].words in "".join(text.splitlines()[:3]) and REASONS[reason].remedy in text, first
    _, findings = check(root)
    assert any(message in text for _, kind, message in findings if kind in (reason, "keys"))
    words = [f"3 of 8 annotations are left out, more than the fraction max_left_out=0.3: 3 {REASONS[reason].words}"]
    both(fit, check, "detection", root, words, "--data.max_left_out", "0.3", options=("--max-left-out", "0.3"))


def test_remedies_lead_out(fit, check, tmp_path):
    """What each message advises is done, and the set trains."""

    def dots(values):
        values["annotations"] = [{**one, "segmentation": [[4, 4, 9, 9]]} for one in values["annotations"]]

    root = coco(tmp_path / "boxes", change=dots)
    assert "data.masks=false" in both(fit, check, "detection", root, [REASONS["segmentation"].words])
    code, text = fit("detection", root, "--data.masks", "false", "--model.masks", "false")
    assert code == 0, text
    code, text = fit("detection", shared("cases", "cvat_mixed"), "--data.max_left_out", "0.7")
    assert code == 0 and "iscrowd to 0" in text

    def crowds(values):
        for one in values["annotations"]:
            one["iscrowd"] = 1

    root = coco(tmp_path / "crowds", change=crowds)
    assert "set iscrowd to 0" in both(fit, check, "detection", root, ["crowds"])
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text().replace('"iscrowd": 1', '"iscrowd": 0'))
    assert fit("detection", root)[0] == 0 and check(root)[0] == 0


def test_numbers_as_text_and_with_fractions_are_read_and_named(fit, check, tmp_path):
    def change(values):
        for one in values["images"]:
            one.update(id=str(one["id"]), width=48.0, height="40")
        for one in values["annotations"]:
            one.update(image_id=str(one["image_id"]), category_id="1", bbox=[str(n) for n in one["bbox"]], iscrowd=0.0)
        values["categories"][0]["id"] = 1.0

    root = coco(tmp_path / "set", change=change)
    code, text = fit("detection", root)
    assert code == 0, text
    code, findings = check(root)
    assert code == 0 and {kind for _, kind, _ in findings} == {"reinterpreted"}
    assert len(findings) == 8 and all(message in text for _, _, message in findings)
    assert "8 annotations have category_id as text or as a fraction such as 96.0: read as the number it means" in text


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_more_than_half_of_the_images_missing(fit, check, tmp_path, split, kind):
    root = coco(tmp_path / "set", 6)
    for number in range(4):
        (root / split / f"{split}{number}.png").unlink()
    root = packed(root) if kind == "tar" else root
    both(fit, check, "detection", root, ["4 of 6 image files are missing", "more than half of the dataset"])


def test_some_images_missing_are_counted(fit, check, tmp_path):
    root = coco(tmp_path / "set", 6)
    for number in range(2):
        (root / "train" / f"train{number}.png").unlink()
    code, text = fit("detection", root)
    assert code == 0 and "2 of 6 image files are missing" in text
    code, findings = check(root)
    assert code == 1 and messages(findings) == ["2 of 6 image files are missing"]


def test_more_than_half_of_the_images_unreadable(fit, check, tmp_path):
    root = coco(tmp_path / "set", 6)
    for number in range(4):
        path = root / "val" / f"val{number}.png"
        path.write_bytes(path.read_bytes()[:-100] if number % 2 else b"<html>")
    both(fit, check, "detection", root, ["4 of 6 files can't be read: more than half of the dataset"])


def test_what_is_made_of_unusual_images_is_named(fit, check, tmp_path):
    root = coco(tmp_path / "set", 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "train/train0.png", exif=exif)  # stored as 48 x 40, as the json has it
    picture(root / "train/train1.png", 1, (40, 48), exif=exif)  # upright 48 x 40
    Image.fromarray(np.full((40, 48), 4095, np.uint16)).save(root / "train/train2.png")
    Image.open(root / "train/train3.png").convert("P").save(root / "train/train3.png")
    code, text = fit("detection", root)
    assert code == 0, text
    code, findings = check(root)
    assert code == 0 and len(findings) == 4
    for message in messages(findings, "warning"):
        assert message in text
    for words in ("left as it is stored", "made upright, as which", "values up to 4095 become 0 to 15", "palette"):
        assert words in text


# pixels


def maps(root, values=(0, 1), names=("bg", "fg"), count=4, palette=False):
    """ADE20K's layout with `count` pairs in each split."""
    for split in ("training", "validation"):
        for number in range(count):
            picture(root / "images" / split / f"{number}.png", number + 100 * (split != "training"), (32, 32))
            labels = np.tile(np.repeat(np.array(values, np.uint8), 32 // len(values)), (32, 1))
            image = Image.fromarray(labels)
            if palette:
                image.putpalette(range(256 * 3 % 256))
            path = root / "annotations" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    (root / "classes.txt").write_text("\n".join(names))
    return root


def test_two_classes_of_pixels_train(fit, check, tmp_path):
    root = maps(tmp_path / "set")
    code, text = fit("segmentation", root)
    assert code == 0, text
    assert check(root, "--reduce-zero-label", "false") == (0, [])


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_masks_of_0_and_255_and_the_way_out(fit, check, tmp_path, kind):
    root = maps(tmp_path / "set", (0, 255))
    words = [
        "the only values are 0 and 255, and 255 is ignored",
        "save it as 1",
        "only class 'bg' has pixels, 2 needed",
    ]
    both(fit, check, "segmentation", packed(root) if kind == "tar" else root, words)
    for more in (("--data.reduce_zero_label", "true"), ("--data.ignore_index", "null")):
        code, text = fit("segmentation", root, *more)  # other readings of these values lead to the same advice
        assert code == 2 and "save it as 1" in text, text
    for path in (root / "annotations").rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) == 255).astype(np.uint8)).save(path)
    assert fit("segmentation", root)[0] == 0 and check(root, "--reduce-zero-label", "false")[0] == 0


@pytest.mark.parametrize(
    ("values", "names", "words"),
    [
        ((0, 0), ("bg", "fg"), "of 2 classes only class 'bg' has pixels, 2 needed"),
        ((0, 255), ("fg",), "of 1 class only class 'fg' has pixels, 2 needed"),
        ((255, 255), ("bg", "fg"), "not one pixel of a class in 4 label files"),
        ((0, 7), ("bg", "fg"), "4 label files have values that are no class"),
    ],
)
def test_masks_that_teach_nothing(fit, check, tmp_path, values, names, words):
    root = maps(tmp_path / "set", values, names)
    both(fit, check, "segmentation", root, [words], options=("--reduce-zero-label", "false"))


def test_a_rare_class_is_looked_for(fit, tmp_path):
    """The sample of a large set may lack it: more label files are read until there are two classes."""
    root = maps(tmp_path / "set", (0, 0), count=70)
    labels = np.zeros((32, 32), np.uint8)
    labels[4:9] = 1
    for split in ("training", "validation"):
        Image.fromarray(labels).save(root / "annotations" / split / "37.png")
    code, text = fit("segmentation", root)
    assert code == 0 and "nothing to learn" not in text, text


def test_palettes_are_named(fit, check, tmp_path):
    root = maps(tmp_path / "set")
    for path in (root / "annotations").rglob("*.png"):
        image = Image.open(path)
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.save(path)
    code, text = fit("segmentation", root)
    assert code == 0 and "4 of 4 label files are palette images: their indices count" in text
    assert {kind for _, kind, _ in check(root, "--reduce-zero-label", "false")[1]} == {"palette"}


def test_more_names_than_there_can_be_classes_and_an_ignored_class(fit, check, tmp_path):
    root = maps(tmp_path / "many", names=[f"c{number}" for number in range(300)])
    both(fit, check, "segmentation", root, ["classes.txt: 300 classes, at most 255 are possible"])
    root = maps(tmp_path / "ignored")
    code, text = fit("segmentation", root, "--data.ignore_index", 1)
    assert code == 2 and "data.ignore_index=1 is the value of a class" in text, text


# images


def classes(root, counts, splits=("train", "val")):
    for split in splits:
        for label, (name, count) in enumerate(counts.items()):
            for number in range(count):
                picture(root / split / name / f"{number}.png", 10 * label + number + 100 * (split != "train"), (32, 32))
    return root


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_one_class_folder(fit, check, tmp_path, kind):
    root = classes(tmp_path / "set", {"cat": 8})
    if kind == "folder":
        both(fit, check, "images", root, ["of 1 class only class 'cat' has images, 2 needed"])
        return
    for split in ("train", "val"):
        packed(root / split).rename(tmp_path / f"{split}.tar")
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar" if (tmp_path / f"{split}.tar").exists() else root / f"{split}.tar").rename(
            tmp_path / "tars" / f"{split}.tar"
        )
    code, text = fit("images", tmp_path / "tars")
    assert code == 2 and "of 1 class only class 'cat' has images, 2 needed" in text
    assert check(tmp_path / "tars" / "train.tar")[0] == 1


def test_all_images_of_a_class_unreadable(fit, check, tmp_path):
    root = classes(tmp_path / "set", {"cat": 6, "dog": 6, "eel": 6})
    for path in (root / "train" / "dog").iterdir():
        path.write_bytes(b"")
    both(fit, check, "images", root, ["1 class of which no image can be read", "6 of 18 files can't be read"])


def test_a_class_with_one_readable_image_trains(fit, check, tmp_path):
    root = classes(tmp_path / "set", {"cat": 40, "dog": 40}, ("train",))
    classes(root, {"cat": 2, "dog": 2}, ("val",))
    for path in sorted((root / "train" / "dog").iterdir())[:-1]:
        path.write_bytes(b"")
    code, text = fit("images", root, "--guards.max_unreadable", "1000")
    assert code == 0 and "files can't be read" in text, text


def test_validate_and_test_stop_as_well(fit, tmp_path, trained):
    root = classes(tmp_path / "set", {"cat": 8})
    for command in ("validate", "test"):
        words = ["--ckpt_path", trained / "best.ckpt"]
        recipe = ["--data.root", root, *words]
        code, text = fit("images", root, *recipe[2:], command=command)
        assert code == 2 and "only class 'cat' has images, 2 needed" in text, text


# the small sets of other projects' reports


@pytest.mark.parametrize(
    ("case", "task", "words"),
    [
        ("cvat_rle_crowd", "detection", ["nothing to learn", "all 18 annotations", "set iscrowd to 0"]),
        ("cvat_mixed", "detection", ["12 of 18 annotations are left out", "max_left_out=0.5", "set iscrowd to 0"]),
        ("half_missing", "detection", ["5 of 6 image files are missing: more than half"]),
        ("seg_0_255", "segmentation", ["if 255 is your object, save it as 1"]),
        ("seg_one", "segmentation", ["nothing to learn"]),
    ],
)
def test_cases_that_stop(fit, check, case, task, words):
    both(fit, check, task, shared("cases", case), words)


def test_a_sound_case_trains_without_a_word(fit, check):
    code, text = fit("detection", shared("cases", "plain"))
    assert code == 0 and "instances_" not in text, text
    assert check(shared("cases", "plain")) == (0, [])


# what check-data approves, and fit does not


@pytest.mark.parametrize("values", [(0, 254), (0, 128), (10, 70, 130, 200)])
def test_masks_of_few_values_far_apart(fit, check, tmp_path, values):
    """As many classes as the largest value would be one for each number between; the mapping in the message trains."""
    root = maps(tmp_path / "set", values)
    count = len(values)
    shown = "the only values are " if count == 2 else f"save them as 0 to {count - 1}, name {count} classes"
    text = both(fit, check, "segmentation", root, ["label files have values that are no class", shown[1:]])
    mapping = text.partition("data.label_values='")[2].partition("'")[0]
    code, text = fit("segmentation", root, "--data.label_values", mapping, "--data.reduce_zero_label", "null")
    assert code == 0, text
    given = mapping.strip("{}").replace(": ", "=").replace(", ", ",")
    assert check(root, "--label-values", given) == (0, [])
    (root / "classes.txt").unlink()
    both(fit, check, "segmentation", root, ["the classes are unknown", "data.num_classes or,", "data.label_values"])
    code, findings = check(root)
    assert shown in " ".join(messages(findings, "warning")), findings
    code, text = fit("segmentation", root, "--data.num_classes", max(values) + 1)
    assert code == 0 and shown in text, text


def test_values_of_a_few_classes_are_no_mask(fit, tmp_path):
    """0, 1, 2 and an unusual value for what is ignored, and some of the named classes."""
    code, text = fit("segmentation", maps(tmp_path / "ignored", (0, 1, 2, 254), ("a", "b", "c")))
    assert code == 2 and "ignore_index=254 would fit these values" in text and "only values" not in text, text
    code, text = fit("segmentation", maps(tmp_path / "part", (0, 40), [f"c{number}" for number in range(50)]))
    assert code == 0 and "only values" not in text, text


def without_val(root):
    for path in sorted(root.rglob("*val*")):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    return root


SPLITS = {
    "class folders": ("images", lambda root: without_val(classes(root, {"cat": 10, "dog": 10}))),
    "no splits": ("images", lambda root: classes(root, {"cat": 10, "dog": 10}) / "train"),
    "a tar": ("images", lambda root: packed(classes(root, {"cat": 10, "dog": 10}) / "train")),
    "objects": ("detection", lambda root: without_val(coco(root, 20))),
    "label maps": ("segmentation", lambda root: without_val(maps(root, count=20))),
}


@pytest.mark.parametrize("case", SPLITS)
def test_what_fit_lacks_is_named_by_check_data(fit, check, tmp_path, case):
    task, make = SPLITS[case]
    root = make(tmp_path / "set")
    code, text = fit(task, root)
    assert code == 2 and "data.val_fraction=0.1" in text, text
    code, findings = check(root, *(["--reduce-zero-label", "false"] if task == "segmentation" else []))
    (message,) = messages(findings, "warning")
    assert code == 0 and message.removeprefix("fit needs training and validation: ") in text, (message, text)
    assert "name the json" not in text, "not that of training"
    code, text = fit(task, root, "--data.val_fraction", 0.1)
    assert code == 0, text


def test_splits_that_are_given_by_themselves_need_no_others(check, tmp_path):
    root = classes(tmp_path / "set", {"cat": 4, "dog": 4})
    assert check(root / "train", root / "val") == (0, [])
    assert check(packed(root)) == (0, []), "the splits in a tar are no classes"
    code, findings = check(packed(root), root / "train")
    assert code == 1 and {kind for _, kind, _ in findings} == {"duplicate"}


def test_validation_on_the_training_images_is_named(fit, tmp_path):
    root = classes(tmp_path / "set", {"cat": 4, "dog": 4})
    code, text = fit("images", root, "--data.val", "train")
    assert code == 0 and "the images are those of training" in text, text
    assert "those of training" not in fit("images", root)[1]


def test_validation_on_a_copy_of_the_training_images_is_named(fit, check, tmp_path):
    root = classes(tmp_path / "set", {"cat": 4, "dog": 4}, ("train",))
    shutil.copytree(root / "train", root / "val")
    for path in (root / "val").rglob("*.png"):
        path.rename(path.with_stem(f"copy{path.stem}"))
    code, text = fit("images", root)
    assert code == 0 and "the images are those of training" in text, text
    assert "8 images are in" in " ".join(messages(check(root)[1]))


def test_images_that_are_all_the_same(fit, check, tmp_path):
    root = classes(tmp_path / "set", {"cat": 4, "dog": 4})
    for path in (root / "train").rglob("*.png"):
        picture(path, 0, (32, 32))
    both(fit, check, "images", root, ["nothing to learn: the 8 images that were decoded have the same pixels"])


def test_images_too_small_to_train_on(fit, check, tmp_path):
    root = coco(tmp_path / "set")
    words = [
        "no image to train on: of 4 none with an object has sides of at least 64 pixels",
        "set data.min_side lower",
    ]
    both(fit, check, "detection", root, words, "--data.min_side", "64", options=("--min-side", "64"))
    assert len(messages(check(root, "--min-side", "64")[1])) == 1, "nothing is trained on the validation images"


# remedies


def changed(root, **values):
    """COCO's layout with some values of all annotations of the training set."""
    return coco(root, change=lambda one: [annotation.update(values) for annotation in one["annotations"]])


@pytest.mark.parametrize("box", [[30, 20, 44, 36], [60, 20, 90, 36]])
def test_corners_in_the_place_of_sizes(fit, check, tmp_path, box):
    root = changed(tmp_path / "set", bbox=box, segmentation=[])
    _, text = fit("detection", root, "--model.masks", "false")
    _, findings = check(root)
    assert "that bbox is x, y, width, height" in text and "not two corners" in text, text
    assert "not two corners" in " ".join(message for _, _, message in findings)


def test_the_remedy_of_other_values_than_the_box(fit, check, tmp_path):
    text = both(fit, check, "detection", changed(tmp_path / "set", area=-15), ["area is 0 or more"])
    assert text.count("lack what is needed") == 1 and "annotations[0] has area -15" in text, "once, with an example"
    assert fit("detection", changed(tmp_path / "set", area=15))[0] == 0


def test_what_both_splits_have_is_one_line(fit, tmp_path):
    root = maps(tmp_path / "set", names=("bg", "fg", "none"))
    code, text = fit("segmentation", root)
    assert code == 0 and text.count("1 class has no pixel in the split") == 1, text
    line = text.splitlines()[0]
    assert "images/training, " in line and "images/validation: 1 class" in line


def test_a_nul_byte_in_a_name(fit, check, tmp_path):
    root = coco(tmp_path / "set", change=lambda values: values["images"][0].update(file_name="a\0b.png"))
    code, text = fit("detection", root)
    assert code == 0 and "the name has a NUL byte" in text and "leads out" not in text, text
    assert check(root)[0] == 1
