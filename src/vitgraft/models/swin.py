"""Swin Transformer as its authors compute it at every input size, and Swin with grafts.

timm's Swin pads a map *after* the cyclic shift. The authors' detection and segmentation code
(SwinTransformer/Swin-Transformer-Object-Detection, mmdet/models/backbones/swin_transformer.py at c7b2011) pads right
and bottom *before* it, computes the shift mask on the padded size, and lets padded tokens take part: zeros after norm1,
so keys and values that are the biases alone. With the same weights the two differ wherever the window does not divide
the map; where it does, they agree. This file is the authors' function in timm's classes, under timm's parameter names.

- The window is always the configured one: neither a small map nor `set_input_size` changes it.
- Every second block shifts by half a window. Where one window holds the whole map, the authors' classification code
  does not shift, and their dense-task code shifts and masks as everywhere: `shift_single_window`, which
  `vitgraft.DenseFeatures` sets.
- Any input size works, from batch to batch. Images that the patch size does not divide are padded with zeros right and
  bottom, as are odd maps before a merge.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import checkpoint_seq, generate_default_cfgs
from timm.models import swin_transformer as timm_swin
from torch import nn

from vitgraft.grafting.replace import SwinBlock
from vitgraft.layers.window import shift_mask
from vitgraft.models._build import build_grafted, grafted_cfgs, register_variants
from vitgraft.models._compile import one_graph_per_size
from vitgraft.models._cpu import GELU, in_slices

__all__ = ["SwinBlock", "SwinTransformer", "shift_mask"]

# B batch, H x W token grid, C channels, M window side, N windows, L = M * M tokens. Grids are (B, H, W, C).


class SwinStage(timm_swin.SwinTransformerStage):
    """timm's stage, whose blocks see a large batch in slices on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, C) or, with a merge, (B, H / 2, W / 2, C')."""
        return in_slices(self._run_blocks, self.downsample(x), growth=4)  # the hidden layer of the MLP

    def _run_blocks(self, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class AnySizePatchEmbed(PatchEmbed):
    """timm's patch embedding, which pads images right and bottom to whole patches."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "strict_img_size": False, "dynamic_img_pad": True})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one_graph_per_size(x)
        return super().forward(x)

    def _init_img_size(self, img_size):
        img_size, grid_size, num_patches = super()._init_img_size(img_size)
        if img_size is not None:  # timm rounds down, but a padded patch is one too
            grid_size = tuple(-(-side // patch) for side, patch in zip(img_size, self.patch_size, strict=True))
            num_patches = grid_size[0] * grid_size[1]
        return img_size, grid_size, num_patches


# Options of timm's Swin that this one decides, with the only values they can have here.
_DECIDED = {"strict_img_size": False, "dynamic_img_size": True, "always_partition": True}


def _check_decided(options: dict[str, Any]) -> None:
    for name, value in _DECIDED.items():
        if options.get(name, value) not in (None, value):
            raise ValueError(
                f"{name}={options[name]!r}: this Swin takes every input size with a fixed window, so only {value!r} "
                "works. timm's own models (swin_*) have the other behavior."
            )


class SwinTransformer(timm_swin.SwinTransformer):
    """timm's Swin Transformer made of `SwinBlock`s: the authors' function for images (B, C, H, W) of every size.

    Args:
        img_size: Nominal image size, for the record only.
        shift_single_window: Shift and mask also where one window holds the whole map.
        kwargs: Options of timm.models.swin_transformer.SwinTransformer, with its defaults; unknown ones raise.
            `strict_img_size`, `dynamic_img_size` and `always_partition` are decided (see the top of the file).
    """

    def __init__(self, img_size: int | tuple[int, int] = 224, shift_single_window: bool = False, **kwargs):
        _check_decided(kwargs)
        options = {name: value for name, value in kwargs.items() if name not in _DECIDED}
        options.setdefault("embed_layer", AnySizePatchEmbed)
        super().__init__(img_size=img_size, strict_img_size=False, always_partition=True, **options)
        for stage in self.layers:
            stage.__class__ = SwinStage  # timm gives no way to name the class; it has timm's attributes
            stage.blocks = nn.Sequential(*[SwinBlock.from_timm(block) for block in stage.blocks])
            for block in stage.blocks:
                block.shift_single_window = shift_single_window
                if type(block.mlp.act) is nn.GELU:  # not of the user's choice
                    block.mlp.act = GELU()

    def set_input_size(
        self, img_size=None, patch_size=None, window_size=None, window_ratio=None, always_partition=None
    ) -> None:
        """Records the nominal image size; timm's windows grow and shrink with it, these change only when given.

        Args:
            img_size, patch_size: As timm.
            window_size: New window of all stages, or one per stage; position tables are resized.
            window_ratio: New windows as a fraction of the map, as timm.
            always_partition: True or None.
        """
        _check_decided({"always_partition": always_partition})
        if window_size is None and window_ratio is None:
            window_size = [stage.blocks[0].window_size for stage in self.layers]
        super().set_input_size(img_size, patch_size, window_size, window_ratio)


default_cfgs = generate_default_cfgs(
    grafted_cfgs(
        {
            f"graft_swin_{size}_patch4_window7_224": f"timm/swin_{size}_patch4_window7_224.ms_in1k"
            for size in ("tiny", "small", "base")
        },
        first_conv="patch_embed.proj",
        classifier="head.fc",
        pool_size=(7, 7),
    )
)

# Options of the published sizes: microsoft/Swin-Transformer, configs/swin
VARIANTS = {
    "graft_swin_tiny_patch4_window7_224": (
        "Swin-T + GrafT (table 1): 3, 2, 1, 0 levels; 34 M parameters, 4.9 GMAC at 224 x 224.",
        {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    ),
    "graft_swin_small_patch4_window7_224": (
        "Swin-S + GrafT (table 1): 3, 2, 1, 0 levels; 64 M parameters, 9.6 GMAC at 224 x 224.",
        {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    ),
    "graft_swin_base_patch4_window7_224": (
        "Swin-B + GrafT, grafted as Swin-T and Swin-S are (not in the paper).",
        {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    ),
}
register_variants(__name__, partial(build_grafted, SwinTransformer, filter_fn=timm_swin.checkpoint_filter_fn), VARIANTS)
