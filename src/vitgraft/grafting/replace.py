"""Replacing a backbone's attention: windows in plain ViTs, the authors' padding in timm's Swin.

What replaces it adopts the children of the original under their own names, so that no parameter changes its name.
"""

from typing import Any

import torch
from torch import nn

from vitgraft.grafting.inject import TokenGrid
from vitgraft.layers.attention import attend, attend_qkv
from vitgraft.layers.window import effective_window, pad_grid, window_partition, window_reverse

__all__ = ["WindowedAttention", "replace_child", "restore_children"]

Size = tuple[int, int]
_ORIGINAL = "_graft_replaces"


class WindowedAttention(nn.Module):
    """The attention of a plain ViT block inside windows without shift, on its own weights (section 3.1).

    Args:
        attn: timm's `Attention`, whose children this module adopts.
        grid: Grid of the tokens, without prefix tokens.
        window_size: Window (height, width) in tokens.
    """

    def __init__(self, attn: nn.Module, grid: TokenGrid, window_size: Size):
        super().__init__()
        self.num_heads = attn.num_heads
        self.grid = grid
        self.window_size = window_size
        for name, child in attn.named_children():
            self.add_module(name, child)
        self.train(attn.training)

    def forward(self, x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
        """(B, H * W, C) to (B, H * W, C)

        Raises:
            ValueError: A mask was given.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("backbone_attention='window' takes no attn_mask and no is_causal")
        B, tokens, C = x.shape
        H, W = self.grid.of(x, tokens, self)
        window = effective_window((H, W), self.window_size)
        x = pad_grid(x.view(B, H, W, C), window)
        padded = x.shape[1], x.shape[2]
        x = window_partition(x, window)
        if isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            x = attend_qkv(self.qkv(x), self.num_heads, drop=self.attn_drop)
        else:
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            x = attend(self.q_norm(q), self.k_norm(k), v, drop=self.attn_drop).transpose(1, 2).flatten(2)
        x = self.proj_drop(self.proj(self.norm(x)))
        x = window_reverse(x, window, padded)[:, :H, :W]
        return x.reshape(B, tokens, C)


def replace_child(parent: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` in the place of a child, which `restore_children` puts back."""
    new.__dict__[_ORIGINAL] = parent.get_submodule(name)
    setattr(parent, name, new)


def restore_children(parent: nn.Module) -> None:
    """Puts back the children of a module that were replaced, with the present children of what replaced them."""
    for name, new in list(parent.named_children()):
        original = new.__dict__.get(_ORIGINAL)
        if original is not None:
            for key, child in new.named_children():
                setattr(original, key, child)
            setattr(parent, name, original.train(new.training))
