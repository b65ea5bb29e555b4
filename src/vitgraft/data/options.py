"""Values that options may have, as pydantic types, and all errors of some options at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, TypeAdapter, ValidationError

from vitgraft.data.digits import scene_config


def _increasing(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("the smallest and the largest, such as [0.5, 2.0]")
    return pair


def _scene_size(size: int) -> int:
    scene_config(size)
    return size


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[float, float], AfterValidator(_increasing)]
# one size in pixels or (height, width)
Sizes = Annotated[tuple[PositiveInt, ...], BeforeValidator(lambda value: (value,) if isinstance(value, int) else value)]

SceneSize = Annotated[int, AfterValidator(_scene_size)]


def limits_of(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def errors_in(values: Mapping[str, Any], limits: Mapping[str, Any]) -> list[str]:
    """What options may not be, one line each.

    Args:
        values: Options by name; those without limits, and None, are not judged.
        limits: Types of the options.
    """
    lines = []
    for name, kind in limits.items():
        if values.get(name) is None:
            continue
        try:
            TypeAdapter(kind).validate_python(values[name])
        except ValidationError as error:
            reasons = [one["msg"].removeprefix("Value error, ") for one in error.errors(include_url=False)]
            lines.append(f"{name}={values[name]!r}: {'; '.join(dict.fromkeys(reasons))}")
    return lines
