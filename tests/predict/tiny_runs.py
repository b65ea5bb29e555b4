"""Used by the tests of predictions: a tiny classifier in a checkpoint, image files, and the command."""

import numpy as np
import timm
import torch
from PIL import Image

import vitgraft
from vitgraft.cli import main

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAMES = ["cat", "dog", "eel", "fox, red", "<gnu>", "hen"]


def tiny(seed: int = 0, graft: dict | None = None) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=6, **KWARGS)
    model = vitgraft.graft(model, **graft) if graft else model
    torch.nn.init.normal_(model.head.weight)  # random features alone make no difference between images
    return model.eval()


def checkpoint(path, model, ema=None, prefix="", /, **more):
    """A checkpoint as a run of classification leaves it."""
    options = {"model": "vit_tiny_patch16_224", "num_classes": 6, "model_kwargs": KWARGS, "class_names": NAMES}
    options["data_config"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    content = {
        "task": "vitgraft.tasks.classification.Classification",
        "hyper_parameters": {**options, **more},
        "state_dict": {prefix + name: value for name, value in model.state_dict().items()},
    }
    if ema is not None:
        content["state_dict_ema"] = ema.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def write_images(folder, sizes: dict[str, tuple[int, int]]):
    """Noise of (width, height) by name, in sub-folders too; returns the folder."""
    generator = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder


def predict(capsys, *arguments):
    """Exit code, stdout and stderr of `vitgraft predict`."""
    code = main(["predict", *map(str, arguments)])
    return code, *capsys.readouterr()
