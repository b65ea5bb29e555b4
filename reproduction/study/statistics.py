"""Paired differences, their intervals and tests, and the verdict on each claim, by the rules of PROTOCOL.md."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Claim", "Effect", "decide", "effect", "holm", "sign_flip_p", "t_interval"]

LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """What a contrast came to: mean of the paired differences, 95 % interval, two p-values, number of seeds."""

    mean: float
    low: float
    high: float
    p: float
    sign_flip_p: float
    seeds: int

    @property
    def direction(self) -> int:
        """1 where the interval is above 0, -1 below, else 0."""
        return (self.low > 0) - (self.high < 0)


def t_interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Mean, and the ends of its t interval."""
    from scipy.stats import t

    mean, n = statistics.fmean(differences), len(differences)
    half = float(t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half


def t_test_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test."""
    from scipy.stats import t

    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    if error == 0:
        return float(mean == 0)
    return float(2 * t.sf(abs(mean) / error, len(differences) - 1))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip test: how many of the 2^n signs give a sum that is at least as far from 0."""
    observed = abs(math.fsum(differences)) * (1 - 1e-12)
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(value >= observed for value in sums) / len(sums)


def effect(differences: Sequence[float]) -> Effect | None:
    """All of it; None of fewer than two seeds."""
    if len(differences) < 2:
        return None
    return Effect(*t_interval(differences), t_test_p(differences), sign_flip_p(differences), len(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


@dataclass(frozen=True)
class Claim:
    """The verdict on a claim.

    Args:
        verdict: In words.
        directions: Of each data set that was measured: 1 for the claim, -1 against it, 0 open.
        p: Before Holm.
        adjusted: After it.
    """

    verdict: str
    directions: dict[str, int]
    p: float
    adjusted: float


def _direction(effects: Sequence[Effect]) -> int:
    directions = [one.direction for one in effects]
    return -1 if -1 in directions else int(all(directions))


def _p(by_data: Mapping[str, Sequence[Effect]]) -> float:
    worst = sorted(max(one.p for one in effects) for effects in by_data.values())
    if not worst:
        return 1.0
    return worst[0] if len(worst) == 1 else min(1.0, (len(worst) - 1) * worst[1])


def _verdict(by_data: Mapping[str, Sequence[Effect]], adjusted: float) -> str:
    if not by_data:
        return "not measured"
    directions = {data: _direction(effects) for data, effects in by_data.items()}
    names = {sign: [data for data, found in directions.items() if found == sign] for sign in (1, -1)}
    if len(names[1]) >= 2 and not names[-1]:
        return "holds" if adjusted < 1 - LEVEL else "holds, but not after Holm"
    if len(names[-1]) >= 2 and not names[1]:
        return "contradicted"
    every = [one for effects in by_data.values() for one in effects]
    low, high = min(one.low for one in every), max(one.high for one in every)
    words = f"undecided, within [{low:.1f}, {high:.1f}]"
    for sign, word in ((1, "for it"), (-1, "against it")):
        words += f"; {word} on {', '.join(names[sign])}" if names[sign] else ""
    return words


def decide(claims: Mapping[str, Mapping[str, Sequence[Effect | None]]]) -> dict[str, Claim]:
    """The verdicts.

    Args:
        claims: Claim -> data set -> effects of its deciding contrasts, None where one is not measured: such a data set
            does not count.
    """
    measured = {
        name: {data: effects for data, effects in by_data.items() if all(one is not None for one in effects)}
        for name, by_data in claims.items()
    }
    p_values = {name: _p(by_data) for name, by_data in measured.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {
        name: Claim(
            _verdict(by_data, adjusted[name]),
            {data: _direction(effects) for data, effects in by_data.items()},
            p_values[name],
            adjusted[name],
        )
        for name, by_data in measured.items()
    }
