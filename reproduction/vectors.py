"""Which official conformance vector belongs to which model of the zoo."""

from typing import Any

from torch import nn

from vitgraft.models.zoo.vil_blocks import WindowedAttention

__all__ = ["VECTORS", "official_extra_macs"]

VECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "pvt_tiny_224": ("pvt_tiny", {}),
    "pvt_small_224": ("pvt_small", {}),
    "pvt_medium_224": ("pvt_medium", {}),
    "pvt_tiny_192x256": ("pvt_tiny", {}),
    "t2t_vit_14_224": ("t2t_vit_14", {}),
    "t2t_vit_t_14_224": ("t2t_vit_t_14", {}),
    "regionvit_tiny_224": ("regionvit_tiny", {}),
    "regionvit_small_224": ("regionvit_small", {}),
    "regionvit_medium_224": ("regionvit_medium", {}),
    "regionvit_tiny_256": ("regionvit_tiny", {}),
    "vil_tiny_224": ("vil_tiny", {}),
    "vil_tiny_rpb_224": ("vil_tiny_rpb", {}),
    "vil_small_rpb_224": ("vil_small_rpb", {}),
    "vil_tiny_rpb_256": ("vil_tiny_rpb", {"img_size": 256}),
}
"""Vector -> registered name and options."""


def official_extra_macs(model: nn.Module) -> int:
    """MAC of one image that the official code of ViL spends more than ours: for nothing, the function is the same.

    In the stages with windows it projects keys and values twice with the same weights, and computes and masks the
    windows outside the map and the tokens that fill up the last windows. (The product of the weights of the global
    tokens and their values is written there as a sum, which a counter of matrix products does not see.)
    """
    extra = 0
    for layer in model.modules():
        if isinstance(layer, WindowedAttention):
            (H, W), M, G, C = layer.size, layer.side, layer.global_tokens, layer.proj.in_features
            windows = -(-H // M) * -(-W // M)
            extra += (G + H * W) * C * 2 * C
            extra += windows * M**2 * (2 * 9 * M**2 + G) * C
            for rows, columns in layer.kinds:
                queries = len(rows.starts) * len(columns.starts) * rows.queries * columns.queries
                extra -= queries * (G + rows.keys * columns.keys) * 2 * C
    return extra
