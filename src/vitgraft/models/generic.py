"""`grafted`: any timm model with grafts, under one name, so that one made by `vitgraft.graft` can be made again.

    timm.create_model("grafted", backbone="vit_small_patch16_224", graft={"levels": 2}, num_classes=10)

Configurations that `vitgraft export` writes for such models name it; weights of the backbone are not loaded by it.
"""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from torch import nn

from vitgraft.config import GraftConfig
from vitgraft.errors import GraftError
from vitgraft.grafting import graft as add_grafts

__all__ = ["grafted"]


@register_model
def grafted(
    pretrained: bool = False,
    backbone: str | None = None,
    graft: GraftConfig | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A timm model of the name `backbone`, grafted with options of GraftConfig.

    With `features_only=True` its features are those of `forward_intermediates`, at the backbone's own `out_indices`.

    Raises:
        GraftError: No backbone, a backbone that timm does not know or that has grafts already, or impossible options.
    """
    if not backbone:
        raise GraftError("grafted: give backbone=NAME, a model that timm knows")
    if backbone == "grafted" or backbone.startswith("graft_"):
        raise GraftError(f"backbone={backbone!r} has grafts already")
    if not timm.is_model(backbone.split(".")[0].removeprefix("hf-hub:")) and ":" not in backbone:
        raise GraftError(f"backbone={backbone!r} is no model that timm knows; timm.list_models() names all")

    def make(**options: Any) -> nn.Module:
        return add_grafts(timm.create_model(backbone, **options), graft)

    if kwargs.get("pretrained_cfg") is None:
        # the backbone's sizes and normalization, but not its weights, which lack the grafts
        found = timm.get_pretrained_cfg(backbone)
        own = found.to_dict() if found is not None else {}
        weights = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag", "architecture")
        kwargs["pretrained_cfg"] = {name: value for name, value in own.items() if name not in weights}
    features: dict[str, Any] = {"feature_cls": "getter"}
    if kwargs.get("features_only") and "out_indices" not in kwargs:
        features["out_indices"] = _out_indices(backbone, kwargs)
    return build_model_with_cfg(make, "grafted", pretrained, feature_cfg=features, **kwargs)


def _out_indices(backbone: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Those that the backbone has by default in timm."""
    given = {name: value for name, value in options.items() if name not in ("pretrained_cfg", "pretrained_cfg_overlay")}
    features = timm.create_model(backbone, **given, device="meta")
    return tuple(features.feature_info.out_indices)
