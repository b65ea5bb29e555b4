"""Predictions of single images, and the CSV and JSON files of them."""

import contextlib
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitgraft.atomic import atomic_write

__all__ = ["Prediction", "PredictionWriter", "writer_for"]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, or why there are none.

    Attributes:
        image: its file.
        classes: numbers of the classes, the most probable first.
        probabilities: of these classes, 0 to 1.
        error: why the image could not be read; None where it could.
        thumbnail: a small JPEG file, where one was asked for.
    """

    image: str
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    thumbnail: bytes | None = None


class PredictionWriter:
    """Writes predictions as they come; the file is there when all is done, and only then.

    `with writer_for(path, ...) as writer: writer.add(prediction)`.
    """

    def __init__(self, path: Path, class_names: Sequence[str], top: int, facts: dict[str, Any]):
        self.path, self.class_names, self.top, self.facts = path, class_names, top, facts

    def __enter__(self) -> "PredictionWriter":
        self._stack = contextlib.ExitStack()
        self.file = self._stack.enter_context(atomic_write(self.path, newline=""))
        self._stack.push(lambda kind, *_: self.end() if kind is None else None)
        self.begin()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def begin(self) -> None:
        """Writes what stands before the predictions."""
        raise NotImplementedError

    def add(self, prediction: Prediction) -> None:
        """Writes one prediction."""
        raise NotImplementedError

    def end(self) -> None:
        """Writes what stands after the predictions."""


class CsvWriter(PredictionWriter):
    """One line for each image: image, class_1, probability_1, ..., error."""

    def begin(self) -> None:
        self.lines = csv.writer(self.file, lineterminator="\n")
        ranks = [f"{what}_{rank + 1}" for rank in range(self.top) for what in ("class", "probability")]
        self.lines.writerow(["image", *ranks, "error"])

    def add(self, prediction: Prediction) -> None:
        cells: list[str] = []
        for number, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            cells += [self.class_names[number], f"{probability:.6g}"]
        cells += [""] * (2 * self.top - len(cells))
        self.lines.writerow([prediction.image, *cells, prediction.error or ""])


class JsonWriter(PredictionWriter):
    """`{"kind": "predictions", model and preprocessing, "images": [{"image": ..., "predictions": [...]}, ...]}`."""

    def begin(self) -> None:
        head = json.dumps({"kind": "predictions", **self.facts, "top": self.top}, ensure_ascii=False, indent=1)
        self.file.write(head[:-2] + ',\n "images": [')
        self.first = True

    def add(self, prediction: Prediction) -> None:
        entry: dict[str, Any] = {"image": prediction.image}
        if prediction.error is not None:
            entry["error"] = prediction.error
        entry["predictions"] = [
            {"index": number, "class": self.class_names[number], "probability": float(f"{probability:.6g}")}
            for number, probability in zip(prediction.classes, prediction.probabilities, strict=True)
        ]
        self.file.write(("\n  " if self.first else ",\n  ") + json.dumps(entry, ensure_ascii=False))
        self.first = False

    def end(self) -> None:
        self.file.write("\n ]\n}\n")


def writer_for(path: Path, class_names: Sequence[str], top: int, facts: dict[str, Any]) -> PredictionWriter:
    """The writer for the file's ending, .csv or .json.

    Raises:
        ValueError: another ending.
    """
    kinds = {".csv": CsvWriter, ".json": JsonWriter}
    if path.suffix not in kinds:
        raise ValueError(f"{path}: the name must end in .csv or .json")
    return kinds[path.suffix](path, class_names, top, facts)
