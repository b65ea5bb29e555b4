"""Pyramid Vision Transformer (PVT v1), which timm does not have (its `pvt_v2` is another architecture).

Paper: "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions", arXiv 2102.12122.
Four stages; queries are all tokens, keys and values those of a map that a strided convolution makes smaller (spatial
reduction). A class token enters with the last stage.

Parameter names are the authors' (whai362/PVT, classification/pvt.py at 57e2dfa), so that their checkpoints load
unchanged. What is decided here rather than there:

- A position embedding is interpolated wherever the map is not the one it was made for. The authors compare the number
  of tokens with that of stage 1, in every stage: another size with as many tokens gets its rows unmoved, and 448 x 448
  fails, where stage 2 has as many.
- Rows and columns that do not fill a patch, or a patch of the reduction, are left out, as there.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, calculate_drop_path_rates, to_2tuple
from timm.models import generate_default_cfgs
from torch import nn

from vitgraft.layers.attention import attend
from vitgraft.models._build import build, cfg, register_variants
from vitgraft.models._pyramid import Pyramid, check_stages, embedding, init_weights
from vitgraft.models.zoo._layers import NORM_EPS, Attention, Block

__all__ = ["PyramidVisionTransformer", "SRAttention"]

# B batch, H x W token grid, C channels, P prefix tokens (1 class token or none), N = P + H * W tokens, h heads.

# of the patch embedding and of the spatial reduction: there the authors keep PyTorch's
INNER_EPS = 1e-5


class SRAttention(Attention):
    """Attention whose keys and values come from a map reduced by `sr_ratio` ("spatial-reduction attention").

    Args:
        dim: Channels C, a multiple of `num_heads`.
        sr_ratio: Kernel and stride of the reducing convolution; 1 for none.
        **drops: `attn_drop` and `proj_drop`, as Attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        device=None,
        dtype=None,
        **drops: float,
    ):
        super().__init__(dim, num_heads, **drops)
        dd = {"device": device, "dtype": dtype}
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, **dd) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim, eps=INNER_EPS, **dd) if sr_ratio > 1 else None

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, N, C) to (B, N, C) for a grid of `size` (H, W); with a reduction there are no prefix tokens."""
        B, N, C = x.shape
        (q,) = self._heads(self.q(x))
        if self.sr is not None:
            x = self.norm(self._reduce(x.view(B, *size, C)))
        k, v = self._heads(self.kv(x), 2)
        x = attend(q, k, v, drop=self.attn_drop).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))

    def _reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution `sr` of a grid: (B, H, W, C) to (B, H / s * W / s, C).

        As a product with whole patches, which a kernel as large as its stride allows: a fifth faster than the
        convolution on a CPU (measured with torch 2.15).
        """
        B, H, W, C = x.shape
        s = self.sr.stride[0]
        h, w = H // s, W // s
        x = x[:, : h * s, : w * s].reshape(B, h, s, w, s, C).transpose(2, 3).reshape(B, h * w, s * s * C)
        return F.linear(x, self.sr.weight.permute(0, 2, 3, 1).reshape(C, -1), self.sr.bias)


class PyramidVisionTransformer(Pyramid):
    """PVT v1 for images (B, in_chans, H, W) of any size from 32 x 32 up.

    Args:
        img_size: Image size of the position embeddings; at others they are interpolated.
        global_pool: "token" (the authors'), or a pooling of the last map.
        embed_dims, depths, num_heads, mlp_ratios, sr_ratios: One value per stage.
        patch_sizes: Patch of each stage, on the map of the stage before.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after each position embedding.
        proj_drop_rate, attn_drop_rate, drop_path_rate: As in timm; the last grows linearly from 0 with depth.

    Raises:
        ValueError: Options that do not fit each other, or an image too small for the reductions.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        patch_sizes: tuple[int, ...] = (4, 2, 2, 2),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate)
        dd = {"device": device, "dtype": dtype}
        self.num_stages = stages = check_stages(
            embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios, sr_ratios=sr_ratios,
            patch_sizes=patch_sizes,
        )  # fmt: skip
        if sr_ratios[-1] != 1:
            raise ValueError(f"sr_ratios={sr_ratios}: 1 is needed in the last stage, where the class token is")
        self._set_stages(embed_dims, patch_sizes, "block")
        self.min_size = max(info["reduction"] * sr for info, sr in zip(self.feature_info, sr_ratios, strict=True))
        self.img_size = self._checked(to_2tuple(img_size))

        for i in range(stages):
            rows = self._grid(i)[0] * self._grid(i)[1] + (i == stages - 1)
            setattr(self, f"pos_embed{i + 1}", embedding(1, rows, embed_dims[i], **dd))
        self.cls_token = embedding(1, 1, self.num_features, **dd)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        drop_path = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for i, dim in enumerate(embed_dims):
            chans = embed_dims[i - 1] if i else in_chans
            embed = PatchEmbed(None, patch_sizes[i], chans, dim, norm_layer=partial(nn.LayerNorm, eps=INNER_EPS), **dd)
            setattr(self, f"patch_embed{i + 1}", embed)
            blocks = nn.ModuleList()
            for rate in drop_path[i]:
                attn = SRAttention(dim, num_heads[i], sr_ratios[i], qkv_bias, **drops, **dd)
                blocks.append(Block(attn, dim, mlp_ratios[i], proj_drop_rate, rate, **dd))
            setattr(self, f"block{i + 1}", blocks)
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS, **dd)
        self._make_head(**dd)
        self.apply(init_weights)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Makes the position embeddings those of another image size."""
        old = {name: p for name, p in self.named_parameters() if name.startswith("pos_embed")}
        grids = [self._grid(i) for i in range(len(self.feature_info))]
        self.img_size = self._checked(to_2tuple(img_size))
        for i, (name, p) in enumerate(old.items()):
            value = _resize(p.detach(), grids[i], self._grid(i))
            setattr(self, name, nn.Parameter(value, requires_grad=p.requires_grad))

    def fit_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors; position embeddings of square images are resized to this model's maps.

        Maps of another shape may have as many rows (56 x 56 and 28 x 112): if one stage's rows differ, all are moved.
        """
        own = {name: p for name, p in self.named_parameters() if name.startswith("pos_embed") and name in tensors}
        if all(tensors[name].shape == p.shape for name, p in own.items()):
            return tensors
        return tensors | {name: self._moved(name, tensors[name], p) for name, p in own.items()}

    def _moved(self, name: str, value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        if value.ndim != 3 or value.shape[2] != own.shape[2]:
            return value
        grid = self._grid(int(name.removeprefix("pos_embed")) - 1)
        prefix = own.shape[1] - grid[0] * grid[1]
        side = round((value.shape[1] - prefix) ** 0.5)
        if (side, side) == grid or side * side + prefix != value.shape[1]:
            return value
        return _resize(value, (side, side), grid)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer decay; the embeddings of a stage count to its first block."""
        last = len(self.feature_info)
        embeds = [
            (rf"^(?:patch_embed|pos_embed){i}" + ("|^cls_token" if i == last else ""), (i,) if coarse else (i, 0))
            for i in range(2, last + 1)
        ]
        stage = r"^block(\d+)\." if coarse else r"^block(\d+)\.(\d+)\."
        return {"stem": r"^(?:patch_embed|pos_embed)1", "blocks": [*embeds, (stage, None), (r"^norm", (99999,))]}

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        self._checked(tuple(x.shape[-2:]))
        return x, None

    def _stage(self, i: int, state: tuple) -> tuple[torch.Tensor, tuple[int, int]]:
        """Image, or tokens (B, N, C) and their grid, to tokens and their grid."""
        x = state[0] if i == 0 else self._map(i - 1, state)
        embed = getattr(self, f"patch_embed{i + 1}")
        size = (x.shape[2] // embed.patch_size[0], x.shape[3] // embed.patch_size[1])
        x = embed(x)
        if i == self.num_stages - 1:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.pos_drop(x + _resize(getattr(self, f"pos_embed{i + 1}"), self._grid(i), size))
        for block in getattr(self, f"block{i + 1}"):
            x = self._run(block, x, size)
        return x, size

    def _map(self, i: int, state: tuple, norm: bool = False) -> torch.Tensor:
        return self._as_map(*state, norm)

    def _finish(self, state: tuple) -> torch.Tensor:
        return self.norm(state[0])

    def _prune(self, stages: int) -> None:
        for i in range(stages, len(self.feature_info)):
            for part in ("pos_embed", "patch_embed", "block"):
                delattr(self, f"{part}{i + 1}")
        del self.cls_token
        self.num_prefix_tokens = 0


def _resize(pos_embed: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """(1, P + old grid, C) to (1, P + new grid, C): bilinear, as the authors do, prefix rows kept."""
    if old == new:
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    grid = pos_embed[:, prefix:].transpose(1, 2).unflatten(2, old)
    grid = F.interpolate(grid, size=new, mode="bilinear").flatten(2).transpose(1, 2)
    return torch.cat((pos_embed[:, :prefix], grid), dim=1)


_RELEASE = "https://github.com/whai362/PVT/releases/download/v2/"
default_cfgs = generate_default_cfgs(
    {
        f"pvt_{size}.in1k": cfg(f"{_RELEASE}pvt_{size}.pth", first_conv="patch_embed1.proj", license="apache-2.0")
        for size in ("tiny", "small", "medium", "large")
    }
)


VARIANTS = {
    "pvt_tiny": ("PVT-Tiny, 13.2 M parameters, 1.9 GMAC at 224 x 224.", {"depths": (2, 2, 2, 2)}),
    "pvt_small": ("PVT-Small, 24.5 M parameters, 3.8 GMAC at 224 x 224.", {"depths": (3, 4, 6, 3)}),
    "pvt_medium": ("PVT-Medium, 44.2 M parameters, 6.7 GMAC at 224 x 224.", {"depths": (3, 4, 18, 3)}),
    "pvt_large": ("PVT-Large, 61.4 M parameters, 9.8 GMAC at 224 x 224.", {"depths": (3, 8, 27, 3)}),
}
register_variants(__name__, partial(build, PyramidVisionTransformer), VARIANTS)
