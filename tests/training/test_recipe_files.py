"""Every recipe of the repository: it says what it must, its files are accepted, and `--smoke` runs it."""

import re
from pathlib import Path

import pytest

from vitgraft.cli import main

pytest.importorskip("pytorch_lightning")
from vitgraft.training.recipe import read_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("_"))
NAMES = [str(path.relative_to(FOLDER)) for path in FILES]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


IMAGENET = """
deit_tiny deit_tiny_window graft_deit_tiny graft_deit_tiny_4 graft_deit_tiny_8 swin_tiny swin_small
graft_swin_tiny graft_swin_tiny_1scale graft_swin_small cswin_tiny graft_cswin_tiny
"""


def test_all_recipes_are_there():
    assert {f"imagenet1k/{name}.yaml" for name in IMAGENET.split()} <= set(NAMES)
    coco = [f"{b}_{s}_{k}" for b in ("swin", "graft_swin") for s in ("tiny", "small") for k in ("1x", "3x")]
    assert {f"coco/mask_rcnn_{name}_coco.yaml" for name in coco} <= set(NAMES)
    for folder in ("cifar10", "finetune"):
        assert sum(name.startswith(folder) for name in NAMES) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_header(name):
    text = (FOLDER / name).read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"Printed (top-1|AP|mIoU): .*Measured here: ", header)
    assert "# Expected cost: " in header
    for who in ("1 GPU:  ", "8 GPUs: "):
        (command, options) = re.findall(rf"^# {who}vitgraft fit --config (\S+) (.*)", header, re.MULTILINE)[0]
        assert command == f"recipes/{name}"
        assert ("--data.root DIR" in options) != name.startswith("digits/")  # which come with the library


@pytest.mark.parametrize(
    ("name", "lr", "ends", "epochs", "drop_path", "clip"),
    [  # shared recipes.md section 2; stochastic depth of the grafted ones: section 3.1 of the paper
        ("deit_tiny", 1e-3, (1e-6, 1e-5), 300, 0.1, None),
        ("deit_tiny_window", 1e-3, (1e-6, 1e-5), 300, 0.1, None),
        ("graft_deit_tiny_8", 1e-3, (1e-6, 1e-5), 300, 0.1, None),
        ("swin_tiny", 1e-3, (1e-6, 1e-5), 300, 0.2, 5.0),
        ("swin_small", 1e-3, (1e-6, 1e-5), 300, 0.3, 5.0),
        ("graft_swin_tiny", 1e-3, (1e-6, 1e-5), 300, 0.25, 5.0),
        ("graft_swin_tiny_1scale", 1e-3, (1e-6, 1e-5), 300, 0.25, 5.0),
        ("graft_swin_small", 1e-3, (1e-6, 1e-5), 300, 0.4, 5.0),
        ("cswin_tiny", 2e-3, (1e-6, 1e-5), 310, 0.2, None),
        ("graft_cswin_tiny", 2e-3, (1e-6, 1e-5), 310, 0.2, None),
    ],
)
def test_hyper_parameters_on_eight_processes(name, lr, ends, epochs, drop_path, clip):
    from vitgraft.training.optimization import scale_learning_rates

    recipe = read_recipe(FOLDER / "imagenet1k" / f"{name}.yaml")
    task, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    rates = scale_learning_rates(
        *(task[key] for key in ("lr", "warmup_lr", "min_lr", "lr_batch")),
        task.get("lr_scale", "lr"),
        data["batch_size"],
        8,
        recipe["trainer"].get("accumulate_grad_batches", 1),
    )
    assert (rates.lr, rates.warmup_lr, rates.min_lr) == pytest.approx((lr, *ends))
    assert recipe["trainer"]["max_epochs"] == epochs
    assert task["model_kwargs"]["drop_path_rate"] == drop_path
    assert recipe["trainer"].get("gradient_clip_val") == clip
    assert (task["mixup"], task["cutmix"], task["smoothing"], task["weight_decay"]) == (0.8, 1.0, 0.1, 0.05)
    assert (data["auto_augment"], data["reprob"]) == ("rand-m9-mstd0.5-inc1", 0.25)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("coco/")])
def test_hyper_parameters_of_the_swin_authors_detector(name):
    """shared recipes.md section 3; stochastic depth of both schedules: section 3.2 of the paper."""
    recipe = read_recipe(FOLDER / name)
    task, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    once = "_1x_" in name
    assert ("graft_swin" in name, "small" in name) == (task["graft"] != {"blocks": []}, "small" in task["model"])
    assert task["model_kwargs"]["drop_path_rate"] == (0.1 if once else 0.2)
    assert task["sched_kwargs"] == {"decay_milestones": [8, 11] if once else [27, 33], "decay_rate": 0.1}
    assert (task["opt"], task["lr"], task["betas"], task["weight_decay"]) == ("adamw", 1e-4, [0.9, 0.999], 0.05)
    assert (task["warmup_steps"], task["warmup_lr"], task["lr_batch"]) == (500, 1e-7, 8 * data["batch_size"])
    assert (data["short_side"], data["max_size"]) == (800, 1333)
    assert data["augmentation"] == ("single" if once else "multiscale")
    assert trainer["max_epochs"] == (12 if once else 36) and "gradient_clip_val" not in trainer
    assert "detector" not in task  # the defaults of MaskRCNN are the authors'


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # crops of 512 pixels, and UperNet's head of 512 channels, are nearly all of a step's time
    narrow = ["--model.head_channels", "32", "--data.crop_size", "128"] if name.startswith("ade20k/") else []
    command = ["fit", "--config", str(FOLDER / name), "--smoke", "--trainer.enable_progress_bar", "false", *narrow]
    code = main(command)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "smoke: 2 steps" in out and "train/loss" in out and not list(tmp_path.iterdir())
