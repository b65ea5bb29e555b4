"""Every recipe of the repository: its header is complete and true, its options are accepted, and `--smoke` runs it."""

import math
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")
import vitgraft
from vitgraft.models.feature_pyramid import pyramid
from vitgraft.models.swin import SwinTransformer
from vitgraft.models.upernet import UperNet
from vitgraft.tasks.classification import Classification
from vitgraft.tasks.detection import Detection
from vitgraft.tasks.optim import Schedule, make_optimizer, scale_learning_rates
from vitgraft.tasks.segmentation import Segmentation
from vitgraft.tools.count import count_macs, count_params
from vitgraft.training.recipe import read_recipe
from vitgraft.weights.create import data_config_of

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("_"))
TASKS = {task.__name__: task for task in (Classification, Detection, Segmentation)}
NAMES = [str(path.relative_to(FOLDER)) for path in FILES]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


IMAGENET = """
deit_tiny deit_tiny_window graft_deit_tiny graft_deit_tiny_4 graft_deit_tiny_8 swin_tiny swin_small
mobilevit_xxs graft_mobilevit_xxs
graft_swin_tiny graft_swin_tiny_1scale graft_swin_small cswin_tiny graft_cswin_tiny
"""


def test_all_recipes_are_there():
    assert {f"imagenet1k/{name}.yaml" for name in IMAGENET.split()} <= set(NAMES)
    coco = [f"{b}_{s}_{k}" for b in ("swin", "graft_swin") for s in ("tiny", "small") for k in ("1x", "3x")]
    assert {f"coco/mask_rcnn_{name}_coco.yaml" for name in coco} <= set(NAMES)
    ade20k = [f"upernet_{b}_{s}_ade20k" for b in ("swin", "graft_swin") for s in ("tiny", "small")]
    assert {f"ade20k/{name}.yaml" for name in ade20k} <= set(NAMES)
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


def _build(recipe):
    """The task's model, without memory and initial weights."""
    options = {**recipe["model"]["init_args"], "pretrained": False, "checkpoint_path": None}
    options["num_classes"] = options.get("num_classes") or 11
    with torch.device("meta"):
        task = TASKS[recipe["model"]["class_path"]](**options)
        return task, task.build()


def _levels(model):
    """Largest number of levels of the grafts in each stage."""
    levels = {}
    for name, graft in vitgraft.grafts(model).items():
        stage = int((re.search(r"layers\.(\d+)\.", name) or [0, 0])[1])  # a plain ViT has one
        levels[stage] = max(levels.get(stage, 0), len(graft.levels))
    return levels


@pytest.mark.parametrize("name", NAMES)
def test_the_header_is_true_of_the_model(name):
    """Grafts, levels, scales, GMAC and epochs, where a header has them."""
    text, recipe = (FOLDER / name).read_text(), read_recipe(FOLDER / name)
    title = text.partition("\n")[0]
    task, model = _build(recipe)
    grafts = vitgraft.grafts(model)
    if number := re.search(r"(\d+) grafts?\b", title):
        assert len(grafts) == int(number[1])
    assert bool(grafts) == (re.search(r"\b(no|without) grafts\b", title) is None and "graf" in title.lower())
    if levels := re.search(r"\(([\d, ]+) levels\)", title):
        stated = dict(enumerate(map(int, levels[1].split(","))))
        assert _levels(model) == {stage: number for stage, number in stated.items() if number}
    if scales := re.search(r"(\d+) scales?\b", title):
        assert max(_levels(model).values()) == int(scales[1])
    if epochs := re.search(r"(\d+) epochs", text.partition("\nbase:")[0]):
        assert recipe["trainer"]["max_epochs"] == int(epochs[1])
    macs = re.search(r"Expected cost: ([\d.]+) GMAC", text)
    if macs and recipe["model"]["class_path"] == "Classification":
        digits = len(macs[1].partition(".")[2])
        counted = count_macs(model.to_empty(device="meta"), task.data_config["input_size"])
        # the number of classes moves it by less than the last digit
        assert math.isclose(counted / 1e9, float(macs[1]), abs_tol=0.6 * 10**-digits), counted


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("_*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_parameters_in_a_shared_header(path):
    number = re.search(r"of ([\d.]+) M parameters", path.read_text())
    if number:
        of_it = [file for file in FILES if file.parent == path.parent and f"base: {path.name}" in file.read_text()]
        counts = [count_params(_build(read_recipe(file))[1]) / 1e6 for file in of_it]
        assert any(f"{count:.1f}" == number[1] for count in counts), counts


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet1k/")])
def test_test_crop_of_the_authors(name):
    """DeiT's and Swin's datasets.py resize to 256 and crop 224; CSWin's main.py takes timm's 0.9."""
    recipe = read_recipe(FOLDER / name)
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    crop = data.get("crop_pct") or data_config_of(model["model"], model.get("model_kwargs"))["crop_pct"]
    assert crop == (0.9 if "cswin" in name else 0.889 if "mobilevit" in name else 0.875)


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


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ade20k/")])
def test_hyper_parameters_of_the_swin_authors_segmenter(name):
    """shared recipes.md section 4."""
    recipe = read_recipe(FOLDER / name)
    task, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    assert (task["opt"], float(task["lr"]), task["weight_decay"]) == ("adamw", 6e-5, 0.01)
    assert (task["head_channels"], task["aux_channels"], task["aux_weight"], task["dropout"]) == (512, 256, 0.4, 0.1)
    assert task["model_kwargs"]["drop_path_rate"] == 0.3
    assert data["batch_size"] * 8 == 16
    assert (data["crop_size"], data["short_side"], data["long_side"]) == (512, 512, 2048)
    assert (data["scale"], data["cat_max_ratio"], data["hflip"], data["photometric"]) == ([0.5, 2.0], 0.75, 0.5, True)
    assert (data["reduce_zero_label"], data["ignore_index"], data["num_classes"]) == (True, 255, 150)
    assert trainer["max_steps"] == 160_000 and trainer["max_epochs"] * (20_210 // 16) >= 160_000
    assert trainer["precision"] == "32-true" and trainer["sync_batchnorm"] and "gradient_clip_val" not in trainer
    assert ("graft_swin" in name) == (task["graft"] != {"blocks": []})


def test_learning_rate_of_the_segmenters():
    """Linear to 0 over all steps, beneath a linear warm-up of 1500 steps from 1e-6 of the rate."""
    task = read_recipe(FOLDER / "ade20k/upernet_swin_tiny_ade20k.yaml")["model"]["init_args"]
    lr = float(task["lr"])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = Schedule(
        task["sched"],
        warmup_updates=task["warmup_steps"],
        warmup_lr=float(task["warmup_lr"]),
        min_lr=float(task["min_lr"]),
        options=task["sched_kwargs"],
    ).build(optimizer, 1263, 160_000)
    for step, fraction in ((0, 1e-6), (750, 0.5), (1600, 0.99), (80_000, 0.5), (120_000, 0.25), (159_999, 1 / 160_000)):
        schedule.step(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr * fraction, rel=1e-3), step


def test_what_does_not_decay_in_the_segmenters():
    """mmcv's rule goes by name: biases and batch norms (`bn`) decay, layer norms and position tables do not."""
    task = read_recipe(FOLDER / "ade20k/upernet_swin_tiny_ade20k.yaml")["model"]["init_args"]
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4, "num_classes": 0}
    net = UperNet(pyramid(SwinTransformer(**small)), 3, 8, aux_channels=4)
    options = {"no_weight_decay": task["no_weight_decay"], "decay_vectors": task["decay_vectors"]}
    optimizer = make_optimizer(net, "adamw", 1e-3, task["weight_decay"], **options)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        without = "norm" in name or "relative_position_bias_table" in name
        assert decay[id(parameter)] == (0.0 if without else 0.01), name
    assert any(".bn." in name for name, _ in net.named_parameters())


def _without_size(name):
    """Recipes of one folder that differ in size, number of grafts or length alone have the same."""
    return re.sub(r"_(tiny|small|[13]x|[48])(?=[_.])", "", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({_without_size(name): name for name in NAMES}.values()))
def test_smoke(name, run_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # crops of 512 pixels, and UperNet's head of 512 channels, are nearly all of a step's time
    narrow = ["--model.head_channels", "32", "--data.crop_size", "128"] if name.startswith("ade20k/") else []
    code, out, err = run_command(
        "fit", "--config", FOLDER / name, "--smoke", "--trainer.enable_progress_bar", "false", *narrow
    )
    assert code == 0, err
    assert "smoke: 2 steps" in out and "train/loss" in out and not list(tmp_path.iterdir())
