"""How the registered models are built and registered: a class, its options, a graft on top. Plumbing."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, register_model, resolve_pretrained_cfg
from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError
from vitgraft.grafting import graft

__all__ = ["build", "build_grafted", "cfg", "grafted_cfgs", "register_variants", "unwrap"]


def register_variants(
    module: str, create: Callable[..., nn.Module], variants: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> None:
    """Registers names with timm, each as a function of `module` like those of timm's own files.

    Args:
        module: `__name__` of the file, where `default_cfgs` is defined already.
        create: (name, pretrained, **options) -> model.
        variants: Name -> description, options; those of the caller replace them.
    """

    def entrypoint(name: str, description: str, options: Mapping[str, Any]) -> Callable[..., nn.Module]:
        def function(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            return create(name, pretrained, **{**options, **kwargs})

        function.__name__ = function.__qualname__ = name
        function.__module__, function.__doc__ = module, description
        return function

    for name, variant in variants.items():
        setattr(sys.modules[module], name, register_model(entrypoint(name, *variant)))


def cfg(url: str = "", **more: Any) -> dict[str, Any]:
    """A default configuration for timm's `generate_default_cfgs`."""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 224 / 256,  # the authors'; timm has 0.9
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **more,
    }


def grafted_cfgs(backbones: Mapping[str, str], **more: Any) -> dict[str, dict]:
    """Default configurations of grafted names.

    Without a tag there are no weights: none were published and none are measured yet. The tag `backbone` loads the
    weights of timm's (or the authors') backbone, under their own names, and leaves the grafts at their initial values.

    Args:
        backbones: Registered name -> hub id of the backbone's weights, or their URL.
        **more: Further entries of all configurations.
    """
    cfgs = {}
    for name, weights in backbones.items():
        untrained = cfg(**{"license": "apache-2.0", **more})
        where = "url" if weights.startswith("https://") else "hf_hub_id"
        # the star makes it the default; timm would prefer a tag with weights, wherever it comes later
        cfgs |= {f"{name}.backbone": {**untrained, where: weights}, f"{name}.untrained*": untrained}
    return cfgs


def unwrap(state_dict: dict, model: nn.Module) -> dict:
    """timm's hook for `pretrained=True`: weights as the authors wrapped them."""
    for key in ("state_dict_ema", "state_dict", "model", "net"):
        state_dict = state_dict.get(key, state_dict)
    state_dict = {name.removeprefix("module."): value for name, value in state_dict.items()}
    return model.fit_tensors(state_dict)


def build(
    make: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: Callable = unwrap,
    feature_indices: int | tuple[int, ...] = (0, 1, 2, 3),
    **kwargs: Any,
) -> nn.Module:
    """Builds a registered model with timm's builder: pretrained weights, `features_only`, default configuration.

    Args:
        make: The model's class, or a function of its options.
        variant: Registered name.
        pretrained: Load weights of the name's tag.
        filter_fn: (a checkpoint's state dict, model) -> state dict of the model.
        feature_indices: Maps of `features_only`, where no others are asked for.
        **kwargs: Options of the model and of timm's builder.
    """
    return build_model_with_cfg(
        make,
        variant,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": feature_indices, "feature_cls": "getter"},
        **kwargs,
    )


def _with_grafts(filter_fn: Callable) -> Callable:
    """A checkpoint filter that gives a backbone's weights the grafts' present values, so that it loads strictly."""

    def filtered(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
        state_dict = filter_fn(state_dict, model)
        if not any(".graft." in name for name in state_dict):
            own = model.state_dict()
            state_dict = {**state_dict, **{name: own[name] for name in own if ".graft." in name}}
        return state_dict

    return filtered


def build_grafted(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: Callable,
    graft_defaults: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`build` with grafts.

    Args:
        model_cls: The backbone's class.
        variant: Registered name.
        pretrained: Load weights of the name's tag (`name.backbone`: the backbone's).
        filter_fn: The backbone's checkpoint filter.
        graft_defaults: Options of GraftConfig that belong to the name.
        **kwargs: Options of the backbone and of `build`; `graft` is a mapping of GraftConfig's options on top of the
            defaults, or a GraftConfig instead of them. An empty tuple of `blocks` leaves the backbone alone, which is
            how a Swin of the authors' padding is made by name. Without `img_size` among them, the image size that
            fixes levels and E_aa is the backbone's or, where pretrained weights are loaded, that of the weights'
            configuration.

    Raises:
        GraftError: Impossible graft options.
    """
    options = kwargs.pop("graft", None) or {}
    if isinstance(options, GraftConfig):
        config = options
    elif isinstance(options, Mapping):
        config = GraftConfig.make(graft_defaults or {}, **options)
    else:
        raise GraftError(f"graft={options!r} is no GraftConfig and no mapping of its options, such as {{'levels': 2}}")

    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    if not pretrained and kwargs.get("img_size"):  # kept in the configuration, for those who load the weights
        overlay = {"input_size": (kwargs.get("in_chans", 3), *to_2tuple(kwargs["img_size"])), **overlay}
    if config.img_size is None:
        input_size = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay).input_size
        config = replace(config, img_size=input_size[1:])

    def make(**options: Any) -> nn.Module:
        if config.blocks == () and config.backbone_attention == "keep":
            return model_cls(**options)
        return graft(model_cls(**options), config)

    make.__name__ = model_cls.__name__
    return build(make, variant, pretrained, _with_grafts(filter_fn), pretrained_cfg_overlay=overlay, **kwargs)
