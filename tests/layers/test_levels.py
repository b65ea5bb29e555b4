"""Which levels a block gets, and how large they are."""

import sys

import pytest

from vitgraft import GraftError
from vitgraft.layers import max_levels, plan_levels
from vitgraft.layers.levels import actual_sizes, nominal_sizes, step_factor, whole_factor

SWIN = [(56, 56), (28, 28), (14, 14), (7, 7)]


@pytest.mark.parametrize(
    "level_sizes,expected",
    [
        ("halve", [[28, 14, 7], [14, 7], [7], []]),
        (2, [[28, 14, 7], [14, 7], [7], []]),
        (4, [[14, 4], [7], [4], []]),
        (8, [[7], [4], [2], []]),
        (1, [[56], [28], [14], [7]]),
        ((7,), [[7], [7], [7], []]),
        ((7, 2), [[7, 2], [7, 2], [7, 2], [2]]),
        ((28, 14, 7), [[28, 14, 7], [14, 7], [7], []]),
        (((28, 28), 7), [[28, 7], [7], [7], []]),
    ],
    ids=str,
)
def test_auto_levels_of_swin(level_sizes, expected):
    plans = [plan_levels(size, 7, "auto", level_sizes) for size in SWIN]
    assert plans == [[(n, n) for n in sides] for sides in expected]
    for size, plan in zip(SWIN, plans, strict=True):
        assert plan_levels(size, 7, 1, level_sizes) == plan[:1]
        assert plan_levels(size, 7, 0, level_sizes) == []
        assert plan_levels(size, 7, 99, level_sizes) == plan
        assert nominal_sizes(size, len(plan), level_sizes) == plan


@pytest.mark.parametrize(
    "size,level_sizes,expected",
    [
        ((15, 22), "halve", [(8, 11), (4, 6)]),
        ((15, 22), 3, [(5, 8), (2, 3)]),
        ((15, 22), (11, 3), [(8, 11), (3, 3)]),
        ((22, 15), (11, 3), [(11, 8), (3, 3)]),
        ((15, 22), ((15, 11), (2, 2)), [(15, 11), (2, 2)]),
        ((1, 9), (4, 1), [(1, 4), (1, 1)]),
    ],
)
def test_grids_that_are_not_square(size, level_sizes, expected):
    assert plan_levels(size, 7, "auto", level_sizes) == expected


@pytest.mark.parametrize(
    "size,level_sizes,expected",
    [((56, 56), "halve", 6), ((15, 22), "halve", 5), ((15, 22), 4, 3), ((1, 1), "halve", 0), ((14, 14), (20, 7, 2), 2)],
)
def test_the_most_levels(size, level_sizes, expected):
    assert max_levels(size, level_sizes) == expected
    if level_sizes == "halve":
        assert nominal_sizes(size, expected)[-1:] in ([(1, 1)], [])


def test_a_factor_of_one_has_no_end():
    assert max_levels((7, 7), 1) == sys.maxsize
    assert nominal_sizes((7, 7), 3, 1) == [(7, 7)] * 3


@pytest.mark.parametrize("sizes", [(7, 7), (2, 7), ((7, 7), (7, 8)), (7, (7, 7)), ((4, 7), (7, 4))], ids=str)
def test_sizes_that_do_not_fall(sizes):
    for call in (lambda: plan_levels((14, 14), 7, "auto", sizes), lambda: max_levels((14, 14), sizes)):
        with pytest.raises(GraftError, match="sizes that do not fall") as error:
            call()
        assert f"level_sizes={sizes!r}" in str(error.value)


def test_a_size_that_is_smaller_in_one_direction_only():
    with pytest.raises(GraftError, match="7 x 20 is not smaller than the 14 x 14 grid"):
        plan_levels((14, 14), 7, "auto", ((7, 20),))


def test_too_few_sizes():
    with pytest.raises(
        GraftError, match=r"level_sizes=\(7, 2\) has 1 sizes below the 7 x 7 grid, and levels=2 needs 2"
    ):
        nominal_sizes((7, 7), 2, (7, 2))


def test_factors():
    assert (step_factor("halve"), step_factor(8), step_factor((7, 2))) == (2, 8, None)
    assert whole_factor((56, 28), (14, 7)) == 4
    assert whole_factor((14, 14), (14, 14)) == 1
    assert whole_factor((7, 7), (2, 2)) is None  # though 7 / 4, rounded up, is 2
    assert whole_factor((56, 28), (14, 14)) is None


@pytest.mark.parametrize("grid", [(14, 14), (1, 1), (15, 22), (5, 40), (28, 28)], ids=str)
def test_given_sizes_on_other_grids(grid):
    """In proportion, at least one token, never more than the next finer level; whole factors stay whole."""
    sizes = actual_sizes(grid, (14, 14), [(12, 12), (6, 6), (2, 2)], None)
    for (H, W), (h, w) in zip([grid, *sizes], sizes, strict=False):
        assert 1 <= h <= H and 1 <= w <= W
    assert sizes[1] == (-(-sizes[0][0] // 2), -(-sizes[0][1] // 2))
    assert sizes[0] == (-(-grid[0] * 12 // 14), -(-grid[1] * 12 // 14))
    assert actual_sizes(grid, (14, 14), [(7, 7), (4, 4)], 2) == nominal_sizes(grid, 2)
