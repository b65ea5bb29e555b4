"""Learning curves: what is read of a metrics.csv, and what is drawn."""

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")
pytest.importorskip("matplotlib")

from vitgraft.training.curves import MOST_POINTS, curves_figure, read_log

LOG = """\
epoch,lr,step,train/loss,train/loss_epoch,val/acc,val/acc_ema,val/loss
0,0.1,4,2.5,,,,
0,0.2,9,nan,,,,
0,,9,,2.25,0.25,0.5,2.0
1,0.1,14,1.5,,,,
1,,19,,1.75,0.5,0.75,1.5
broken,row
"""


@pytest.fixture
def curves(tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    return read_log(tmp_path / "metrics.csv")


def test_a_log_is_read_by_column_and_what_is_no_number_left_out(curves):
    assert set(curves) == {"lr", "train/loss", "train/loss_epoch", "val/acc", "val/acc_ema", "val/loss"}
    assert [list(one) for one in curves["train/loss"]] == [[5, 15], [2.5, 1.5]]
    assert [list(one) for one in curves["val/acc"]] == [[10, 20], [0.25, 0.5]]


def test_panels_of_losses_metrics_and_rate_over_epochs(curves):
    figure = curves_figure(curves, 10, "a $run$")
    losses, metrics, rate = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "validation", "learning rate"]
    assert len(losses.lines) == 3 and len(rate.lines) == 1 and rate.get_xlabel() == "epoch"
    plain, averaged = metrics.lines
    assert list(plain.get_xdata()) == [1, 2] and list(averaged.get_ydata()) == [0.5, 0.75]
    assert plain.get_color() == averaged.get_color() and (plain.get_linestyle(), averaged.get_linestyle()) == (
        "-",
        "--",
    )
    figure.canvas.draw()  # `$run$` is no mathematics


def test_without_the_length_of_an_epoch_the_axis_has_updates(curves):
    axes = curves_figure(curves).axes[-1]
    assert axes.get_xlabel() == "update" and list(axes.lines[0].get_xdata()) == [5, 10, 15]


def test_long_curves_are_averaged():
    steps = np.arange(100_000.0)
    drawn = curves_figure({"train/loss": (steps, steps)}, 1000).axes[0].lines[0].get_ydata()
    assert len(drawn) == MOST_POINTS and drawn.mean() == pytest.approx(steps.mean())


def test_an_empty_log_makes_an_empty_figure(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    assert read_log(tmp_path / "metrics.csv") == {} and not curves_figure({}).axes
