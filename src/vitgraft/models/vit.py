"""DeiT with grafts: the paper's DeiT-T + GrafT, and DeiT-S.

"The full attention in the backbone Transformer is replaced by the window-based local attention without window
shifting" (section 3.1). A class token cannot live in windows, so the tokens are averaged before the head. Weights of
DeiT load under their own names; its class token, and that token's position, are left out.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from vitgraft.models._build import build_grafted, grafted_cfgs, register_variants
from vitgraft.models._compile import one_graph_per_size
from vitgraft.models._cpu import GELU

__all__: list[str] = []

default_cfgs = generate_default_cfgs(
    grafted_cfgs(
        {f"graft_{name}": f"timm/{name}.fb_in1k" for name in ("deit_tiny_patch16_224", "deit_small_patch16_224")},
        first_conv="patch_embed.proj",
    )
)


class GraftDeiT(VisionTransformer):
    """timm's VisionTransformer, with its tokens laid out row by row in memory.

    Without a class token timm hands on a transposed view of the patch embedding, and every sum after it inherits that
    layout: each LayerNorm would then copy its input (5 % of the time on a CPU).
    """

    def forward_features(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        one_graph_per_size(x)
        return super().forward_features(x, *args, **kwargs)

    def forward_intermediates(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        one_graph_per_size(x)
        return super().forward_intermediates(x, *args, **kwargs)

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:  # timm cannot flatten an empty batch
            return super()._pos_embed(torch.cat((x, x.new_zeros(1, *x.shape[1:]))))[:0]
        return super()._pos_embed(x).contiguous()


def without_class_token(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ViT's weights without the class token and its position; unchanged where there is none."""
    state_dict = dict(state_dict)
    if state_dict.pop("cls_token", None) is not None and "pos_embed" in state_dict:
        tokens = state_dict["pos_embed"].shape[1]
        if int((tokens - 1) ** 0.5) ** 2 == tokens - 1:
            state_dict["pos_embed"] = state_dict["pos_embed"][:, 1:]
    return state_dict


def _filter(state_dict: dict[str, Any], model: VisionTransformer) -> dict[str, torch.Tensor]:
    state_dict = state_dict.get("model", state_dict)
    return checkpoint_filter_fn(without_class_token(state_dict), model)


def _create_graft_deit(variant: str, pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Any size of grafted DeiT; options of timm's VisionTransformer, and `graft` for those of GraftConfig."""
    defaults = {
        "patch_size": 16,
        "class_token": False,
        "global_pool": "avg",
        # DeiT's final norm keeps its place and name: on the tokens, before they are averaged
        "fc_norm": False,
        "act_layer": GELU,
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
    }
    return build_grafted(
        GraftDeiT,
        variant,
        pretrained,
        _filter,
        graft_defaults={"backbone_attention": "window"},
        feature_indices=3,
        **{**defaults, **kwargs},
    )


VARIANTS = {
    "graft_deit_tiny_patch16_224": (
        "DeiT-T + GrafT (table 2): windows, 11 grafts of 1 level; 7.9 M parameters, 1.2 GMAC at 224 x 224.",
        {"embed_dim": 192, "depth": 12, "num_heads": 3},
    ),
    "graft_deit_small_patch16_224": (
        "DeiT-S + GrafT, grafted as DeiT-T is (not in the paper).",
        {"embed_dim": 384, "depth": 12, "num_heads": 6},
    ),
}
register_variants(__name__, _create_graft_deit, VARIANTS)
