"""Right-left pathway (equation 2): from one level of the graft to the next finer one.

B batch, H x W token grid, C channels, M window side, f whole factor between the sizes of two levels, in the paper 2.
Grids are (B, H, W, C).
"""

import torch
import torch.nn.functional as F
from torch import nn

from vitgraft.layers.attention import WindowCrossAttention, init_linear
from vitgraft.layers.derived import derived
from vitgraft.layers.norm_gelu import norm_gelu
from vitgraft.layers.window import effective_window, window_partition, window_reverse

__all__ = ["Upsample", "bilinear_upsample", "window_bilinear_upsample"]


def bilinear_upsample(x: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Enlarges a grid bilinearly (align_corners False, edges repeated): (B, H, W, C) -> (B, fH, fW, C)."""
    if factor == 1:
        return x
    # an NHWC grid seen as NCHW is in channels_last order, for which the kernel needs no copy
    x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=float(factor), mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def _axis_matrix(size: int, factor: int, device: torch.device) -> torch.Tensor:
    """(f * size, size): bilinear interpolation of one axis, align_corners False, edges repeated."""
    place = ((torch.arange(factor * size, device=device) + 0.5) / factor - 0.5).clamp(0, size - 1)
    cells = torch.arange(size, device=device)
    return (1 - (place[:, None] - cells).abs()).clamp(min=0)


def _matrix(size: tuple[int, int], factor: int, device: torch.device) -> torch.Tensor:
    """(f * h * f * w, h * w): bilinear interpolation of a window as one matrix."""
    return torch.kron(_axis_matrix(size[0], factor, device), _axis_matrix(size[1], factor, device))


def window_bilinear_upsample(x: torch.Tensor, window_size: tuple[int, int], factor: int = 2) -> torch.Tensor:
    """W-Bilinear, Phi of equation 2: each window is enlarged by itself and never reads its neighbor.

    (B, H, W, C) -> (B, fH, fW, C). Windows start at the top left; those cut off by the bottom or right border end
    there.
    """
    _, H, W, C = x.shape
    h, w = effective_window((H, W), window_size)
    if factor == 1 or ((h, w) == (H, W) and not torch.compiler.is_compiling()):
        return bilinear_upsample(x, factor)
    bottom, right = -H % h, -W % w
    if bottom or right:
        # repeating the border makes the cut-off window's interpolation end at the border, then the rest is cropped
        wide = F.pad(x.permute(0, 3, 1, 2), (0, right, 0, bottom), mode="replicate").permute(0, 2, 3, 1)
        x = wide.to(x.dtype)  # autocast pads in float32
    padded = x.shape[1], x.shape[2]
    f = factor
    x = window_partition(x, (h, w))
    if torch.compiler.is_compiling():  # inductor makes a slow gather of the interpolation
        x = _matrix((h, w), f, x.device).to(x.dtype) @ x
    else:
        x = bilinear_upsample(x.view(-1, h, w, C), f).reshape(-1, f * f * h * w, C)
    x = window_reverse(x, (f * h, f * w), (f * padded[0], f * padded[1]))
    return x[:, : f * H, : f * W] if bottom or right else x


def _gate(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(logits.shape[:2]) != size:
        logits = F.interpolate(logits.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)
        logits = logits[0].permute(1, 2, 0)
    return logits.sigmoid()


class Upsample(nn.Module):
    """T(Z) = Phi(E_aa * alpha(Z)), equation 2: channel mixing alpha, anti-aliasing gate E_aa, interpolation Phi.

    alpha is LayerNorm, GELU and a linear layer; E_aa the sigmoid of a learned embedding of the level's shape, resized
    (its logits, bilinearly) where the actual grid has another size.

    Args:
        dim: Channels C.
        num_heads: Heads, for mode "cross_attention" only.
        feat_size: Grid (height, width) of the level that is upsampled, the shape of the embedding.
        window_size: Attention window (height, width) on that level.
        mode: "w_bilinear", the paper's choice: inside each window. "bilinear": over the whole grid. "nearest": copies.
            "cross_attention": the finer grid attends to the coarser one (table 5).
        factor: Whole factor f; None interpolates to sizes that differ by no whole one, "w_bilinear" then over the whole
            grid. "cross_attention" needs a factor.
        gate: Whether there is E_aa; None: in the two bilinear modes, as in the paper.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feat_size: tuple[int, int],
        window_size: tuple[int, int],
        mode: str = "w_bilinear",
        factor: int | None = 2,
        gate: bool | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.mode = mode
        self.window_size = window_size
        self.factor = factor
        self.norm = nn.LayerNorm(dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.anti_alias = self.fine_norm = self.attn = None
        if mode in ("w_bilinear", "bilinear") if gate is None else gate:
            self.anti_alias = nn.Parameter(torch.zeros(*feat_size, dim, **dd))
        if mode == "cross_attention":
            self.fine_norm = nn.LayerNorm(dim, **dd)
            self.attn = WindowCrossAttention(dim, num_heads, window_size, factor=factor, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layer as Swin's; the embedding at zero, hence a gate of one half everywhere."""
        self.norm.reset_parameters()
        init_linear(self.proj)
        if self.anti_alias is not None:
            nn.init.zeros_(self.anti_alias)
        if self.attn is not None:
            self.fine_norm.reset_parameters()
            self.attn.init_weights()

    def init_identity(self) -> None:
        """Makes the output zero (and its gradient not), by a zero projection in alpha."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def gate(self, size: tuple[int, int]) -> torch.Tensor:
        """E_aa for a grid of `size`: (h, w, C), between 0 and 1."""
        return derived(_gate, self.anti_alias, size)

    def forward(self, z: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Level output z (B, h, w, C) and the next finer level's grid (B, H, W, C) -> (B, H, W, C)."""
        z = self.proj(norm_gelu(self.norm, z))
        if self.anti_alias is not None:
            z = z * self.gate((z.shape[1], z.shape[2])).to(z.dtype)
        if self.attn is not None:
            return self.attn(self.fine_norm(fine), z)
        H, W = fine.shape[1], fine.shape[2]
        if self.factor is None:
            mode = {"mode": "nearest"} if self.mode == "nearest" else {"mode": "bilinear", "align_corners": False}
            return F.interpolate(z.permute(0, 3, 1, 2), size=(H, W), **mode).permute(0, 2, 3, 1)
        if self.mode == "w_bilinear":
            z = window_bilinear_upsample(z, self.window_size, self.factor)
        elif self.mode == "bilinear":
            z = bilinear_upsample(z, self.factor)
        elif self.factor > 1:
            z = z.repeat_interleave(self.factor, dim=1).repeat_interleave(self.factor, dim=2)
        return z if (z.shape[1], z.shape[2]) == (H, W) else z[:, :H, :W]
