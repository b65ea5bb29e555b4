"""What a detector of table 3 costs, part by part; `test_tables.py` has the totals of all rows."""

import pytest

from reproduction.detection import build, cost


def test_parts_by_hand_and_their_sum():
    parts = cost(build("graft_swin_tiny_patch4_window7_224"))
    total = parts["total"]
    assert total["params"] / 1e6 == pytest.approx(53, abs=0.5) and total["macs"] / 1e9 == pytest.approx(275, rel=0.05)
    inner = [part for name, part in parts.items() if name != "total"]
    assert {key: sum(part[key] for part in inner) for key in total} == total
    cells = sum(-(-800 // stride) * -(-1280 // stride) for stride in (4, 8, 16, 32, 64))
    assert parts["rpn"]["macs"] == cells * 256 * (9 * 256 + 15)  # 3 logits and 12 deltas a cell
    assert parts["box"]["macs"] == 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * 81 * 5)
    assert parts["mask"]["macs"] == 100 * (196 * 4 * 9 * 256**2 + 784 * 256 * (256 + 81))
    assert "mask" not in cost(build("graft_swin_tiny_patch4_window7_224", masks=False), (64, 64))
