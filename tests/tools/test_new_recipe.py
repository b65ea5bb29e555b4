"""`vitgraft init`: from an unknown folder to a recipe that trains, for each layout; what is ambiguous is an error that
names the option."""

import json

import numpy as np
import pytest
from exports import (
    SPLIT_EXPORTS,
    WHOLE_EXPORTS,
    labelimg,
    polygon,
    ultralytics,
    voc2007,
    write_image,
    write_lines,
    write_table,
)
from PIL import Image

from vitgraft.grafting import grafts
from vitgraft.tools.inspect_data import Dataset, inspect
from vitgraft.tools.new_recipe import Machine, recipe_text
from vitgraft.training.check_recipe import recipe_errors
from vitgraft.training.recipe import load_yaml
from vitgraft.weights.create import build_model

CPU, GPU = Machine(False, 8e9, 4), Machine(True, 24e9, 16)
PALETTE = [0, 0, 0, 250, 50, 83, 51, 221, 255]


def class_folders(root, splits=("train/", "val/"), classes=("cat", "dog"), size=(64, 48)):
    for number, start in enumerate(splits):
        for label, name in enumerate(classes):
            for image in range(4):
                write_image(root / f"{start}{name}" / f"{image}.jpg", 100 * number + 10 * label + image, size)
    return root


def table(root):
    rows = [(f"{number}.jpg", ("cat", "dog")[number % 2]) for number in range(8)]
    for name, _ in rows:
        write_image(root / "images" / name, int(name[0]))
    write_table(root / "labels.csv", rows)
    return root


def masks(root, values=(0, 1, 2), splits=("training", "validation"), folders=("images", "annotations"), mode="L"):
    """Pairs of images and masks, whose left and right parts have other values."""
    for split in splits:
        for number in range(4):
            write_image(root / folders[0] / split / f"{number}.jpg", number)
            pixels = np.repeat(np.array(values, np.uint8), 16)[None].repeat(32, 0)
            pixels = np.roll(pixels, number, 1)
            image = Image.fromarray(pixels)
            if mode != "L":
                image = Image.fromarray(pixels, "P")
                image.putpalette(PALETTE)
                image = image.convert(mode)
            path = root / folders[1] / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            write_image(root / folders[0] / split / f"{number}.jpg", number, pixels.shape[::-1])
    return root


def colored(root, table="colors.csv"):
    masks(root, mode="RGB")
    if table:
        (root / table).write_text("0,0,0,ignore\n250,50,83,bolt\n51,221,255,nut\n")
    return root


def named(root):
    (masks(root) / "classes.txt").write_text("bolt\nnut\n")
    return root


@pytest.fixture
def init(run_command, tmp_path):
    """Runs the command; returns the recipe's sections and what was printed."""

    def init(root, *words):
        path = tmp_path / "made.yaml"
        code, _, err = run_command("init", root, "--output", path, "--device", "cpu", *words)
        assert code == 0, err
        recipe = load_yaml(path.read_text())
        assert not recipe_errors(recipe, {"seed_everything": int}, {})
        return recipe["model"], recipe["data"]["init_args"], path

    return init


BINARY = {0: "background", 255: "object"}
GRAYS = {0: "value_0", 80: "value_80", 160: "value_160"}
LAYOUTS = {
    "class folders": (class_folders, "Classification", {}),
    "class folders without splits": (lambda r: class_folders(r, [""]), "Classification", {"val_fraction": 0.2}),
    "tiny images": (lambda r: class_folders(r, size=(28, 28)), "Classification", {"train_crop_mode": "pad"}),
    "table": (table, "Classification", {"val_fraction": 0.2}),
    "boxes": (labelimg, "Detection", {"val_fraction": 0.2}),
    "polygons": (lambda r: ultralytics(r, polygon), "Detection", {}),
    "masks": (masks, "Segmentation", {"reduce_zero_label": False, "num_classes": 3}),
    "masks with names": (named, "Segmentation", {"reduce_zero_label": True}),
    "masks of 0 and 255": (lambda r: masks(r, (0, 255)), "Segmentation", {"label_values": BINARY}),
    "masks of some grays": (lambda r: masks(r, (0, 80, 160)), "Segmentation", {"label_values": GRAYS}),
    "masks in colors": (colored, "Segmentation", {"colors": "colors.csv"}),
    "masks without splits": (
        lambda r: masks(r, splits=[""], folders=("imgs", "masks")), "Segmentation", {"val_fraction": 0.2}
    ),
}  # fmt: skip


SMOKED = ("class folders", "tiny images", "boxes", "polygons", "masks")  # each model once


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(init, run_command, tmp_path, layout):
    make, task, expected = LAYOUTS[layout]
    model, data, path = init(make(tmp_path / "set"))
    assert model["class_path"] == task and data["root"] == str(tmp_path / "set")
    assert {name: data.get(name) for name in expected} == expected
    if task == "Detection":
        assert model["init_args"]["masks"] == (layout == "polygons") and model["init_args"]["num_classes"] == 2
    if layout in SMOKED:
        code, out, err = run_command("fit", "--config", path, "--smoke")
        assert code == 0 and "smoke: 2 steps" in out, err


def test_a_table_is_named_as_one(tmp_path):
    assert "table" in inspect(str(table(tmp_path / "set"))).layout


@pytest.mark.parametrize("export", [*SPLIT_EXPORTS, *WHOLE_EXPORTS.values()])
def test_boxes_of_each_tool(tmp_path, export):
    data = inspect(str(export(tmp_path / "set")))
    assert (data.task, data.class_names, data.train + data.val) == ("detection", ("bolt", "nut"), 6)
    assert data.options.keys() - {"root", "val_fraction"} == set()
    assert (data.sizes == (48, 64)).all() and len(data.sides) and data.most_objects == 2


def test_three_commands(init, run_command, class_folders, tmp_path, monkeypatch):
    """From a folder to a validated model."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run_command("init", class_folders)
    assert code == 0 and (tmp_path / "recipe.yaml").is_file(), err
    commands = [line.split()[1:] for line in out.splitlines() if line.startswith("  vitgraft ")]
    assert [words[0] for words in commands] == ["fit", "validate"]
    for words in commands:
        code, out, err = run_command(*words, "--trainer.max_epochs", 1)
        assert code == 0 and "val/acc" in out, err
    assert json.loads((tmp_path / "runs/recipe/validate/metrics.json").read_text())["metrics"]["num_samples"] == 9


def test_every_choice_has_a_reason(init, tmp_path):
    _, _, path = init(class_folders(tmp_path / "set"))
    text = path.read_text()
    for name in ("img_size", "embed_dim", "window_size", "levels", "num_classes", "batch_size", "max_epochs"):
        assert f"{name}: " in text and "  # " in text.partition(f"{name}: ")[2].partition("\n")[0], name
    assert "images of 64 x 48" in text and "vitgraft fit --config" in text
    assert max(map(len, text.splitlines())) <= 120 + len(str(tmp_path))


def test_options_are_passed_on(init, tmp_path):
    root = masks(tmp_path / "set", folders=("photos", "truth"))
    pair = [f"{name}/training" for name in ("photos", "truth")]
    other = [f"{name}/validation" for name in ("photos", "truth")]
    words = [f"--data.train=[{','.join(pair)}]", f"--data.val=[{','.join(other)}]", "--data.num_classes", 3]
    model, data, _ = init(root, "--task", "segmentation", *words)
    assert data["train"] == pair and data["val"] == other and data["num_classes"] == 3
    model, data, _ = init(ultralytics(tmp_path / "polygons", polygon), "--force", "--task", "detection")
    assert model["init_args"]["masks"] is False and data["masks"] is False


def boxes_and_masks(root):
    """VOC2012 has both."""
    start = voc2007(root) / "VOCdevkit" / "VOC2007"
    (start / "ImageSets" / "Segmentation").mkdir()
    for split in ("train", "val"):
        (start / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("0\n1\n2\n")
    masks(start, splits=[""], folders=("JPEGImages", "SegmentationClass"))
    return root


def two_formats(root):
    labelimg(root)
    write_lines(root, "abc")
    (root / "classes.txt").write_text("bolt\nnut\n")
    return root


def some_polygons(root):
    ultralytics(root, polygon)
    write_lines(root / "labels" / "train", "a")
    return root


def folders_and_table(root):
    class_folders(root, [""])
    write_table(root / "labels.csv", [(f"{c}/{n}.jpg", c) for c in ("cat", "dog") for n in range(4)])
    return root


def photos_and_truth(root):
    return masks(root, splits=[""], folders=("photos", "truth"))


AMBIGUOUS = {
    "boxes and label maps": (boxes_and_masks, "--task"),
    "two formats": (two_formats, "data.format"),
    "some masks": (some_polygons, "--task detection"),
    "folders and a table": (folders_and_table, "data.format"),
    "images and masks, or classes": (photos_and_truth, "--task segmentation --data.train=[photos,truth]"),
    "colors": (lambda r: colored(r, None), "--data.colors FILE"),
    "nothing": (lambda r: r.mkdir() or r, "no class folders"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_ambiguous_names_the_option(run_command, tmp_path, case):
    make, named = AMBIGUOUS[case]
    code, out, err = run_command("init", make(tmp_path / "set"), "--output", tmp_path / "made.yaml")
    assert code == 2 and named in err and not (tmp_path / "made.yaml").exists(), (out, err)


def test_what_init_refuses(run_command, tmp_path):
    root, path = class_folders(tmp_path / "set"), tmp_path / "made.yaml"
    path.write_text("mine")
    for words, message in (
        ([], "--force to overwrite it"),
        (["--force", "--data.colors", "a.csv"], "data.colors: ImageData has no such option"),
        (["--force", "--data.val_fraction", "2"], "data.val_fraction"),
        (["--force", "--task", "detection"], "no annotations"),
        (["--force", "--memory", "0"], "above 0"),
        (["--force", "--data.label_values={0: a"], "data.label_values"),
    ):
        code, _, err = run_command("init", root, "--output", path, *words)
        assert code == 2 and message in err and path.read_text() == "mine", err
    assert run_command("init", root, "--output", path, "--force")[0] == 0 and path.read_text() != "mine"
    assert run_command("init", root, "--output", tmp_path / "made.txt")[0] == 2


def dataset(task, images, side, **more):
    options = {"root": ("somewhere", "")} | ({"reduce_zero_label": (True, "")} if task == "segmentation" else {})
    sizes = np.full((4, 2), side)
    return Dataset(task, options, "a layout", images, 10, ("a", "b"), (5, 6), sizes, **more)


@pytest.mark.parametrize("task", ["classification", "detection", "instances", "segmentation"])
@pytest.mark.parametrize("images", [3, 500, 60_000])
@pytest.mark.parametrize("machine", [CPU, GPU])
def test_small_and_large_datasets_on_cpu_and_gpu(task, images, machine):
    given = {"sides": np.array([20.0, 300.0]), "most_objects": 9} if task in ("detection", "instances") else {}
    text = recipe_text(dataset(task, images, 600, **given), machine, "made.yaml", "vitgraft init somewhere")
    recipe = load_yaml(text)
    assert not recipe_errors(recipe, {"seed_everything": int}, {})
    model, trainer = recipe["model"]["init_args"], recipe["trainer"]
    assert ("embed_dim" in model["model_kwargs"]) == (not machine.gpu or images < 60_000)
    assert trainer["accelerator"] == ("gpu" if machine.gpu else "cpu")
    assert recipe["data"]["init_args"]["batch_size"] <= images
    assert trainer["max_epochs"] % trainer.get("check_val_every_n_epoch", 1) == 0


def test_the_batch_follows_the_memory():
    batches = [
        load_yaml(recipe_text(dataset("classification", 60_000, 600), Machine(True, memory, 4), "a.yaml", ""))
        for memory in (1e9, 8e9, 80e9)
    ]
    sizes = [recipe["data"]["init_args"]["batch_size"] for recipe in batches]
    assert sizes[0] < sizes[1] < sizes[2] == 256


@pytest.mark.parametrize("side", [64, 128, 160, 192, 224, 256, 640])
def test_levels_are_those_that_fit_the_maps(side):
    task = "detection" if side > 224 else "classification"
    text = recipe_text(dataset(task, 500, side, sides=np.array([99.0])), GPU, "made.yaml", "")
    model = load_yaml(text)["model"]["init_args"]
    assert model["model_kwargs"]["img_size"] == side
    built = build_model(model["model"], 2, model["model_kwargs"], model["graft"], device="meta")
    auto = build_model(model["model"], 2, model["model_kwargs"], {**model["graft"], "levels": "auto"}, device="meta")
    assert [len(one.levels) for one in grafts(built).values()] == [len(one.levels) for one in grafts(auto).values()]


def test_a_step_takes_about_the_memory_that_is_counted_on():
    import torch

    from vitgraft.machine import peak_bytes
    from vitgraft.tools.new_recipe import BYTES

    recipe = load_yaml(recipe_text(dataset("classification", 500, 64), GPU, "made.yaml", ""))["model"]["init_args"]
    model = build_model(recipe["model"], 2, recipe["model_kwargs"], recipe["graft"])
    images = torch.randn(16, 3, 64, 64)
    used = peak_bytes(lambda: model(images).sum().backward(), torch.device("cpu"))
    assert 0.5 < used / (images.numel() / 3 * BYTES["swin"]) < 2
