"""Models of the tasks, by timm's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import nn

import vitgraft
from vitgraft.checkpoints import short_reason
from vitgraft.errors import CheckpointError, GraftError, ModelSpecError
from vitgraft.report.spec import ModelSpec, create, input_size_of
from vitgraft.training.checkpoint_files import located


def build_model(
    name: str,
    num_classes: int,
    model_kwargs: Mapping[str, Any] | None = None,
    graft: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    device: str | None = None,
) -> nn.Module:
    """A timm model by name, grafted where `graft` asks for it.

    Args:
        graft: Options of GraftConfig: those of a grafted name, or for grafting a name that is not. An empty mapping
            grafts with the defaults, None does not.
        pretrained: Load timm's weights of the named model, before it is grafted.
        device: "meta" makes no tensors.

    Raises:
        ModelSpecError, GraftError: Unknown name, option, or an impossible graft; pretrained weights that can't be had.
    """
    options = dict(model_kwargs or {})
    named = is_graft_name(name)
    if named and graft is not None:
        options["graft"] = {**options.get("graft", {}), **graft}
    spec = ModelSpec(name, {**options, "num_classes": num_classes})
    try:
        model = create(spec, device, pretrained=pretrained)
    except (ModelSpecError, GraftError):
        raise
    except Exception as error:  # torch, timm and the hub raise what they like
        if pretrained:
            raise ModelSpecError(f"{name}: its pretrained weights can't be loaded: {short_reason(error)}") from error
        raise
    return vitgraft.graft(model, **graft) if graft is not None and not named else model


def start_file(path: str | Path) -> Path:
    """The file of start weights; of a run's folder, its best.ckpt, else last.ckpt.

    Raises:
        CheckpointError: nothing there.
    """
    try:
        return located(path)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint_path={error}") from error


def build_backbone(
    name: str,
    model_kwargs: Mapping[str, Any] | None = None,
    graft: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    device: str | None = None,
) -> nn.Module:
    """A timm model as the backbone of a dense task, without classifier; see `build_model`.

    Raises:
        ModelSpecError: Also where the model takes images of one size only, and none was asked for.
    """
    options = dict(model_kwargs or {})
    model = build_model(name, 0, options, graft, pretrained, device=device)
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if getattr(patches, "strict_img_size", False) and size is not None and "img_size" not in options:
        hint = "model_kwargs: {img_size: ...} gives it another"
        if name.startswith("swin_"):
            hint = f"graft_{name.split('.')[0]} with graft: {{blocks: []}} is that Swin without a graft, for every size"
        elif hasattr(model, "dynamic_img_size"):
            hint = "model_kwargs: {dynamic_img_size: true} lets it take every size"
        raise ModelSpecError(f"{name} takes images of {size[0]} x {size[1]} pixels only; {hint}")
    return model


def is_graft_name(name: str) -> bool:
    """Whether the named model carries grafts by itself."""
    return name.split("/")[-1].startswith("graft_")


def data_config_of(model: nn.Module | str, model_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """input_size (3, H, W), mean, std, crop_pct and interpolation of a model, as plain lists and numbers.

    Args:
        model: The model, or its name, which is looked up without building it.
        model_kwargs: Options that the name is built with; `img_size` and `in_chans` count.
    """
    options = model_kwargs or {}
    if isinstance(model, nn.Module):
        config = getattr(model, "pretrained_cfg", None) or {}
        size = input_size_of(model)
    else:
        found = None if ":" in model else timm.get_pretrained_cfg(model)
        if found is None:  # hf-hub:, local-dir: and unknown names, which create() explains
            return data_config_of(create(ModelSpec(model, options)))
        config = found.to_dict()
        side = options.get("img_size") or config["input_size"][1:]
        size = (options.get("in_chans", config["input_size"][0]), *((side, side) if isinstance(side, int) else side))
    # a user's own module may have no configuration, which timm refuses when it is empty
    resolved = {**resolve_data_config(pretrained_cfg=config or {"input_size": size}), "input_size": size}
    kept = ("input_size", "mean", "std", "crop_pct", "interpolation")
    return {key: list(value) if isinstance(value := resolved[key], tuple) else value for key in kept}
