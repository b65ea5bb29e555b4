"""Which official conformance vector belongs to which model of the zoo."""

from typing import Any

from torch import nn

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
}
"""Vector -> registered name and options."""


def official_extra_macs(model: nn.Module, vector: str) -> int:
    """MAC that the official code spends for nothing: ViL's projects keys and values twice with the same weights."""
    return 0
