"""Replacing a backbone's attention: windows in plain ViTs, the authors' padding in timm's Swin.

What replaces it adopts the children of the original under their own names, so that no parameter changes its name.
"""

from typing import Any

import torch
from timm.models import swin_transformer as timm_swin
from torch import nn

from vitgraft.grafting.inject import TokenGrid
from vitgraft.layers.attention import attend, attend_qkv
from vitgraft.layers.window import (
    effective_window,
    into_windows,
    out_of_windows,
    pad_grid,
    relative_position_bias,
    shift_mask,
    window_partition,
    window_reverse,
)

__all__ = ["SwinBlock", "WindowedAttention", "replace_child", "restore_children"]

Size = tuple[int, int]
_ORIGINAL = "_graft_replaces"


class WindowedAttention(nn.Module):
    """The attention of a plain ViT block inside windows without shift, on its own weights (section 3.1).

    Prefix tokens attend to the whole grid, and the tokens of each window to them too.

    Args:
        attn: timm's `Attention`, whose children this module adopts.
        grid: Grid of the tokens.
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
        """(B, P + H * W, C) to (B, P + H * W, C)

        Raises:
            ValueError: A mask was given.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("backbone_attention='window' takes no attn_mask and no is_causal")
        B, tokens, C = x.shape
        prefix = x[:, : self.grid.prefix]
        H, W = self.grid.of(x, tokens, self)
        window = effective_window((H, W), self.window_size)
        x = pad_grid(x[:, self.grid.prefix :].reshape(B, H, W, C), window)
        padded = x.shape[1], x.shape[2]
        x = window_partition(x, window)
        if self.grid.prefix:
            prefix, x = self._with_prefix(prefix, x, window, padded, (H, W))
        elif isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            x = attend_qkv(self.qkv(x), self.num_heads, drop=self.attn_drop)
        else:
            x = attend(*self._heads(x), drop=self.attn_drop).transpose(1, 2).flatten(2)
        x = window_reverse(self._out(x), window, padded)[:, :H, :W].reshape(B, H * W, C)
        return torch.cat((self._out(prefix), x), dim=1) if self.grid.prefix else x

    def _out(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj_drop(self.proj(self.norm(x)))

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, N, C) to q, k and v (B, h, N, d)."""
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def _with_prefix(
        self, prefix: torch.Tensor, x: torch.Tensor, window: Size, padded: Size, size: Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix tokens (B, P, C) and windows (B * n, L, C), each after its attention."""
        q, k, v = self._heads(x)
        prefix_q, prefix_k, prefix_v = self._heads(prefix)
        n = x.shape[0] // prefix.shape[0]

        def for_windows(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            return torch.cat((prefix.repeat_interleave(n, dim=0), own), dim=2)

        def whole(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            # without the padding of the windows
            grid = window_reverse(own.transpose(1, 2).flatten(2), window, padded)[:, : size[0], : size[1]].flatten(1, 2)
            grid = grid.view(*grid.shape[:2], self.num_heads, -1).transpose(1, 2)
            return torch.cat((prefix, grid), dim=2)

        x = attend(q, for_windows(prefix_k, k), for_windows(prefix_v, v), drop=self.attn_drop)
        prefix = attend(prefix_q, whole(prefix_k, k), whole(prefix_v, v), drop=self.attn_drop)
        return prefix.transpose(1, 2).flatten(2), x.transpose(1, 2).flatten(2)


class SwinBlock(timm_swin.SwinTransformerBlock):
    """timm's block with the authors' padding and a fixed window.

    The class attribute `shift_single_window` may be set on a block: whether it shifts and masks also where one window
    holds the whole map, as the authors' dense-task code does.
    """

    shift_single_window = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "always_partition": True, "dynamic_mask": True})

    @classmethod
    def from_timm(cls, block: timm_swin.SwinTransformerBlock) -> "SwinBlock":
        """The authors' function with the children, and so the very parameters, of a timm block.

        The window is the one the block has now; the shift is the one it was made with.
        """
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.dim, new.mlp_ratio = block.dim, block.mlp_ratio
        new.input_resolution = block.input_resolution
        new.target_shift_size = block.target_shift_size
        new.shift_single_window = getattr(block, "shift_single_window", False)  # set by DenseFeatures
        new.always_partition = new.dynamic_mask = True
        new.window_size, new.shift_size = new._calc_window_shift(block.window_size)
        new.window_area = new.window_size[0] * new.window_size[1]
        for name, child in block.named_children():
            setattr(new, name, child)
        new.register_buffer("attn_mask", None, persistent=False)
        return new.train(block.training)

    def hand_back(self, block: timm_swin.SwinTransformerBlock) -> None:
        """Brings the timm block that this one has replaced to the present size."""
        if block.input_resolution != self.input_resolution:
            block.set_input_size(self.input_resolution, self.window_size)

    @property
    def num_heads(self) -> int:
        return self.attn.num_heads

    def _attn(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C), normed, to (B, H, W, C)."""
        _, H, W, _ = x.shape
        rows, cols = self.window_size
        x = pad_grid(x, self.window_size)
        Hp, Wp = x.shape[1], x.shape[2]

        windows = Hp // rows, Wp // cols
        shift = self.shift_size if self.shift_single_window or max(windows) > 1 else (0, 0)
        mask = shift_mask(x, self.window_size, shift, windows) if any(shift) else None
        x = into_windows(x, self.window_size, shift)  # (B * N, L, C)
        x = self._window_attention(x, mask)
        x = out_of_windows(x, self.window_size, shift, (Hp, Wp))
        return x if (Hp, Wp) == (H, W) else x[:, :H, :W]

    def _window_attention(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """timm's WindowAttention on (B * N, L, C) with mask (N, L, L) or None, by the faster way on this device."""
        attn = self.attn
        window = attn.window_size
        bias = relative_position_bias(attn.relative_position_bias_table, window, window)  # (1, heads, L, L)
        if mask is not None:
            bias = bias + mask[:, None]
        return attn.proj_drop(attn.proj(attend_qkv(attn.qkv(x), attn.num_heads, bias, attn.attn_drop)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


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
            if hasattr(new, "hand_back"):
                new.hand_back(original)
            setattr(parent, name, original.train(new.training))
