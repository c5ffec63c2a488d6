"""Statistics of paired measurements: medians with intervals that assume nothing about the noise, and verdicts.

A round runs the native program (N), the same under hamirt (H) and native again (A), in an order that changes from round
to round. H against N is the figure, A against N is what the measurement itself can tell apart.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not resolved"]

CONFIDENCE = 0.95
MINIMUM_ROUNDS = 20
ROLES = ("N", "H", "A")


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and an interval around it that holds the true median with `confidence`."""

    median: float
    low: float
    high: float
    confidence: float
    count: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the report: what was asked, what was measured, and whether it was reached."""

    name: str
    bar: str
    measured: str
    verdict: Verdict
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the bar as the dictionary that goes into the JSON file."""
        return asdict(self)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the median of `values` with its distribution-free interval from order statistics.

    The k-th smallest and k-th largest of n values enclose the median with probability 1 - 2 P(Binomial(n, 1/2) < k);
    the largest k that keeps `confidence` is taken. Below 6 values no k does at 95 %: then the interval is the range
    and its true, lower confidence is returned. Raises ValueError without values.
    """
    if not values:
        raise ValueError("no values to take a median of")
    ordered = sorted(values)
    count = len(ordered)
    best, best_coverage = 1, 1 - 2 * 0.5**count
    tail = 0.0
    for rank in range(1, count // 2 + 1):
        tail += math.comb(count, rank - 1) * 0.5**count
        if 1 - 2 * tail < confidence:
            break
        best, best_coverage = rank, 1 - 2 * tail
    return Interval(statistics.median(ordered), ordered[best - 1], ordered[count - best], best_coverage, count)


def orders(rounds: int) -> Iterator[tuple[str, ...]]:
    """Yield the order of N, H and A for each round: all six in turn, each followed by its reverse."""
    forward = list(itertools.permutations(ROLES))
    pattern = [forward[0], forward[5], forward[2], forward[4], forward[3], forward[1]]
    for index in range(rounds):
        yield pattern[index % len(pattern)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """H against N and A against N, as ratios or as differences in the unit of the samples."""

    kind: Literal["ratio", "difference"]
    figure: Interval
    noise: Interval
    native: Interval

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as the dictionary that goes into the JSON file."""
        return asdict(self)


def compare(
    native: Sequence[float], shimmed: Sequence[float], again: Sequence[float], kind: Literal["ratio", "difference"]
) -> Comparison:
    """Compare round by round. The three sequences hold one figure for each round, in the same order."""
    if not len(native) == len(shimmed) == len(again):
        raise ValueError("each round needs a figure of all three")
    against: Callable[[float, float], float] = _ratio if kind == "ratio" else _difference
    figure = [against(ours, base) for ours, base in zip(shimmed, native, strict=True)]
    noise = [against(other, base) for other, base in zip(again, native, strict=True)]
    return Comparison(kind, median_interval(figure), median_interval(noise), median_interval(native))


def judge(comparison: Comparison, limit: float) -> tuple[Verdict, str]:
    """Decide whether the figure is at most `limit`; return the verdict and the reason.

    The margin is what the bar allows over native (for a bar of exactly native: how far the figure lies from it). A
    against A has to be narrower than that margin and to lie within it, or nothing can be told; a figure that lies above
    the bar by more than the noise fails all the same.
    """
    neutral = 1.0 if comparison.kind == "ratio" else 0.0
    figure, noise = comparison.figure, comparison.noise
    spread = max(noise.high - noise.low, abs(noise.low - neutral), abs(noise.high - neutral))
    margin = limit - neutral if limit > neutral else abs(figure.median - limit)
    if figure.count < MINIMUM_ROUNDS:
        return "not resolved", f"{figure.count} rounds, {MINIMUM_ROUNDS} are needed"
    if figure.low > limit + spread:
        return "fail", f"above the bar by more than the noise of {spread:.4g}"
    if spread >= margin:
        return "not resolved", f"A against A spreads {spread:.4g}, the margin is {margin:.4g}"
    if figure.high <= limit:
        return "pass", f"noise {spread:.4g} of a margin of {margin:.4g}"
    if figure.low > limit:
        return "fail", f"noise {spread:.4g} of a margin of {margin:.4g}"
    return "not resolved", f"the interval [{figure.low:.4g}, {figure.high:.4g}] holds the bar"


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 where all have the same, 1 / n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def near(error: float, bar: float, unsure: float, gap: str | None = None) -> Verdict:
    """Decide whether an error is at most the bar, where `unsure` of it may be noise; `gap`: why nothing can be told."""
    if error > bar + unsure:
        return "fail"
    if gap is not None or unsure >= bar:
        return "not resolved"
    return "pass" if error <= bar else "fail"


def at_least(value: float, bar: float, margin: float, unsure: float) -> Verdict:
    """Decide whether a value reaches the bar; `margin`: what the bar allows to lose, which noise has to be below."""
    return near(margin - (value - bar), margin, unsure)


def _ratio(ours: float, base: float) -> float:
    return ours / base


def _difference(ours: float, base: float) -> float:
    return ours - base
