"""Used by the tests of exports: checkpoints of a tiny detector and segmenter as their runs leave them, untrained."""

import torch
from torch import nn

from vitgraft.predict.detection import Detector
from vitgraft.predict.segmentation import Segmenter
from vitgraft.weights import files

BACKBONE = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "graft": {"window_size": 2},
}
HEADS = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 8, "mask_convs": 1, "anchor_scale": 4.0}
NUMBERS = {"proposals_before": [200, 100], "proposals": [100, 40], "detections": 12}
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
DETECTION = {
    **BACKBONE,
    "num_classes": 2,
    "class_names": ["nut", "bolt"],
    "masks": True,
    "detector": {**HEADS, **NUMBERS},
    "data_config": {"input_size": [3, 64, 96], "native": True, **STATISTICS},
}
SEGMENTATION = {
    **BACKBONE,
    "num_classes": 3,
    "class_names": ["sky", "road", "car"],
    "head_channels": 16,
    "aux_channels": None,
    "data_config": {"input_size": [3, 64, 64], "short_side": 64, "long_side": 96, **STATISTICS},
    "flip": True,
}


def dense_run(folder, task, **more):
    """A run's folder with best.ckpt; task is "detection" or "segmentation"."""
    kind, options = {"detection": (Detector, DETECTION), "segmentation": (Segmenter, SEGMENTATION)}[task]
    options = {**options, **more}
    torch.manual_seed(0)
    model = kind.of_run(options).model
    for name, module in model.named_modules():
        if name.endswith(("cls_score", "bbox_pred", "conv_seg")):
            nn.init.normal_(module.weight, std=0.3)  # scores of initial weights are all alike
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    folder.mkdir(parents=True, exist_ok=True)
    name = task.capitalize()
    content = {"task": f"vitgraft.tasks.{task}.{name}", "hyper_parameters": options, "global_step": 7}
    files.write({**content, "state_dict": model.state_dict()}, folder / "best.ckpt")
    return folder
