"""The layers of Vision Longformer; what is decided here, and where the authors' code differs, is in `vil.py`."""

import itertools
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import nn

from vitgraft.layers.attention import attend, attend_qkv
from vitgraft.layers.window import relative_position_index
from vitgraft.models._pyramid import embedding
from vitgraft.models.zoo._layers import NORM_EPS, Attention

# B batch, H x W map, G global tokens, N = G + H * W, M window side, h heads, d channels of a head, C = h * d.


class Embed(nn.Module):
    """Patches to tokens, the stage's global tokens in front, and their absolute positions if there are any."""

    def __init__(
        self,
        size: tuple[int, int],
        in_dim: int,
        dim: int,
        patch_size: int,
        global_tokens: int,
        absolute: bool,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.size = size
        self.cls_token = embedding(1, global_tokens, dim, **dd) if global_tokens else None
        self.cls_pos_embed = embedding(1, global_tokens, dim, **dd) if global_tokens and absolute else None
        # x is the axis of the rows, the authors' word
        self.x_pos_embed = embedding(1, size[0], dim // 2, **dd) if absolute else None
        self.y_pos_embed = embedding(1, size[1], dim // 2, **dd) if absolute else None
        self.proj = nn.Conv2d(in_dim, dim, patch_size, stride=patch_size, **dd)
        self.norm_embed = nn.LayerNorm(dim, eps=NORM_EPS, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_dim, H * patch, W * patch) to (B, N, dim)."""
        x = self.norm_embed(self.proj(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        if self.x_pos_embed is not None:
            H, W = self.size
            rows = self.x_pos_embed.unsqueeze(2).expand(-1, -1, W, -1)
            columns = self.y_pos_embed.unsqueeze(1).expand(-1, H, -1, -1)
            x = x + torch.cat((rows, columns), dim=-1)
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            token = self.cls_token if self.cls_pos_embed is None else self.cls_token + self.cls_pos_embed
            x = torch.cat((token.expand(x.shape[0], -1, -1), x), dim=1)
        return self.drop(x)


class _Attention(Attention):
    """What both kinds of attention have: the tables of the relative position bias, for maps of `size`."""

    def __init__(self, dim: int, num_heads: int, global_tokens: int, rows: int, drops: dict[str, float], **dd: Any):
        super().__init__(dim, num_heads, **drops)
        self.global_tokens = global_tokens
        self.local_relative_position_bias_table = None
        if rows:
            self.local_relative_position_bias_table = embedding(rows, num_heads, **dd)
            if global_tokens:
                self.g2l_relative_position_bias = embedding(2, num_heads, global_tokens, **dd)
                self.g2g_relative_position_bias = embedding(num_heads, global_tokens, global_tokens, **dd)

    def init_non_persistent_buffers(self) -> None:
        """Fills the indices again after construction on the meta device, as timm calls it."""
        self.set_size(self.size, self.proj.weight.device)

    def _local_bias(self, index: torch.Tensor) -> torch.Tensor:
        """(h, *index.shape) from the table."""
        # by columns of the transposed table: no copy afterwards to bring the heads to the front
        bias = self.local_relative_position_bias_table.t().index_select(1, index.flatten())
        return bias.view(-1, *index.shape)

    def _global_bias(self, tokens: int) -> torch.Tensor:
        """(h, G, G + tokens): of global queries."""
        local = self.g2l_relative_position_bias[0].unsqueeze(-1).expand(-1, -1, tokens)
        return torch.cat((self.g2g_relative_position_bias, local), dim=-1)

    def _with_global_keys(self, local: torch.Tensor) -> torch.Tensor:
        """(h, n, tokens) to (h, n, G + tokens): the bias of local queries."""
        keys = self.g2l_relative_position_bias[1].unsqueeze(1).expand(-1, local.shape[1], -1)
        return torch.cat((keys, local), dim=-1)


class FullAttention(_Attention):
    """Attention of all tokens of a map of `size`, global ones included."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: tuple[int, int],
        global_tokens: int = 0,
        rel_pos: bool = True,
        qkv_bias: bool = True,
        device=None,
        dtype=None,
        **drops: float,
    ):
        dd = {"device": device, "dtype": dtype}
        rows = (2 * size[0] - 1) * (2 * size[1] - 1) if rel_pos else 0
        super().__init__(dim, num_heads, global_tokens, rows, drops, **dd)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.set_size(size, device)

    def set_size(self, size: tuple[int, int], device: torch.device | None = None) -> None:
        """Takes maps of another size; the table is the caller's affair."""
        self.size = size
        if self.local_relative_position_bias_table is not None:
            index = relative_position_index(size, device).flatten(2).flatten(0, 1)
            self.register_buffer("relative_position_index", index, persistent=False)

    def bias(self) -> torch.Tensor | None:
        """(1, h, N, N)"""
        if self.local_relative_position_bias_table is None:
            return None
        bias = self._local_bias(self.relative_position_index)
        if self.global_tokens:
            bias = torch.cat((self._global_bias(bias.shape[-1]), self._with_global_keys(bias)), dim=1)
        return bias.unsqueeze(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to (B, N, C)."""
        return self.proj_drop(self.proj(attend_qkv(self.qkv(x), self.num_heads, self.bias(), self.attn_drop)))


class WindowedAttention(_Attention):
    """Attention of windows to their 3 x 3 neighborhood and the global tokens ("sliding chunks").

    Args:
        size: (H, W) of the map; any, the last windows may be smaller.
        window_size: M.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: tuple[int, int],
        window_size: int = 7,
        global_tokens: int = 1,
        rel_pos: bool = True,
        qkv_bias: bool = True,
        device=None,
        dtype=None,
        **drops: float,
    ):
        dd = {"device": device, "dtype": dtype}
        rows = (4 * window_size - 1) ** 2 if rel_pos else 0
        super().__init__(dim, num_heads, global_tokens, rows, drops, **dd)
        self.side = window_size
        self.query = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.set_size(size, device)

    def set_size(self, size: tuple[int, int], device: torch.device | None = None) -> None:
        """Takes maps of another size (H, W)."""
        self.size = size
        self.kinds = list(itertools.product(_lines(size[0], self.side), _lines(size[1], self.side)))
        G, (H, W), M = self.global_tokens, size, self.side
        grid = torch.arange(H * W, device=device).view(H, W) + G
        order = []
        for number, (rows, columns) in enumerate(self.kinds):
            queries = _cut(grid, rows.starts, rows.queries, columns.starts, columns.queries)  # (windows, queries)
            keys = _cut(grid, rows.key_starts, rows.keys, columns.key_starts, columns.keys)
            tokens = torch.arange(G, device=device).expand(len(keys), -1)
            self.register_buffer(f"queries{number}", queries.flatten(), persistent=False)
            self.register_buffer(f"keys{number}", torch.cat((tokens, keys), dim=1).flatten(), persistent=False)
            order.append(queries.flatten())
        # where each token's result lies when those of the global tokens and of all kinds are put behind each other
        order = torch.cat([torch.arange(G, device=device), *order]).argsort()
        self.register_buffer("order", order, persistent=False)
        if self.local_relative_position_bias_table is not None:
            # of a query in its window and a key in the 3 x 3 windows; for query minus key
            steps = torch.arange(M, device=device)[:, None] - torch.arange(-M, 2 * M, device=device) + 2 * M - 1
            index = steps[:, None, :, None] * (4 * M - 1) + steps[None, :, None, :]
            self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to (B, N, C)."""
        B, N, C = x.shape
        G = self.global_tokens
        biased = self.local_relative_position_bias_table is not None
        local = self._local_bias(self.relative_position_index) if biased else None  # (h, M, M, 3M, 3M)
        q, kv = self.query(x), self.kv(x)
        parts = []
        if G:
            bias = self._global_bias(N - G).unsqueeze(0) if biased else None
            part = attend(*self._heads(q[:, :G]), *self._heads(kv, 2), bias, self.attn_drop)
            parts.append(part.transpose(1, 2).reshape(B, G, C))
        for number, (rows, columns) in enumerate(self.kinds):
            windows = len(rows.starts) * len(columns.starts)
            queries, keys = rows.queries * columns.queries, G + rows.keys * columns.keys
            part = q.index_select(1, getattr(self, f"queries{number}")).view(B * windows, queries, C)
            both = kv.index_select(1, getattr(self, f"keys{number}")).view(B * windows, keys, 2 * C)
            bias = self._bias(local, rows, columns) if biased else None
            part = attend(*self._heads(part), *self._heads(both, 2), bias, self.attn_drop)
            parts.append(part.transpose(1, 2).reshape(B, windows * queries, C))
        x = torch.cat(parts, dim=1).index_select(1, self.order)
        return self.proj_drop(self.proj(x))

    def _bias(self, local: torch.Tensor, rows: "_Line", columns: "_Line") -> torch.Tensor:
        """(1, h, queries, keys) of one kind of window."""
        local = local[:, : rows.queries, : columns.queries, rows.key_slice, columns.key_slice]
        local = local.flatten(3).flatten(1, 2)
        return (self._with_global_keys(local) if self.global_tokens else local.contiguous()).unsqueeze(0)


class _Line(NamedTuple):
    """Windows of one kind along one axis: as many queries each, the same keys relative to them.

    Attributes:
        starts, key_starts: First query and first key of each window.
        queries, keys: How many there are of them.
        key_slice: The keys among those of the full neighborhood.
    """

    starts: list[int]
    queries: int
    key_starts: list[int]
    keys: int
    key_slice: slice


def _lines(length: int, side: int) -> list[_Line]:
    """The kinds of windows along an axis of `length`."""
    kinds: dict[tuple[int, int, int], list[int]] = {}
    for start in range(0, length, side):
        before = min(start, side)
        kind = (before, min(side, length - start), before + min(2 * side, length - start))
        kinds.setdefault(kind, []).append(start)
    return [
        _Line(starts, queries, [start - before for start in starts], keys, slice(side - before, side - before + keys))
        for (before, queries, keys), starts in kinds.items()
    ]


def _cut(grid: torch.Tensor, tops: list[int], rows: int, lefts: list[int], columns: int) -> torch.Tensor:
    """Rectangles of a grid (H, W): (number of them, rows * columns)."""
    tops, lefts = (torch.tensor(starts, device=grid.device)[:, None] for starts in (tops, lefts))
    ys = tops + torch.arange(rows, device=grid.device)
    xs = lefts + torch.arange(columns, device=grid.device)
    return grid[ys[:, None, :, None], xs[None, :, None, :]].reshape(-1, rows * columns)


class Residual(nn.Module):
    """x + layer(norm(x)), with the layer under a name of its own: half a transformer block."""

    def __init__(self, dim: int, name: str, layer: nn.Module, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()
        self.name = name
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, device=device, dtype=dtype)
        self.add_module(name, layer)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to (B, N, C)."""
        return x + self.drop_path(getattr(self, self.name)(self.norm(x)))
