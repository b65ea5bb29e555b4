"""Small models of every task, and a trainer without output."""

import pytorch_lightning as pl
import torch

from vitgraft.tasks.classification import Classification
from vitgraft.tasks.detection import Detection
from vitgraft.tasks.segmentation import Segmentation

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
MODELS = {
    "a name and options": ("vit_tiny_patch16_224", {**VIT, "dynamic_img_size": True}, {"init": "identity"}),
    "a name and attention in windows": (
        "vit_tiny_patch16_224",
        {**VIT, "class_token": False, "global_pool": "avg", "dynamic_img_size": True},
        {"backbone_attention": "window", "window_size": 4},
    ),
    "a grafted name": ("graft_swin_tiny_patch4_window7_224", SWIN, {"levels": [1, 1, 0, 0]}),
}
HEADS = {
    Classification: {},
    Detection: {"detector": {"fpn_channels": 8, "box_channels": 8, "mask_channels": 8, "mask_convs": 1}},
    Segmentation: {"head_channels": 8, "aux_channels": 8},
}


def make(task, kind, classes=3, **options):
    """The task with its model built; `options` replace those of the kind."""
    name, model_kwargs, graft = MODELS[kind]
    made = task(name, classes, **{"model_kwargs": model_kwargs, "graft": graft, **HEADS[task], **options})
    made.configure_model()
    return made


def trainer(folder=None, **options):
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
        False,
    )
    return pl.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, **{**quiet, **options})


def same(one: dict, two: dict) -> bool:
    """Whether two state dicts have the same names and the same values."""
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
