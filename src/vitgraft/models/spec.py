"""Model specs: a timm model name with options, as one word on a command line.

`graft_deit_tiny_patch16_224:graft.levels=1:graft.blocks=[4,8]` is the model of that name created with
`graft={"levels": 1, "blocks": [4, 8]}`. Values are JSON; what is not JSON is taken as text. Prefixes that timm itself
understands (`hf-hub:`, `local-dir:`) stay part of the name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vitgraft.errors import ModelSpecError


@dataclass(frozen=True)
class ModelSpec:
    """A timm model name and the keyword arguments it is created with."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Reads `name[:key=value]...`; a dotted key is a nested option.

        Raises:
            ModelSpecError: an empty name, or a key that is given twice or both as a value and as a group.
        """
        parts = text.split(":")
        words = [part for part in parts if "=" not in part]
        name = ":".join(words)
        if not name or parts[: len(words)] != words:
            raise ModelSpecError(f"model {text!r}: expected NAME[:KEY=VALUE]..., the name first")
        options: dict[str, Any] = {}
        for part in parts[len(words) :]:
            key, _, value = part.partition("=")
            *groups, last = key.split(".")
            target = options
            for group in groups:
                target = target.setdefault(group, {})
                if not isinstance(target, dict):
                    raise ModelSpecError(f"model {text!r}: {group!r} is given as a value and as a group of options")
            if not last or last in target:
                raise ModelSpecError(f"model {text!r}: option {key!r} is " + ("given twice" if last else "empty"))
            target[last] = _value(value)
        return cls(name, options)

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={_text(value)}" for key, value in _flat(self.options))])


def input_size_of(model: nn.Module, img_size: int | None = None) -> tuple[int, int, int]:
    """(channels, height, width) of the images a timm model was made for, or of a square `img_size`."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    built = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "img_size", None)
    if img_size is not None:
        height = width = img_size
    elif built is not None:  # a size given to the constructor is not in the configuration
        height, width = (built, built) if isinstance(built, int) else built
    return channels, height, width


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _flat(options: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in options.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return flat
