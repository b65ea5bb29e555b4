"""Recipes: YAML files with all options of a run.

A recipe may name one `base`, a file beside it whose values it completes and overrides. Arguments of the command line
(`--model.lr 1e-3`) come on top.
"""

import argparse
import re
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from vitgraft.errors import RecipeError
from vitgraft.untrusted import not_the_file

__all__ = ["merge", "parse_arguments", "read_recipe", "read_recipes", "split_arguments", "with_init_args"]


class _Loader(yaml.SafeLoader):
    """YAML with 1e-3 as a number (YAML 1.1 wants 1.0e-3) and without silently repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """One YAML value; `1e-3` is a number. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # a SafeLoader


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe with its base filled in.

    Raises:
        RecipeError: No such file, no YAML, no mapping, or a base of a base.
    """
    recipe = _read(Path(path))
    base = recipe.pop("base", None)
    if base is None:
        return recipe
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: {base!r} is not the name of a file")
    below = _read(Path(path).parent / base)
    if "base" in below:
        raise RecipeError(f"{path}: its base {base} has a base itself; one is the most that a reader should follow")
    return merge(below, recipe)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if data and (instead := not_the_file(data)):
            raise RecipeError(f"{path} {instead}")
        recipe = load_yaml(data.decode())
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise RecipeError(f"{path}: a recipe has sections such as model:, data: and trainer:")
    return recipe


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, `above` winning; mappings are merged, everything else is replaced.

    Another class_path starts from nothing: options of one class mean nothing to another.
    """
    merged = deepcopy(dict(below))
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            other = "class_path" in value and "class_path" in old and value["class_path"] != old["class_path"]
            merged[key] = deepcopy(dict(value)) if other else merge(old, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def with_init_args(section: Any) -> Any:
    """A class whose options stand beside its path, as the command line gives them, in the form of a recipe."""
    if not isinstance(section, Mapping):
        return section
    kept = {name: value for name, value in section.items() if name in ("class_path", "init_args", "dict_kwargs")}
    beside = {name: value for name, value in section.items() if name not in kept}
    return {**kept, "init_args": merge(section.get("init_args") or {}, beside)} if beside else dict(section)


def split_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses `--config` (into a list), `--smoke`, `--resume`, `--trust`; returns the other arguments as they are.

    Raises:
        RecipeError: `--config` without a file.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    for flag in ("--smoke", "--resume", "--trust"):
        parser.add_argument(flag, action="store_true")
    try:
        return parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise RecipeError(str(error)) from error


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """As `split_arguments`, with the other options as nested mappings, like a recipe's.

    Raises:
        RecipeError: An option without a value, or an argument that is no option.
    """
    arguments, rest = split_arguments(argv)
    values: dict[str, Any] = {}
    errors = []
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("-"):
            errors.append(f"{name!r}: options begin with --")
        elif equals or (rest and not re.match(r"--[a-z]", rest[0])):
            _put(values, name.lstrip("-"), _value(text if equals else rest.pop(0)))
        else:
            errors.append(f"{name}: a value is missing")
    if errors:
        raise RecipeError(errors)
    return arguments, values


def read_recipes(paths: Sequence[str]) -> dict[str, Any]:
    """All recipes, merged in order.

    Raises:
        RecipeError: With the errors of all files.
    """
    merged: dict[str, Any] = {}
    errors: list[str] = []
    for path in paths:
        try:
            merged = merge(merged, read_recipe(path))
        except RecipeError as error:
            errors += error.errors
    if errors:
        raise RecipeError(errors)
    return merged


def _value(text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets a nested value; options of a class may be given without `init_args`, and `name+` appends to a list."""
    *path, last = name.rstrip("+").split(".")
    for key in path:
        below = values.get(key)
        if not isinstance(below, dict):
            below = values[key] = {} if below is None else {"class_path": below}
        values = below
    if name.endswith("+"):
        value = [*(values.get(last) or []), *(value if isinstance(value, list) else [value])]
    if isinstance(values.get(last), dict) and isinstance(value, str):
        value = {**values[last], "class_path": value}
    values[last] = value
