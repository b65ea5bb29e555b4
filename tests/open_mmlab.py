"""Swin under the names of mmdetection 3 and mmsegmentation 1."""

import re

import torch

NAMES = (
    (r"(^|backbone\.)layers\.", r"\1stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1", ".ffn.layers.0.0"),
    (r"\.mlp\.fc2", ".ffn.layers.1"),
    (r"patch_embed\.proj", "patch_embed.projection"),
)


def as_open_mmlab(state: dict[str, torch.Tensor], prefix: str = "backbone.") -> dict[str, torch.Tensor]:
    """The Swin authors' names and order as `swin_converter` (mmdet/models/backbones/swin.py) changes them."""
    named = {}
    for name, value in state.items():
        if name.startswith("head."):
            continue
        for authors, theirs in NAMES:
            name = re.sub(authors, theirs, name)
        if ".downsample." in name:
            parts = value.reshape(-1, 4, value.shape[-1] // 4)[:, [0, 2, 1, 3]].transpose(1, 2)
            value = parts.reshape(value.shape)
        named[prefix + name] = value
    return named
