"""What a module becomes when it carries a graft. Plumbing of `surgery.py`.

A grafted block keeps its class's own `forward` and runs it with a *stand-in* for `self`, on which two children are
replaced for this one call: the one that reads X0 and the one that the attention's result goes through. The same trick
hands the grid of flat tokens from a model to its blocks. So no formula of a backbone is written again here, nothing
is stored between calls (gradient checkpointing may run a block again whenever it likes), and torch.compile and
torch.export see plain calls.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.layers.attention import attend, attend_qkv
from vitgraft.layers.window import effective_window, pad_grid, window_partition, window_reverse
from vitgraft.models._points import GraftPoint, GridSource, find_grid_source

__all__ = [
    "GraftedBlock",
    "GraftedForOneSize",
    "GraftedGridSource",
    "GraftedModel",
    "GraftedResizable",
    "StandIn",
    "first_argument",
    "grafted_class",
    "original_class",
]

Size = tuple[int, int]


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """What a module was called with first; of a call by names, `x`, timm's name, or the first tensor."""
    if args:
        return args[0]
    tensors = [value for value in kwargs.values() if isinstance(value, torch.Tensor)]
    return kwargs.get("x", tensors[0] if tensors else None)


class StandIn:
    """Everything that `host` is, with some attributes replaced. Holds for one call; `host` itself never changes."""

    def __init__(self, host: nn.Module, **replaced: Any):
        self.__dict__.update(replaced)
        self.__dict__["_host"] = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_host"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        # what a user's forward leaves on self, such as attention maps, is the host's
        setattr(self.__dict__["_host"], name, value)


class SuperStandIn(StandIn):
    """For a method that calls super(), as a user's subclass does: super() takes what says that it is an instance."""

    @property
    def __class__(self) -> type:
        host = self.__dict__.get("_host")
        return SuperStandIn if host is None else type(host)


def _stand_in(host: nn.Module, method: str, replaced: dict[str, Any]) -> StandIn:
    """The stand-in with which `method` of the host's original class runs."""
    # only where it is needed: torch.compile does not trace an object that gives itself another class
    kind = SuperStandIn if method in type(host)._graft_super else StandIn
    return kind(host, **replaced)


def _calls_super(cls: type, method: str) -> bool:
    code = getattr(inspect.unwrap(getattr(cls, method)), "__code__", None)
    return code is not None and "super" in code.co_names


class _Blocks(list):
    """A list of blocks that runs like the nn.Sequential or ModuleList for which it stands in."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        for block in self:
            x = block(x, *args, **kwargs)
        return x

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return _Blocks(item) if isinstance(index, slice) else item


class _Branch:
    """A graft as one more of the parallel attention branches of a ParallelThingsBlock."""

    def __init__(self, graft: Callable[[torch.Tensor], torch.Tensor]):
        self.graft = graft

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.graft(x)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return x

    ls = drop_path = norm

    def attn(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.graft(x)


def _token_grid(block: nn.Module, tokens: int, grid: Size | None) -> tuple[Size, int]:
    """Grid and number of prefix tokens of flat tokens, by what is known: the caller's word, or the built size."""
    if grid is None:
        if getattr(block, "_graft_grid_varies", False):
            raise ValueError(
                f"{type(block).__name__} was run without its grid, which changes with the image: run it through the "
                "model's forward, forward_features or forward_intermediates, or pass graft_grid=(height, width)"
            )
        grid = block._graft_feat_size
        if tokens != block._graft_tokens:
            raise ValueError(
                f"{type(block).__name__} was grafted for a {grid[0]} x {grid[1]} grid ({block._graft_tokens} tokens) "
                f"and got {tokens} tokens; this family fixes the grid: use model.set_input_size(...) or graft it with "
                "img_size="
            )
    prefix = tokens - grid[0] * grid[1]
    if not torch.compiler.is_compiling() and prefix != block._graft_prefix:
        raise ValueError(
            f"{type(block).__name__} got {tokens} tokens for a {grid[0]} x {grid[1]} grid, {prefix} more, where it was "
            f"grafted with {block._graft_prefix} prefix tokens in front"
        )
    return grid, prefix


def window_attention(attn: nn.Module, x: torch.Tensor, grid: Size, window_size: Size) -> torch.Tensor:
    """The attention of a plain ViT block on (B, H * W, C) tokens inside windows without shift, on its own weights."""
    B, tokens, C = x.shape
    window = effective_window(grid, window_size)
    x = pad_grid(x.view(B, *grid, C), window)
    padded = x.shape[1], x.shape[2]
    x = window_partition(x, window)
    if isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity):
        x = attend_qkv(attn.qkv(x), attn.num_heads, drop=attn.attn_drop)
    else:
        q, k, v = attn.qkv(x).view(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = attend(attn.q_norm(q), attn.k_norm(k), v, drop=attn.attn_drop).transpose(1, 2).flatten(2)
    x = attn.proj_drop(attn.proj(attn.norm(x)))
    x = window_reverse(x, window, padded)[:, : grid[0], : grid[1]]
    return x.reshape(B, tokens, C)


def authors_swin_attention(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The shifted window attention of a timm Swin block with the authors' padding, (B, H, W, C) -> (B, H, W, C)."""
    from vitgraft.models.swin import SwinBlock  # which is built on this file

    attend_windows = functools.partial(SwinBlock._window_attention, block)
    shift = tuple(min(s, w // 2) for s, w in zip(block.target_shift_size, block.window_size, strict=True))
    return SwinBlock._attn(StandIn(block, shift_size=shift, _window_attention=attend_windows), x)


class GraftedBlock:
    """A backbone's block with a child `graft` (and, on request, window attention). Mixed into the block's class."""

    _graft_point: GraftPoint
    _graft_feat_size: Size
    _graft_tokens: int | None
    _graft_prefix: int
    _graft_window: Size | None
    _graft_fused_last: bool
    _graft_authors_padding: bool

    def _to_grid(self, x: torch.Tensor, grid: Size | None) -> torch.Tensor:
        point = self._graft_point
        if point.to_grid is not None:
            return point.to_grid(self, x, grid or self._graft_feat_size)
        if x.dim() == 3:
            (H, W), prefix = _token_grid(self, x.shape[1], grid)
            return x[:, prefix:].reshape(x.shape[0], H, W, x.shape[2])
        return x.permute(0, 2, 3, 1) if point.maps else x

    def _add(self, result: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """The attention's result plus the graft's (B, H, W, C), in the result's layout."""
        point = self._graft_point
        g = g.to(result.dtype)  # autocast may have left another precision, and the sum would spread it
        if point.from_grid is not None:
            return result + point.from_grid(self, g, result)
        if result.dim() == 3:
            g = g.flatten(1, 2)
            prefix = result.shape[1] - g.shape[1]
            if prefix:
                return torch.cat((result[:, :prefix], result[:, prefix:] + g), dim=1)
            return result + g
        maps_out = point.maps if point.maps_out is None else point.maps_out
        return result + (g.permute(0, 3, 1, 2) if maps_out else g)

    def forward(self, *args: Any, graft_grid: Size | None = None, **kwargs: Any) -> Any:
        point = self._graft_point
        grid = graft_grid
        if grid is None and point.grid is not None:
            grid = point.grid(*args, **kwargs)
        graft = self._modules.get("graft")
        run = original_class(type(self)).forward
        replaced: dict[str, Any] = {}
        if self._graft_window is not None:
            attn = self._modules["attn"]

            def attention(x: torch.Tensor, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
                if attn_mask is not None or is_causal:
                    raise ValueError("backbone_attention='window' takes no attn_mask and no is_causal")
                window_grid, _prefix = _token_grid(self, x.shape[1], grid)
                return window_attention(attn, x, window_grid, self._graft_window)

            replaced["attn"] = attention
        if self._graft_authors_padding:
            replaced["_attn"] = functools.partial(authors_swin_attention, self)
        if graft is None:
            return run(_stand_in(self, "forward", replaced), *args, **kwargs)

        def grow(x0: torch.Tensor) -> torch.Tensor:
            return graft(self._to_grid(x0, grid))

        if self._graft_fused_last or point.adds == "":
            out = run(_stand_in(self, "forward", replaced), *args, **kwargs)
            return self._add(out, grow(first_argument(args, kwargs)))

        if point.adds == "attns":
            branch = _Branch(lambda x: self._add(torch.zeros_like(x), grow(x)))
            return run(_stand_in(self, "forward", {"attns": [*self._modules["attns"], branch]}), *args, **kwargs)

        seen: list[torch.Tensor] = [first_argument(args, kwargs)] if point.reads == "" else []
        added: list[bool] = []
        reader = replaced.get(point.reads) or (getattr(self, point.reads) if point.reads else None)
        adder = getattr(self, point.adds)

        def read(x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
            if not seen:
                seen.append(x)
            return reader(x, *more, **named)

        def add(result: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
            # a drop_path may serve several branches: the graft belongs to the one that follows the reading
            if seen and not added:
                added.append(True)
                result = self._add(result, grow(seen[0]))
            return adder(result, *more, **named)

        if point.reads:
            replaced[point.reads] = read
        replaced[point.adds] = add
        out = run(_stand_in(self, "forward", replaced), *args, **kwargs)
        if not added:
            raise GraftError(
                f"{type(self).__name__}: its forward does not call self.{point.reads or point.adds} and then "
                f"self.{point.adds} by itself, where the graft hangs"
            )
        return out


def _run_with_grid(self: nn.Module, method: str, args: tuple, kwargs: dict) -> Any:
    source: GridSource = self._graft_grid_source
    grid = source.grid(self, first_argument(args, kwargs))
    # a wrapper, of checkpointing or a compiler, hands the word on
    blocks = _Blocks(
        functools.partial(block, graft_grid=grid) if i in self._graft_positions else block
        for i, block in enumerate(getattr(self, source.blocks))
    )
    run = getattr(original_class(type(self)), method)
    return run(_stand_in(self, method, {source.blocks: blocks}), *args, **kwargs)


class GraftedGridSource:
    """A module that tells its grafted blocks the grid of their flat tokens."""

    _graft_grid_source: GridSource
    _graft_positions: frozenset[int]  # of the children that hold a grafted block


class GraftedForOneSize:
    """What reads the image of a model whose tokens don't tell their grid: a stem that takes the size that it was
    grafted for."""

    _graft_image_size: Size
    _graft_reader_of: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        image, (H, W) = first_argument(args, kwargs), self._graft_image_size
        if tuple(image.shape[-2:]) != (H, W):
            raise ValueError(
                f"{self._graft_reader_of} was grafted for images of {H} x {W} and got {image.shape[-2]} x "
                f"{image.shape[-1]}, and its tokens don't tell their grid: build and graft it for that size"
            )
        return original_class(type(self)).forward(self, *args, **kwargs)


class GraftedResizable:
    """A model with timm's `set_input_size`, after which its grafts are told the new grids."""

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        from vitgraft.models.surgery import refresh_grids

        original_class(type(self)).set_input_size(self, *args, **kwargs)
        img_size = kwargs.get("img_size", args[0] if args else None)
        refresh_grids(self, img_size)


class GraftedModel:
    """The model as a whole: what timm asks a model and the grafts have a say in."""

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay: the backbone's, and the grafts' embeddings and position biases."""
        base = getattr(original_class(type(self)), "no_weight_decay", None)
        names = set(base(self)) if base is not None else set()
        learned = ("anti_alias", "relative_position_bias_table")
        return names | {n for n, _ in self.named_parameters() if ".graft." in n and n.endswith(learned)}


def _grid_method(name: str) -> Callable[..., Any]:
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _run_with_grid(self, name, args, kwargs)

    method.__name__ = name
    return method


_ROLES = {
    "block": GraftedBlock,
    "grid": GraftedGridSource,
    "model": GraftedModel,
    "one_size": GraftedForOneSize,
    "resizable": GraftedResizable,
}


@functools.cache
def grafted_class(cls: type, roles: tuple[str, ...]) -> type:
    """The class `cls` with the mixins of `roles`, keys of `_ROLES`: the same one at every call."""
    source = find_grid_source(cls) if "grid" in roles else None
    methods = source.methods if source is not None else ()
    body: dict[str, Any] = {"_graft_original": cls, "__reduce__": _reduce, "__doc__": cls.__doc__}
    body["_graft_made_by"] = (cls, roles)
    body["_graft_super"] = frozenset(m for m in ("forward", *methods) if _calls_super(cls, m))
    body |= {name: _grid_method(name) for name in methods}
    bases = (*(_ROLES[role] for role in roles), cls)
    made = type(f"Grafted{cls.__name__}", bases, body)
    made.__module__ = cls.__module__
    return made


def original_class(cls: type) -> type:
    """The backbone's class of a grafted one, or of what was derived from one, as FSDP2 does; any other class is
    returned as it is."""
    return getattr(cls, "_graft_original", cls)


def _new(cls: type, roles: tuple[str, ...]) -> nn.Module:
    made = grafted_class(cls, roles)
    return made.__new__(made)


def _reduce(self: nn.Module) -> tuple:
    # made classes cannot be found by name: pickle and deepcopy make them again
    return _new, type(self)._graft_made_by, self.__dict__
