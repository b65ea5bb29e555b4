"""The benchmark of the loop's overhead runs the real command line and takes as many bare steps."""

import pytest

pytest.importorskip("pytorch_lightning")
from benchmarks import loop as bench_loop

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_measure(recipe, capsys):
    found = bench_loop.measure(str(recipe), batch_size=4, steps=6, img_size=32)
    assert len(bench_loop.times["cli"]) == len(bench_loop.times["bare"]) == 6 + bench_loop.WARM_UP
    assert found["ratio"] == found["cli"] / found["bare"] and found["bare"] > 0
    assert "total batch 4" in capsys.readouterr().out
