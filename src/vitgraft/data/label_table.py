"""The classes of label maps by a table: of colors (`data.colors`) or of values (`data.label_values`).

A table of colors is a CSV with red, green, blue and the name of the class, in this order or with the name first, or
with a color such as #ff8000; or CVAT's labelmap.txt. Classes are numbered as they come. Several colors may be of one
class; pixels of the class named `ignore` are ignored.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from vitgraft.data.decode import open_image
from vitgraft.data.label_maps import IGNORE, LabelRule, decode_labels, read_pixels
from vitgraft.data.readers.folder_or_tar import Files
from vitgraft.errors import DataError

__all__ = ["ColorRule", "TableRule", "paths_of_colors", "read_colors", "rule_of_values"]

IGNORED = "ignore"
_HEX = re.compile(r"#?[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class TableRule(LabelRule):
    """The meaning of values by a table; `decode` gives the classes, and negative numbers for values without an entry.

    Args:
        table: Value, class or 255.
        class_names: Of classes 0 to C - 1.
        where: The table in messages.
    """

    table: tuple[tuple[int, int], ...] = ()
    class_names: tuple[str, ...] = ()
    where: str = "data.label_values"
    noun: ClassVar[str] = "values without an entry"

    def decode(self, data: bytes, name: str) -> np.ndarray:
        return self._classes(self._read(data, name))

    def _read(self, data: bytes, name: str) -> np.ndarray:
        return decode_labels(data, name)

    def _classes(self, values: np.ndarray) -> np.ndarray:
        keys, classes = self._arrays
        places = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        return np.where(keys[places] == values, classes[places], -1 - values).astype(np.int32)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        keys, classes = zip(*sorted(self.table), strict=True)
        return np.array(keys, np.int32), np.array(classes, np.int32)

    def shown(self, value: int) -> str:
        if value >= 0:
            return self.class_names[value] if value < len(self.class_names) else "ignored"
        return self._key(-1 - value)

    def _key(self, key: int) -> str:
        return str(key)

    def expected(self) -> str:
        return f"{self.where} has {', '.join(self._key(key) for key, _ in self.table[:12])}"

    def repair(self, values: np.ndarray) -> str:
        return f" Add them to {self.where}, as a class or as {IGNORED}"


@dataclass(frozen=True)
class ColorRule(TableRule):
    """The meaning of colors; the keys of the table are 65536 red + 256 green + blue."""

    noun: ClassVar[str] = "colors without an entry"

    def _read(self, data: bytes, name: str) -> np.ndarray:
        rgb = read_pixels(open_image(data, name), name, "RGB").astype(np.int32)
        return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]

    def _key(self, key: int) -> str:
        return f"({key >> 16}, {key >> 8 & 255}, {key & 255})"


def _rule_of_table(entries: list[tuple[int, str]], kind: type[TableRule], where: str) -> TableRule:
    """The rule of a table.

    Args:
        entries: Values or colors, and names of classes.
        kind: `TableRule` or `ColorRule`.
        where: The table in messages.

    Raises:
        DataError: A value twice, or no class.
    """
    names = list(dict.fromkeys(name for _, name in entries if name.lower() != IGNORED))
    classes = {name: number for number, name in enumerate(names)}
    table: dict[int, int] = {}
    for key, name in entries:
        number = classes.get(name, IGNORE)
        if table.setdefault(key, number) != number:
            rule = kind(1, table=((key, 0),), where=where)
            raise DataError(f"{where}: {rule._key(key)} is there twice, with different classes")
    if not names:
        raise DataError(f"{where}: no class in it")
    try:
        return kind(len(names), table=tuple(table.items()), class_names=tuple(names), where=where)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def rule_of_values(values: Mapping[int, str]) -> TableRule:
    """The rule of `data.label_values`.

    Raises:
        DataError: No class.
    """
    return _rule_of_table([(int(value), str(name)) for value, name in values.items()], TableRule, "data.label_values")


def read_colors(path: str, files: Files | None = None) -> TableRule:
    """The rule of a table of colors.

    Args:
        path: Of the table, or its path below the root of a dataset.
        files: The dataset.

    Raises:
        DataError: No such file, or lines that are no color and name; the first is named.
    """
    data = Path(path).read_bytes() if Path(path).is_file() else None
    if data is None and files is not None:
        data = files.read(path)
    if data is None:
        below = "" if files is None else f", neither here nor below {files.root}"
        raise DataError(f"data.colors={path!r}: no such file{below}")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error})") from error
    if path.endswith("labelmap.txt"):  # label:color_rgb:parts:actions
        rows = [
            [*color.split(","), name]
            for name, color in (line.split(":")[:2] for line in lines if line.count(":") > 1)
            if name[:1] != "#"
        ]
    else:
        delimiter = max(",;\t", key=(lines or [""])[0].count)
        rows = [row for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter) if any(row)]
    entries = []
    for number, row in enumerate(rows, start=1):
        entry = _entry([cell.strip() for cell in row])
        if entry is None and number > 1:
            raise DataError(
                f"{path}: line {number} {', '.join(row)!r} is no color and class; wanted red,green,blue,name (0 to "
                "255) or #ff8000,name"
            )
        entries += [] if entry is None else [entry]
    return _rule_of_table(entries, ColorRule, path)


def paths_of_colors(path: str | None, files: Files) -> list[str]:
    """What a table of colors may be called below the root of a dataset."""
    return [] if path is None else [path, os.path.relpath(path, files.root)]


def _entry(row: list[str]) -> tuple[int, str] | None:
    """Color and class of a row; None where it has none."""
    if len(row) == 2:
        for color, name in (row, row[::-1]):
            if _HEX.fullmatch(color) and name:
                return int(color.removeprefix("#"), 16), name
    if len(row) >= 4:
        for color, name in ((row[1:4], row[0]), (row[:3], row[3])):
            if all(cell.isdecimal() and int(cell) < 256 for cell in color) and name:
                red, green, blue = map(int, color)
                return (red << 16) | (green << 8) | blue, name
    return None
