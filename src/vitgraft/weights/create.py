"""Models by timm's names, with their weights: from specs, and for the tasks."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitgraft import grafting
from vitgraft.errors import CheckpointError, ModelSpecError, VitgraftError
from vitgraft.models.spec import ModelSpec, input_size_of
from vitgraft.options import closest
from vitgraft.weights.files import HUB_PREFIX, check_file, read_checkpoint
from vitgraft.weights.official import load_official, short_reason

# Files that timm takes weights from in a folder of its hub format; others only where there is none of these names
HUB_STEMS = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
HUB_SUFFIXES = (".safetensors", ".pth", ".bin")
# What constructors raise where an option has a value that they can't use
OPTION_ERRORS = (TypeError, AssertionError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)


def create(spec: ModelSpec | str, device: str | None = None, **kwargs: Any) -> nn.Module:
    """The model of a spec, freshly initialized, in train mode as timm returns it.

    Args:
        spec: What to create; text is parsed first.
        device: Where its tensors are made; "meta" makes none, which is enough to count.
        **kwargs: Further arguments of `timm.create_model`; the spec's own win. `checkpoint_path` is read by
            `vitgraft.load_official`.

    Raises:
        CheckpointError: The file of `checkpoint_path` is missing, damaged, not weights alone, or of another model.
        ModelSpecError: timm does not know the name (the message lists close ones), the model lacks an option, or its
            weights can not be had from the hub.
        GraftError: An option of the graft has a value that it can't have.
    """
    spec = ModelSpec.parse(spec) if isinstance(spec, str) else spec
    if ":" not in spec.name and not timm.is_model(spec.name.split(".")[0]):
        names = closest(spec.name, timm.list_models())
        hint = f"close names: {', '.join(names)}" if names else "timm.list_models() names all"
        raise ModelSpecError(f"unknown model {spec.name!r}; {hint}")
    options = {**kwargs, **spec.options}
    file = options.get("checkpoint_path")
    if file and not str(file).endswith(".npz"):  # of JAX, which timm's ViT reads itself
        del options["checkpoint_path"]
    else:
        if file:
            check_file(file)
        file = None
    if spec.name.startswith(HUB_PREFIX) and options.get("pretrained"):
        check_export(spec.name.removeprefix(HUB_PREFIX))
    try:
        with torch.device(device or "cpu"), _without_initialization(device):
            model = timm.create_model(spec.name, **options)
    except VitgraftError:
        raise
    except Exception as error:  # torch, timm and the hub raise what they like
        if (explained := _explained(spec, options, error)) is None:
            raise
        raise explained from error
    if file:
        try:
            load_official(model, file)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint_path={file}: {error}") from error
    return model


def _explained(spec: ModelSpec, options: Mapping[str, Any], error: Exception) -> VitgraftError | None:
    """What an error of timm's or the hub's means; None where neither the name nor the options can be the cause."""
    reason = f"{type(error).__name__}: {short_reason(error)}"
    # timm hands options down through **kwargs, so a misspelt one ends as a TypeError deep inside
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        return ModelSpecError(f"model {spec.name!r} does not take one of its options {dict(spec.options)}: {error}")
    if "Invalid pretrained tag" in str(error):
        return ModelSpecError(f"model {spec.name!r}: {error}")
    if spec.name.startswith(HUB_PREFIX):
        return CheckpointError(f"{spec.name.removeprefix(HUB_PREFIX)}: not a model in timm's hub format: {reason}")
    if options.get("pretrained") or spec.name.startswith("hf-hub:"):
        return ModelSpecError(f"{spec.name}: its pretrained weights can't be loaded ({reason})")
    if isinstance(error, OPTION_ERRORS) and "memory" not in str(error):
        return ModelSpecError(f"model {spec.name!r} can't be made with its options {dict(spec.options)} ({reason})")
    return None


def check_export(folder: str | Path) -> None:
    """Reads the weights in a folder of timm's hub format, which timm itself does not check.

    Raises:
        CheckpointError: No such folder, or one of the files that timm may take is damaged or refused.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    files = [path for path in sorted(Path(folder).iterdir()) if path.suffix in HUB_SUFFIXES and path.is_file()]
    for path in [path for path in files if path.stem in HUB_STEMS] or files:
        read_checkpoint(path)


def _without_initialization(device: str | None) -> AbstractContextManager:
    """On "meta", leaves out the operators that fill weights, which take a quarter of the time of counting a model."""
    if device != "meta":
        return nullcontext()
    filling = {"add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"}

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in filling and args and isinstance(args[0], Tensor) and args[0].is_meta:
                return args[0]
            return func(*args, **(kwargs or {}))

    return Unfilled()


def create_at(spec: ModelSpec, img_size: int | None, device: str | None = None, **kwargs: Any) -> nn.Module:
    """`create` for square images of `img_size`, also of models that take any size and so have no such option."""
    if img_size is None:
        return create(spec, device, **kwargs)
    try:
        return create(spec, device, img_size=img_size, **kwargs)
    except ModelSpecError as error:
        if "'img_size'" not in str(error.__cause__):
            raise
        return create(spec, device, **kwargs)


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
    model = create(spec, device, pretrained=pretrained)
    return grafting.graft(model, **graft) if graft is not None and not named else model


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
    strict = getattr(patches, "strict_img_size", False) and size is not None
    switched = hasattr(model, "dynamic_img_size")  # by `pyramid`
    if strict and "img_size" not in options and not switched:
        raise ModelSpecError(
            f"{name} takes images of {size[0]} x {size[1]} pixels only; model_kwargs: {{img_size: ...}} sets another"
        )
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
