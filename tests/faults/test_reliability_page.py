"""The table of cases: its tests exist, and docs/reliability.md is made of it."""

import ast
from pathlib import Path

import reliability_page

TESTS = Path(__file__).parent.parent


def functions_of(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_case_has_tests_that_exist():
    rows = [row for rows in reliability_page.cases().values() for row in rows]
    assert len(rows) >= 40 and all(row["case"] and row["happens"] and row["tests"] for row in rows)
    missing = []
    for name in {test for row in rows for test in row["tests"]}:
        file, _, test = name.partition("::")
        if not (TESTS / file).is_file() or test not in functions_of(TESTS / file):
            missing.append(name)
    assert not missing


def test_the_page_is_up_to_date():
    assert reliability_page.PAGE.read_text(encoding="utf-8") == reliability_page.page()
