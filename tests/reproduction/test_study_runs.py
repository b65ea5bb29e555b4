"""The study's grid, its runs (resume, order, learning rates) and its page."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reproduction.study import data as study_data
from reproduction.study import page, run
from reproduction.study.data import Split, load_data, pad_crop_flip
from reproduction.study.grid import Run, choose_multiplier, load_grid, options_of, runs
from reproduction.study.models import build_model, count_trained
from vitgraft.errors import CommandError
from vitgraft.tools.count import count_params

ROOT = Path(__file__).resolve().parents[2]
GRID = load_grid()


def small_grid(steps: int = 4) -> dict:
    """R3 alone, two configurations, one seed, few steps and scenes."""
    grid = copy.deepcopy(GRID)
    block = grid["blocks"]["R3"]
    block["configurations"] = {name: block["configurations"][name] for name in ("windows", "grafted")}
    block["seeds"] = [0]
    for options in block["configurations"].values():
        options |= {"steps": steps, "tune": 2, "evaluations": 2, "train_scenes": 64, "test_scenes": 20, "batch_size": 8}
    grid["blocks"] = {"R3": block}
    return grid


# --- the grid


def test_every_claim_is_answered_by_runs_of_the_grid():
    assert list(GRID["claims"]) == list(range(1, 14))
    made = {(one.block, one.configuration) for one in runs(GRID) if one.multiplier is None}
    used = set()
    for claim in GRID["claims"].values():
        assert claim["decide"]
        for contrast in [*claim["decide"], *claim.get("also", ())]:
            used |= {name for side in contrast[1:] for name in page._side(side)}
    assert used <= made
    pretrained = {("R6", name) for name in ("pretrain_full", "pretrain_windows")}
    assert made - used == pretrained | {("R4", "windows"), ("R4", "full")} - used


def test_compared_configurations_have_seeds_in_common():
    for claim in GRID["claims"].values():
        for contrast in [*claim["decide"], *claim.get("also", ())]:
            options = [GRID["blocks"][b]["configurations"][c] for s in contrast[1:] for b, c in page._side(s)]
            assert len(set.intersection(*(set(one["seeds"]) for one in options))) >= 2


def test_the_order_is_that_of_the_blocks_with_learning_rates_first():
    order = list(runs(GRID))
    assert len(order) == len(set(order)) == len({one.name for one in order})
    blocks = list(dict.fromkeys(one.block for one in order))
    assert blocks == ["R1", "R3", "R2", "R5", "R4", "R6", "R7", "R8"]
    first = [one for one in order if one.block == "R1"]
    assert [one.multiplier is None for one in first] == sorted(one.multiplier is None for one in first)
    rule = GRID["learning_rate"]
    assert all(rule["seed"] not in values["seeds"] for values in GRID["blocks"].values())


def test_some_configurations_alone():
    chosen = list(runs(GRID, "R3", ["windows", "grafted"]))
    assert chosen == [one for one in runs(GRID, "R3") if one.configuration in ("windows", "grafted")]
    assert {one.multiplier for one in chosen} == {None, 0.5, 1, 2}
    for block in ("R3", "R0", None):
        with pytest.raises(CommandError, match="graftd"):
            list(runs(GRID, block, ["graftd"]))


@pytest.mark.parametrize("block", ["R1", "R2", "R3", "R4", "R6", "R7"])
def test_models_are_those_of_the_controls(block):
    configurations = GRID["blocks"][block]["configurations"]
    for name, options in configurations.items():
        if "lora" in options:
            pytest.importorskip("peft")
        model = build_model(options, configurations)
        if "match" in options:
            target = count_params(build_model(configurations[options["match"]], configurations))
            assert abs(count_params(model) / target - 1) < 0.005, name
        if "adapter" in options:
            target = count_params(build_model(configurations[options["adapter"]], configurations))
            assert abs(count_params(model) / target - 1) < 0.005, name
        if "lora" in options:
            target = count_trained(build_model(configurations[options["lora"]], configurations))
            assert abs(count_trained(model) / target - 1) < 0.05, name


@pytest.mark.parametrize("block", ["R1", "R3"])
def test_a_seed_gives_all_configurations_one_backbone(block):
    configurations = GRID["blocks"][block]["configurations"]
    plain = build_model(configurations["full"], configurations, seed=1).state_dict()
    other = build_model(configurations["full"], configurations, seed=2).state_dict()
    assert not torch.equal(plain["pos_embed"], other["pos_embed"])
    for name, options in configurations.items():
        own = build_model(options, configurations, seed=1).state_dict()
        equal = [key for key, value in plain.items() if own[key].shape == value.shape]
        assert all(torch.equal(own[key], plain[key]) for key in equal), name
        assert len(equal) >= len(plain) - 3 * 6


def test_identity_starts_compute_what_the_backbone_does():
    configurations = GRID["blocks"]["R6"]["configurations"]
    start = build_model(configurations["pretrain_windows"], configurations, seed=3).state_dict()
    images = torch.randn(2, 3, 32, 32)
    plain, grafted, adapted = (
        build_model(configurations[f"windows_{name}"], configurations, 1, start).eval()(images)
        for name in ("plain", "identity", "adapter")
    )
    torch.testing.assert_close(plain, grafted)
    torch.testing.assert_close(plain, adapted)


# --- data


def test_crops_are_parts_of_the_padded_image():
    images = torch.arange(1, 3 * 64 + 1, dtype=torch.uint8).view(1, 3, 8, 8).repeat(20, 1, 1, 1)
    padded = torch.nn.functional.pad(images[0], (4,) * 4)
    out = pad_crop_flip(images, torch.Generator().manual_seed(0))
    places = [padded[:, y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
    assert all(any(torch.equal(one, p) or torch.equal(one, p.flip(-1)) for p in places) for one in out)
    assert len({one.numpy().tobytes() for one in out}) > 10


def test_runs_that_choose_see_no_test_image(monkeypatch):
    def cifar(split):
        assert split == "train"
        return Split(torch.arange(1000).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), torch.arange(1000) % 10)

    monkeypatch.setattr(study_data, "_cifar", cifar)
    for block, sizes in (("R1", (900, 100)), ("R6", (320, 80))):
        options = {**GRID["blocks"][block]["configurations"]["full" if block == "R1" else "full_plain"]}
        if block == "R6":
            options["train_images"] = 400
        found = load_data(options, 100, held_out=True)
        train, test = (set(one.images[:, 0, 0, 0].tolist()) for one in (found.train, found.test))
        assert (len(train), len(test)) == sizes and not train & test


# --- runs


def test_a_killed_run_is_resumed_to_the_same_record(tmp_path):
    """Killed after its first evaluation; and one that its budget ended between two steps."""
    grid = small_grid()
    one = Run("R3", "windows", 100, 2)
    grid["blocks"]["R3"]["configurations"]["windows"]["tune"] = 4
    whole = run.execute(run.Study(grid, tmp_path / "whole", tmp_path / "a"), one)
    study = run.Study(grid, tmp_path / "results", tmp_path / "b")
    calls = []

    def killed(model, split, prepare):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(model, split, prepare)

    from reproduction.study import train

    evaluate = train.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run.execute(study, one)
    assert study.file(one, "pt").exists()
    assert run.execute(run.Study(grid, study.results, study.state, deadline=0.0), one) is None
    resumed = run.execute(study, one)
    for name in ("accuracy", "params", "macs", "options", "multiplier"):
        assert resumed[name] == whole[name]
    assert [point[:2] for point in resumed["curve"]] == [point[:2] for point in whole["curve"]]


def test_all_runs_in_order_then_nothing_is_left(tmp_path, capsys):
    grid = small_grid()
    study = run.Study(grid, tmp_path / "results", tmp_path / "state")
    assert run.work(run.Study(grid, study.results, study.state, deadline=0.0)) == ["the budget is used up"]
    assert run.work(study) == []
    lines = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "%" not in line]
    assert lines == [one.name for one in runs(grid)]
    records = {path: path.read_text() for path in study.results.rglob("*.json")}
    assert len(records) == 8 and not list(study.state.rglob("*.pt"))
    assert str(tmp_path) not in "".join(records.values()) and str(ROOT) not in "".join(records.values())
    assert all(len(text) < 2000 for text in records.values())
    assert run.work(study) == [] and records == {path: path.read_text() for path in records}
    record = json.loads((study.results / "R3/grafted-0.json").read_text())
    assert record["options"]["graft"]["window_size"] == 2 and record["evaluated_on"] == "test"
    assert record["multiplier"] == choose_multiplier(grid, Run("R3", "grafted", 0), study.results)
    written = page.write_page(grid | {"claims": {1: GRID["claims"][1]}}, study.results, tmp_path / "p.md", tmp_path)
    assert [path.name for path in written] == ["p.md", page.TIME]  # one seed gives no interval


def test_the_best_learning_rate_is_taken_of_ties_the_smaller(tmp_path):
    options, rates = options_of(GRID, Run("R1", "full", 0)), GRID["learning_rate"]["multipliers"]
    assert options["steps"] == 1170 and options_of(GRID, Run("R1", "full", 100, 1))["steps"] == 520
    for run_of, accuracies, best in (("full", (50, 60, 60), 1), ("windows", (50, 60, 61), 2)):
        for multiplier, accuracy in zip(rates, accuracies, strict=True):
            assert choose_multiplier(GRID, Run("R1", run_of, 0), tmp_path) is None
            path = Run("R1", run_of, 100, multiplier).record_path(tmp_path)
            run.write_record(path, {"accuracy": accuracy})
        assert choose_multiplier(GRID, Run("R1", run_of, 0), tmp_path) == best
        assert choose_multiplier(GRID, Run("R8", run_of, 0), tmp_path) == best
    assert choose_multiplier(GRID, Run("R5", "plain", 0), tmp_path) == 1


def test_what_has_to_wait_says_for_what(tmp_path):
    study = run.Study(GRID, tmp_path / "results", tmp_path / "state")
    assert study.waits_for(Run("R1", "full", 0)) == "the learning rate of R1/full"
    assert study.waits_for(Run("R1", "full", 100, 1)) is None
    assert study.waits_for(Run("R6", "full_plain", 100, 1)) == "the weights of R6/pretrain_full-0"
    assert all("waits for" in line for line in run.work(study, "R8"))


def test_two_processes_share_the_runs(tmp_path):
    """While one holds a run, another one takes the next."""
    grid = small_grid()
    study = run.Study(grid, tmp_path / "results", tmp_path / "state", deadline=time.monotonic() + 120)
    first = next(iter(runs(grid)))
    code = f"from filelock import FileLock; lock = FileLock({str(study.file(first, 'lock'))!r}); lock.acquire()"
    code += "; print(1, flush=True); import time; time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ})
    try:
        holder.stdout.readline()
        done = []
        write = run.write_record

        def write_record(path, values):
            done.append(path.stem)
            write(path, values)
            if len(done) == 2:
                holder.send_signal(signal.SIGKILL)
                holder.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "write_record", write_record)
            assert run.work(study, poll=0.1) == []
    finally:
        holder.kill()
    assert done[0] != Path(first.name).name and Path(first.name).name in done and len(done) == 8


# --- the page


def test_the_page_is_what_the_records_give():
    assert page.PAGE.read_text(encoding="utf-8") == page.make_page(GRID)


def test_a_page_of_given_records(tmp_path):
    """Differences 1, 2, 3 and 1, 1.5, 2 on two data sets; the others are said not to be measured."""
    common = {"area": 50.0, "curve": [[10, 40.0, 1.0], [20, 60.0, 2.0]], "seconds": 2.0, "step_seconds": 0.1}
    common |= {"params": 1000, "macs": 10**6, "multiplier": 1}
    for block, differences in (("R1", (1, 2, 3)), ("R3", (1, 1.5, 2, 1, 2, 1, 1.5, 2))):
        for seed, difference in enumerate(differences):
            for name, accuracy in (("windows", 60), ("grafted", 60 + difference)):
                run.write_record(Run(block, name, seed).record_path(tmp_path), {**common, "accuracy": accuracy})
    text = page.make_page(GRID, tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("| 1 | grafts beat windows only"))
    assert "CIFAR-10 +2.0 [-0.5, +4.5] (3)" in line and "grocery not measured" in line
    assert "**undecided, within [-0.5, 4.5]; for it on digit scenes**" in line and "1.00 / 1.00 / 1.00" in line
    assert "| 9 | grafts help dense prediction | **not measured** |" in text
    assert "| R1/full | not measured |" in text and "| R1/grafted | 62.0 ± 1.0 |" in text
    assert "Not measured at all: R2, R5, R4, R6, R7, R8." in text
    written = page.write_page(GRID, tmp_path, tmp_path / "study.md", tmp_path)
    assert [path.name for path in written] == ["study.md", page.FOREST, page.TIME]


def test_accuracy_at_a_time_by_hand():
    curve = [[1, 40.0, 10.0], [2, 60.0, 20.0]]
    assert [page.accuracy_at(curve, t) for t in (5, 10, 15, 20, math.inf)] == [40, 40, 50, 60, 60]
