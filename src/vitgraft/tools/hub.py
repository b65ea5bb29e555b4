"""Exports in timm's hub format: a folder with config.json and model.safetensors.

`timm.create_model("local-dir:DIR", pretrained=True)` loads it in any process that has imported vitgraft, and
`huggingface_hub.upload_folder` puts it on the hub as it stands.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from vitgraft._version import __version__
from vitgraft.data.transforms import Preprocessing
from vitgraft.errors import CheckpointError
from vitgraft.predict.load import open_model
from vitgraft.weights.create import check_export

__all__ = ["HubExport", "architecture_of", "export_hub", "export_run"]


@dataclass(frozen=True)
class HubExport:
    """What was written.

    Attributes:
        path: The folder.
        architecture: timm's name of the model.
        weights: "raw", "ema", or what else they are.
        num_classes: Of the classifier.
    """

    path: Path
    architecture: str
    weights: str
    num_classes: int


def export_run(source: str | Path, folder: str | Path, weights: str | None = None, trust: bool = False) -> HubExport:
    """Exports a run with its class names and preprocessing.

    Args:
        source: The run's folder (its best.ckpt, else last.ckpt) or one of its checkpoints.
        folder: Made; must not hold anything.
        weights: "raw" or "ema"; None takes the averaged ones where there are any.
        trust: Whether the checkpoint may name classes that are not vitgraft's.

    Raises:
        CheckpointError: No checkpoint of a classifier there, it is damaged, or the folder is not empty.
        UntrustedError: It names a class that is not vitgraft's.
    """
    found = open_model(source, weights, task="classification", trust=trust)
    options = found.hyper_parameters
    if options is None:
        raise CheckpointError(f"{source}: not a run")
    name, arguments = architecture_of(options["model"], options.get("model_kwargs"), options.get("graft"))
    return export_hub(found.model, folder, name, arguments, found.preprocessing, found.class_names, found.weights)


def architecture_of(
    model: str, model_kwargs: Mapping[str, Any] | None = None, graft: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """(timm's name, arguments of timm.create_model) that make a model of the classification task again."""
    name, arguments = model.split(".")[0], dict(model_kwargs or {})
    if graft is None:
        return name, arguments
    if name.startswith("graft_"):
        return name, {**arguments, "graft": {**arguments.get("graft", {}), **graft}}
    return "grafted", {**arguments, "backbone": name, "graft": dict(graft)}


def export_hub(
    model: nn.Module,
    folder: str | Path,
    architecture: str,
    arguments: Mapping[str, Any],
    preprocessing: Preprocessing,
    class_names: Sequence[str] = (),
    weights: str = "raw",
) -> HubExport:
    """Writes a model, loads it as timm does, and compares the outputs.

    Args:
        model: Made by timm.create_model; in eval mode afterwards.
        folder: Made; must not hold anything. It is there complete or not at all.
        architecture: Registered name.
        arguments: Of timm.create_model, beside num_classes; values that JSON has.
        preprocessing: What the model expects of its images.
        class_names: Of each class; none where they are unknown.
        weights: What they are, for config.json.

    Raises:
        CheckpointError: The folder is not empty, or what timm loads is not the same model.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; export into another folder")
    model.eval()
    if getattr(model, "graft_config", None) is not None and model.graft_config.img_size is not None:
        # levels and E_aa stay those of the image size that the model was made for
        graft = {**arguments.get("graft", {}), "img_size": list(model.graft_config.img_size)}
        arguments = {**arguments, "graft": graft}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / folder.name
        config = _config(model, architecture, preprocessing, class_names, weights)
        untie = model.register_state_dict_post_hook(_untie)
        try:
            save_for_hf(model, new, model_config=config, model_args=dict(arguments), safe_serialization=True)
        finally:
            untie.remove()
        # safetensors makes its file for the owner alone; others may read it as they may the one beside it
        shutil.copymode(new / "config.json", new / "model.safetensors")
        _compare(model, new, preprocessing)
        if folder.exists():
            folder.rmdir()
        shutil.move(new, folder)
    return HubExport(folder, architecture, weights, model.num_classes)


def _untie(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    """Copies what safetensors refuses: a tensor that another one shares memory with, or that is not contiguous."""
    stored: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in stored or not tensor.is_contiguous():
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        stored.add(storage)


def _config(
    model: nn.Module, architecture: str, preprocessing: Preprocessing, class_names: Sequence[str], weights: str
) -> dict[str, Any]:
    """The entries of timm's config.json that are ours; `data_config` of `save_for_hf` is newer than timm 1.0.29."""
    own = getattr(model, "pretrained_cfg", None) or {}
    channels = getattr(model, "in_chans", None) or own.get("input_size", (3,))[0]
    data = {**asdict(preprocessing), "input_size": (channels, *preprocessing.input_size)}
    return {
        "architecture": architecture,
        "label_names": list(class_names),
        "pretrained_cfg": {
            **{name: own.get(name) for name in ("first_conv", "classifier", "fixed_input_size")},
            **{"tag": "vitgraft", "custom_load": False, "num_classes": model.num_classes},
            **data,
        },
        "vitgraft": {"version": __version__, "weights": weights},
    }


def _compare(model: nn.Module, folder: Path, preprocessing: Preprocessing) -> None:
    """Raises `CheckpointError` where what timm loads from the export is not the same model."""
    check_export(folder)
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        raise CheckpointError(f"timm can't load the export: {error}") from error
    device = next(model.parameters()).device
    shape = (2, loaded.pretrained_cfg["input_size"][0], *preprocessing.input_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (model(images.to(device)).cpu() - loaded(images)).abs().max().item()
    if not (difference == 0.0 or (device.type != "cpu" and difference < 1e-3)):
        raise CheckpointError(
            f"the model that timm loads from the export differs: outputs by {difference:.1e}. Was the model made with "
            "options that are not in its recipe?"
        )
