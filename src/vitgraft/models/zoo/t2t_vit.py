"""T2T-ViT, which timm does not have: timm's VisionTransformer behind a stem of token transformers.

Paper: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", arXiv 2101.11986. Overlapping
patches become tokens three times ("soft split"); between the splits a token transformer mixes them: a Performer with
fixed random features in T2T-ViT, full attention in T2T-ViT_t.

Parameter names are the authors' (yitu-opensource/T2T-ViT, models/t2t_vit.py at 0f63dc9), so that their checkpoints
load unchanged; the stem is also there under timm's name, `model.patch_embed`. The position embedding is a fixed
sinusoid, but a parameter (frozen), because it is one in the checkpoints. An image size other than `img_size` is an
error, as with any ViT of timm, unless dynamic_img_size=True, which resamples that sinusoid.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitgraft.models._build import build, cfg, register_variants
from vitgraft.models._cpu import GELU

__all__ = ["T2TViT", "TokenPerformer", "TokenTransformer", "TokensToToken"]

# B batch, N tokens, D channels of a token transformer, F random features.

# kernel, stride, padding of the three soft splits
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


class TokenAttention(nn.Module):
    """Attention of one head from `in_dim` to `dim` channels; the values take the part of the residual.

    The weights are scaled by the width of the input, although queries and keys are narrower: as the authors do.
    """

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, in_dim) to (B, N, dim)."""
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, N, D) each
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return (v + self.proj(x)).squeeze(1)


class TokenTransformer(nn.Module):
    """The token transformer of T2T-ViT_t: (B, N, in_dim) to (B, N, dim)."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(in_dim, **dd)
        self.attn = TokenAttention(in_dim, dim, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, act_layer=GELU, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    """The token transformer of T2T-ViT: linear attention by random features, (B, N, in_dim) to (B, N, dim).

    exp(q . k) is estimated by phi(q) . phi(k), phi(x) = exp(w x - |x|^2 / 2) / sqrt(F) (Performer, arXiv 2009.14794).
    As the authors do, no maximum is subtracted in the exponent, and `w` is drawn once and stored.
    """

    def __init__(self, in_dim: int, dim: int, feature_ratio: float = 0.5, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_features = int(dim * feature_ratio)
        self.w = nn.Parameter(torch.empty(self.num_features, dim, **dd), requires_grad=False)
        self.kqv = nn.Linear(in_dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.norm1 = nn.LayerNorm(in_dim, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = nn.Sequential(nn.Linear(dim, dim, **dd), GELU(), nn.Linear(dim, dim, **dd))
        if not self.w.is_meta:  # the decomposition that makes them orthogonal knows no half precision
            self.w.copy_(nn.init.orthogonal_(torch.empty(self.w.shape), gain=self.num_features**0.5))

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """phi: (B, N, D) to (B, N, F)."""
        exponent = x @ self.w.t().to(x.dtype) - x.square().sum(-1, keepdim=True) / 2
        return exponent.exp() * self.num_features**-0.5

    def _attn(self, k: torch.Tensor, q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(B, N, D) each to (B, N, D), in time linear in N."""
        k, q = self._features(k), self._features(q)
        context = k.transpose(1, 2) @ v  # (B, F, D)
        total = q @ k.sum(1).unsqueeze(-1)  # (B, N, 1)
        return (q @ context) / (total + 1e-8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        # exponentials of half precision would overflow
        device = x.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            wide = torch.promote_types(k.dtype, torch.float32)
            x = self._attn(k.to(wide), q.to(wide), v.to(wide)).to(v.dtype)
        x = v + self.proj(x)
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """The stem, with what timm's VisionTransformer asks of a patch embedding: images to tokens of 1/16 of the side.

    Args:
        img_size: Size of the images.
        token_layer: TokenTransformer or TokenPerformer.
        token_dim: Channels of the token transformers.
        strict_img_size: Whether other sizes are an error.
        output_fmt: "NHWC" for a grid; tokens otherwise.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        token_layer: type[nn.Module] = TokenTransformer,
        token_dim: int = 64,
        strict_img_size: bool = True,
        output_fmt: str | None = None,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if to_2tuple(patch_size) != (16, 16) or dynamic_img_pad:
            raise ValueError(
                f"patch_size={patch_size}, dynamic_img_pad={dynamic_img_pad}: the soft splits of T2T-ViT make one "
                "token of 16 x 16 pixels and pad by themselves; leave both options out"
            )
        dd = {"device": device, "dtype": dtype}
        self.patch_size = (16, 16)
        self.strict_img_size = strict_img_size
        self.output_fmt = output_fmt
        self._set_size(img_size)
        self.attention1 = token_layer(in_chans * SPLITS[0][0] ** 2, token_dim, **dd)
        self.attention2 = token_layer(token_dim * SPLITS[1][0] ** 2, token_dim, **dd)
        self.project = nn.Linear(token_dim * SPLITS[2][0] ** 2, embed_dim, bias=bias, **dd)

    def _set_size(self, img_size: int | tuple[int, int]) -> None:
        img_size = to_2tuple(img_size)
        if min(img_size) < 3:
            raise ValueError(f"img_size={img_size}: the first soft split needs 3 x 3 pixels or more")
        self.img_size = img_size
        self.grid_size = self.dynamic_feat_size(img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Takes images of another size from now on."""
        if patch_size is not None and to_2tuple(patch_size) != (16, 16):
            raise ValueError(f"patch_size={patch_size}: T2T-ViT has 16 only")
        self._set_size(img_size or self.img_size)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token."""
        return 16 if as_scalar else (16, 16)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of tokens of an image of this size."""
        for split in SPLITS:
            img_size = _split_size(img_size, split)
        return img_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) to (B, N, embed_dim), or (B, h, w, embed_dim) with output_fmt="NHWC"."""
        size = (x.shape[2], x.shape[3])
        if self.strict_img_size and size != self.img_size:
            raise ValueError(
                f"the model takes images of {self.img_size[0]} x {self.img_size[1]} and got {size[0]} x {size[1]}: "
                f"make it with img_size={size} or call model.set_input_size({size}), or make it with "
                "dynamic_img_size=True for any size"
            )
        for split, layer in zip(SPLITS, (self.attention1, self.attention2, self.project), strict=True):
            kernel, stride, padding = split
            size = _split_size(size, split)
            # features in the order channel, row, column of the kernel
            x = layer(F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2))
            if layer is not self.project:
                x = x.transpose(1, 2).unflatten(2, size)
        return x.unflatten(1, size) if self.output_fmt == "NHWC" else x


def _split_size(size: tuple[int, int], split: tuple[int, int, int]) -> tuple[int, int]:
    kernel, stride, padding = split
    return (size[0] + 2 * padding - kernel) // stride + 1, (size[1] + 2 * padding - kernel) // stride + 1


class T2TViT(VisionTransformer):
    """T2T-ViT: options of timm's VisionTransformer, and

    Args:
        performer: Token transformers with linear attention (T2T-ViT), not full attention (T2T-ViT_t).
        token_dim: Channels of the token transformers.
    """

    def __init__(self, *args: Any, performer: bool = False, token_dim: int = 64, **kwargs: Any):
        token_layer = TokenPerformer if performer else TokenTransformer
        kwargs.setdefault("norm_layer", partial(nn.LayerNorm, eps=1e-5))
        kwargs.setdefault("act_layer", GELU)
        super().__init__(
            *args, embed_layer=partial(TokensToToken, token_layer=token_layer, token_dim=token_dim), **kwargs
        )
        # under the authors' name, and in their place
        modules = dict(self._modules)
        self._modules.clear()
        self.tokens_to_token = modules.pop("patch_embed")
        self._modules.update(modules)
        if self.pos_embed is not None:
            self.pos_embed.requires_grad_(False)
        if self.pos_embed is not None and not self.pos_embed.is_meta:
            self.pos_embed.copy_(_sinusoid(*self.pos_embed.shape[1:]))
            trunc_normal_(self.cls_token, std=0.02)

    @property
    def patch_embed(self) -> TokensToToken:
        """timm's name of the stem."""
        modules = self._modules
        return modules["tokens_to_token"] if "tokens_to_token" in modules else modules["patch_embed"]

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:  # timm cannot flatten an empty batch
            return super()._pos_embed(torch.cat((x, x.new_zeros(1, *x.shape[1:]))))[:0]
        return super()._pos_embed(x)

    def fit_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors at this model's size: position embeddings of another grid are interpolated."""
        value = tensors.get("pos_embed")
        if value is None or value.shape == self.pos_embed.shape:
            return tensors
        grid = self.patch_embed.grid_size
        value = resample_abs_pos_embed(value, new_size=list(grid), num_prefix_tokens=self.num_prefix_tokens)
        return {**tensors, "pos_embed": value}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer decay."""
        return {
            "stem": r"^cls_token|^pos_embed|^tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def _sinusoid(rows: int, dim: int) -> torch.Tensor:
    """(rows, dim): sine in even, cosine in odd columns, wavelengths from 2 pi to 10000 * 2 pi."""
    pairs = torch.arange(dim, dtype=torch.float64) // 2
    angle = torch.arange(rows, dtype=torch.float64)[:, None] / 10000 ** (2 * pairs / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())


_RELEASE = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"
# the first layer is no convolution, so timm cannot fit it to other in_chans
_CFG: dict[str, Any] = {"crop_pct": 0.9, "first_conv": None, "license": "bsd-3-clause-clear", "fixed_input_size": True}
default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_14.in1k": cfg(f"{_RELEASE}81.5_T2T_ViT_14.pth.tar", **_CFG),
        "t2t_vit_t_14.in1k": cfg(f"{_RELEASE}81.7_T2T_ViTt_14.pth.tar", **_CFG),
        "t2t_vit_t_19.in1k": cfg(f"{_RELEASE}82.4_T2T_ViTt_19.pth.tar", **_CFG),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> T2TViT:
    options = {"mlp_ratio": 3.0, "qkv_bias": False, **kwargs}
    return build(T2TViT, variant, pretrained, feature_indices=3, **options)


VARIANTS = {
    "t2t_vit_14": (
        "T2T-ViT-14 with Performers in the stem, 21.5 M parameters, 4.8 GMAC at 224 x 224.",
        {"performer": True, "embed_dim": 384, "depth": 14, "num_heads": 6},
    ),
    "t2t_vit_t_14": (
        "T2T-ViT_t-14, full attention in the stem, 21.5 M parameters, 6.1 GMAC at 224 x 224.",
        {"embed_dim": 384, "depth": 14, "num_heads": 6},
    ),
    "t2t_vit_t_19": (
        "T2T-ViT_t-19, full attention in the stem, 39.2 M parameters, 9.8 GMAC at 224 x 224.",
        {"embed_dim": 448, "depth": 19, "num_heads": 7},
    ),
}
register_variants(__name__, _create, VARIANTS)
