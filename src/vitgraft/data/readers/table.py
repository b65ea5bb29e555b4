"""Tables of files and labels, a row for each image: CSV (comma, semicolon or tab, with or without a heading), or
Parquet with the extra `parquet`.

Which column names files is found out by the files that are there, with their endings or, as Kaggle's ids, without; the
label is the other column, or the one of a usual name. A column `split` has the splits, else each split is a table.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from vitgraft.data.readers.base import SPLITS, is_image_name, split_names
from vitgraft.data.readers.folder_or_tar import Files, FileSource
from vitgraft.errors import DataError, MissingExtraError, MissingSplitError
from vitgraft.terminal import number_of

__all__ = [
    "TABLES", "TableSource", "has_class_folders", "is_table", "names_images", "open_table", "table_splits", "tables_of",
]  # fmt: skip

TABLES = (".csv", ".tsv", ".parquet")
LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target", "y")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold_name")
# beside images, and no labels of them
_OTHERS = (
    "sample_submission",
    "samplesubmission",
    "sample-submission",
    "loc_",
    "class_dict",
    "colors",
    "colours",
    "metrics",
)
_SHOWN = 3


class TableSource(FileSource):
    """The images of a table.

    Attributes:
        tables: Paths of the tables of the dataset, below its root.
    """

    tables: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Whether a path is a table, by its ending."""
    return name.lower().endswith(TABLES)


def tables_of(files: Files) -> list[str]:
    """Tables in the root that may name its images; none where splits have class folders, whose images need no table."""
    names = [name for name in files.listed() if is_table(name) and not name.lower().startswith(_OTHERS)]
    splits = [name for name in files.folders() if _is_split(name)] if names else []
    return [] if any(files.folders(split) for split in splits) else names


def names_images(files: Files, table: str) -> bool:
    """Whether a table can be read, with a column of files that are there."""
    try:
        _Table(files, table, _Images(files), (None, None))
    except (DataError, MissingExtraError):
        return False
    return True


def _is_split(name: str) -> bool:
    """Whether a folder is named as a split, or begins so (`train_images`)."""
    return any(re.fullmatch(rf"{word}([_-].*)?", name.lower()) for names in SPLITS for word in names)


def has_class_folders(files: Files) -> bool:
    """Whether there are several folders of images that are no splits."""
    return sum(not _is_split(name) and bool(files.images(name)) for name in files.folders()) > 1


def table_splits(tables: Iterable[str]) -> dict[str, str]:
    """The tables of splits, by their names: `train.csv`, `train_labels.csv`, `trainLabels.csv`, `valid.csv`."""
    found: dict[str, str] = {}
    for name in tables:
        stem = os.path.splitext(os.path.basename(name))[0].lower()
        for names in SPLITS:
            if re.fullmatch(rf"({'|'.join(names)})([_\- ]?(labels?|set|data))?", stem):
                found.setdefault(names[0], name)
    return found


class _Table:
    """Rows of a table, and which columns are the file, the label and the split."""

    def __init__(self, files: Files, name: str, images: _Images, columns: Sequence[str | None]):
        self.where = f"{files.root}/{name}"
        header, self.rows = _read(files, name, self.where)
        if not self.rows:
            raise DataError(f"{self.where}: no rows")
        if any(is_image_name(cell) and images.find(cell) for cell in header):  # there is no heading
            header, self.rows = [str(number) for number in range(len(header))], [header, *self.rows]
        self.header = header
        short = [number for number, row in enumerate(self.rows, start=2) if len(row) != len(header)]
        if short:
            raise DataError(
                f"{self.where}: {number_of(len(short), f'rows have not the {len(header)} columns of the heading')}, "
                f"the first is line {short[0]}; quote what has a separator in it"
            )
        self.file = self._file_column(images, columns[0])
        self.split = next((place for place, one in enumerate(header) if one.strip().lower() in SPLIT_COLUMNS), None)
        self.label = self._label_column(columns[1])

    def _column(self, given: str, option: str) -> int:
        if given not in self.header:
            raise DataError(f"{self.where}: data.{option}={given!r}: there is {', '.join(self.header)}")
        return self.header.index(given)

    def _file_column(self, images: _Images, given: str | None) -> int:
        if given is not None:
            return self._column(given, "file_column")
        step = max(1, len(self.rows) // 50)
        hits = [sum(bool(images.find(row[place])) for row in self.rows[::step]) for place in range(len(self.header))]
        if not any(hits):
            example = ", ".join(repr(cell) for cell in self.rows[0][:4])
            raise DataError(
                f"{self.where}: no column names images that are there ({', '.join(self.header)}; the first row is "
                f"{example}): put the images beside the table or in a folder there, or set data.file_column"
            )
        return hits.index(max(hits))

    def _label_column(self, given: str | None) -> int:
        if given is not None:
            return self._column(given, "label_column")
        others = [place for place in range(len(self.header)) if place not in (self.file, self.split)]
        usual = [place for place in others if self.header[place].strip().lower() in LABELS]
        chosen = usual if len(usual) == 1 else others
        if len(chosen) != 1:
            names = ", ".join(self.header[place] for place in others) or "no column beside the files"
            raise DataError(f"{self.where}: which column is the label? Set data.label_column; there is {names}")
        return chosen[0]

    def of_split(self, split: str | None) -> list[tuple[int, list[str]]]:
        """Line and row of a split of the column `split`; all rows where `split` is None."""
        rows = list(enumerate(self.rows, start=2))
        if split is None or self.split is None:
            return rows
        return [(line, row) for line, row in rows if row[self.split].strip().lower() in split_names(split)]


class _Images:
    """The image files of a dataset, by path and, where it is the only one, by name with and without its ending."""

    def __init__(self, files: Files):
        self.paths = {*files.images()}
        self.names: dict[str, list[str]] = {}
        for path in self.paths:
            stem = os.path.splitext(path)[0]
            for key in {stem, os.path.basename(path), os.path.basename(stem)} - {path}:
                self.names.setdefault(key, []).append(path)

    def find(self, cell: str, split: str | None = None) -> str | None:
        """The file that a cell names; None where there is none, or several."""
        name = cell.strip().replace("\\", "/").removeprefix("./")
        if not name:
            return None
        if name in self.paths:
            return name
        found = self.names.get(name) or self.names.get(PurePosixPath(name).name, [])
        if len(found) > 1 and split is not None:  # of the same name in the folder of another split
            found = [path for path in found if {part.lower() for part in path.split("/")} & {*split_names(split)}]
        return found[0] if len(found) == 1 else None


def _read(files: Files, name: str, where: str) -> tuple[list[str], list[list[str]]]:
    data = files.read(name)
    if data is None:
        raise MissingSplitError(f"{where}: no such table")
    if name.lower().endswith(".parquet"):
        return _read_parquet(data, where)
    try:
        text = data.decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where}: no table in UTF-8 ({error}); save it in UTF-8") from error
    if not rows:
        raise DataError(f"{where}: empty")
    return rows[0], rows[1:]


def _read_parquet(data: bytes, where: str) -> tuple[list[str], list[list[str]]]:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    try:
        table = parquet.read_table(BufferReader(data))
    except (ArrowException, OSError) as error:
        raise DataError(f"{where}: no readable Parquet file ({error})") from error
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def open_table(
    files: Files,
    split: str | None = None,
    table: str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> TableSource:
    """The images of a table, or of a split of it.

    Args:
        files: The dataset.
        split: Such as "train"; None takes the only table whole.
        table: Path of the table below the root; None finds it.
        file_column: Name of the column of files; None finds it.
        label_column: Name of the column of labels; None finds it.
        class_names: Of the labels, where they are numbers from 0 or these names; None takes the labels of all tables
            of the dataset, sorted, numbers as numbers.

    Raises:
        MissingSplitError: No table of that split.
        DataError: Rows without a file or a label, files in several rows, columns that are not plain.
    """
    images, names, columns = _Images(files), tables_of(files), (file_column, label_column)
    own = table_splits(names)
    is_whole = table is not None or split is None
    if table is None:
        table = own.get(split_names(split)[0]) if split is not None else None
        is_whole = is_whole or table is not None
    if table is None:
        rest = [name for name in names if name not in own.values()] or names
        if len(rest) != 1:
            raise MissingSplitError(f"{files.root}: no table of {split!r}; there is {', '.join(names) or 'none'}")
        table = rest[0]
    this = _Table(files, table, images, columns)
    rows = this.of_split(split)
    if not rows or (this.split is None and not is_whole):
        column = "no column split" if this.split is None else f"no row of it in the column {this.header[this.split]}"
        raise MissingSplitError(
            f"{this.where}: no split {split!r}: the table has {column}, and there is no {split}.csv"
        )
    found = [(line, row, images.find(row[this.file], split)) for line, row in rows]
    _check_rows(this, found)
    all_labels = {row[this.label].strip() for row in this.rows}
    others = [name for name in own.values() if name != table] if table in own.values() else []
    for name in others:
        with contextlib.suppress(DataError):  # such as a test.csv without labels
            other = _Table(files, name, images, columns)
            all_labels |= {row[other.label].strip() for row in other.rows} - {""}
    labels, classes = _numbered([row[this.label].strip() for _, row, _ in found], all_labels, class_names, this.where)
    source = TableSource(files, [path for _, _, path in found], labels, classes)
    source.tables = (table, *others)
    return source


def _check_rows(table: _Table, found: list[tuple[int, list[str], str | None]]) -> None:
    """Refuses rows without a file or a label, and files in several rows.

    Raises:
        DataError: There are; the message has the lines of the first.
    """
    column = table.header[table.file]
    missing = [f"line {line} {row[table.file]!r}" for line, row, path in found if path is None]
    if missing:
        raise DataError(
            f"{table.where}: {len(missing)} of {len(found)} rows name no file of the dataset in {column} (or a name "
            f"that several files have): {_first(missing)}. Copy the files there, or take the rows out"
        )
    empty = [f"line {line} {row[table.file]!r}" for line, row, _ in found if not row[table.label].strip()]
    if empty:
        raise DataError(
            f"{table.where}: {number_of(len(empty), f'rows have no {table.header[table.label]}')}: {_first(empty)}. "
            "Write the label, or take the rows out"
        )
    times = Counter(path for _, _, path in found)
    twice = [(line, row, path) for line, row, path in found if times[path] > 1]
    if twice:
        labels: dict[str | None, set[str]] = {}
        for _, row, path in twice:
            labels.setdefault(path, set()).add(row[table.label].strip())
        differing = sum(len(one) > 1 for one in labels.values())
        more = f", {differing} of them with different labels (an image has one label)" if differing else ""
        shown = _first([f"line {line} {row[table.file]!r} {row[table.label]!r}" for line, row, _ in twice])
        text = number_of(len(labels), f"images are in several rows{more}")
        raise DataError(f"{table.where}: {text}: {shown}. Keep one row of each")


def _first(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def _numbered(
    labels: list[str], all_labels: set[str], class_names: Sequence[str] | None, where: str
) -> tuple[list[int], list[str]]:
    """The numbers of labels, and the names of the classes."""
    numbers = all(label.isdecimal() for label in all_labels)
    if class_names is None:
        classes = sorted(all_labels, key=lambda label: (int(label), label) if numbers else label)
        places = {label: number for number, label in enumerate(classes)}
    else:
        classes = list(class_names)
        places = {label: number for number, label in enumerate(classes)}
        if numbers and not all_labels <= places.keys():
            places = {label: int(label) for label in all_labels if int(label) < len(classes)}
        if unknown := sorted(all_labels - places.keys()):
            raise DataError(
                f"{where}: labels that are none of the {len(classes)} data.class_names: {_first(unknown)}; name "
                "them there"
            )
    return [places[label] for label in labels], classes
