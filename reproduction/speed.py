"""images/s of the systems of the paper's tables, measured by `vitgraft bench` in turns, and read back from its file.

Classifiers take batches of their own input size. A row of tables 3 and 4 takes one image of the table's size; what is
timed of a detector is what is counted (`reproduction/detection.py`: backbone, FPN, heads on a fixed number of
proposals), so that the time does not depend on what random weights find.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reproduction.paper import TABLES
from reproduction.systems import TASKS, build_system, systems
from vitgraft.errors import CommandError
from vitgraft.tools.bench import BenchConfig, bench, total_reports

__all__ = ["Speed", "measure_speeds", "read_speeds", "speed_reports", "speeds_of"]

CONFIG = BenchConfig(batch_size=8, rounds=5, round_seconds=0.5, memory=False)
# a step of one large image takes seconds on a CPU
DENSE_CONFIG = replace(CONFIG, batch_size=1, rounds=3)


@dataclass(frozen=True)
class Speed:
    """The measured speed of one system.

    Attributes:
        median: images/s.
        rounds: images/s of each round; those of two systems of one task were measured side by side.
    """

    median: float
    rounds: tuple[float, ...]

    def ratio_to(self, base: "Speed") -> float:
        """The median of the ratios within the rounds; of other rounds than the base's, the ratio of the medians."""
        if len(self.rounds) != len(base.rounds):
            return self.median / base.median
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, base.rounds, strict=True))


def measure_speeds(
    report: Callable[[str], None], numbers: Iterable[str] = TABLES, device: str = "cpu"
) -> dict[str, Any]:
    """`vitgraft bench` over the systems of these tables, inference in float32, each task's in turns.

    Args:
        report: Gets a line about each piece of work; called `speed_reports(numbers)` times.
        numbers: Of the tables.
        device: As `BenchConfig`'s.

    Returns:
        What `bench` returns, each result with its "task", and "configs" by task.
    """
    record: dict[str, Any] = {}
    results, configs = [], {}
    for task, specs in systems(numbers).items():
        config = replace(_config(task), device=device)
        record = bench(specs, config, report, lambda spec, task=task: build_system(task, spec, "cpu"))
        results += [{"task": task, **result} for result in record["results"]]
        configs[task] = record.pop("config")
    return {**record, "configs": configs, "results": results}


def speed_reports(numbers: Iterable[str] = TABLES) -> int:
    """How often `measure_speeds` calls `report`."""
    return sum(total_reports(len(specs), _config(task)) for task, specs in systems(numbers).items())


def _config(task: str) -> BenchConfig:
    return CONFIG if task == "classification" else DENSE_CONFIG


def read_speeds(path: Path) -> dict[str, Any]:
    """What `python -m reproduction tables --speed` or `vitgraft bench --output` wrote.

    Raises:
        CommandError: The file holds no inference times.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        usable = any(row["mode"] == "infer" for row in record["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path}: not a file that vitgraft bench --output wrote ({error})") from error
    if not usable:
        raise CommandError(f"{path}: holds no inference times; run vitgraft bench with --mode infer")
    return record


def speeds_of(record: Mapping[str, Any]) -> tuple[dict[tuple[str, str], Speed], str]:
    """The inference speeds of a record by task and model spec, of the first dtype that was measured; and where."""
    rows = [row for row in record["results"] if row["mode"] == "infer"]
    rows = [row for row in rows if row["dtype"] == rows[0]["dtype"]]
    machine = record["machine"]
    count = machine["threads"]
    threads = f", {count} thread{'s' * (count > 1)}" if machine["device"] == "cpu" else ""
    sizes = {row.get("task", TASKS[0]): row["batch_size"] for row in rows}
    batch = sizes.get(TASKS[0], rows[0]["batch_size"])
    where = f"{machine['device_name']}{threads}, {rows[0]['dtype']}, batch {batch}"
    found = {}
    for row in rows:
        speed = row["images_per_second"]
        rounds = tuple(speed.get("rounds", (speed["median"],)))
        found[row.get("task", TASKS[0]), row["model"]] = Speed(speed["median"], rounds)
    return found, where
