"""Makes docs/reliability.md from cases.yaml: what can go wrong, what happens, and the test that shows it."""

from pathlib import Path

import yaml

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"
HEAD = """\
# Reliability

What can go wrong, and what happens then. Each row names the tests that show it, below `tests/`; CI runs all of them.
Exit codes: 0 done, 1 a run that had to stop, 2 a request with errors, 128 + N ended by signal N.
What is safe to load from strangers is in [security.md](security.md), how a run is resumed in [resume.md](resume.md).
"""


def cases() -> dict[str, list[dict]]:
    """Heading -> rows with `case`, `happens` and `tests`."""
    return yaml.safe_load((HERE / "cases.yaml").read_text(encoding="utf-8"))


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for heading, rows in cases().items():
        parts.append(f"\n## {heading}\n\n| case | what happens | tests |\n|---|---|---|\n")
        for row in rows:
            tests = "<br>".join(f"`{test}`" for test in row["tests"])
            parts.append(f"| {row['case']} | {row['happens']} | {tests} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
