"""Intervals, tests and verdicts of the study against values computed by hand, and against scipy's own tests."""

import pytest

from reproduction.study.statistics import Effect, decide, effect, holm, sign_flip_p, t_interval, t_test_p

stats = pytest.importorskip("scipy.stats")


def test_interval_by_hand():
    # mean 2, standard deviation 1, standard error 1 / sqrt(3); t of two degrees of freedom: 4.302653
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)


def test_sign_flip_by_hand():
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8  # only +++ and ---
    assert sign_flip_p([1.0, -2.0, 3.0]) == 6 / 8  # sums 6, 4, 2, 0 of either sign; 2 and more count
    assert sign_flip_p([0.1, 0.2, 0.3]) == 2 / 8  # rounding of the sums does not matter
    assert sign_flip_p([1.0] * 8) == 2 / 256


@pytest.mark.parametrize("differences", [[1.0, 2.5, 0.3], [0.2, -0.4, 1.1, 0.8, 0.1, -0.3, 0.9, 0.5], [-3.0, 1.0]])
def test_against_scipy(differences):
    test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    assert t_interval(differences)[1:] == pytest.approx((interval.low, interval.high))
    assert t_test_p(differences) == pytest.approx(test.pvalue)
    flips = stats.permutation_test((differences,), sum, permutation_type="samples", n_resamples=float("inf"))
    assert sign_flip_p(differences) == pytest.approx(flips.pvalue)


def test_few_or_equal_differences():
    assert effect([1.0]) is None
    assert t_test_p([2.0, 2.0]) == 0 and t_test_p([0.0, 0.0]) == 1


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1; no adjusted value is below an earlier one
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def _effect(low: float, high: float, p: float) -> Effect:
    return Effect((low + high) / 2, low, high, p, 0.25, 3)


FOR, AGAINST, OPEN = _effect(1, 3, 0.001), _effect(-3, -1, 0.001), _effect(-1, 2, 0.5)


@pytest.mark.parametrize(
    ("by_data", "verdict"),
    [
        ({"a": [FOR], "b": [FOR]}, "holds"),
        ({"a": [FOR], "b": [_effect(1, 3, 0.049)]}, "holds, but not after Holm"),
        ({"a": [AGAINST], "b": [AGAINST]}, "contradicted"),
        ({"a": [FOR], "b": [AGAINST]}, "undecided, within [-3.0, 3.0]; for it on a; against it on b"),
        ({"a": [FOR], "b": [OPEN]}, "undecided, within [-1.0, 3.0]; for it on a"),
        ({"a": [FOR]}, "undecided, within [1.0, 3.0]; for it on a"),
        ({"a": [FOR], "b": [FOR, OPEN]}, "undecided, within [-1.0, 3.0]; for it on a"),
        ({"a": [FOR, None], "b": [None]}, "not measured"),
        ({}, "not measured"),
    ],
)
def test_verdicts(by_data, verdict):
    others = {str(n): {} for n in range(12)}  # the family has 13 claims
    assert decide({"claim": by_data, **others})["claim"].verdict == verdict


def test_p_of_a_claim():
    """Of two data sets the larger p, of three twice the second smallest; each data set has its largest."""

    def p(*values):
        return [_effect(1, 2, value) for value in values]

    found = decide({"two": {"a": p(0.01, 0.02), "b": p(0.03)}, "three": {"a": p(0.01), "b": p(0.02), "c": p(0.5)}})
    assert found["two"].p == 0.03 and found["three"].p == 0.04
    assert decide({"one": {"a": p(0.01)}, "none": {}})["none"].p == 1
