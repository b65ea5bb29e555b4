"""What a segmenter costs, and how that grows; `test_tables.py` has the totals of table 4."""

import json

import pytest

from reproduction.segmentation import build, cost, growth, main

SWIN = {"blocks": []}  # the authors' Swin, without grafts


@pytest.mark.parametrize(
    ("backbone", "graft", "params", "macs"),
    [  # a row of table 4, and Swin-S of the Swin authors' README
        ("graft_swin_tiny_patch4_window7_224", None, 66, 955),
        ("graft_swin_small_patch4_window7_224", SWIN, 81, 1038),
    ],
)
def test_printed_costs_and_the_sum_of_the_parts(backbone, graft, params, macs):
    parts = cost(build(backbone, graft))
    total = parts["total"]
    assert abs(total["params"] / 1e6 - params) - 0.5 <= 0.01 * params
    assert total["macs"] / 1e9 == pytest.approx(macs, rel=0.01)
    inner = [part for name, part in parts.items() if name != "total"]
    assert total == {key: sum(part[key] for part in inner) for key in total}


def test_head_by_hand():
    """One image of 64 x 96: maps of 16 x 24, 8 x 12, 4 x 6, 2 x 3; 512 channels, 150 classes."""
    widths, c = [96 * 2**i for i in range(4)], 512
    cells = [16 * 24, 8 * 12, 4 * 6, 2 * 3]
    macs = sum(side * side for side in (1, 2, 3, 6)) * widths[3] * c
    macs += cells[3] * (widths[3] + 4 * c) * c * 9
    macs += sum(n * (width * c + c * c * 9) for n, width in zip(cells[:3], widths[:3], strict=True))
    macs += cells[0] * (4 * c * c * 9 + c * 150)
    model = build("graft_swin_tiny_patch4_window7_224", SWIN)
    assert cost(model, (64, 96))["head"]["macs"] == macs


def test_mac_grow_linearly():
    rows = growth(build("graft_swin_tiny_patch4_window7_224"), (256, 2048))
    assert [row["side"] for row in rows] == [256, 2048]
    assert all(abs(row["off_linear"]) < 0.05 for row in rows) and rows[1]["off_linear"] == 0


def test_command(tmp_path, capsys):
    arguments = ["--sides", "64", "96", "--measure", "64", "--repeats", "1", "--num-classes", "3"]
    assert main([*arguments, "--output", str(tmp_path / "growth.json")]) == 0
    record = json.loads((tmp_path / "growth.json").read_text())
    small, large = record["rows"]
    assert record["kind"] == "mac_growth" and record["machine"]["device"] == "cpu"
    assert small["seconds"] > 0 and small["peak_bytes"] > 64 * 64 * 3 * 4 and "seconds" not in large
    assert f"{small['macs'] / 1e9:.1f}" in capsys.readouterr().out
