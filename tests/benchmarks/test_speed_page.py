"""benchmarks/speed.py: its plan is of commands that exist, and the page has what the files have."""

import json
import re

import pytest

from benchmarks import speed
from vitgraft.cli import main
from vitgraft.tools.bench import BenchConfig


def test_the_page_is_that_of_the_files():
    assert speed.PAGE.read_text(encoding="utf-8") == speed.make_page(speed.read_results())


def test_what_was_not_measured_stands_there():
    page = speed.make_page({})
    assert "Nothing has been measured yet." in page and page.count("not measured") > 50


def test_every_file_is_of_the_plan():
    assert {path.stem for path in speed.RESULTS.glob("*.json")} <= set(speed.PLAN)


@pytest.mark.parametrize("name", speed.PLAN)
def test_the_plan_can_be_run(monkeypatch, name):
    """Every command of the plan is parsed to a configuration of at least nine rounds, but where memory alone counts."""
    seen = []

    def measure(specs, config, report):
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("vitgraft.tools.bench.bench", measure)
    arguments, _ = speed.PLAN[name]
    assert main(arguments) == 130
    assert isinstance(seen[0], BenchConfig) and seen[0].clock == "cpu"
    assert seen[0].rounds >= 9 or name.startswith("memory")


def test_a_ratio_is_of_the_rounds(tmp_path):
    """Two rounds of 2 and 3 seconds against 1 and 1: the median of 2 and 3."""
    plain, grafted = speed.PAIRS["deit_tiny"]
    rows = [
        {"model": plain, "run": "eager", "cpu_seconds_per_image": [2.0, 3.0]},
        {"model": grafted, "run": "eager", "cpu_seconds_per_image": [1.0, 1.0]},
    ]
    (tmp_path / "infer_deit_tiny_batch1.json").write_text(json.dumps({"results": rows}))
    found = speed._Rows(speed.read_results(tmp_path)).ratio("infer_deit_tiny_batch1", "deit_tiny")
    assert re.fullmatch(r"\*\*2\.50\*\* \(2\.00 to 3\.00\)", found)
