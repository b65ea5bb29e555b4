"""GraftConfig: what is grafted where, as one frozen value that goes to JSON and back."""

import dataclasses
import itertools
import json
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Strict

from vitgraft.errors import GraftError
from vitgraft.options import Count, Limits, Positive, WholeNumber, closest, type_errors

__all__ = ["GraftConfig", "GraftOptions"]

Downsampling = Literal["avg_pool", "linear", "cross_attention", "cross_attention_x0"]
Upsampling = Literal["w_bilinear", "bilinear", "nearest", "cross_attention"]
Attention = Literal["window", "cross_shaped"]
BackboneAttention = Literal["keep", "window"]
Init = Literal["paper", "identity"]
Padding = Literal["timm", "authors"]
Ffn = Literal["shared", "separate", "separate_full"]
Switch = Annotated[bool, Strict()]
NESTED = ("levels", "img_size", "level_sizes", "blocks")
"""Options that take tuples, which have checks of their own."""


def _plain(value: Any) -> Any:
    """A number of another library, such as NumPy's, as Python's own."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _tuples(value: Any) -> Any:
    """Lists, ranges and arrays as tuples, those inside too."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple, range)) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _level_sizes(value: Any) -> list[str]:
    named = f"level_sizes={value!r}"
    if value == "halve" or _is_count(value, 1):
        return []
    if not isinstance(value, tuple):
        return [f"{named} is not 'halve', a factor >= 1 or a tuple of sizes"]
    pairs = [entry if isinstance(entry, tuple) else (entry,) for entry in value]
    if not value or not all(len(p) <= 2 and p and all(_is_count(n, 1) for n in p) for p in pairs):
        return [f"{named} must hold sizes, each a whole number >= 1 or a pair of them (height, width)"]
    alike = (p for p in itertools.pairwise(pairs) if len(p[0]) == len(p[1]))
    if any(fine == coarse or any(c > f for f, c in zip(fine, coarse, strict=True)) for fine, coarse in alike):
        return [f"{named} has sizes that do not fall: give the finest level first"]
    return []


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class GraftConfig:
    """How to graft. The defaults are the paper's final model (average pooling, W-Bilinear, shared FFN).

    Args:
        levels: Levels below a block's resolution. "auto": halve until the map is one window, at the model's actual
            image size (the paper's 3, 2, 1, 0 for Swin at 224). An integer: at most that many (table 6 a). A tuple:
            exactly that many, one entry per stage (a stage is a run of blocks with one map size).
        img_size: Image side in pixels, or (height, width), whose maps fix the number of levels and the shapes of E_aa.
            None: the size that the model is built for, or 224 where it states none. The paper's dense-task models
            have those of 224 at every size.
        level_sizes: Sizes of the levels. "halve" (paper): half of the next finer one, rounded up. An integer f >= 1:
            the next finer one divided by f, rounded up; 1 is a parallel branch without another scale. A tuple: the
            sizes, finest first, each an integer (the longer side) or (height, width), of which a block uses those
            smaller than its map. On other maps than the nominal ones given sizes change in proportion, rounded up.
            Sizes that differ by no whole factor need "avg_pool", or "cross_attention_x0" from a map that they divide;
            and "bilinear", "nearest", or "w_bilinear" from a level of one window.
        width: Channels in which the graft works, between a linear layer in and one out; a multiple of the heads. None
            (paper): the block's own, without these layers.
        window_size: Side of the attention window on every level, in tokens.
        attention: Attention on the levels. "window" (paper): Swin's. "cross_shaped": CSWin's, half of the heads in
            horizontal and half in vertical stripes as wide as the window, with LePE; an even number of heads.
        shifted_windows: Whether the windows of every second graft are shifted by half a window, on levels of several.
        relative_position_bias: Whether window attention on the levels has one.
        blocks: "all_but_first" (table 6 b), an integer for the last that many blocks that can carry a graft, or a
            tuple of block indices in the order in which the model runs them. An empty tuple grafts nothing: the
            backbone of a registered name, or with `backbone_attention="window"` one of windows alone.
        num_heads: Heads on every level; None takes each block's own.
        downsample: "avg_pool", "linear", "cross_attention" (table 5: pooled tokens attend to the next finer level), or
            "cross_attention_x0": they attend to the block's own map.
        upsample: "w_bilinear", "bilinear", "nearest", "cross_attention" (table 5).
        gate: Whether the anti-aliasing gate E_aa acts before the upsampling; None: in the two bilinear modes, as in the
            paper.
        ffn: "shared": the graft is fused before the block's feed-forward network. "separate": it has a small one of
            its own, on its finest level, and is fused after both (table 7). "separate_full": the same after the last
            upsampling, at the block's full resolution.
        ffn_ratio: Hidden width of the separate network as a multiple of the channels (or of `width`).
        left_levels: Levels above the backbone's resolution (table A, "left").
        backbone_attention: "keep" the backbone's own, or replace it by "window" attention without shift, as the paper
            does in DeiT (plain ViTs only).
        backbone_window_size: Window of the latter; None takes `window_size`.
        swin_padding: For timm's Swin models. "timm" keeps timm's function; "authors" pads maps before the shift, as the
            Swin authors do, which differs wherever the window does not divide the map. (The registered graft_swin_*
            models always do.)
        init: "paper": random start values. "identity": the grafted model computes what the backbone computed.

    Raises:
        GraftError: A value is not possible; the message names all of them.
    """

    levels: int | Literal["auto"] | tuple[int, ...] = "auto"
    img_size: int | tuple[int, int] | None = None
    level_sizes: int | Literal["halve"] | tuple[int | tuple[int, int], ...] = "halve"
    width: Count | None = None
    window_size: Count = 7
    attention: Attention = "window"
    shifted_windows: Switch = False
    relative_position_bias: Switch = True
    blocks: int | Literal["all_but_first"] | tuple[int, ...] = "all_but_first"
    num_heads: Count | None = None
    downsample: Downsampling = "avg_pool"
    upsample: Upsampling = "w_bilinear"
    gate: Switch | None = None
    ffn: Ffn = "shared"
    ffn_ratio: Positive = 0.375
    left_levels: WholeNumber = 0
    backbone_attention: BackboneAttention = "keep"
    backbone_window_size: Count | None = None
    swin_padding: Padding = "timm"
    init: Init = "paper"

    def __post_init__(self) -> None:
        # JSON has no tuples, arrays and numbers of NumPy
        for name in NESTED:
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        errors = []
        levels, blocks = self.levels, self.blocks
        if isinstance(levels, tuple):
            if not levels or not all(_is_count(n, 0) for n in levels):
                errors.append(f"levels={levels!r} must hold one whole number >= 0 per stage")
        elif levels == "global":
            errors.append("levels='global' has become levels='auto': use 'auto'")
        elif levels != "auto" and not _is_count(levels, 0):
            errors.append(f"levels={levels!r} is not 'auto', a number >= 0 or a tuple of numbers")
        size = self.img_size if isinstance(self.img_size, tuple) else (self.img_size,) * 2
        if self.img_size is not None and not (len(size) == 2 and all(_is_count(n, 1) for n in size)):
            errors.append(
                f"img_size={self.img_size!r} is neither a number of pixels >= 1 nor a (height, width) of such"
            )
        errors += _level_sizes(self.level_sizes)
        if isinstance(blocks, tuple):
            if not all(_is_count(n, 0) for n in blocks) or len(set(blocks)) != len(blocks):
                errors.append(f"blocks={blocks!r} must hold different block indices >= 0")
        elif blocks != "all_but_first" and not _is_count(blocks, 1):
            errors.append(f"blocks={blocks!r} is not 'all_but_first', a number >= 1 or a tuple of block indices")
        errors += type_errors(GraftConfig, {name: value for name, value in vars(self).items() if name not in NESTED})
        if self.shifted_windows is True and self.attention == "cross_shaped":
            errors.append(
                "shifted_windows=True shifts windows, and attention='cross_shaped' has stripes: use one of them"
            )
        if errors:
            raise GraftError("GraftConfig: " + "; ".join(errors))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values (tuples as lists)."""
        return {f.name: _lists(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_json(self) -> str:
        """One JSON object with every option."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "GraftConfig":
        """The inverse of `to_dict`; options left out take their defaults.

        Raises:
            GraftError: An option is unknown or has an impossible value.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            hints = {name: closest(str(name), known, 1) for name in unknown}
            named = ", ".join(
                f"{name!r}" + (f" (did you mean {hint[0]!r}?)" if hint else "") for name, hint in hints.items()
            )
            raise GraftError(f"unknown graft option {named}; there are {', '.join(known)}")
        return cls(**options)

    @classmethod
    def from_json(cls, text: str) -> "GraftConfig":
        """The inverse of `to_json`.

        Raises:
            GraftError: The text is no JSON object, or `from_dict` refuses what it holds.
        """
        try:
            options = json.loads(text)
        except ValueError as error:
            raise GraftError(f"not a JSON object of graft options: {text[:80]!r} ({error})") from error
        if not isinstance(options, dict):
            raise GraftError(f"not a JSON object of graft options: {text[:80]!r}")
        return cls.from_dict(options)

    @classmethod
    def make(cls, config: "GraftConfig | Mapping[str, Any] | None" = None, **options: Any) -> "GraftConfig":
        """A configuration from another one or a mapping, with single options on top.

        Raises:
            GraftError: `config` is something else, or `from_dict` refuses an option.
        """
        if config is not None and not isinstance(config, (GraftConfig, Mapping)):
            raise GraftError(f"config={config!r} is neither a GraftConfig nor a mapping of its options")
        base = config.to_dict() if isinstance(config, GraftConfig) else dict(config or {})
        return cls.from_dict({**base, **options})


def _graft_options(options: dict[str, Any]) -> dict[str, Any]:
    GraftConfig.make(options)
    return options


GraftOptions = Annotated[dict[str, Any], Limits("options of GraftConfig", (AfterValidator(_graft_options),))]
