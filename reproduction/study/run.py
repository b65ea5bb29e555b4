"""Runs what is missing in results/study/, in the order of the grid.

Any number of processes may do so at the same time: each takes the next run that nobody else has locked. A killed run is
resumed from its last evaluation, or from the second in which the budget ended.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from reproduction.study.camvid import run_camvid, segmenter
from reproduction.study.data import load_data
from reproduction.study.grid import (
    RESULTS,
    STATE,
    Grid,
    Run,
    choose_multiplier,
    find_run,
    load_grid,
    options_of,
    read_records,
    runs,
)
from reproduction.study.models import build_model, count_trained, matched_ratio
from reproduction.study.train import train
from vitgraft.atomic import atomic_write, check_writable
from vitgraft.machine import record, source_commit
from vitgraft.tools.count import count_macs, count_params

__all__ = ["STATUS_HEADINGS", "Study", "execute", "run_study", "status_rows", "work", "write_record"]

STATUS_HEADINGS = ("block", "what", "done", "CPU minutes", "left")
_PUBLISHED = ("steps", "batch_size", "lr", "model", "graft", "match", "position_bias", "adapter", "lora", "start")
"""Options that a record holds, beside the seed and the learning rate."""


@dataclass(frozen=True)
class Study:
    """Where a study is read and written.

    Args:
        grid: The grid.
        results: Folder of the records.
        state: Folder of unfinished runs, locks and weights.
        device: Where it trains.
        deadline: Time of `time.monotonic` at which it stops.
    """

    grid: Grid
    results: Path = RESULTS
    state: Path = STATE
    device: str = "cpu"
    deadline: float = math.inf

    def file(self, run: Run, ending: str) -> Path:
        """A file of a run that is not published."""
        path = self.state / f"{run.name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def done(self, run: Run) -> bool:
        """Whether there is nothing to do: a record, and the weights that others begin with."""
        kept = options_of(self.grid, run).get("keep_weights") and run.multiplier is None
        return run.record_path(self.results).exists() and not (kept and not self.file(run, "weights.pt").exists())

    def waits_for(self, run: Run) -> str | None:
        """What has to be there before a run can start; None: nothing."""
        options = options_of(self.grid, run)
        if choose_multiplier(self.grid, run, self.results) is None:
            return f"the learning rate of {options.get('lr_of', f'{run.block}/{run.configuration}')}"
        if "start" in options:
            first = find_run(self.grid, run.block, options["start"], 0)
            if not self.file(first, "weights.pt").exists():
                return f"the weights of {first.name}"
        if "lora" in options and importlib.util.find_spec("peft") is None:
            return "PEFT (pip install peft)"
        return None


def execute(study: Study, run: Run) -> dict[str, Any] | None:
    """Makes one run; its record, or None where the deadline came first."""
    options = options_of(study.grid, run)
    configurations = study.grid["blocks"][run.block]["configurations"]
    multiplier = choose_multiplier(study.grid, run, study.results)
    start = None
    if "start" in options:
        first = find_run(study.grid, run.block, options["start"], 0)
        start = torch.load(study.file(first, "weights.pt"), weights_only=True)
    model = build_model(options, configurations, run.seed, start)
    if options["data"] == "camvid":
        model = segmenter(model, options["model"]["num_classes"])
    size = model_size(options)
    counts = {"params": count_params(model), "trained": count_trained(model), "macs": count_macs(model, (3, *size))}
    peak = multiplier * options["lr"]
    if options["data"] == "camvid":
        ratio = matched_ratio(options, configurations)
        found = run_camvid(options, ratio, run.seed, peak, study.file(run, "fit"), study.deadline, study.device)
    else:
        data = load_data(options, run.seed, held_out=run.multiplier is not None)
        state = study.file(run, "pt")
        found = train(model, data, options, run.seed, peak, state, study.deadline, study.device)
    if found is None:
        return None
    if options.get("keep_weights") and run.multiplier is None:
        with atomic_write(study.file(run, "weights.pt"), "wb") as file:
            torch.save(model.state_dict(), file)
    return record(
        "study",
        study.device,
        block=run.block,
        configuration=run.configuration,
        seed=run.seed,
        data=options["data"],
        evaluated_on="test" if run.multiplier is None else "held-out training images",
        multiplier=multiplier,
        **found,
        **counts,
        options={name: options[name] for name in _PUBLISHED if options.get(name) is not None},
        commit=source_commit(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )


def model_size(options: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the model's images in pixels."""
    size = options["model"]["img_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def write_record(path: Path, values: dict[str, Any]) -> None:
    """One line for each field, so that a curve takes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    with atomic_write(path, unique=True) as file:
        file.write(f"{{\n{lines}\n}}\n")


def work(study: Study, block: str | None = None, only: Collection[str] = (), poll: float = 5.0) -> list[str]:
    """Makes all runs that are missing, in this process.

    Args:
        study: What and where.
        block: One block alone.
        only: Some configurations of the block; none: all.
        poll: Seconds between two looks while other processes make the runs that are left.

    Returns:
        What is left and why, one line each.
    """
    check_writable(study.results)
    while True:
        waiting, locked = {}, False
        for run in runs(study.grid, block, only):
            if study.done(run):
                continue
            if time.monotonic() > study.deadline:
                return ["the budget is used up"]
            reason = study.waits_for(run)
            if reason is not None:
                waiting[run.name] = reason
                continue
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(FileLock(study.file(run, "lock"), timeout=0))
                except Timeout:
                    locked = True
                    continue
                if study.done(run):
                    continue
                print(f"{time.strftime('%H:%M:%S')} {run.name}", flush=True)
                values = execute(study, run)
                if values is None:
                    return ["the budget is used up"]
                write_record(run.record_path(study.results), values)
                study.file(run, "pt").unlink(missing_ok=True)
                print(f"{time.strftime('%H:%M:%S')} {run.name}: {values['accuracy']:.2f} %", flush=True)
            break  # an earlier one may have become possible
        else:
            if not locked:
                return [f"{name} waits for {reason}" for name, reason in waiting.items()]
            time.sleep(poll)


def work_in_processes(jobs: int, block: str | None, only: Collection[str], budget: float | None, device: str) -> int:
    """Runs `work` in several processes of one thread each; their highest exit code."""
    command = [sys.executable, "-m", "reproduction", "study", "run", "--device", device]
    command += ["--block", block] if block else []
    command += ["--configurations", *only] if only else []
    command += ["--budget", str(budget)] if budget is not None else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return max(process.wait() for process in processes)
    finally:
        for process in processes:
            process.terminate()  # those that have ended don't mind
            process.wait()


def run_study(jobs: int, block: str | None, only: Collection[str], budget: float | None, device: str) -> int:
    """`python -m reproduction study run`."""
    if jobs > 1:
        return work_in_processes(jobs, block, only, budget, device)
    torch.set_num_threads(1)
    deadline = math.inf if budget is None else time.monotonic() + 60 * budget
    left = work(Study(load_grid(), device=device, deadline=deadline), block, only)
    print("\n".join(left) if left else "nothing is left to run")
    return 0


def status_rows(grid: Grid, results: Path = RESULTS) -> list[list[str]]:
    """For each block: title, runs that are done, their CPU minutes, and those that are left at this pace."""
    records = read_records(grid, results)
    rows = []
    for block in ("R0", *grid["blocks"]):
        title = "learning rates" if block == "R0" else grid["blocks"][block]["title"]
        own = [run for run in runs(grid, block) if block == "R0" or run.multiplier is None]
        minutes = [records[run]["seconds"] / 60 for run in own if run in records]
        left = f"{sum(minutes) / len(minutes) * (len(own) - len(minutes)):.0f}" if minutes else "?"
        rows.append([block, title, f"{len(minutes)} / {len(own)}", f"{sum(minutes):.0f}", left])
    return rows
