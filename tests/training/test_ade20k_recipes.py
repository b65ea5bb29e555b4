"""The ADE20K recipes have the Swin authors' hyper-parameters (shared recipes.md, section 4)."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")
from vitgraft.models.feature_pyramid import feature_backbone
from vitgraft.models.swin import create_swin
from vitgraft.models.upernet import UperNet
from vitgraft.tasks.optim import Schedule, make_optimizer
from vitgraft.training.recipe import read_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "ade20k"
NAMES = sorted(path.stem for path in FOLDER.glob("upernet_*.yaml"))


def test_all_four_are_there():
    kinds = ("swin", "graft_swin")
    assert set(NAMES) == {f"upernet_{kind}_{size}_ade20k" for kind in kinds for size in ("tiny", "small")}


@pytest.mark.parametrize("name", NAMES)
def test_values(name):
    recipe = read_recipe(FOLDER / f"{name}.yaml")
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


def test_learning_rate():
    """Linear to 0 over all steps, beneath a linear warm-up of 1500 steps from 1e-6 of the rate."""
    task = read_recipe(FOLDER / "upernet_swin_tiny_ade20k.yaml")["model"]["init_args"]
    lr = float(task["lr"])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = Schedule(
        task["sched"],
        warmup_updates=task["warmup_steps"],
        warmup_lr=float(task["warmup_lr"]),
        min_lr=float(task["min_lr"]),
        options=task["sched_kwargs"],
    ).build(optimizer, 1263, 160_000)
    for step, share in ((0, 1e-6), (750, 0.5), (1600, 0.99), (80_000, 0.5), (120_000, 0.25), (159_999, 1 / 160_000)):
        schedule.step(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr * share, rel=1e-3), step


def test_what_does_not_decay():
    """mmcv's rule goes by name: biases and batch norms (`bn`) decay, layer norms and position tables do not."""
    task = read_recipe(FOLDER / "upernet_swin_tiny_ade20k.yaml")["model"]["init_args"]
    small = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4, "num_classes": 0}
    net = UperNet(feature_backbone(create_swin("swin_tiny_patch4_window7_224", **small)), 3, 8, aux_channels=4)
    options = {"no_weight_decay": task["no_weight_decay"], "decay_vectors": task["decay_vectors"]}
    optimizer = make_optimizer(net, "adamw", 1e-3, task["weight_decay"], **options)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        without = "norm" in name or "relative_position_bias_table" in name
        assert decay[id(parameter)] == (0.0 if without else 0.01), name
    assert any(".bn." in name for name, _ in net.named_parameters())
