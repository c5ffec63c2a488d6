"""What the runs of bench/share.py amount to: shares, bars with their verdicts, and what is only shown. Pure.

A run is what share_measure.take returns: its role (alone: natively and nobody beside it; with: what the row is about;
off: without what limits it; calm: alone, then with, but nobody killed) and for each load its rate of work. A share is
that rate over what the same job does alone, in the runs right before and after. How far those differ is the noise.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.measure import (
    MINIMUM_ROUNDS,
    Bar,
    Comparison,
    Verdict,
    at_least,
    jain,
    judge,
    median_interval,
    near,
    percentile,
)

Run = dict[str, Any]
Judged = tuple[list[Bar], list[list[str]]]
"""Bars, and what is shown without one: what it is, and its value."""

CAP_BAR_POINTS, CAP_SECOND_BAR_POINTS = 1.0, 3.0
UNLIMITED_POINTS = 5.0
"""So close to 100 % a load without a limit has to come; so far from its cap a limited one without it."""
SPLIT_BAR_POINTS = 1.0
EQUAL_SUM_BAR, FOUR_SUM_BAR, JAIN_BAR = 0.97, 0.96, 0.999
WAITING_BAR, WAITING_MARGIN = 0.45, 0.05
ALONE_BAR, THREADS_BAR = 0.995, 0.95
BATCH_BAR = 0.85
P99_BARS = {500: 1.35, 100: 1.2}
"""Times alone's, by the microseconds of the neighbours' kernels."""
CHANGED_BAR_POINTS, CHANGED_MS, CHANGED_FOR_MS = 5.0, 150, 1000
RUNS_AGAIN_BAR_S = 1.5


@dataclass(frozen=True, slots=True)
class Share:
    """A load's share, over the whole run and in any second of it, as ratios."""

    mean: float
    low: float
    high: float

    def beyond(self, expected: float) -> tuple[float, float]:
        """Return how far it is from what was expected, over the run and in the worst second, in points."""
        worst = max(abs(self.low - expected), abs(self.high - expected))
        return 100 * abs(self.mean - expected), 100 * worst

    def __str__(self) -> str:
        return f"{self.mean:.2%} ({self.low:.1%} to {self.high:.1%})"


def alone(runs: Sequence[Run], label: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the loads that did a job alone, each with the number of its run."""
    pairs = (
        (index, load) for index, run in enumerate(runs) if run["role"] == "alone" for load in run["loads"].values()
    )
    return [(index, load) for index, load in pairs if load["job"] == label]


def alone_rate(runs: Sequence[Run], index: int, label: str) -> float:
    """Return what a job does alone around the run of this number: in the runs next to it, before and after."""
    found = alone(runs, label)
    before, after = [load for at, load in found if at < index][-1:], [load for at, load in found if at > index][:1]
    return statistics.fmean(load["rate"] for load in before + after)


def shares(runs: Sequence[Run], index: int) -> dict[str, Share]:
    """Return every load's share in the run of this number."""
    found = {}
    for name, load in runs[index]["loads"].items():
        base = alone_rate(runs, index, load["job"])
        found[name] = Share(load["rate"] / base, load["low"] / base, load["high"] / base)
    return found


def noise(runs: Sequence[Run], label: str | None = None) -> float:
    """Return how far two runs alone that follow each other are apart, as a part of their mean: the worst; 1: not known.

    Of one job, or of all.
    """
    worst = 0.0
    for job in {load["job"] for run in runs for load in run["loads"].values()} if label is None else {label}:
        rates = [load["rate"] for _, load in alone(runs, job)]
        apart = [abs(one - other) for one, other in itertools.pairwise(rates)]
        worst = max(worst, max(apart) / statistics.fmean(rates) if apart else 1.0)
    return worst


def held(runs: Sequence[Run], label: str) -> float:
    """Return h: the fraction of the time in which a job holds the card when it is alone."""
    return min(1.0, statistics.fmean(load["held"] for _, load in alone(runs, label)))


def cap_bars(caps: dict[str, int], runs: Sequence[Run]) -> Judged:
    """Judge one load under several caps, one after the other, and without one."""
    spread, bars, gap, seen = noise(runs), [], *_unlimited(runs)
    for index, name, share in _each(runs, "with"):
        label = runs[index]["loads"][name]["job"]
        h = held(runs, label)
        expected = min(1.0, caps[name] / 100 / h)
        error, second = share.beyond(expected)
        unsure = 100 * spread * expected
        over_all, any_second = (
            near(error, CAP_BAR_POINTS, unsure, gap),
            near(second, CAP_SECOND_BAR_POINTS, unsure, gap),
        )
        asked = f"{expected:.1%}, within {CAP_BAR_POINTS:g} point, {CAP_SECOND_BAR_POINTS:g} in any second"
        detail = f"{error:.2f} off, {second:.2f} in a second; h {h:.3f}; A/A {unsure:.2f}; no cap {seen}"
        detail += f"; had the card for {runs[index]['possessed'][name]:.1%}"
        bars.append(Bar(f"cap {caps[name]} %: {label}", asked, str(share), _worse(over_all, any_second), detail))
    return bars, []


def crowd_bars(caps: dict[str, int], runs: Sequence[Run]) -> Judged:
    """Judge a tenant of several processes that are killed, without a supervisor; alone they are killed as well."""
    spread, gap, seen = noise(runs), *_unlimited(runs)
    found = list(_each(runs, "with"))
    name = found[0][1]
    expected = caps[name] / 100
    error = max(share.beyond(expected)[0] for _, _, share in found)
    kills = [kill for run in runs if run["role"] == "with" for kill in run["events"]["kills"]]
    leaders = sum(kill["leader"] for kill in kills)
    gap = gap or (None if leaders else "no leader was killed")
    verdict = near(error, CAP_BAR_POINTS, 100 * spread * expected, gap)
    had = ", ".join(f"{runs[index]['possessed'][name]:.1%}" for index, _, _ in found)
    detail = f"{error:.2f} off; {len(kills)} killed, {leaders} of them leading; A/A {100 * spread * expected:.2f}"
    detail += f"; had the card for {had}; no cap {seen}"
    title = f"cap {caps[name]} %: eight processes, no supervisor, killed every second"
    bar = Bar(title, f"{expected:.1%}, within {CAP_BAR_POINTS:g} point", _list(found), verdict, detail)
    calm = [load["rate"] for run in runs if run["role"] == "calm" for load in run["loads"].values()]
    shown = [["crowd, nobody killed, of what it does alone", f"{calm[1] / calm[0]:.2%}"]] if calm else []
    return [bar], shown


def two_cap_bars(caps: dict[str, int], runs: Sequence[Run]) -> Judged:
    """Judge two saturating tenants with different caps; without them they must not come out like that."""
    spread, bars, off = noise(runs), [], list(_each(runs, "off"))
    for (_, _, free), (name, cap) in zip(off, caps.items(), strict=True):
        found = [one for one in _each(runs, "with") if one[1] == name]
        error = max(share.beyond(cap / 100)[0] for _, _, share in found)
        like = abs(100 * free.mean - cap) < UNLIMITED_POINTS
        gap = f"without caps {free.mean:.1%}" if like else None
        unsure = spread * cap
        verdict = near(error, CAP_BAR_POINTS, unsure, gap)
        detail = f"{error:.2f} off; A/A {unsure:.2f}; no cap {free.mean:.1%}"
        asked = f"{cap} %, within {CAP_BAR_POINTS:g} point"
        bars.append(Bar(f"two saturating, caps {_all(caps.values())}: {name}", asked, _list(found), verdict, detail))
    return bars, []


def split_bars(weights: dict[str, int], runs: Sequence[Run]) -> Judged:
    """Judge how tenants split the card by weight; with the other weights they have to split it otherwise."""
    spread, whole = noise(runs), sum(weights.values())
    errors, sums, texts = [], [], []
    for index in _indexes(runs, "with"):
        found = shares(runs, index)
        total = sum(share.mean for share in found.values())
        errors.append(max(100 * abs(found[name].mean / total - weight / whole) for name, weight in weights.items()))
        sums.append(total)
        texts.append(" : ".join(f"{100 * share.mean / total:.2f}" for share in found.values()))
    off = shares(runs, _indexes(runs, "off")[0])
    first = next(iter(weights.values())) / whole
    other = next(iter(off.values())).mean / sum(share.mean for share in off.values())
    gap = f"other weights split alike, {other:.1%}" if abs(other - first) * 100 < UNLIMITED_POINTS else None
    title = f"two saturating, weights {_all(weights.values(), ':')}"
    asked = (
        f"{' : '.join(f'{100 * weight / whole:g}' for weight in weights.values())}, within {SPLIT_BAR_POINTS:g} point"
    )
    detail = f"{max(errors):.2f} off; A/A {50 * spread:.2f}; other weights {other:.1%}"
    bars = [
        Bar(f"{title}: split", asked, ", ".join(texts), near(max(errors), SPLIT_BAR_POINTS, 50 * spread, gap), detail)
    ]
    bars.append(_sum_bar(title, sums, EQUAL_SUM_BAR, spread))
    return bars, []


def four_bars(runs: Sequence[Run]) -> Judged:
    """Judge four equal tenants: how even they come out, and what they do together."""
    found = [[share.mean for share in shares(runs, index).values()] for index in _indexes(runs, "with")]
    index, spread, title = min(jain(one) for one in found), noise(runs), "four saturating, equal"
    texts = "; ".join(" ".join(f"{share:.3f}" for share in one) for one in found)
    verdict: Verdict = "pass" if index >= JAIN_BAR else "fail"
    bar = Bar(f"{title}: Jain index", f"at least {JAIN_BAR:g}", f"{index:.5f}", verdict, texts)
    return [bar, _sum_bar(title, [sum(one) for one in found], FOUR_SUM_BAR, spread)], []


def waiting_bars(name: str, runs: Sequence[Run]) -> Judged:
    """Judge the share of a tenant that waits for each kernel beside one that does not."""
    found = [shares(runs, index) for index in _indexes(runs, "with")]
    worst, spread = min(one[name].mean for one in found), noise(runs)
    texts = "; ".join(_beside(one) for one in found)
    verdict = at_least(worst, WAITING_BAR, WAITING_MARGIN, spread * worst)
    title = "waits for each 500 us kernel, beside one with eight queued"
    return [Bar(title, f"at least {WAITING_BAR:g}", f"{worst:.3f}", verdict, f"{texts}; A/A {spread:.4f}")], []


def ratio_bars(title: str, bar: float, runs: Sequence[Run]) -> Judged:
    """Judge the rate of jobs in a tenant that is alone against native, job by job; many short pairs by their median."""
    bars = []
    for label in dict.fromkeys(load["job"] for run in runs for load in run["loads"].values()):
        own = [run for run in runs if any(load["job"] == label for load in run["loads"].values())]
        ratios = [share.mean for _, _, share in _each(own, "with")]
        if len(ratios) >= MINIMUM_ROUNDS:
            measured, verdict, detail = _paired([load["rate"] for _, load in alone(own, label)], ratios, bar)
        else:
            spread, mean = noise(own), statistics.fmean(ratios)
            measured = f"{mean:.4f} ({', '.join(f'{ratio:.4f}' for ratio in ratios)})"
            verdict, detail = at_least(mean, bar, 1 - bar, spread), f"A/A {spread:.4f}"
        bars.append(Bar(f"{title}: {label}", f"at least {bar:g} of native", measured, verdict, detail))
    return bars, []


def _paired(alone_rates: Sequence[float], ratios: Sequence[float], bar: float) -> tuple[str, Verdict, str]:
    slower = median_interval([1 / ratio for ratio in ratios])
    again = median_interval([one / other for one, other in itertools.pairwise(alone_rates)])
    verdict, why = judge(Comparison("ratio", slower, again, median_interval(alone_rates)), 1 / bar)
    text = f"{1 / slower.median:.4f} (95 % of {len(ratios)} pairs: {1 / slower.high:.4f} to {1 / slower.low:.4f})"
    return text, verdict, f"{why}; A/A {again.low:.4f} to {again.high:.4f}"


def eager_bars(name: str, runs: Sequence[Run]) -> Judged:
    """Judge what a tenant does, capped far above what it needs, whose kernels come more slowly than the card works; and
    show what two do together."""
    own = [run for run in runs if run["role"] == "alone" or name in run["loads"]]
    bars, _ = ratio_bars("many small kernels, windowed by a cap of 99 %", THREADS_BAR, own)
    pairs = [index for index in _indexes(runs, "with") if name not in runs[index]["loads"]]
    return bars, [_together("two of them", runs, index) for index in pairs]


def decode_bars(runs: Sequence[Run]) -> Judged:
    """Show what two engines that generate get done together, with equal weights and with caps."""
    return [], [_together("two that decode", runs, index) for index in _indexes(runs, "with")]


def latency_bars(name: str, runs: Sequence[Run]) -> Judged:
    """Judge the latency of requests beside tenants that saturate the card, and what these get of the rest."""
    label = next(load["job"] for run in runs for load in run["loads"].values() if load["latencies_ms"])
    by_run = [load["latencies_ms"] for _, load in alone(runs, label)]
    base = percentile([one for each in by_run for one in each], 99)
    p99s = [percentile(each, 99) for each in by_run]
    spread, h = max(p99s) / min(p99s) - 1, held(runs, label)
    bars, rows = [], []
    for index in _indexes(runs, "with"):
        loads, found = runs[index]["loads"], shares(runs, index)
        batch = [share for other, share in found.items() if other != name]
        beside = next(load for other, load in loads.items() if other != name)
        latencies = loads[name]["latencies_ms"]
        p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
        title = f"latency class beside {len(batch)} x {beside['job']}"
        measured = f"{p99 / base:.2f} x (p50 {p50:.2f}, p99 {p99:.2f} ms of {len(latencies)})"
        us = beside["length_ns"] // 1000
        if us in P99_BARS:
            bar = P99_BARS[us]
            verdict = near(p99 / base - 1, bar - 1, spread)
            detail = f"alone p99 {base:.2f} ms, A/A {spread:.3f}"
            bars.append(Bar(f"{title}: p99", f"at most {bar:g} x alone's", measured, verdict, detail))
        else:
            rows.append([f"{title}: p99", measured])
        left = 1 - h * min(1.0, found[name].mean)
        part = sum(share.mean for share in batch) / left
        verdict = at_least(part, BATCH_BAR, 1 - BATCH_BAR, noise(runs, beside["job"]))
        asked, detail = f"at least {BATCH_BAR:.0%} of what is left", f"left {left:.3f}; h {h:.3f}"
        if us in P99_BARS:
            bars.append(Bar(f"{title}: the others", asked, f"{part:.1%}", verdict, detail))
        else:
            rows.append([f"{title}: the others", f"{part:.1%}"])
    return bars, rows


def change_bars(before: int, cap: int, runs: Sequence[Run]) -> Judged:
    """Judge how soon a lower cap holds: in each window of 50 ms from 150 ms after the call returned on."""
    rows, worst, texts, gap = [], 0.0, [], None
    for index in _indexes(runs, "with"):
        load = next(iter(runs[index]["loads"].values()))
        base = alone_rate(runs, index, load["job"])
        for change in runs[index]["events"]["changes"]:
            windows = [(at * change["window_ms"], 100 * rate / base) for at, rate in enumerate(change["windows"])]
            off = [(ms, abs(share - cap)) for ms, share in windows]
            worst = max([worst, *(error for ms, error in off if CHANGED_MS <= ms < CHANGED_MS + CHANGED_FOR_MS)])
            first = 100 * change["before"] / base
            if abs(first - before) > 2 * CHANGED_BAR_POINTS:
                gap = f"it read {first:.1f} % under a cap of {before} %"
            settled = max((ms + change["window_ms"] for ms, error in off if error > CHANGED_BAR_POINTS), default=0)
            mean = statistics.fmean(share for ms, share in windows if CHANGED_MS <= ms < CHANGED_MS + 250)
            texts.append(f"{settled} ms")
            text = " ".join(f"{share:.0f}" for _, share in windows)
            rows.append([f"cap to {cap} % by {change['how']}, shares each {change['window_ms']} ms", text])
            rows.append(["its mean from 150 to 400 ms", f"{mean:.1f} %; the call took {change['call_s'] * 1e3:.0f} ms"])
    asked = f"within {CHANGED_BAR_POINTS:g} points {CHANGED_MS} ms after it was said, in each 50 ms"
    measured = f"{worst:.1f} points off at worst; settled for good after {', '.join(texts)}"
    verdict = near(worst, CHANGED_BAR_POINTS, noise(runs) * cap, gap)
    return [Bar(f"cap changed from {before} to {cap} %", asked, measured, verdict, gap or "")], rows


def killed_bars(caps: dict[str, int], runs: Sequence[Run]) -> Judged:
    """Judge what becomes of tenants whose supervisor was killed while their gates were closed."""
    pauses, gates, off, gap = [], [], [], None
    for index in _indexes(runs, "with"):
        events = runs[index]["events"]
        gates.append(" ".join(events["gates"].values()))
        for name, cap in caps.items():
            found = events["loads"][name]
            base = alone_rate(runs, index, runs[index]["loads"][name]["job"])
            pauses.append(found["pause_s"])
            off.append(100 * found["after"] / base - cap)
            before = 100 * found["before"] / base
            if abs(before - cap) > UNLIMITED_POINTS:
                gap = f"{name} read {before:.1f} % before"
    if not any("closed" in gate for gate in gates):
        gap = "no gate was closed"
    title, unsure = "supervisor killed", noise(runs) * max(caps.values())
    detail = f"{gap or ''}{'; ' if gap else ''}gates: {'; '.join(gates)}"
    again = Bar(f"{title}: everyone runs again", f"within {RUNS_AGAIN_BAR_S:g} s", f"{max(pauses):.2f} s at worst",
                near(max(pauses), RUNS_AGAIN_BAR_S, 0.0, gap), detail)  # fmt: skip
    asked = f"no more than {CAP_BAR_POINTS:g} point above it, in the 5 s after"
    measured = f"{max(off):+.2f} points at most, {min(off):+.2f} at least"
    held_bar = Bar(f"{title}: caps {_all(caps.values())} hold", asked, measured,
                   near(max(off), CAP_BAR_POINTS, unsure, gap), f"A/A {unsure:.2f}")  # fmt: skip
    return [again, held_bar], []


def native_rows(name: str, runs: Sequence[Run]) -> list[list[str]]:
    """Return what the driver alone makes of the loads of a row: shares, their sum, latencies."""
    rows = []
    for index in _indexes(runs, "with"):
        found = shares(runs, index)
        text = _beside(found)
        if not any(load["latencies_ms"] for load in runs[index]["loads"].values()):
            text += f"; sum {sum(share.mean for share in found.values()):.3f}"
        for load in runs[index]["loads"].values():
            if load["latencies_ms"]:
                base = percentile([one for _, other in alone(runs, load["job"]) for one in other["latencies_ms"]], 99)
                p99 = percentile(load["latencies_ms"], 99)
                text += f"; p99 {p99:.2f} ms, {p99 / base:.2f} x alone's"
        jobs = ", ".join(dict.fromkeys(load["job"] for load in runs[index]["loads"].values()))
        rows.append([f"{name}: {jobs}", f"{text}; A/A {noise(runs):.4f}"])
    return rows


def _indexes(runs: Sequence[Run], role: str) -> list[int]:
    return [index for index, run in enumerate(runs) if run["role"] == role]


def _each(runs: Sequence[Run], role: str) -> Iterator[tuple[int, str, Share]]:
    for index in _indexes(runs, role):
        for name, share in shares(runs, index).items():
            yield index, name, share


def _unlimited(runs: Sequence[Run]) -> tuple[str | None, str]:
    """Return why the run without a cap does not read as unlimited, None where it does, and what it reads."""
    mean = statistics.fmean(share.mean for _, _, share in _each(runs, "off"))
    reads = f"{mean:.1%}"
    return (None if abs(100 * mean - 100) <= UNLIMITED_POINTS else f"without a cap it reads {reads}"), reads


def _sum_bar(title: str, sums: Sequence[float], bar: float, spread: float) -> Bar:
    verdict = at_least(min(sums), bar, 1 - bar, spread)
    measured = ", ".join(f"{total:.3f}" for total in sums)
    return Bar(f"{title}: sum", f"at least {bar:g}", measured, verdict, f"A/A {spread:.4f}")


def _worse(one: Verdict, other: Verdict) -> Verdict:
    order: tuple[Verdict, ...] = ("fail", "not resolved", "pass")
    return min(one, other, key=order.index)


def _list(found: Sequence[tuple[int, str, Share]]) -> str:
    return ", ".join(str(share) for _, _, share in found)


def _together(title: str, runs: Sequence[Run], index: int) -> list[str]:
    found, card = shares(runs, index), runs[index]["card"]
    busy = ", ".join(f"{card[k]:.0%} by {who}" for k, who in (("engine", "GPM"), ("utilization", "NVML")) if k in card)
    text = f"{_beside(found)}: {sum(share.mean for share in found.values()):.3f}; card busy {busy}"
    return [f"{title}, {' and '.join(found)}", text]


def _beside(found: dict[str, Share]) -> str:
    return " + ".join(f"{share.mean:.3f}" for share in found.values())


def _all(values: Any, between: str = " and ") -> str:
    return between.join(str(value) for value in values)
