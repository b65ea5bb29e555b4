"""Multi-scale Vision Longformer (ViL), which timm does not have.

Paper: "Multi-Scale Vision Longformer: A New Vision Transformer for High-Resolution Image Encoding", arXiv 2103.15358.
In the first two stages a window of 7 x 7 queries sees the 3 x 3 windows around it and the stage's global token; the
global token sees all. The last two stages have full attention. Positions are a relative bias (`rpb`) or absolute
embeddings.

Parameter names are the authors' (microsoft/vision-longformer, src/models/msvit.py at c9ce386), so that their
checkpoints load unchanged. What is decided here rather than there:

- The authors store the projections of the stages with windows under two names (`query`, `query_global`, ...), and run
  that of keys and values twice; here it has one name and runs once.
- Windows outside the map are not computed and masked, but left out: windows with the same neighbors are one batch.
- As there, the image size is fixed at construction, because tables depend on it; `set_input_size` resizes them.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp, calculate_drop_path_rates, resize_rel_pos_bias_table, to_2tuple
from timm.models import generate_default_cfgs
from torch import nn

from vitgraft.models._build import build, cfg, register_variants
from vitgraft.models._cpu import GELU
from vitgraft.models._pyramid import Pyramid, check_stages, init_weights
from vitgraft.models.zoo._layers import NORM_EPS
from vitgraft.models.zoo.vil_blocks import Embed, FullAttention, Residual, WindowedAttention

__all__ = ["FullAttention", "VisionLongformer", "WindowedAttention"]

# B batch, H x W map, G global tokens, N = G + H * W, C channels.


class VisionLongformer(Pyramid):
    """ViL for images (B, in_chans, H, W) of `img_size`.

    Args:
        img_size: At least all patches together (32 pixels); as in the original, what is over a multiple of a patch on
            the right and at the bottom is not seen.
        global_pool: Pooling of the last map.
        embed_dims, depths, num_heads, global_tokens: One value per stage; the last stage has no global tokens.
        windowed: Whether a stage attends in windows, or fully.
        patch_sizes: Patch of each stage, on the map of the stage before.
        window_size: Side of a window in tokens.
        rel_pos: Relative position bias, or absolute position embeddings.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after each embedding.
        proj_drop_rate, attn_drop_rate, drop_path_rate: As in timm; the last grows linearly from 0 with depth.

    Raises:
        ValueError: Options that do not fit each other, or images of another size.
    """

    second_names = (("_global.", "."),)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (48, 96, 192, 384),
        depths: tuple[int, ...] = (1, 1, 9, 1),
        num_heads: tuple[int, ...] = (1, 3, 3, 6),
        global_tokens: tuple[int, ...] = (1, 1, 1, 0),
        windowed: tuple[bool, ...] = (True, True, False, False),
        patch_sizes: tuple[int, ...] = (4, 2, 2, 2),
        window_size: int = 7,
        rel_pos: bool = True,
        mlp_ratio: float = 4.0,
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
        check_stages(
            embed_dims=embed_dims, depths=depths, num_heads=num_heads, global_tokens=global_tokens, windowed=windowed,
            patch_sizes=patch_sizes,
        )  # fmt: skip
        if global_tokens[-1] or window_size < 1 or any(dim % 2 for dim in embed_dims):
            raise ValueError(
                f"{global_tokens=}, {window_size=}, {embed_dims=}: none in the last stage, 1 or more, and even numbers "
                "are needed"
            )
        self._set_stages(embed_dims, patch_sizes, "layer")
        self.min_size = self.feature_info[-1]["reduction"]
        self.img_size = self._checked(to_2tuple(img_size))

        drop_path = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        drops = {"qkv_bias": qkv_bias, "attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate, **dd}
        for i, dim in enumerate(embed_dims):
            size, chans = self._grid(i), embed_dims[i - 1] if i else in_chans
            embed = Embed(size, chans, dim, patch_sizes[i], global_tokens[i], not rel_pos, pos_drop_rate, **dd)
            blocks: list[nn.Module] = [embed]
            for rate in drop_path[i]:
                if windowed[i]:
                    args = (dim, num_heads[i], size, window_size, global_tokens[i], rel_pos)
                    attn = WindowedAttention(*args, **drops)
                else:
                    attn = FullAttention(dim, num_heads[i], size, global_tokens[i], rel_pos, **drops)
                mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELU, drop=proj_drop_rate, **dd)
                blocks += [Residual(dim, "attn", attn, rate, **dd), Residual(dim, "mlp", mlp, rate, **dd)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS, **dd)
        self._make_head(**dd)
        self.apply(init_weights)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Takes images of another size from now on; tables and positions are resized."""
        super().set_input_size(img_size)
        old = {name: m.size for name, m in self.named_modules() if isinstance(m, FullAttention)}
        for i in range(len(self.feature_info)):
            for block in getattr(self, f"layer{i + 1}"):
                if isinstance(block, Embed):
                    block.size = self._grid(i)
                elif hasattr(block, "attn"):
                    block.attn.set_size(self._grid(i), block.norm.weight.device)
        for name, p in list(self.named_parameters()):
            value = self._fit(name, p.detach(), old.get(name.rpartition(".")[0]))
            if value.shape != p.shape:
                owner, _, last = name.rpartition(".")
                setattr(self.get_submodule(owner), last, nn.Parameter(value, requires_grad=p.requires_grad))

    def fit_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors: absolute positions, and the tables of full attention for square maps, are resized."""
        return {name: self._fit(name, value) for name, value in tensors.items()}

    def _fit(self, name: str, value: torch.Tensor, old_window: tuple[int, int] | None = None) -> torch.Tensor:
        """A parameter at this model's maps; `old_window` is the map that a table is for (None: a square)."""
        owner, _, last = name.rpartition(".")
        if last == "local_relative_position_bias_table" and ".attn" in name:
            attn = self.get_submodule(owner)
            if isinstance(attn, FullAttention):
                H, W = attn.size
                shape = ((2 * H - 1) * (2 * W - 1), attn.num_heads)
                if tuple(value.shape) != shape and value.shape[1] == shape[1]:
                    side = round(value.shape[0] ** 0.5)
                    if old_window is None and side**2 != value.shape[0]:
                        raise ValueError(
                            f"{name} with {value.shape[0]} rows is not of a square map, and the map cannot be "
                            "inferred: make the model with the checkpoint's img_size, load, then set_input_size"
                        )
                    return resize_rel_pos_bias_table(
                        value, new_window_size=(H, W), new_bias_shape=shape, old_window_size=old_window
                    )
        elif last in ("x_pos_embed", "y_pos_embed"):
            length = self.get_submodule(owner).size[last == "y_pos_embed"]
            if value.shape[1] != length:
                return F.interpolate(value.transpose(1, 2), size=length, mode="linear").transpose(1, 2)
        return value

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for timm's layer decay: attention and MLP of a block together, an embedding with its first block."""
        blocks = []
        for i in range(1, len(self.feature_info) + 1):
            if coarse:
                blocks.append((rf"^layer{i}\." if i > 1 else r"^layer1\.(?!0\.)", (i,)))
                continue
            for j in range(1, len(getattr(self, f"layer{i}")), 2):
                first = "0|" if i > 1 and j == 1 else ""
                blocks.append((rf"^layer{i}\.(?:{first}{j}|{j + 1})\.", (i, j)))
        return {"stem": r"^layer1\.0\.", "blocks": [*blocks, (r"^norm", (99999,))]}

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        H, W = x.shape[-2:]
        if self.img_size != (H, W):
            raise ValueError(
                f"the model takes images of {self.img_size[0]} x {self.img_size[1]} and got {H} x {W}: make it with "
                f"img_size=({H}, {W}), or call model.set_input_size(({H}, {W})) on one that has its weights"
            )
        return x

    def _stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Image, or tokens (B, N, C) of the stage before, to tokens."""
        embed, *blocks = getattr(self, f"layer{i + 1}")
        x = embed(x if i == 0 else self._map(i - 1, x))
        for block in blocks:
            x = self._run(block, x)
        return x

    def _map(self, i: int, x: torch.Tensor, norm: bool = False) -> torch.Tensor:
        return self._as_map(x, self._grid(i), norm)

    def _finish(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)

    def _prune(self, stages: int) -> None:
        for i in range(stages, len(self.feature_info)):
            delattr(self, f"layer{i + 1}")


_BLOB = "https://penzhanwu2.blob.core.windows.net/imagenet/msvit/visionlongformer/"


def _cfg(folder: str) -> dict[str, Any]:
    return cfg(f"{_BLOB}{folder}/model_best.pth", first_conv="layer1.0.proj", license="mit", fixed_input_size=True)


default_cfgs = generate_default_cfgs(
    {
        "vil_tiny.in1k": _cfg("msvit_tiny_longformersw_1191_train"),
        "vil_tiny_rpb.in1k": _cfg("longtiny1191_ape0_exact0_nglo1_mode1_swith075"),
        "vil_small_rpb.in1k": _cfg("small1281_relative"),
        "vil_medium_deep_rpb.in1k": _cfg("longdeepmedium_ape0_exact0_mode1_switch075"),
    }
)

_WIDE: dict[str, Any] = {"embed_dims": (96, 192, 384, 768), "num_heads": (3, 3, 6, 12)}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vil_tiny": (
        "ViL-Tiny with absolute positions, 6.7 M parameters, 1.4 GMAC at 224 x 224.",
        {"rel_pos": False},
    ),
    "vil_tiny_rpb": (
        "ViL-Tiny with relative position bias, 6.7 M parameters, 1.4 GMAC at 224 x 224.",
        {},
    ),
    "vil_small_rpb": (
        "ViL-Small with relative position bias, 24.7 M parameters, 5.0 GMAC at 224 x 224.",
        {**_WIDE, "depths": (1, 2, 8, 1)},
    ),
    "vil_medium_deep_rpb": (
        "ViL-Medium-Deep with relative position bias, 39.8 M parameters.",
        {**_WIDE, "depths": (1, 4, 16, 1)},
    ),
}
register_variants(__name__, partial(build, VisionLongformer), VARIANTS)
