"""Shared fixtures: `shared(...)` finds the reference data, or skips by name when it is not there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("VITGRAFT_SHARED", ROOT.parent / "shared"))


def shared(*parts: str) -> Path:
    """Path inside the shared reference data. Without it the calling test is skipped, or fails where
    VITGRAFT_REQUIRE_SHARED is set (as CI does), so that a skip can't pass for a success there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        message = f"needs the shared reference data: {'/'.join(parts)} not found (set VITGRAFT_SHARED)"
        if os.environ.get("VITGRAFT_REQUIRE_SHARED"):
            pytest.fail(message)
        pytest.skip(message)
    return path
