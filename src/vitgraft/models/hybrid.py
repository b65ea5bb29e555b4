"""MobileViT-XXS with grafts: the hybrid of the published version (WACV 2024).

Its abstract prints the gain, 1.9 points of top-1, and no options. Here the defaults graft every transformer layer that
gets a level but the first: windows of 4 x 4 tokens, which divide the maps of 16, 8 and 4 tokens at 256 x 256. Each of
the 2 x 2 pixels of a patch has a grid of its own, as in the backbone's attention.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.byobnet import ByobNet
from timm.models.mobilevit import model_cfgs

from vitgraft.models._build import build_grafted, grafted_cfgs

__all__: list[str] = []

default_cfgs = generate_default_cfgs(
    grafted_cfgs(
        {"graft_mobilevit_xxs": "timm/mobilevit_xxs.cvnets_in1k"},
        first_conv="stem.conv",
        classifier="head.fc",
        input_size=(3, 256, 256),
        crop_pct=0.9,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        license="cvnets-license",
    )
)


@register_model
def graft_mobilevit_xxs(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """MobileViT-XXS + GrafT: 5 grafts of 2, 1, 1, 1, 1 levels; 1.46 M parameters at 256 x 256."""
    return build_grafted(
        ByobNet,
        "graft_mobilevit_xxs",
        pretrained,
        filter_fn=lambda state_dict, model: state_dict,
        graft_defaults={"window_size": 4},
        feature_indices=(0, 1, 2, 3, 4),
        model_cfg=model_cfgs["mobilevit_xxs"],
        **kwargs,
    )
