"""Model specs: a timm model name with options, as one word on a command line.

`graft_deit_tiny_patch16_224:graft.levels=1:graft.blocks=[4,8]` is the model of that name created with
`graft={"levels": 1, "blocks": [4, 8]}`. Values are JSON; what is not JSON is taken as text. Prefixes that timm itself
understands (`hf-hub:`, `local-dir:`) stay part of the name.
"""

import difflib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vitgraft.errors import GraftError, ModelSpecError


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


def create(spec: ModelSpec | str, device: str | None = None, **kwargs: Any) -> nn.Module:
    """The model of a spec, freshly initialised, in train mode as timm returns it.

    Args:
        spec: what to create; text is parsed first.
        device: where its tensors are made; "meta" makes none, which is enough to count.
        **kwargs: further arguments of `timm.create_model`; the spec's own win. `checkpoint_path` is read by
            `vitgraft.load_official`.

    Raises:
        CheckpointError: the file of `checkpoint_path` is missing, damaged, not weights alone, or of another model.
        ModelSpecError: timm does not know the name (the message lists close ones), or the model lacks an option.
        GraftError: an option of the graft has a value that it can't have.
    """
    import timm
    import torch

    import vitgraft  # registers the grafted models with timm
    from vitgraft.errors import CheckpointError

    spec = ModelSpec.parse(spec) if isinstance(spec, str) else spec
    if ":" not in spec.name and not timm.is_model(spec.name.split(".")[0]):
        raise ModelSpecError(_unknown(spec.name, timm.list_models()))
    options = {**kwargs, **spec.options}
    file = options.get("checkpoint_path")
    if file and not str(file).endswith(".npz"):  # of JAX, which timm's ViT reads itself
        del options["checkpoint_path"]
    else:
        file = None
    try:
        with torch.device(device or "cpu"), _start_values(device):
            model = timm.create_model(spec.name, **options)
    except GraftError:
        raise
    except TypeError as error:
        # timm hands options down through **kwargs, so a misspelt one ends as a TypeError deep inside
        if "unexpected keyword argument" not in str(error):
            raise
        raise ModelSpecError(
            f"model {spec.name!r} does not take one of its options {dict(spec.options)}: {error}"
        ) from error
    except RuntimeError as error:
        if "Invalid pretrained tag" not in str(error):
            raise
        raise ModelSpecError(f"model {spec.name!r}: {error}") from error
    if file:
        try:
            vitgraft.load_official(model, file)
        except FileNotFoundError as error:
            raise CheckpointError(f"checkpoint_path={error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint_path={file}: {error}") from error
    return model


def _start_values(device: str | None) -> AbstractContextManager:
    """On "meta", leaves out the operators that fill weights, which take a quarter of the time of counting a model."""
    if device != "meta":
        return nullcontext()
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    filling = {"add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"}

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in filling and args and isinstance(args[0], Tensor) and args[0].is_meta:
                return args[0]
            return func(*args, **(kwargs or {}))

    return Unfilled()


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


def create_at(spec: ModelSpec, img_size: int | None, device: str | None = None, **kwargs: Any) -> nn.Module:
    """`create` for square images of `img_size`, also of models that take any size and so have no such option."""
    if img_size is None:
        return create(spec, device, **kwargs)
    try:
        return create(spec, device, img_size=img_size, **kwargs)
    except ModelSpecError as error:
        if "'img_size'" not in str(error.__cause__):
            raise
        return create(spec, device, **kwargs)


def _unknown(name: str, known: list[str]) -> str:
    matcher = difflib.SequenceMatcher(b=name)

    def likeness(other: str) -> float:
        # whole names, and beginnings: who types "deit_tny" means deit_tiny_patch16_224
        scores = []
        for text in (other, other[: len(name) + 1]):
            matcher.set_seq1(text)
            scores.append(matcher.ratio())
        return max(scores)

    close = sorted(known, key=lambda other: (-likeness(other), len(other)))[:5]
    close = [other for other in close if likeness(other) > 0.6]
    hint = f"close names: {', '.join(close)}" if close else "timm.list_models() names all"
    return f"unknown model {name!r}; {hint}"


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
