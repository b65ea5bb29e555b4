"""All errors of a recipe at once, where jsonargparse stops at the first.

Pydantic checks the options of this package's classes by their types; jsonargparse those of all others, one at a time.
"""

import importlib
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.strategies import StrategyRegistry

from vitgraft.errors import MissingExtraError
from vitgraft.options import close, parameters_of, type_errors, value_errors
from vitgraft.training.recipe import with_init_args
from vitgraft.untrusted import CLASSES

__all__ = ["recipe_errors", "resolve", "with_class_paths"]

KINDS = {"model": LightningModule, "data": LightningDataModule}


def recipe_errors(
    recipe: Mapping[str, Any],
    top: Mapping[str, type],
    default_classes: Mapping[str, str],
    parts: Mapping[str, type] | None = None,
) -> list[str]:
    """All errors of a recipe, one line each, which begins with the option's name.

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
            found += value_errors(key, value, top[key])
        elif key not in sections:
            found.append(f"{key}: no such option; {close(key, [*sections, *top])}")
        elif key == "trainer":
            found += _options(key, value, Trainer) + _strategy(value)
        elif key in parts:
            found += _options(key, value, parts[key])
        else:
            found += _class(key, value, default_classes.get(key))
    return found


def _strategy(options: Any) -> list[str]:
    """A strategy that Lightning does not know, which is an error only when the trainer is made."""
    name = options.get("strategy") if isinstance(options, Mapping) else None
    known = ["auto", *StrategyRegistry.available_strategies()]
    return [] if not isinstance(name, str) or name in known else [f"trainer.strategy={name!r}: {close(name, known)}"]


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
        names = [name for name in CLASSES if name.endswith("Data") == (key == "data")]
        return [f"{key}.class_path: {path!r} cannot be imported{_why_not(path)}; vitgraft has {', '.join(names)}"]
    options = {k: v for k, v in value.items() if k not in ("class_path", "init_args", "dict_kwargs")}
    inner = value.get("init_args") or {}
    if not isinstance(inner, Mapping):
        return [f"{key}.init_args: {inner!r} is not a mapping of options"]
    options = {**inner, **options}
    found = _options(key, options, cls)
    if hasattr(cls, "option_errors"):  # the class's own check of values of the right type
        bad = {re.split(r"[.\[:= ]", line.removeprefix(f"{key}."))[0] for line in found}
        valid = {name: option for name, option in options.items() if name not in bad}
        found += [f"{key}.{error}" for error in cls.option_errors(valid)]
    if hasattr(cls, "build_errors") and not found:
        found += [f"{key}.{error}" for error in cls.build_errors(options)]
    return found


def with_class_paths(recipe: Mapping[str, Any], default_classes: Mapping[str, str]) -> dict[str, Any]:
    """The recipe as jsonargparse takes it: full import paths, also for sections that name no class, and `init_args`."""
    full = dict(recipe)
    for key in KINDS:
        section = full.get(key)
        if section is None and key not in default_classes:
            continue
        section = {"class_path": section} if isinstance(section, str) else with_init_args(section or {})
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
    # of vitgraft, or derived from it
    own = any(base.__module__.startswith("vitgraft.") for base in cls.__mro__)
    found = []
    for name, value in options.items():
        if name not in known:
            found.append(f"{key}.{name}: {cls.__name__} has no such option; {close(name, list(known))}")
        elif own and not _is_class(value):
            found += [f"{key}.{line}" for line in type_errors(cls, {name: value})]
        else:
            found += _parse(f"{key}.{name}", value, cls, set(known) - {name})
    required = [n for n, p in known.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return found + [f"{key}.{name}: missing, and {cls.__name__} needs it" for name in required if name not in options]


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _parse(option: str, value: Any, cls: type, others: set[str]) -> list[str]:
    """Jsonargparse's errors of one option of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, fail_untyped=False, sub_configs=True, skip=others)
    name = option.rpartition(".")[2]
    try:
        # a copy: it makes classes in lists its own
        parser.parse_object({name: deepcopy(with_init_args(value) if _is_class(value) else value)})
    except (ArgumentError, TypeError, ValueError) as error:
        return [f"{option}={value!r}: {_shorten(str(error))}"]
    return []


def _shorten(message: str) -> str:
    """The reason in jsonargparse's message, without the parser, the key and the value."""
    wanted = re.findall(r"Expected a (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    if wanted:
        plain = (re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>|typing\.", r"\1", kind) for kind in wanted)
        kinds = [kind.replace("NoneType", "null") for kind in plain]
        return "expected " + " or ".join(dict.fromkeys(kinds))
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Given value", "Parser key"))] or [message]
    return "; ".join(dict.fromkeys(lines))


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_subclasses(sub) for sub in cls.__subclasses__())) - {LightningModule, LightningDataModule}


def resolve(path: str, kind: type) -> type | None:
    """The class of an import path, or of a bare name: one of vitgraft's, or any that is imported.

    Raises:
        MissingExtraError: It is vitgraft's, and needs what is not installed.
    """
    if path in CLASSES:
        path = f"{CLASSES[path]}.{path}"
    if "." not in path:
        return next((cls for cls in _subclasses(kind) if cls.__name__ == path), None)
    module, _, name = path.rpartition(".")
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except MissingExtraError:
        raise
    except (ImportError, AttributeError):
        return None


def _why_not(path: str) -> str:
    """Why the class of an import path can't be imported, in brackets."""
    module, _, name = path.rpartition(".")
    try:
        importlib.import_module(module)
    except (ImportError, AttributeError, ValueError) as error:
        return f" ({error})" if module else ""
    return f" ({module} has no {name})"
