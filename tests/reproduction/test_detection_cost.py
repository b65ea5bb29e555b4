import pytest

from reproduction.detection import build, cost

SWIN = {"blocks": []}  # the authors' Swin, without grafts


@pytest.mark.parametrize(
    ("backbone", "graft", "params", "macs", "rounding"),
    [  # table 3
        ("graft_swin_tiny_patch4_window7_224", SWIN, 48, 264, 0.5),
        ("graft_swin_tiny_patch4_window7_224", None, 53, 275, 0.5),
        ("graft_swin_small_patch4_window7_224", SWIN, 69, 354, 0.5),
        ("graft_swin_small_patch4_window7_224", None, 84, 373, 0.5),
    ],
)
def test_table_3(backbone, graft, params, macs, rounding):
    parts = cost(build(backbone, graft))
    total = parts["total"]
    assert abs(total["params"] / 1e6 - params) - rounding <= 0.01 * params
    assert total["macs"] / 1e9 == pytest.approx(macs, rel=0.05)
    inner = [part for name, part in parts.items() if name != "total"]
    assert {key: sum(part[key] for part in inner) for key in total} == total


def test_heads_by_hand():
    parts = cost(build("graft_swin_tiny_patch4_window7_224"))
    cells = sum(-(-800 // stride) * -(-1280 // stride) for stride in (4, 8, 16, 32, 64))
    assert parts["rpn"]["macs"] == cells * 256 * (9 * 256 + 15)  # 3 logits and 12 deltas a cell
    assert parts["box"]["macs"] == 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * 81 * 5)
    assert parts["mask"]["macs"] == 100 * (196 * 4 * 9 * 256**2 + 784 * 256 * (256 + 81))
    assert "mask" not in cost(build("graft_swin_tiny_patch4_window7_224", masks=False), (64, 64))
