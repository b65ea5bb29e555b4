"""Grafts alone in a folder: graft_config.json and adapter_model.safetensors, a few MB that fit a fresh backbone."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitgraft._version import __version__
from vitgraft.atomic import check_writable
from vitgraft.errors import CheckpointError, GraftError
from vitgraft.grafting import graft, grafts, is_grafted, strip
from vitgraft.grafting.api import is_norm
from vitgraft.grafting.trace import input_size
from vitgraft.terminal import warn
from vitgraft.weights import hub
from vitgraft.weights.files import read_checkpoint
from vitgraft.weights.load_report import some
from vitgraft.weights.official import short_reason

__all__ = ["CONFIG", "WEIGHTS", "load_grafts", "save_grafts"]

CONFIG, WEIGHTS = "graft_config.json", "adapter_model.safetensors"
FORMAT = 1
LISTED = 5  # differences in a message


def save_grafts(model: nn.Module, folder: str | Path, *, head: bool = False, norms: bool = False) -> Path:
    """Writes the grafts of a model alone, which `load_grafts` puts on a fresh backbone.

    Args:
        model: Grafted, or with a grafted backbone inside (a detector, a segmenter): of that the backbone's are saved.
        folder: Made where it is missing; an adapter in it is replaced.
        head: Whether the classifier goes with them, as `train_grafts_only(head=True)` trains it.
        norms: Whether the backbone's normalization layers go with them, as `train_grafts_only(norms=True)` trains them.

    Returns:
        The folder.

    Raises:
        GraftError: The model carries no grafts, or was grafted in several places.
        RunFolderError: The folder can't be written.
    """
    root = _grafted_part(model)
    tensors = {name: value.detach().cpu().contiguous() for name, value in _with_grafts(root, head, norms).items()}
    size = root.graft_config.img_size or input_size(root, None)[1:]  # it fixes levels and E_aa
    config = {
        "format": FORMAT,
        "vitgraft_version": __version__,
        "graft": replace(root.graft_config, img_size=size).to_dict(),
        "backbone": {
            "class": _class_of(root),
            "name": (getattr(root, "pretrained_cfg", None) or {}).get("architecture"),
            "weights": {name: _digest(value) for name, value in _backbone_tensors(root, tensors).items()},
        },
        "blocks": list(grafts(root)),
        "head": head,
        "norms": norms,
    }
    folder = Path(folder)
    check_writable(folder)
    # tied tensors would be refused
    save_file({name: value.clone() for name, value in tensors.items()}, folder / f".{WEIGHTS}", {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / f".{WEIGHTS}")
    (folder / f".{WEIGHTS}").replace(folder / WEIGHTS)
    return folder


def load_grafts(model: nn.Module, folder: str | Path, **options: Any) -> nn.Module:
    """Grafts a fresh backbone, in place, with what `save_grafts` wrote, and returns it.

    A backbone that does not fit is left as it was. Where it fits, but is of another class or has other weights than the
    one that the grafts were trained on, a warning names them.

    Args:
        model: The backbone, without grafts; where the folder holds a classifier, with one of as many classes.
        folder: Of `save_grafts` or `vitgraft export --grafts-only`; or `hf-hub:USER/NAME`.
        **options: For the hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        CheckpointError: No such folder, damaged, or not for this backbone: the message names what does not fit.
        GraftError: The model carries grafts already, or cannot carry any.

    Example:
        >>> model = timm.create_model("vit_small_patch14_dinov2", pretrained=True, num_classes=10)
        >>> vitgraft.load_grafts(model, "adapter")
    """
    text = str(folder)
    folder = hub.download(text, (CONFIG, WEIGHTS), **options) if text.startswith(hub.PREFIX) else Path(folder)
    config = _read_config(folder)
    tensors = read_checkpoint(folder / WEIGHTS)
    if is_grafted(model):
        raise GraftError(f"{type(model).__name__} is grafted already; vitgraft.strip(model) gives the backbone back")
    backbone = config["backbone"]
    of = backbone.get("name") or backbone.get("class")
    try:
        graft(model, config["graft"])
    except GraftError as error:
        raise CheckpointError(f"{text}: the grafts of {of} do not fit this {type(model).__name__}: {error}") from error
    try:
        _check(model, tensors, text, of, config)
    except CheckpointError:
        strip(model)
        raise
    model.load_state_dict(tensors, strict=False)
    _warn_of_another(model, text, backbone, tensors)
    return model


def _grafted_part(model: nn.Module) -> nn.Module:
    """The module that `graft` was called with."""
    parts = [module for module in model.modules() if "graft_config" in module.__dict__]
    if not parts or not grafts(model):
        raise GraftError(f"{type(model).__name__} carries no graft to save; vitgraft.graft(model) adds them")
    if len(parts) > 1:
        raise GraftError(f"{type(model).__name__} holds {len(parts)} grafted models; save the grafts of each one")
    return parts[0]


def _class_of(model: nn.Module) -> str:
    """With the library: the authors' Swin here and timm's have one name and differ."""
    return f"{type(model).__module__.split('.')[0]}.{type(model).__name__}"


def _heads(model: nn.Module) -> set[int]:
    """The ids of the classifier's parameters, by timm's `get_classifier`."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    parts = found if isinstance(found, (tuple, list)) else [found]
    return {id(value) for part in parts if isinstance(part, nn.Module) for value in part.parameters()}


def _with_grafts(model: nn.Module, head: bool, norms: bool) -> dict[str, Tensor]:
    """What is saved, by its name in the model."""
    chosen = set()
    if head:
        heads = _heads(model)
        if not heads:
            raise GraftError(f"head=True: {type(model).__name__} has no classifier; leave head out")
        chosen |= {name for name, value in model.named_parameters() if id(value) in heads}
    if norms:
        of_norms = (name for name, module in model.named_modules() if is_norm(module))
        chosen |= {f"{name}.{one}" for name in of_norms for one in model.get_submodule(name).state_dict()}
    state = model.state_dict()
    return {name: value for name, value in state.items() if name in chosen or ".graft." in f".{name}"}


def _backbone_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a fresh backbone must bring: neither saved ones nor those of a classifier."""
    heads = _heads(model)
    return {
        name: value
        for name, value in model.named_parameters()
        if name not in saved and id(value) not in heads and ".graft." not in f".{name}"
    }


def _digest(value: Tensor) -> str:
    """Of values in float32, so that a backbone in half precision is recognized as long as it is exact."""
    values = value.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()[:12]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no grafts here (no {CONFIG})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {short_reason(error)}") from error
    kinds = {"format": int, "graft": dict, "backbone": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(name), kind) for name, kind in kinds.items()):
        raise CheckpointError(f"{path}: not of vitgraft.save_grafts (it has {', '.join(kinds)})")
    if config["format"] > FORMAT:
        raise CheckpointError(f"{path}: format {config['format']}, of a newer vitgraft; this one reads {FORMAT}")
    return config


def _check(model: nn.Module, tensors: Mapping[str, Tensor], text: str, of: Any, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` where the tensors are not those of the model's grafts."""
    own = model.state_dict()
    wanted = {name for name in own if ".graft." in f".{name}"}
    errors = []
    for what, names in (
        ("the model has no place for", [name for name in tensors if name not in own]),
        ("the folder lacks", sorted(wanted - tensors.keys())),
    ):
        if names:
            errors.append(f"{what} {len(names)} tensors: {some(names)}")
    differing = [name for name, value in tensors.items() if name in own and own[name].shape != value.shape]
    if differing:
        shapes = [f"{name} {tuple(tensors[name].shape)}, here {tuple(own[name].shape)}" for name in differing[:LISTED]]
        errors.append(f"{len(differing)} shapes differ: {'; '.join(shapes)}")
    if errors:
        kept = config.get("head") and any(".graft." not in f".{name}" for name in differing)
        hint = "; create the backbone with as many classes as the folder's classifier has" if kept else ""
        raise CheckpointError(
            f"{text}: the grafts of {of} do not fit this {type(model).__name__}, which is left as it was: "
            f"{'; '.join(errors)}{hint}"
        )


def _warn_of_another(model: nn.Module, text: str, backbone: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Grafts fit any backbone of the same shapes; what they learned holds beside the one that they were trained on."""
    if backbone.get("class") != _class_of(model):
        warn(f"{text}: the grafts were trained on a {backbone.get('class')}, and this is a {_class_of(model)}")
    then = backbone.get("weights")
    if not isinstance(then, dict):
        return
    now = _backbone_tensors(model, tensors)
    other = [name for name, digest in then.items() if name in now and _digest(now[name]) != digest]
    if other:
        warn(
            f"{text}: {len(other)} of the {len(then)} weights of this backbone are not those that the grafts were "
            f"trained beside: {some(other)}"
        )
