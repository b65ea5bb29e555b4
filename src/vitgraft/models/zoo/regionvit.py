"""RegionViT, which timm does not have: regional-to-local attention.

Paper: "RegionViT: Regional-to-Local Attention for Vision Transformers", arXiv 2106.02689. Beside the local tokens
(one per 4 x 4 pixels) there is a coarse map of regional tokens, one per window of 7 x 7 local tokens. In a block all
regional tokens attend to each other, then each window attends to itself, its regional token included, with the same
weights.

Parameter names are the authors' (IBM/RegionViT, regionvit/regionvit.py at 77000c2), so that their checkpoints load
unchanged. The down-sampling of a stage serves regional and local tokens; the authors store it twice (`proj`,
`proj_cls`), here it has one name. Every input size works, as there: images that are no multiple of 28 are padded and
masked, with all of the authors' rules (`_mask`, `_pad_image`), because the published function for such sizes depends on
them.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from vitgraft.layers.attention import attend_qkv
from vitgraft.layers.window import cached_by_size, window_partition, window_reverse
from vitgraft.models._build import build, cfg, register_variants
from vitgraft.models._cpu import GELU
from vitgraft.models._pyramid import Pyramid, check_stages, init_weights
from vitgraft.models.zoo._layers import NORM_EPS, Attention, Block

__all__ = ["R2LAttention", "RegionViT"]

# B batch, H x W local tokens, h x w regions, R = h * w, M window side, N = 1 + M * M tokens of a region, C channels.


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W); its weights have the authors' shape (1, C, 1, 1)."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dim, 1, 1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dim, 1, 1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.weight.flatten(), self.bias.flatten(), eps=1e-5)
        return x.permute(0, 3, 1, 2)  # channels_last memory, as the convolutions want it


class LocalEmbed(nn.Sequential):
    """Images (B, in_chans, 4H, 4W) to local tokens (B, C, H, W): three convolutions, or one of 8 x 8."""

    def __init__(self, in_chans: int, dim: int, single: bool, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        if single:
            proj = nn.Conv2d(in_chans, dim, 8, stride=4, padding=3, **dd)
        else:
            proj = nn.Sequential(
                nn.Conv2d(in_chans, dim // 4, 3, stride=2, padding=1, **dd),
                ChannelNorm(dim // 4, **dd),
                GELU(),
                nn.Conv2d(dim // 4, dim // 2, 3, stride=2, padding=1, **dd),
                ChannelNorm(dim // 2, **dd),
                GELU(),
                nn.Conv2d(dim // 2, dim, 3, padding=1, **dd),
            )
        super().__init__(OrderedDict(proj=proj))


class RegionalEmbed(nn.Module):
    """Images to regional tokens: one convolution of 28 x 28."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, 28h, 28w) to (B, C, h, w)."""
        return self.proj(_pad_image(x, self.proj.stride[0]))


class Downsample(nn.Sequential):
    """(B, dim, H, W) to (B, out_dim, H / 2, W / 2), rounded up; for the regional and the local map alike."""

    def __init__(self, dim: int, out_dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, groups=dim, **dd)
        super().__init__(OrderedDict(proj=nn.Sequential(ChannelNorm(dim, **dd), GELU(), conv)))


class R2LAttention(Attention):
    """Multi-head attention that serves both steps of a block.

    Args:
        dim: Channels, a multiple of `num_heads`.
        window_size: M, side of a region in local tokens.
        **drops: `attn_drop` and `proj_drop`, as Attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        qkv_bias: bool = True,
        device=None,
        dtype=None,
        **drops: float,
    ):
        super().__init__(dim, num_heads, **drops)
        dd = {"device": device, "dtype": dtype}
        self.window_size = window_size
        self.rel_pos = nn.Parameter(torch.zeros(num_heads, (2 * window_size - 1) ** 2, **dd))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        trunc_normal_(self.rel_pos, std=0.02)

    def bias(self, x: torch.Tensor) -> torch.Tensor:
        """Position bias (1, heads, N, N) for tokens x: between local tokens only."""
        M = self.window_size
        # the regional token is first
        return F.pad(self.rel_pos[:, _offsets(x, M)].view(1, -1, M * M, M * M), (1, 0, 1, 0))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(B, tokens, C) to (B, tokens, C)."""
        return self.proj_drop(self.proj(attend_qkv(self.qkv(x), self.num_heads, bias, self.attn_drop)))


class RegionBlock(Block):
    """Regional attention, then attention inside each region with the same weights, then the MLP."""

    attention_norms = ("norm0", "norm1")

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, R, N, C) to (B, R, N, C); `mask` (R, 1, N, N) is added to the weights inside the regions."""
        B, R, N, C = x.shape
        regional = x[:, :, 0]
        regional = regional + self.drop_path(self.attn(self.norm0(regional)))
        x = torch.cat((regional.unsqueeze(2), x[:, :, 1:]), dim=2).view(B * R, N, C)
        bias = self.attn.bias(x) if mask is None else self.attn.bias(x) + mask
        return super().forward(x, bias).view(B, R, N, C)


class Stage(nn.Module):
    """Down-sampling (block 0; nothing in the first stage) and the blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[RegionBlock], window_size: int):
        super().__init__()
        self.window_size = window_size
        self.block = nn.ModuleList([downsample, *blocks])

    def forward(self, regional: torch.Tensor, local: torch.Tensor, run) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (B, C, h, w) and (B, C, H, W) to maps; `run(block, ...)` runs a block."""
        regional, local = self.block[0](regional), self.block[0](local)
        B, C, h, w = regional.shape
        H, W = local.shape[2:]
        M = self.window_size
        pad = (h * M - H, w * M - W)
        x = local.permute(0, 2, 3, 1)
        mask = None
        if pad != (0, 0):
            x = F.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
            mask = _mask(x, (h, w), M, pad, _attention_dtype(x))
        x = window_partition(x, (M, M)).view(B, h * w, M * M, C)
        x = torch.cat((regional.permute(0, 2, 3, 1).reshape(B, h * w, 1, C), x), dim=2)
        for block in self.block[1:]:
            x = run(block, x, mask)
        regional = x[:, :, 0].view(B, h, w, C).permute(0, 3, 1, 2)
        local = window_reverse(x[:, :, 1:].reshape(-1, M * M, C), (M, M), (h * M, w * M))
        return regional, local[:, :H, :W].permute(0, 3, 1, 2)


class RegionViT(Pyramid):
    """RegionViT for images (B, in_chans, H, W) of any size from 4 x 4 up; its maps are those of the local tokens.

    Args:
        img_size: Nominal image size, for the record only.
        global_pool: Pooling of the regional tokens.
        embed_dim: Channels of the first stage; doubled from stage to stage.
        depths, num_heads: One value per stage.
        single_conv: Local tokens come from one convolution of 8 x 8 instead of three small ones.
        window_size: Side of a region in local tokens.
        drop_rate: Dropout before the classifier.
        proj_drop_rate, attn_drop_rate, drop_path_rate: As in timm; the last grows linearly from 0 with depth.

    Raises:
        ValueError: Options that do not fit each other, or an image under 4 x 4.
    """

    second_names = (("proj_cls.", "proj."),)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        single_conv: bool = False,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate)
        dd = {"device": device, "dtype": dtype}
        stages = check_stages(depths=depths, num_heads=num_heads)
        if window_size < 1 or embed_dim % 4:
            raise ValueError(f"{window_size=}, {embed_dim=}: at least 1, and a multiple of 4, are needed")
        self.set_input_size(img_size)
        dims = [embed_dim * 2**i for i in range(stages)]
        self._set_stages(dims, [4] + [2] * (stages - 1), "layers.", first=0)
        self.patch_embed = LocalEmbed(in_chans, embed_dim, single_conv, **dd)
        self.cls_token = RegionalEmbed(in_chans, embed_dim, 4 * window_size, **dd)  # the authors' name
        drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        drop_path = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.layers = nn.ModuleList()
        for i, dim in enumerate(dims):
            blocks = []
            for rate in drop_path[i]:
                attn = R2LAttention(dim, num_heads[i], window_size, qkv_bias, **drops, **dd)
                blocks.append(RegionBlock(attn, dim, mlp_ratio, proj_drop_rate, rate, **dd))
            downsample = Downsample(dim // 2, dim, **dd) if i else nn.Identity()
            self.layers.append(Stage(downsample, blocks, window_size))
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS, **dd)
        self._make_head(**dd)
        self.apply(init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer decay; a down-sampling counts to the block after it."""
        first = [(rf"^layers\.{i}\.block\.0\.", (i,) if coarse else (i, 1)) for i in range(len(self.layers))]
        block = r"^layers\.(\d+)\." if coarse else r"^layers\.(\d+)\.block\.(\d+)\."
        return {"stem": r"^patch_embed|^cls_token", "blocks": [*first, (block, None), (r"^norm", (99999,))]}

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Regional and local map."""
        self._checked(tuple(x.shape[-2:]))
        return self.cls_token(x), self.patch_embed(x)

    def _stage(self, i: int, state: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[i](*state, self._run)

    def _map(self, i: int, state: tuple, norm: bool = False) -> torch.Tensor:
        return state[1]

    def _finish(self, state: tuple) -> torch.Tensor:
        return self.norm(state[0].flatten(2).transpose(1, 2))

    def _prune(self, stages: int) -> None:
        self.layers = self.layers[:stages]


def _attention_dtype(x: torch.Tensor) -> torch.dtype:
    """What the attention weights of x are computed in."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _pad_image(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Pads images with zeros to whole regions, floor(half) of it left and on top.

    If one direction needs it, a direction that fits already gets a whole region more: the authors' rule.
    """
    H, W = x.shape[2:]
    if H % patch == 0 and W % patch == 0:
        return x
    down, right = patch - H % patch, patch - W % patch
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


@cached_by_size
def _offsets(device: torch.device, M: int) -> torch.Tensor:
    """Columns of `rel_pos` for each pair of local tokens: (M^2 * M^2,), int64, queries first.

    The offset of the authors' index is M // 2 and not M - 1, and negative indices wrap.
    """
    side = torch.arange(M, device=device)
    steps = (side[None, :] - side[:, None] + M // 2) % (2 * M - 1)  # (query, key)
    index = steps[:, None, :, None] * (2 * M - 1) + steps[None, :, None, :]
    return index.reshape(-1)


@cached_by_size
def _mask(
    device: torch.device, size: tuple[int, int], M: int, pad: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """What is added to the attention weights of the regions of an (h, w) map with `pad` (rows, columns) of padding.

    Returns:
        (R, 1, N, N): 0, or half the smallest number of `dtype` (the smallest, plus a weight, could be infinite).
    """
    h, w = size
    N = 1 + M * M
    seen = torch.ones(h, w, N, N, dtype=torch.bool, device=device)
    rows = M * (M - pad[0]) + 1
    if pad[0]:
        seen[-1] = False
        seen[-1, :, :rows, :rows] = True
    if pad[1]:
        real = torch.ones(N, dtype=torch.bool, device=device)
        real[1:] = (torch.arange(M, device=device) < M - pad[1]).repeat(M)
        seen[:, -1] = real[:, None] & real[None, :]
    if any(pad):
        # the authors write the corner anew, by its columns alone, and the rows' block of ones over that: nothing is
        # hidden there where only rows or only columns are padded, nor the padded columns of the rows' block
        seen[-1, -1] = (real[:, None] & real[None, :]) if pad[1] else True
        seen[-1, -1, :rows, :rows] = True
    mask = torch.zeros(h * w, 1, N, N, device=device, dtype=dtype)
    return mask.masked_fill_(~seen.view(h * w, 1, N, N), torch.finfo(dtype).min / 2)


_RELEASE = "https://github.com/IBM/RegionViT/releases/download/weights-v0.1/"


def _cfg(file: str, single_conv: bool) -> dict[str, Any]:
    local = "patch_embed.proj" if single_conv else "patch_embed.proj.0"
    url = f"{_RELEASE}{file}" if file else ""
    return cfg(url, first_conv=(local, "cls_token.proj"), license="apache-2.0")


# the authors' list of weights links those of S for M
default_cfgs = generate_default_cfgs(
    {
        "regionvit_tiny.in1k": _cfg("RegionViT-Ti.pth", False),
        "regionvit_small.in1k": _cfg("RegionViT-S.pth", False),
        "regionvit_medium.untrained": _cfg("", True),
        "regionvit_base.in1k": _cfg("RegionViT-B.pth", True),
    }
)

VARIANTS = {
    "regionvit_tiny": (
        "RegionViT-Ti, 13.8 M parameters, 2.4 GMAC at 224 x 224.",
        {"embed_dim": 64, "depths": (2, 2, 8, 2), "num_heads": (2, 4, 8, 16)},
    ),
    "regionvit_small": (
        "RegionViT-S, 30.6 M parameters, 5.3 GMAC at 224 x 224.",
        {"embed_dim": 96, "depths": (2, 2, 8, 2), "num_heads": (3, 6, 12, 24)},
    ),
    "regionvit_medium": (
        "RegionViT-M, 41.2 M parameters, 7.4 GMAC at 224 x 224.",
        {"embed_dim": 96, "depths": (2, 2, 14, 2), "num_heads": (3, 6, 12, 24), "single_conv": True},
    ),
    "regionvit_base": (
        "RegionViT-B, 72.7 M parameters, 13.0 GMAC at 224 x 224.",
        {"embed_dim": 128, "depths": (2, 2, 14, 2), "num_heads": (4, 8, 16, 32), "single_conv": True},
    ),
}
register_variants(__name__, partial(build, RegionViT), VARIANTS)
