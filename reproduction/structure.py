"""Table 8: how a model brings coarse information to its layers, read off the built model.

Nothing here goes by a model's name. The vertical structure comes from the reductions that timm's `feature_info` gives
for each layer; the scales of a layer and what fuses them from the modules that do it.
"""

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from vitgraft.layers.graft import GrafT
from vitgraft.models.zoo import regionvit

__all__ = ["Structure", "structure_of"]

_UPSAMPLE = {
    "w_bilinear": "Learnable W-Bilinear",
    "bilinear": "Learnable bilinear",
    "nearest": "Nearest",
    "cross_attention": "Cross attention",
}


@dataclass(frozen=True)
class Structure:
    """A row of table 8, as it is printed.

    Attributes:
        structure: "Homogeneous" where all layers have the same resolution, or "Pyramid".
        scales: Number of resolutions in one layer, the largest of all layers; "None" for one.
        fusion: What brings them together; "None" where there is one.
    """

    structure: str
    scales: str
    fusion: str


def structure_of(model: nn.Module) -> Structure:
    """Reads a timm model, on any device.

    Raises:
        ValueError: It has no `feature_info` with reductions.
    """
    info = getattr(model, "feature_info", None)
    if not isinstance(info, list) or not all("reduction" in level for level in info):
        raise ValueError(f"{type(model).__name__} has no feature_info that gives the reduction of each layer")
    layers: dict[str, set[int]] = defaultdict(set)
    for level in info:  # a layer of several branches has several entries
        layers[level["module"]].add(level["reduction"])
    found = [fusion for module in model.modules() if (fusion := _fusion(module)) is not None]
    scales, fusion = max(found, default=(1, "None"))
    same = len({frozenset(reductions) for reductions in layers.values()}) == 1
    return Structure("Homogeneous" if same else "Pyramid", str(scales) if scales > 1 else "None", fusion)


def _fusion(module: nn.Module) -> tuple[int, str] | None:
    """Number of scales that a module brings together, and how; None for a module that has one."""
    from timm.models import crossvit, tnt

    if isinstance(module, GrafT):
        scales = 1 + len(module.levels) + len(module.left_levels)
        up = (module.levels or module.left_levels)[0].up
        return scales, _UPSAMPLE[up.mode] + " + E-Wise add."
    if isinstance(module, crossvit.MultiScaleBlock):
        fusers = [layer for layer in module.fusion.modules() if isinstance(layer, crossvit.CrossAttentionBlock)]
        return (module.num_branches, "Cross attention") if fusers else None
    if isinstance(module, tnt.Block) and isinstance(module.proj, nn.Linear):
        # pixels inside a patch, and patches: the linear layer sums up the pixels, and is added to the patch
        return sum(isinstance(child, tnt.Attention) for child in module.children()), "LL + E-Wise add."
    if isinstance(module, regionvit.RegionViT):
        embeds = (regionvit.LocalEmbed, regionvit.RegionalEmbed)
        return sum(isinstance(child, embeds) for child in module.children()), "Attention over both"
    return None
