"""What files from elsewhere may not do: name code to import, or be something else than they are read as."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vitgraft.errors import UntrustedError

__all__ = ["CLASSES", "check_class_paths", "class_paths", "is_inside", "not_the_file"]

CLASSES = {
    "Classification": "vitgraft.tasks.classification",
    "ImageData": "vitgraft.data.classification",
    "Detection": "vitgraft.tasks.detection",
    "DetectionData": "vitgraft.data.detection",
    "Segmentation": "vitgraft.tasks.segmentation",
    "SegmentationData": "vitgraft.data.segmentation",
}
"""Classes that recipes, checkpoints and records of runs name alone -> their modules. Each is imported when it is named:
a task may need an extra that the others do without."""
OWN = frozenset({*CLASSES, *(f"{module}.{name}" for name, module in CLASSES.items())})
KEY = "class_path"
LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def check_class_paths(where: str, values: Any, trust: bool = False, known: Any = None) -> None:
    """Refuses values of a file from elsewhere that name code to import, before any of it is imported.

    Args:
        where: What they are, for the message: a file and a section of it.
        values: Nested values; what they name stands under `class_path` at any depth.
        trust: Import it all the same.
        known: A recipe of the user's, who may name what is his own: what it names is not refused.

    Raises:
        UntrustedError: They name a class that is not vitgraft's.
    """
    if trust:
        return
    allowed = OWN | set(class_paths(known or {}))
    for path, name in class_paths(values).items():
        if path not in allowed:
            raise UntrustedError(
                f"{where}: {name}={path!r} is not a class of vitgraft, and using the file would import and run it. If "
                "you trust where it comes from, give --trust (in Python trust=True)"
            )


def class_paths(values: Any) -> dict[str, str]:
    """What nested values name under `class_path`, as text, and where first.

    Raises:
        UntrustedError: They are nested deeper than can be followed.
    """
    found: dict[str, str] = {}
    try:
        for name, value in _named(values, "", set()):
            found.setdefault(str(value), name)
    except RecursionError as error:
        raise UntrustedError("values are nested too deep to look for names of classes in them") from error
    return found


def _named(values: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(values, str):
        for nested in _read_text(values):
            yield from _named(nested, prefix, set())
        return
    if not isinstance(values, Mapping | Sequence | set | frozenset) or isinstance(values, bytes) or id(values) in seen:
        return
    seen.add(id(values))
    if isinstance(values, Mapping):
        for key, value in values.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if key == KEY:
                yield name, value
            else:
                yield from _named(value, name, seen)
    else:
        for number, value in enumerate(values):
            yield from _named(value, f"{prefix}[{number}]", seen)


def _read_text(text: str) -> Iterator[Any]:
    """The values in the text of an option, where it is more than text: jsonargparse reads them, and makes the classes
    that they name."""
    if ":" not in text:
        return
    for read in (json.loads, yaml.safe_load):
        with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):
            if isinstance(nested := read(text), Mapping | list):
                yield nested


def not_the_file(data: bytes) -> str:
    """What stands in a file's place, by its first bytes, and the way out; "" where it may be the file itself.

    Downloads leave such files: a page of a server instead of the file, a pointer of Git LFS, nothing at all.
    """
    start = data[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "is empty; copy or download it again"
    if start.startswith(LFS):
        return "is a Git LFS pointer, not the file that it stands for: run git lfs pull in its repository"
    if start.startswith(PAGES):
        return (
            "is an HTML page, such as a server's message or log-in, saved in the place of the file: open it in a "
            "browser, and download the file itself"
        )
    return ""


def is_inside(name: str | Path) -> bool:
    """Whether a file name that is read below a folder stays below it: neither absolute, nor above by `..`."""
    text = str(name)
    normal = os.path.normpath(text)
    return not (os.path.isabs(text) or normal == os.pardir or normal.startswith(os.pardir + os.sep) or "\0" in text)
