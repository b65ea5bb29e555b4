"""The base of the metrics and reports of all tasks: the interface of the report writer, and helpers."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitgraft.errors import MissingExtraError

try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError("torchmetrics", "train") from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BACKGROUND", "CountReport", "Report", "ReportingMetric"]

BACKGROUND = "background"


class Report:
    """What was measured on a dataset. `report_writer` shows and writes it; a task's report is a dataclass that derives.

    Attributes:
        kind: "kind" in metrics.json.
        labels: Name in `numbers()` -> its label, in the order of the table.
        hidden_at_zero: Counts that are not shown where they are 0.
        count_column: Column of `class_rows` that is 0 for a class that is absent from the dataset.
        weakest_by: Column of `class_rows` by which classes are sorted.
        headings: Columns of `class_rows` that tables show -> their headings.
        confusion: (C, C or more) counts, rows are the true classes; (C + 1, C + 1) with the background, of detectors;
            None where there are none.
    """

    kind: ClassVar[str]
    labels: ClassVar[Mapping[str, str]]
    hidden_at_zero: ClassVar[frozenset[str]]
    count_column: ClassVar[str]
    weakest_by: ClassVar[str]
    headings: Mapping[str, str]
    confusion: np.ndarray | None

    @property
    def num_classes(self) -> int:
        """Classes of the model."""
        raise NotImplementedError

    def numbers(self) -> dict[str, float | int | None]:
        """The numbers of the whole dataset, by name: the attributes that have a label."""
        return {name: getattr(self, name) for name in self.labels if name != "num_unreadable"}

    def class_rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One row for each class, in their order, with the same columns.

        Fractions are 0 to 1, None where there is nothing to divide.
        """
        raise NotImplementedError

    def figures(self, class_names: Sequence[str], title: str) -> dict[str, "Figure"]:
        """Figures by the names of their files."""
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        """Further entries of metrics.json: by default the report's fields, which are counts.

        Of a confusion matrix [true class, predicted class, count] of the entries that are not 0.
        """
        plain = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "confusion" and value is not None:  # mostly zeros
                value = np.column_stack((np.argwhere(value), value[value > 0]))
            plain[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return {"counts": plain}

    def files(self) -> dict[str, str]:
        """Further files: texts by name."""
        return {}

    def summary(self, numbers: Mapping[str, float | int | None]) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of the table of numbers.

        Args:
            numbers: Those of `numbers()`, and "num_unreadable".
        """
        return ["", "value"], [[self.labels[name], shown] for name, shown in self.shown_numbers(numbers).items()]

    def notes(self, numbers: Mapping[str, float | int | None]) -> list[str]:
        """Lines below the table of numbers."""
        return []

    def shown_numbers(self, numbers: Mapping[str, float | int | None]) -> dict[str, str]:
        """The numbers that have a label and are to be shown, as text."""
        shown = {}
        for name in self.labels:
            value = numbers[name]
            if value is None or (not value and name in self.hidden_at_zero):
                continue
            if isinstance(value, int):
                shown[name] = f"{value:,}"
            else:
                shown[name] = f"{value:.4f}" if name == "loss" else percent(value, 2)
        return shown


class CountReport(Report):
    """A report of counts by class: of samples in classification, of pixels in segmentation.

    Attributes:
        class_counts: int64 (C,), samples or pixels of each class.
        class_hits: int64 (C,), the correct ones among them.
    """

    class_counts: np.ndarray
    class_hits: np.ndarray

    @property
    def num_classes(self) -> int:
        """Classes of the model."""
        return len(self.class_counts)

    @property
    def class_accuracy(self) -> np.ndarray:
        """float64 (C,): fraction of each class that is correct (recall); nan where it is absent."""
        return fractions(self.class_hits, self.class_counts)

    @property
    def class_precision(self) -> np.ndarray | None:
        """float64 (C,): fraction of what was predicted as the class that is of it; nan where nothing was."""
        if self.confusion is None:
            return None
        return fractions(self.class_hits, self.confusion[:, : self.num_classes].sum(0))

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the classes' accuracies, absent classes left out: large classes count no more than small ones."""
        return mean_of_present(self.class_accuracy)

    def class_columns(self) -> dict[str, np.ndarray | None]:
        """Columns of `class_rows`, (C,) each; None of what is not measured."""
        raise NotImplementedError

    def class_rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """The columns, and the most usual confusion of each class."""
        columns, rows = self.class_columns(), []
        for i, name in enumerate(class_names):
            row = {"class": i, "name": name}
            for column, values in columns.items():
                row[column] = None if values is None or np.isnan(values[i]) else values[i].item()
            rows.append(row | self._most_confused_with(i, class_names))
        return rows

    def _most_confused_with(self, true: int, class_names: Sequence[str]) -> dict[str, Any]:
        """Two columns: the class that a class is most often confused with, and the fraction of the class that is."""
        name = fraction_of_class = None
        if self.confusion is not None:
            wrong = self.confusion[true, : self.num_classes].copy()
            wrong[true] = 0
            if wrong.any():
                name = class_names[int(wrong.argmax())]
                fraction_of_class = float(wrong.max() / self.class_counts[true])
        return {"most_confused_with": name, "confused_fraction": fraction_of_class}


class ReportingMetric(Metric):
    """A torchmetrics metric whose result is a `Report`; a task's metric gives `update` and `_report`."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def report(self) -> Report:
        """Everything that was counted, over all processes; all of them must call it."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn,
            process_group=self.process_group,
            distributed_available=self.distributed_available_fn,
        ):
            return self._report()

    def compute(self) -> dict[str, Tensor]:
        """The numbers of the whole dataset, over all processes; without those that are None."""
        return {name: torch.tensor(float(n)) for name, n in self._report().numbers().items() if n is not None}

    def _report(self) -> Report:
        """The report from the states, which are those of all processes."""
        raise NotImplementedError


def fraction(part: float, whole: float) -> float:
    """`part` / `whole`; nan of nothing."""
    return float(part) / float(whole) if whole else float("nan")


def fractions(part: np.ndarray, whole: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """`part` / `whole`, float64; nan where `whole` is 0, or where not `where`."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0 if where is None else where)


def mean_of_present(values: np.ndarray) -> float:
    """Mean of all that are not nan; nan where there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def most_confused(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The pairs (true, predicted, count) of different classes that are confused most often, at most `count`.

    Args:
        confusion: (C, C) counts, rows are the true classes.
        count: Number of pairs.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = (map(int, np.unravel_index(place, wrong.shape)) for place in order)
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction of 0 to 1 in per cent; "-" where there is none."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f} %"
