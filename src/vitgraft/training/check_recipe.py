"""Everything that is wrong with a recipe at once. jsonargparse stops at the first mistake; here each value is tried
alone, against the type that the class it goes to declares."""

import inspect
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.strategies import StrategyRegistry

from vitgraft.errors import MissingExtraError
from vitgraft.training.recipe import close, with_init_args

__all__ = ["find_problems", "parameters_of", "resolve", "with_class_paths"]

KINDS = {"model": LightningModule, "data": LightningDataModule}
# Where the classes are that recipes name without their module. Each is imported when it is named, since a task may need
# an extra that the others do without
MODULES = {
    "Classification": "vitgraft.tasks.classification",
    "ImageData": "vitgraft.data.classification",
    "Detection": "vitgraft.tasks.detection",
    "DetectionData": "vitgraft.data.detection",
    "Segmentation": "vitgraft.tasks.segmentation",
    "SegmentationData": "vitgraft.data.segmentation",
}


def find_problems(
    recipe: Mapping[str, Any],
    top: Mapping[str, type],
    default_classes: Mapping[str, str],
    parts: Mapping[str, type] | None = None,
) -> list[str]:
    """What a parser would refuse in a recipe, and what the classes themselves refuse: one line each, with its name.

    Args:
        recipe: Sections and values; the options of a class stand beside `class_path` or under `init_args`.
        top: Options at the top level (not sections), with their types.
        default_classes: Class path of a section that names none.
        parts: Further sections, each the options of one class.
    """
    found = []
    parts = {"trainer": Trainer, **(parts or {})}
    sections = (*KINDS, *parts)
    for key, value in recipe.items():
        if key in top:
            found += _try(key, value, top[key])
        elif key not in sections:
            found.append(f"{key}: no such option; {close(key, [*sections, *top])}")
        elif key == "trainer":
            found += _options(key, value, Trainer) + _strategy(value)
        elif key in parts:
            found += _options(key, value, parts[key]) or _ranges(key, value, parts[key])
        else:
            found += _class(key, value, default_classes.get(key))
    return found


def _strategy(options: Any) -> list[str]:
    """A strategy that Lightning does not know, which it would say only when the trainer is made."""
    name = options.get("strategy") if isinstance(options, Mapping) else None
    known = ["auto", *StrategyRegistry.available_strategies()]
    return [] if not isinstance(name, str) or name in known else [f"trainer.strategy={name!r}: {close(name, known)}"]


def _ranges(key: str, options: Mapping[str, Any], cls: type) -> list[str]:
    """What a part's own checks refuse; these parts are cheap to make."""
    try:
        cls(**options)
    except (ValueError, TypeError) as error:
        return [f"{key}.{problem.removeprefix(f'{key}.')}" for problem in getattr(error, "problems", [str(error)])]
    return []


def _class(key: str, value: Any, default: str | None) -> list[str]:
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        return [f"{key}: {value!r} is not a mapping of options"]
    path = value.get("class_path", default)
    if path is None:
        return [f"{key}.class_path: which task? Classification, Detection or Segmentation"]
    cls = resolve(path, KINDS[key])
    if cls is None:
        names = [name for name in MODULES if name.endswith("Data") == (key == "data")]
        return [f"{key}.class_path: {path!r} cannot be imported; vitgraft has {', '.join(names)}"]
    options = {k: v for k, v in value.items() if k not in ("class_path", "init_args", "dict_kwargs")}
    inner = value.get("init_args") or {}
    if not isinstance(inner, Mapping):
        return [f"{key}.init_args: {inner!r} is not a mapping of options"]
    options = {**inner, **options}
    found = _options(key, options, cls)
    if hasattr(cls, "problems"):  # what the class itself finds wrong with the values that have the right type
        wrong = {re.split(r"[.:= ]", line.removeprefix(f"{key}."))[0] for line in found}
        fine = {name: option for name, option in options.items() if name not in wrong}
        found += [f"{key}.{problem}" for problem in cls.problems(fine)]
    if hasattr(cls, "build_problems") and not found:
        found += [f"{key}.{problem}" for problem in cls.build_problems(options)]
    return found


def with_class_paths(recipe: Mapping[str, Any], default_classes: Mapping[str, str]) -> dict[str, Any]:
    """The recipe with full import paths for bare class names, and for sections that name none."""
    full = dict(recipe)
    for key in KINDS:
        section = full.get(key)
        if section is None and key not in default_classes:
            continue
        section = {"class_path": section} if isinstance(section, str) else dict(section or {})
        path = section.get("class_path", default_classes.get(key))
        cls = resolve(path, KINDS[key]) if path else None
        if cls is not None:
            section["class_path"] = f"{cls.__module__}.{cls.__qualname__}"
        full[key] = section
    return full


def _options(key: str, options: Any, cls: type) -> list[str]:
    if not isinstance(options, Mapping):
        return [f"{key}: {options!r} is not a mapping of options"]
    known = parameters_of(cls)
    found = []
    for name, value in options.items():
        if name not in known:
            found.append(f"{key}.{name}: {cls.__name__} has no such option; {close(name, list(known))}")
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, fail_untyped=False, sub_configs=True, skip=set(known) - {name})
        found += _parse(parser, {name: with_init_args(value) if _is_class(value) else value}, f"{key}.{name}", value)
    required = [n for n, p in known.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return found + [f"{key}.{name}: missing, and {cls.__name__} needs it" for name in required if name not in options]


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """The options of a class, by name: its own and, where it takes **kwargs, those of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        own = dict(inspect.signature(base.__init__).parameters)
        passes_on = [name for name, parameter in own.items() if parameter.kind is parameter.VAR_KEYWORD]
        found = {n: p for n, p in own.items() if n != "self" and n not in passes_on} | found
        if not passes_on:
            break
    return found


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _try(name: str, value: Any, kind: Any) -> list[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    return _parse(parser, {name: value}, name, value)


def _parse(parser: ArgumentParser, values: dict[str, Any], name: str, value: Any) -> list[str]:
    try:
        parser.parse_object(deepcopy(values))  # it makes classes in lists its own
    except (ArgumentError, TypeError, ValueError) as error:
        return [f"{name}={value!r}: {_shorten(str(error))}"]
    return []


def _shorten(message: str) -> str:
    """What is wrong in jsonargparse's message, without the parser, the key and the value, which stand before it."""
    wanted = re.findall(r"Expected a (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    if wanted:
        kinds = [re.sub(r"<class '([\w.]+\.)?(\w+)'>|typing\.|NoneType", _plain, kind) for kind in wanted]
        return "expected " + " or ".join(dict.fromkeys(kinds))
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Given value", "Parser key"))] or [message]
    return "; ".join(dict.fromkeys(lines))


def _plain(match: re.Match) -> str:
    name = match[2] or ("" if match[0] == "typing." else match[0])
    return "null" if name == "NoneType" else name


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_subclasses(sub) for sub in cls.__subclasses__())) - {LightningModule, LightningDataModule}


def resolve(path: str, kind: type) -> type | None:
    """The class of an import path, or of a bare name: one of vitgraft's, or any that is imported.

    Raises:
        MissingExtraError: It is vitgraft's, and needs what is not installed.
    """
    if path in MODULES:
        path = f"{MODULES[path]}.{path}"
    if "." not in path:
        return next((cls for cls in _subclasses(kind) if cls.__name__ == path), None)
    module, _, name = path.rpartition(".")
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except MissingExtraError:
        raise
    except (ImportError, AttributeError):
        return None
