"""A validation part of a dataset that has none: a function of the names of its images and a seed, which a run writes
down in its folder, so that what resumes or evaluates it has the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitgraft.atomic import atomic_write
from vitgraft.data.readers.base import ImageSource, Source
from vitgraft.errors import DataError
from vitgraft.randomness import derive

__all__ = ["RECORD", "Part", "hold_out", "read_record", "same_images", "write_record"]

RECORD = "split.json"


def hold_out(names: Sequence[str], strata: Sequence[Any], fraction: float, seed: int) -> np.ndarray:
    """Which images are held out for validation, bool (N,).

    Of each stratum those with the smallest hash of (seed, name), the nearest number to the fraction, but at least one
    and not all where it has two images. So the choice does not depend on the order of the images.

    Args:
        names: Of the images, different ones.
        strata: Of each image: its class.
        fraction: 0 to 1.
        seed: Of the choice.
    """
    of_stratum: dict[Any, list[tuple[int, str, int]]] = {}
    for place, (name, stratum) in enumerate(zip(names, strata, strict=True)):
        of_stratum.setdefault(stratum, []).append((derive(seed, "val_fraction", name), name, place))
    held = np.zeros(len(names), dtype=bool)
    for members in of_stratum.values():
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[[place for _, _, place in sorted(members)[:count]]] = True
    return held


def write_record(folder: str | Path, fraction: float, seed: int, names: Sequence[str], held: np.ndarray) -> None:
    """Writes split.json: the options, the number of images to train on, and the names of those that are held out."""
    values = {
        "val_fraction": fraction,
        "seed": seed,
        "train_images": int((~held).sum()),
        "val": [name for name, is_held in zip(names, held, strict=True) if is_held],
    }
    with atomic_write(Path(folder) / RECORD) as file:
        file.write(json.dumps(values, indent=1) + "\n")


def read_record(folder: str | Path) -> dict[str, Any]:
    """The split.json of a run's folder; empty where there is none.

    Raises:
        DataError: It is damaged.
    """
    path = Path(folder) / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(values, dict) and isinstance(values.get("val"), list) and "val_fraction" in values):
            raise ValueError("not an object with val_fraction and val")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the record of the run's validation images can't be read ({error})") from error
    return values


def same_images(one: Source, other: Source) -> bool:
    """Whether two sources have the same images, by their number and the first and last name."""
    ends = (0, len(one) - 1)
    return len(one) == len(other) > 0 and all(one.name(index) == other.name(index) for index in ends)


class Part(ImageSource):
    """Some of the images of a source.

    Args:
        source: All of them.
        is_in: Of each, bool (N,).
        part: What they are, in brackets.
    """

    def __init__(self, source: ImageSource, is_in: np.ndarray, part: str):
        self.source, self.places = source, np.flatnonzero(is_in)
        self.where, self.class_names = f"{source.where}{part}", source.class_names
        self.labels = source.labels[self.places]

    def name(self, index: int) -> str:
        return self.source.name(int(self.places[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.places[index]))

    def file_size(self, index: int, path: bytes) -> int:
        return self.source.file_size(int(self.places[index]), path)

    def load(self, index: int) -> Any:
        return self.source.load(int(self.places[index]))
