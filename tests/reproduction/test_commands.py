"""The command line of the paper's tables and figures: help that teaches, errors without a traceback."""

import json
import sys
from functools import partial

import pytest
from conftest import run_main

from reproduction.__main__ import main

run = partial(run_main, main)


@pytest.mark.parametrize("command", ["tables", "figures", "results", "zoo"])
def test_help_teaches(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and f"examples:\n  python -m reproduction {command}" in out
    _, out, _ = run(capsys, "--help")
    assert f"    {command} " in out
    assert run(capsys)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables", "--table", "2", "9"], "--table 9: there are 1, 2, 3, 4, 5, 6, 7, 8, A"),
        (["tables", "--output", "/nowhere/t.md"], "the folder /nowhere does not exist"),
        (["zoo"], "/nowhere/conformance: no such folder"),
    ],
)
def test_errors_have_no_traceback(capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("VITGRAFT_SHARED", "/nowhere")
    code, out, err = run(capsys, *arguments)
    assert code == 2 and message in err and out == "" and "Traceback" not in err
    assert err.startswith(f"python -m reproduction {arguments[0]}: error: ")


def test_tables_need_no_rich_for_files(capsys, monkeypatch, tmp_path):
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, _ = run(capsys, "tables", "--table", "a", "--format", "markdown")
    assert code == 0 and "\n## Table A: " in out and "| DeiT-T | 0 | 0 | 5.7 | 5.717 |" in out
    path = tmp_path / "tables.json"
    assert run(capsys, "tables", "--table", "a", "--format", "json", "--output", str(path))[:2] == (0, "")
    assert json.loads(path.read_text())["tables"][0]["table"] == "A"
