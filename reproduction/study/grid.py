"""The runs of the study, read from grid.yaml: their options, their order, their files, their learning rates."""

import functools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitgraft.errors import CommandError

__all__ = ["GRID", "RESULTS", "STATE", "Run", "choose_multiplier", "find_run", "load_grid", "read_records", "runs"]

ROOT = Path(__file__).resolve().parents[2]
GRID = Path(__file__).with_name("grid.yaml")
RESULTS = ROOT / "results" / "study"
STATE = ROOT / "runs" / "study"
"""Unfinished runs, locks and weights; nothing in it is published."""

Grid = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        block: Its block in the grid.
        configuration: Its configuration in the block.
        seed: Of initial weights, order and augmentation.
        multiplier: Of the learning rate, for the runs of R0 that choose one; None: the chosen one.
    """

    block: str
    configuration: str
    seed: int
    multiplier: float | None = None

    @property
    def name(self) -> str:
        """Path of its files below a folder, without ending."""
        if self.multiplier is None:
            return f"{self.block}/{self.configuration}-{self.seed}"
        return f"R0/{self.block}.{self.configuration}-x{self.multiplier:g}"

    def record_path(self, results: Path) -> Path:
        """Where its record is, once it is done."""
        return results / f"{self.name}.json"


@functools.cache
def load_grid(path: Path = GRID) -> Grid:
    """The grid, with the options of each configuration complete: those of `defaults`, its block, and its own."""
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    for block in grid["blocks"].values():
        own = block.pop("configurations")
        block["configurations"] = {
            name: {**grid["defaults"], **block, **(options or {})} for name, options in own.items()
        }
        for options in block["configurations"].values():
            options.pop("configurations", None)
    return grid


def options_of(grid: Grid, run: Run) -> dict[str, Any]:
    """All options of a run; of one that chooses a learning rate with its own number of steps."""
    options = dict(grid["blocks"][run.block]["configurations"][run.configuration])
    if run.multiplier is not None:
        options["steps"] = options["tune"]
    return options


def runs(grid: Grid, block: str | None = None, only: Collection[str] = ()) -> Iterator[Run]:
    """The runs in order: of each block those that choose its learning rates (R0), then seed by seed.

    Args:
        grid: The grid.
        block: Those of this block alone, its choices of learning rates included; "R0": these choices of all blocks.
        only: Some configurations of the block; none: all.

    Raises:
        CommandError: There is no such block or configuration.
    """
    if block not in (None, "R0", *grid["blocks"]):
        raise CommandError(f"--block {block}: there are R0, {', '.join(grid['blocks'])}")
    known = grid["blocks"].get(block, {}).get("configurations", {})
    if unknown := [name for name in only if name not in known]:
        named = f"there are {', '.join(known)}" if known else "name a --block other than R0"
        raise CommandError(f"--configurations {' '.join(unknown)}: {named}")
    rule = grid["learning_rate"]
    for name, values in grid["blocks"].items():
        if block not in (None, "R0", name):
            continue
        configurations = {c: options for c, options in values["configurations"].items() if not only or c in only}
        first = [c for c, options in configurations.items() if options.get("keep_weights")]
        if block != "R0":
            yield from (Run(name, c, seed) for c in first for seed in configurations[c]["seeds"])
        for c, options in configurations.items():
            if options.get("tune") and "lr_of" not in options:
                yield from (Run(name, c, rule["seed"], multiplier) for multiplier in rule["multipliers"])
        if block != "R0":
            for seed in values["seeds"]:
                yield from (Run(name, c, seed) for c in configurations if c not in first)


def find_run(grid: Grid, block: str, configuration: str, seed: int) -> Run:
    """The run of a configuration, such as the one whose weights another begins with."""
    return next(run for run in runs(grid, block) if run == Run(block, configuration, seed))


def choose_multiplier(grid: Grid, run: Run, results: Path) -> float | None:
    """Multiplier of the base learning rate of a run; None while the runs that choose it are not all done."""
    if run.multiplier is not None:
        return run.multiplier
    options = options_of(grid, run)
    if "lr_of" in options:
        block, configuration = options["lr_of"].split("/")
        return choose_multiplier(grid, Run(block, configuration, run.seed), results)
    if not options.get("tune"):
        return 1.0
    rule = grid["learning_rate"]
    accuracies = {}
    for multiplier in rule["multipliers"]:
        path = Run(run.block, run.configuration, rule["seed"], multiplier).record_path(results)
        if not path.exists():
            return None
        accuracies[multiplier] = json.loads(path.read_text(encoding="utf-8"))["accuracy"]
    return max(sorted(accuracies), key=accuracies.get)


def read_records(grid: Grid, results: Path = RESULTS) -> dict[Run, dict[str, Any]]:
    """The records that are there, in the order of the grid."""
    paths = {run: run.record_path(results) for run in runs(grid)}
    return {run: json.loads(path.read_text(encoding="utf-8")) for run, path in paths.items() if path.exists()}
