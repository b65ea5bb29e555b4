"""GraftConfig: what is grafted where, as one frozen value that goes to JSON and back."""

import dataclasses
import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from vitgraft.errors import GraftError

__all__ = ["GraftConfig"]

Downsampling = Literal["avg_pool", "linear", "cross_attention"]
Upsampling = Literal["w_bilinear", "bilinear", "nearest", "cross_attention"]
Attention = Literal["keep", "window"]
Init = Literal["paper", "identity"]
Padding = Literal["timm", "authors"]
Ffn = Literal["shared", "separate"]


def _choice(name: str, value: Any, kind: Any) -> list[str]:
    options = get_args(kind)
    if value in options:
        return []
    return [f"{name}={value!r} is not one of {', '.join(map(repr, options))}"]


def _plain(value: Any) -> Any:
    """A number of another library, such as NumPy's, as Python's own."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class GraftConfig:
    """How to graft. The defaults are the paper's final model (average pooling, W-Bilinear, shared FFN).

    Args:
        levels: Levels below a block's resolution. "auto": halve until the map is one window (the paper's 3, 2, 1, 0
            for Swin at 224); registered models resolve it at 224 whatever `img_size` is, as the paper's dense-task
            models do. "global": the same at the actual `img_size`. An integer: at most that many (table 6 a). A
            tuple: exactly that many, one entry per stage (a stage is a run of blocks with one map size).
        window_size: Side of the attention window on every level, in tokens.
        blocks: "all_but_first" (table 6 b), an integer for the last that many blocks that can carry a graft, or a
            tuple of block indices in the order in which the model runs them. An empty tuple grafts nothing: the
            backbone of a registered name, or with `backbone_attention="window"` one of windows alone.
        num_heads: Heads on every level; None takes each block's own.
        downsample: "avg_pool", "linear", "cross_attention" (table 5).
        upsample: "w_bilinear", "bilinear", "nearest", "cross_attention" (table 5).
        ffn: "shared": the graft is fused before the block's feed-forward network. "separate": it has a small one of
            its own and is fused after both (table 7).
        ffn_ratio: Hidden width of the separate network as a multiple of the channels.
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

    levels: int | Literal["auto", "global"] | tuple[int, ...] = "auto"
    window_size: int = 7
    blocks: int | Literal["all_but_first"] | tuple[int, ...] = "all_but_first"
    num_heads: int | None = None
    downsample: Downsampling = "avg_pool"
    upsample: Upsampling = "w_bilinear"
    ffn: Ffn = "shared"
    ffn_ratio: float = 0.375
    left_levels: int = 0
    backbone_attention: Attention = "keep"
    backbone_window_size: int | None = None
    swin_padding: Padding = "timm"
    init: Init = "paper"

    def __post_init__(self) -> None:
        # JSON has no tuples, arrays and numbers of NumPy
        for name in ("levels", "blocks"):
            value = getattr(self, name)
            value = value.tolist() if hasattr(value, "tolist") else value
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | range) else value)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        errors = []
        levels, blocks = self.levels, self.blocks
        if isinstance(levels, tuple):
            if not levels or not all(_is_count(n, 0) for n in levels):
                errors.append(f"levels={levels!r} must hold one whole number >= 0 per stage")
        elif levels not in ("auto", "global") and not _is_count(levels, 0):
            errors.append(f"levels={levels!r} is not 'auto', 'global', a number >= 0 or a tuple of numbers")
        if isinstance(blocks, tuple):
            if not all(_is_count(n, 0) for n in blocks) or len(set(blocks)) != len(blocks):
                errors.append(f"blocks={blocks!r} must hold different block indices >= 0")
        elif blocks != "all_but_first" and not _is_count(blocks, 1):
            errors.append(f"blocks={blocks!r} is not 'all_but_first', a number >= 1 or a tuple of block indices")
        for name in ("window_size", "backbone_window_size", "num_heads"):
            value = getattr(self, name)
            optional = name != "window_size" and value is None
            if not optional and not _is_count(value, 1):
                errors.append(f"{name}={value!r} must be a whole number >= 1")
        if not _is_count(self.left_levels, 0):
            errors.append(f"left_levels={self.left_levels!r} must be a whole number >= 0")
        ratio = self.ffn_ratio
        if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 < ratio < math.inf:
            errors.append(f"ffn_ratio={ratio!r} must be a finite number above 0")
        errors += _choice("downsample", self.downsample, Downsampling)
        errors += _choice("upsample", self.upsample, Upsampling)
        errors += _choice("ffn", self.ffn, Ffn)
        errors += _choice("backbone_attention", self.backbone_attention, Attention)
        errors += _choice("swin_padding", self.swin_padding, Padding)
        errors += _choice("init", self.init, Init)
        if errors:
            raise GraftError("GraftConfig: " + "; ".join(errors))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values (tuples as lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

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
            hints = {name: get_close_matches(str(name), known, n=1) for name in unknown}
            said = ", ".join(
                f"{name!r}" + (f" (did you mean {hint[0]!r}?)" if hint else "") for name, hint in hints.items()
            )
            raise GraftError(f"unknown graft option {said}; there are {', '.join(known)}")
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
