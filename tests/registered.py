"""Every registered model with few blocks and channels: one of each family and code path, for the suites over all."""

from typing import Any, NamedTuple

import timm
import torch
from torch import nn


class Small(NamedTuple):
    """What makes a model small, and what it takes and gives.

    Attributes:
        options: Of the constructor.
        sizes: Sides of images that it takes; the first is its own.
        reductions: Of its feature maps.
    """

    options: dict[str, Any]
    sizes: list[tuple[int, int]]
    reductions: list[int]


PYRAMID = [4, 8, 16, 32]
SWIN = {"depths": (2, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)}
CSWIN = {"depths": (2, 1, 2, 1), "embed_dim": 16, "num_heads": (2, 2, 4, 8)}
# from one patch up: odd, not square, below a window, not a multiple of the patch
PATCHES_OF_4 = [(64, 64), (4, 4), (5, 13), (21, 28), (52, 37), (33, 90), (224, 32), (40, 72)]
ZOO = {
    "pvt_tiny": Small(
        {"embed_dims": (8, 16, 24, 32), "depths": (2, 1, 2, 1), "num_heads": (1, 2, 3, 4), "img_size": 64},
        [(64, 64), (32, 32), (33, 71), (96, 160)],
        PYRAMID,
    ),
    "t2t_vit_14": Small({"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": 64}, [(64, 64)], [16, 16, 16]),
    "t2t_vit_t_14": Small(
        {"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": (48, 64), "dynamic_img_size": True},
        [(48, 64), (16, 16), (3, 5), (70, 33)],
        [16, 16, 16],
    ),
    "regionvit_tiny": Small(
        {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 56},
        [(56, 56), (64, 64), (4, 4), (56, 61), (33, 112)],
        PYRAMID,
    ),
    "regionvit_medium": Small(
        {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "img_size": 56},
        [(56, 56), (30, 58)],
        PYRAMID,
    ),
    "vil_tiny": Small(
        {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4), "img_size": 64},
        [(64, 64)],
        PYRAMID,
    ),
    "vil_tiny_rpb": Small(
        {
            "embed_dims": (8, 16, 24, 32),
            "depths": (1, 2, 1, 1),
            "num_heads": (1, 2, 3, 4),
            "img_size": (64, 96),
            "window_size": 5,
        },
        [(64, 96)],
        PYRAMID,
    ),
}
GRAFTED = {
    "graft_deit_tiny_patch16_224": Small(
        {"depth": 3, "embed_dim": 24, "num_heads": 3},
        [(64, 64), (16, 16), (17, 48), (81, 113), (224, 32), (40, 72)],
        [16, 16, 16],
    ),
    "graft_swin_tiny_patch4_window7_224": Small(SWIN, PATCHES_OF_4, PYRAMID),
    "graft_cswin_tiny_224": Small(CSWIN, PATCHES_OF_4, PYRAMID),
    "graft_mobilevit_xxs": Small({}, [(64, 64), (32, 32), (33, 96), (161, 65), (40, 72)], [2, 4, 8, 16, 32]),
}
MODELS = {**GRAFTED, "cswin_tiny_224": Small(CSWIN, PATCHES_OF_4, PYRAMID), **ZOO}


def make(name: str, **options: Any) -> nn.Module:
    """A model of MODELS with 5 classes in eval mode, of always the same weights."""
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5, **MODELS[name].options, **options}).eval()


def images(name: str, batch: int = 2, size: tuple[int, int] | None = None, channels: int = 3) -> torch.Tensor:
    """Random images, of the model's own size if none is given."""
    return torch.randn(batch, channels, *(size or MODELS[name].sizes[0]), generator=torch.Generator().manual_seed(0))
