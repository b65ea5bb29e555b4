"""Types of options with their ranges, for pydantic and jsonargparse, and all errors of given options at once."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    PydanticUserError,
    Strict,
    TypeAdapter,
    ValidationError,
)
from torch import nn
from typing_extensions import is_typeddict

__all__ = [
    "BelowOne", "Count", "Fraction", "Limits", "Model", "ModelOptions", "NonNegative", "Optimizer",
    "Positive", "Range", "Sizes", "WholeNumber", "close", "closest", "parameters_of", "run_errors",
    "type_errors", "value_errors",
]  # fmt: skip


@dataclass(frozen=True, repr=False)
class Limits(GroupedMetadata):
    """Pydantic's conditions under one name, which help texts show.

    Args:
        text: The name.
        conditions: Metadata of `Annotated`.
    """

    text: str
    conditions: tuple[Any, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.conditions)

    def __repr__(self) -> str:
        return self.text


Positive = Annotated[float, Limits("above 0", (Gt(0), AllowInfNan(False), Strict()))]
NonNegative = Annotated[float, Limits("from 0 up", (Ge(0), AllowInfNan(False), Strict()))]
Fraction = Annotated[float, Limits("0 to 1", (Ge(0), Le(1), Strict()))]
BelowOne = Annotated[float, Limits("from 0 to below 1", (Ge(0), Lt(1), Strict()))]
Count = Annotated[int, Limits("from 1 up", (Ge(1), Strict()))]
DATA_CONFIG = {
    "input_size": list[Count] | tuple[Count, ...],
    "mean": tuple[float, float, float],
    "std": tuple[Positive, Positive, Positive],
    "crop_pct": Positive,
    "interpolation": str,
}
"""Keys of timm's data configuration that a checkpoint keeps, with their types."""
WholeNumber = Annotated[int, Limits("from 0 up", (Ge(0), Strict()))]


def closest(name: str, known: Sequence[str], count: int = 5) -> list[str]:
    """The known names that are like a name or begin like it ("deit_tny": deit_tiny_patch16_224), the likest first."""
    matcher = difflib.SequenceMatcher(b=name.lower())

    def likeness(other: str) -> float:
        scores = []
        for text in (other, other[: len(name) + 1]):
            matcher.set_seq1(text.lower())
            scores.append(matcher.ratio())
        return max(scores)

    likely = sorted(((likeness(other), other) for other in known), key=lambda one: (-one[0], len(one[1])))
    return [other for score, other in likely[:count] if score > 0.6]


def close(name: str, known: Sequence[str]) -> str:
    """What was probably meant, as the end of a message."""
    likely = closest(str(name), known, 1)
    return f"did you mean {likely[0]!r}?" if likely else f"there are {', '.join(sorted(known))}"


def _increasing(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("the smallest and the largest, such as [0.5, 2.0]")
    return pair


def _known_model(model: Any) -> Any:
    from timm import list_models

    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str):
        raise ValueError("should be timm's name of a model, or a torch.nn.Module")
    if ":" not in model and model.split(".")[0] not in (known := list_models()):
        hints = ", ".join(closest(model, known)) or "timm.list_models() lists all"
        raise ValueError(f"timm has no such model: {hints}")
    return model


def _known_optimizer(name: str) -> str:
    from timm.optim import list_optimizers

    if name not in (known := list_optimizers()):
        hints = ", ".join(closest(name, known)) or "timm.optim.list_optimizers() lists all"
        raise ValueError(f"timm has no such optimizer: {hints}")
    return name


def _model_options(options: dict[str, Any]) -> dict[str, Any]:
    if "num_classes" in options:
        raise ValueError("num_classes is an option of its own, beside model_kwargs")
    return options


Range = Annotated[tuple[float, float], AfterValidator(_increasing)]
# One size in pixels or (height, width)
Sizes = Annotated[tuple[Count, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int) else value)]
Model = Annotated[Any, Limits("timm's name of a model, or a torch.nn.Module", (AfterValidator(_known_model),))]
Optimizer = Annotated[str, Limits("an optimizer of timm", (AfterValidator(_known_optimizer),))]
ModelOptions = Annotated[dict[str, Any], Limits("options of timm.create_model", (AfterValidator(_model_options),))]


@cache
def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """The options of a class with their types: its own and, where it takes **kwargs, those of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        own = dict(inspect.signature(base.__init__).parameters)
        hints = get_type_hints(inspect.unwrap(base.__init__), include_extras=True)
        passes_on = [name for name, parameter in own.items() if parameter.kind is parameter.VAR_KEYWORD]
        typed = {n: p.replace(annotation=hints.get(n, Any)) for n, p in own.items() if n not in ("self", *passes_on)}
        found = typed | found
        if not passes_on:
            break
    return found


def type_errors(cls: type, values: Mapping[str, Any]) -> list[str]:
    """Errors of a class's options by their types, one line each, which names the option, its value and what would work.

    Args:
        cls: The class; its `__init__` has the types.
        values: Options by name; those that the class does not have are not judged.
    """
    known = parameters_of(cls)
    return [
        line
        for name, value in values.items()
        if name in known
        for line in value_errors(name, value, known[name].annotation)
    ]


def run_errors(options: Mapping[str, Any]) -> list[str]:
    """Errors of what a run took from its data and keeps in its checkpoint, one line each.

    Args:
        options: Of the task; `data_config`, `class_names` and `num_classes` are looked at.
    """
    config, names = options.get("data_config") or {}, options.get("class_names") or []
    count = options.get("num_classes")
    found = list(value_errors("class_names", names, list[str] | tuple[str, ...]))
    if not found and names and isinstance(count, int) and len(names) != count:
        found.append(f"class_names: {len(names)} names for num_classes={count}")
    if not isinstance(config, Mapping):
        return [*found, f"data_config={config!r}: should be a mapping"]
    values = {name: config[name] for name in DATA_CONFIG if config.get(name) is not None}
    return found + [line for n, one in values.items() for line in value_errors(f"data_config.{n}", one, DATA_CONFIG[n])]


def value_errors(name: str, value: Any, kind: Any) -> Iterator[str]:
    """Errors of one option by its type, one line each."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as caught:
        reasons: dict[str, list[str]] = {}
        for error in caught.errors(include_url=False):
            path, inner = name, value
            for part in error["loc"]:  # there are also names of types among them
                if isinstance(inner, Mapping) and part in inner:
                    path, inner = f"{path}.{part}", inner[part]
                elif isinstance(inner, Sequence) and isinstance(part, int):
                    path, inner = f"{path}[{part}]", inner[part] if part < len(inner) else None
            if error["type"] == "extra_forbidden":
                kinds = [one for one in (kind, *get_args(kind)) if is_typeddict(one)]
                known = [key for one in kinds for key in one.__annotations__]
                reasons.setdefault(path, []).append(f"no such option; {close(path.rpartition('.')[2], known)}")
            else:
                reason = (
                    error["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("valid tuple", "list")
                )
                reasons.setdefault(f"{path}={inner!r}", []).append(reason)
        for place, texts in reasons.items():
            yield f"{place}: {' or '.join(dict.fromkeys(texts))}"


@cache
def _adapter(kind: Any) -> TypeAdapter:
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a TypedDict has a config of its own
        return TypeAdapter(kind)
