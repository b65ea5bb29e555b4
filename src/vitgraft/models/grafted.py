"""`grafted`: any timm model with grafts, under one name, so that one made by `vitgraft.graft` can be made again.

    timm.create_model("grafted", backbone="vit_small_patch16_224", graft={"levels": 2}, num_classes=10)

Configurations that `vitgraft export` writes for such models name it; weights of the backbone are not loaded by it.
"""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.models.surgery import graft as add_grafts

__all__ = ["grafted"]


@register_model
def grafted(
    pretrained: bool = False, backbone: str | None = None, graft: Mapping[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """A timm model of the name `backbone`, grafted with options of GraftConfig.

    Raises:
        GraftError: No backbone, a backbone that has grafts already, or impossible options.
    """
    if not backbone:
        raise GraftError("grafted: give backbone=NAME, a model that timm knows")
    if backbone == "grafted" or backbone.startswith("graft_"):
        raise GraftError(f"backbone={backbone!r} has grafts already")

    def make(**options: Any) -> nn.Module:
        return add_grafts(timm.create_model(backbone, **options), **(graft or {}))

    if kwargs.get("pretrained_cfg") is None:
        # the backbone's sizes and colours, but not its weights, which lack the grafts
        found = timm.get_pretrained_cfg(backbone)
        own = found.to_dict() if found is not None else {}
        weights = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag", "architecture")
        kwargs["pretrained_cfg"] = {name: value for name, value in own.items() if name not in weights}
    return build_model_with_cfg(make, "grafted", pretrained, **kwargs)
