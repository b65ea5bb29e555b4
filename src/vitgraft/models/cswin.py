"""CSWin Transformer, which timm does not have, in timm's interface.

Paper: "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", arXiv 2107.00652. Half of
the heads attend in vertical stripes (all rows, a few columns), the other half in horizontal ones; a depthwise 3x3
convolution of the values inside each stripe, "locally enhanced positional encoding" (LePE), is added to the attention.

Parameter names are the authors' (microsoft/CSWin-Transformer, models/cswin.py at f111ae2), so that their checkpoints
load unchanged. What is decided here rather than there:

- Every input size works and no tensor depends on it. Where a map is no multiple of the stripe, it is padded as the
  authors' dense-task backbone does (segmentation/backbone/cswin_transformer.py at f111ae2): query, key and value are
  padded with zeros *after* their projection, only across the stripes, half of it (rounded down) on the left or top,
  and padded tokens are not masked. So published segmentation weights compute their own function; padding right and
  bottom only, as Swin does, would compute another one.
- The last stage, and only that one, has a single branch over the whole map. The authors' classification code also
  gives one to any block whose map at `img_size` equals its stripe; then shapes of weights would depend on that size.
- `proj_drop_rate` acts after the projection of the attention too; the authors create that dropout and never call it.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, create_classifier
from timm.models import generate_default_cfgs
from torch import nn
from torchvision.ops import Permute

from vitgraft.models._build import build, build_grafted, cfg, grafted_cfgs, register_variants, unwrap
from vitgraft.models._cpu import GELU
from vitgraft.models._cswin_blocks import CSWinBlock, MergeBlock, StripeAttention
from vitgraft.models._pyramid import Pyramid, check_stages, init_weights

__all__ = ["CSWinBlock", "CSWinTransformer", "StripeAttention"]

# B batch, H x W token grid, C channels. Grids are (B, H, W, C).


class CSWinTransformer(Pyramid):
    """CSWin Transformer for images (B, in_chans, H, W) of any size from 4 x 4 up.

    Args:
        img_size: Nominal image size, for the record only.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: Pooling before the classifier ("avg", "max", "avgmax", "catavgmax"), "" for none.
        embed_dim: Channels of the first stage; doubled from stage to stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        split_sizes: Stripe size of each stage (the authors' word); the last stage attends over its whole map.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of attention and MLP.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth, which grows linearly from 0 with depth.

    Raises:
        ValueError: Options that do not fit each other, or are out of range.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: tuple[int, ...] = (1, 2, 21, 1),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        split_sizes: tuple[int, ...] = (1, 2, 7, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: type[nn.Module] = GELU,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        device=None,
        dtype=None,
    ):
        super().__init__(in_chans, num_classes, global_pool, drop_rate)
        dd = {"device": device, "dtype": dtype}
        stages = check_stages(depths=depths, num_heads=num_heads, split_sizes=split_sizes)
        self.embed_dim = embed_dim
        self.output_fmt = "NHWC"
        dims = [embed_dim * 2**i for i in range(stages)]
        self._set_stages(dims, [4] + [2] * (stages - 1), "stage")
        self.set_input_size(img_size)

        self.stage1_conv_embed = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim, 7, stride=4, padding=2, **dd),
            Permute([0, 2, 3, 1]),
            norm_layer(embed_dim, **dd),
        )
        drop_path = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for i, dim in enumerate(dims):
            if i > 0:
                setattr(self, f"merge{i}", MergeBlock(dim // 2, dim, norm_layer, **dd))
            blocks = [
                CSWinBlock(
                    dim,
                    num_heads[i],
                    split_sizes[i],
                    full=i == stages - 1,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                    act_layer=act_layer,
                    norm_layer=norm_layer,
                    **dd,
                )
                for rate in drop_path[i]
            ]
            setattr(self, f"stage{i + 1}", nn.Sequential(*blocks))
        self.norm = norm_layer(self.num_features, **dd)
        self._make_head(**dd)
        self.apply(init_weights)

    def _set_pool(self, global_pool: str) -> None:
        self.global_pool_type = global_pool

    def _make_head(self, device=None, dtype=None) -> None:
        self.global_pool, self.head_drop, self.head = create_classifier(
            self.num_features,
            self.num_classes,
            pool_type=self.global_pool_type,
            input_fmt=self.output_fmt,
            drop_rate=self.drop_rate,
            device=device,
            dtype=dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer decay; a merge counts to the block after it."""
        merges = [(rf"^merge{i}\.", (i + 1,) if coarse else (i + 1, 0)) for i in range(1, len(self.feature_info))]
        stage = r"^stage(\d+)\." if coarse else r"^stage(\d+)\.(\d+)\."
        return {"stem": r"^stage1_conv_embed", "blocks": [*merges, (stage, None), (r"^norm", (99999,))]}

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.stage1_conv_embed(x)

    def _stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, C), after a merge in all stages but the first."""
        if i > 0:
            x = getattr(self, f"merge{i}")(x)
        for block in getattr(self, f"stage{i + 1}"):
            x = self._run(block, x)
        return x

    def _map(self, i: int, x: torch.Tensor, norm: bool = False) -> torch.Tensor:
        return (self.norm(x) if norm else x).permute(0, 3, 1, 2)

    def _finish(self, x: torch.Tensor) -> torch.Tensor:
        """The last stage's output to normed features (B, H / 32, W / 32, num_features)."""
        return self.norm(x)

    def _prune(self, stages: int) -> None:
        for i in range(stages, len(self.feature_info)):
            delattr(self, f"merge{i}")
            delattr(self, f"stage{i + 1}")

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features (B, H, W, num_features) to logits (B, num_classes)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)


_RELEASE = "https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0/"
_URLS = {f"cswin_{size}_224": f"{_RELEASE}cswin_{size}_224.pth" for size in ("tiny", "small", "base")}
_CFG: dict[str, Any] = {"pool_size": (7, 7), "crop_pct": 0.9, "first_conv": "stage1_conv_embed.0"}
default_cfgs = generate_default_cfgs(
    {f"{name}.ms_in1k": cfg(url, license="mit", **_CFG) for name, url in _URLS.items()}
    | grafted_cfgs({f"graft_{name}": url for name, url in _URLS.items()}, **_CFG)
)

# Options of the published sizes: microsoft/CSWin-Transformer models/cswin.py
_TINY = {"embed_dim": 64, "depths": (1, 2, 21, 1), "num_heads": (2, 4, 8, 16)}
_SMALL = {"embed_dim": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)}
_BASE = {"embed_dim": 96, "depths": (2, 4, 32, 2), "num_heads": (4, 8, 16, 32)}
VARIANTS = {
    "cswin_tiny_224": ("CSWin-T, 22.3 M parameters, 4.3 GMAC at 224 x 224.", _TINY),
    "cswin_small_224": ("CSWin-S, 35 M parameters, 6.9 GMAC at 224 x 224.", _SMALL),
    "cswin_base_224": ("CSWin-B, 78 M parameters, 15.0 GMAC at 224 x 224.", _BASE),
}
GRAFTED_VARIANTS = {
    "graft_cswin_tiny_224": ("CSWin-T + GrafT (table 1), with Swin's window attention in the grafts.", _TINY),
    "graft_cswin_small_224": ("CSWin-S + GrafT (not in the paper).", _SMALL),
    "graft_cswin_base_224": ("CSWin-B + GrafT (not in the paper).", _BASE),
}
register_variants(__name__, partial(build, CSWinTransformer), VARIANTS)
register_variants(__name__, partial(build_grafted, CSWinTransformer, filter_fn=unwrap), GRAFTED_VARIANTS)
