"""The program that measures how GPU time is shared: its arithmetic, its verdicts, and that it comes to its end."""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from bench.measure import MINIMUM_ROUNDS, at_least, jain, near, percentile
from bench.process import TOP, run
from bench.share_bars import (
    cap_bars,
    change_bars,
    crowd_bars,
    decode_bars,
    eager_bars,
    four_bars,
    killed_bars,
    latency_bars,
    noise,
    ratio_bars,
    shares,
    split_bars,
    two_cap_bars,
    waiting_bars,
)
from bench.share_load import FINISHED, PID, SECOND_NS, UNTIL_NS, LoadFile, Series, saturate, seconds
from bench.share_rows import REF, deal, rows, seconds_of

JOB = "saturate 500 us"
EVEN = Series((0, 2 * SECOND_NS, 4 * SECOND_NS), (0, 2 * SECOND_NS, 2 * SECOND_NS), (0, 4, 4), (0, 0, 0))
"""A second's work each second for two seconds, and nothing for two more."""


def load(rate: float, job: str = JOB, spread: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return what a load did, with seconds that were so much above and below its mean."""
    usual = {"job": job, "length_ns": 500_000, "rate": rate, "low": rate - spread, "high": rate + spread}
    return {**usual, "held": 1.0, "latencies_ms": [], **more}


def done(role: str, events: dict[str, Any] | None = None, **loads: dict[str, Any]) -> dict[str, Any]:
    """Return a run, as share_measure.take does."""
    usual = {"card": {"utilization": 0.99, "engine": 0.9}, "possessed": dict.fromkeys(loads, 0.304)}
    return {"role": role, "seconds": 5.0, "loads": loads, "events": events or {}, **usual}


def alone(rate: float = 1.0, **more: Any) -> dict[str, Any]:
    """Return a run of the native load."""
    return done("alone", **{REF: load(rate, **more)})


def verdicts(judged: tuple[list[Any], list[list[str]]]) -> list[str]:
    """Return the verdicts of all bars."""
    return [bar.verdict for bar in judged[0]]


def test_work_goes_on_evenly_between_two_notes() -> None:
    assert [EVEN.done(ns) for ns in (-1, 0, SECOND_NS, 3 * SECOND_NS, 9 * SECOND_NS)] == [0, 0, 1e9, 2e9, 2e9]
    assert EVEN.rate(SECOND_NS, 3 * SECOND_NS) == 0.5
    assert EVEN.rate(0, SECOND_NS, "kernels") == 2e-9


def test_any_second_begins_each_tenth() -> None:
    assert seconds([EVEN], SECOND_NS, 3 * SECOND_NS) == pytest.approx([1 - n / 10 for n in range(11)])


def test_pause_is_the_longest_time_without_work() -> None:
    series = Series((0, 10, 20, 70, 80), (0, 5, 10, 10, 15), (0, 0, 0, 0, 0), (0, 0, 0, 0, 0))

    assert series.longest_pause_s(0, 100) == 60e-9
    assert series.longest_pause_s(0, 300) == 220e-9


def test_share_is_against_the_runs_alone_next_to_it() -> None:
    runs = [alone(1.0), done("with", a=load(0.3)), alone(2.0), done("with", a=load(0.5)), alone(2.0)]

    assert shares(runs, 1)["a"].mean == pytest.approx(0.2)
    assert shares(runs, 3)["a"].mean == 0.25
    assert noise(runs) == pytest.approx(1 / (5 / 3))
    assert noise(runs[:2]) == 1.0


def test_percentile_is_a_value_that_was_seen() -> None:
    values = [float(n) for n in range(200, 0, -1)]

    assert [percentile(values, percent) for percent in (50, 99, 100)] == [100, 198, 200]
    assert percentile([3.0], 99) == 3.0


def test_jain() -> None:
    assert jain([0.2] * 4) == pytest.approx(1)
    assert jain([1.0, 0, 0, 0]) == 0.25


@pytest.mark.parametrize(
    ("error", "unsure", "gap", "verdict"),
    [
        (0.9, 0.2, None, "pass"),
        (1.1, 0.2, None, "fail"),
        (0.9, 1.0, None, "not resolved"),
        (0.9, 0.2, "why", "not resolved"),
        (1.3, 0.2, "why", "fail"),
    ],
)
def test_errors_against_noise(error: float, unsure: float, gap: str | None, verdict: str) -> None:
    assert near(error, 1.0, unsure, gap) == verdict


@pytest.mark.parametrize(
    ("value", "unsure", "verdict"),
    [(0.996, 0.001, "pass"), (0.994, 0.0005, "fail"), (0.996, 0.006, "not resolved"), (1.02, 0.001, "pass")],
)
def test_values_to_reach(value: float, unsure: float, verdict: str) -> None:
    assert at_least(value, 0.995, 0.005, unsure) == verdict


@pytest.mark.parametrize(
    ("capped", "spread", "free", "h", "verdict"),
    [
        (0.259, 0.01, 1.0, 1.0, "pass"),
        (0.261, 0.01, 1.0, 1.0, "fail"),
        (0.250, 0.031, 1.0, 1.0, "fail"),
        (0.250, 0.01, 0.9, 1.0, "not resolved"),
        (0.500, 0.01, 1.0, 0.5, "pass"),
        (1.000, 0.01, 1.0, 0.2, "pass"),
    ],
)
def test_cap(capped: float, spread: float, free: float, h: float, verdict: str) -> None:
    ref = alone(held=h)
    runs = [ref, done("with", cap25=load(capped, spread=spread)), ref, done("off", free=load(free)), ref]

    assert verdicts(cap_bars({"cap25": 25}, runs)) == [verdict]


def test_noise_of_a_cap_is_in_points_of_it() -> None:
    def judged(cap: int) -> list[str]:
        with_ = done("with", one=load(cap / 100))
        return verdicts(cap_bars({"one": cap}, [alone(1.01), with_, alone(0.99), done("off", one=load(1)), alone()]))

    assert judged(25) == ["pass"]
    assert judged(75) == ["not resolved"]


@pytest.mark.parametrize(
    ("share", "leaders", "verdict"),
    [(0.305, 1, "pass"), (0.32, 1, "fail"), (0.305, 0, "not resolved")],
)
def test_crowd(share: float, leaders: int, verdict: str) -> None:
    kills = {"kills": [{"at_s": 1.0, "leader": number < leaders} for number in range(2)]}
    runs = [alone(), done("with", kills, crowd=load(share)), alone(), done("off", free=load(1.0)), alone()]

    judged = crowd_bars({"crowd": 30}, runs)
    assert verdicts(judged) == [verdict]
    assert "had the card for 30.4%" in judged[0][0].detail
    calm = [done("calm", native=load(0.8)), done("calm", crowd=load(0.25))]
    shown = [["crowd, nobody killed, of what it does alone", "31.25%"]]
    assert crowd_bars({"crowd": 30}, [*runs, *calm]) == (judged[0], shown)


def test_what_two_do_together_is_shown_beside_how_busy_the_card_was() -> None:
    one = {"one": load(0.9), "two": load(0.8)}
    runs = [alone(), done("with", windowed=load(1.0)), alone(), done("with", **one), alone()]

    said = "0.900 + 0.800: 1.700; card busy 90% by GPM, 99% by NVML"
    assert eager_bars("windowed", runs)[1] == [["two of them, one and two", said]]
    assert decode_bars(runs[2:]) == ([], [["two that decode, one and two", said]])


@pytest.mark.parametrize(
    ("found", "free", "expected"),
    [
        ((0.30, 0.60), (0.45, 0.45), ["pass", "pass"]),
        ((0.30, 0.58), (0.45, 0.45), ["pass", "fail"]),
        ((0.30, 0.60), (0.33, 0.45), ["not resolved", "pass"]),
    ],
)
def test_two_caps(found: tuple[float, float], free: tuple[float, float], expected: list[str]) -> None:
    with_ = done("with", s30=load(found[0]), s60=load(found[1]))
    off = done("off", n1=load(free[0]), n2=load(free[1]))

    assert verdicts(two_cap_bars({"s30": 30, "s60": 60}, [alone(), with_, alone(), off, alone()])) == expected


@pytest.mark.parametrize(
    ("found", "other", "expected"),
    [
        ((0.245, 0.735), (0.5, 0.5), ["pass", "pass"]),
        ((0.260, 0.715), (0.5, 0.5), ["fail", "pass"]),
        ((0.240, 0.720), (0.5, 0.5), ["pass", "fail"]),
        ((0.245, 0.735), (0.25, 0.75), ["not resolved", "pass"]),
    ],
)
def test_split(found: tuple[float, float], other: tuple[float, float], expected: list[str]) -> None:
    with_ = done("with", w1=load(found[0]), w3=load(found[1]))
    off = done("off", n1=load(other[0]), n2=load(other[1]))

    assert verdicts(split_bars({"w1": 1, "w3": 3}, [alone(), with_, alone(), off, alone()])) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [([0.243] * 4, ["pass", "pass"]), ([0.22, 0.25, 0.25, 0.25], ["fail", "pass"]), ([0.23] * 4, ["pass", "fail"])],
)
def test_four(found: list[float], expected: list[str]) -> None:
    with_ = done("with", **{f"n{number}": load(share) for number, share in enumerate(found)})

    assert verdicts(four_bars([alone(), with_, alone(), with_])) == expected


@pytest.mark.parametrize(("share", "verdict"), [(0.46, "pass"), (0.44, "fail")])
def test_waiting(share: float, verdict: str) -> None:
    refs = [alone(), alone(job="wait 500 us")]
    with_ = done("with", n1=load(share, "wait 500 us"), n2=load(0.5))

    assert verdicts(waiting_bars("n1", [*refs, with_, *refs, with_])) == [verdict]


@pytest.mark.parametrize(("rate", "verdict"), [(0.996, "pass"), (0.99, "fail")])
def test_ratio(rate: float, verdict: str) -> None:
    runs = [alone(), done("with", lone=load(rate)), alone(1.001), done("with", lone=load(rate))]

    assert verdicts(ratio_bars("alone", 0.995, runs)) == [verdict]


@pytest.mark.parametrize(("rate", "apart", "verdict"), [
    (0.97, 0.01, "pass"), (0.93, 0.01, "fail"), (0.97, 0.2, "not resolved"), (0.50, 0.2, "fail"),
])  # fmt: skip
def test_ratio_of_many_pairs(rate: float, apart: float, verdict: str) -> None:
    pairs = [(alone(1 + apart * (number % 3)), done("with", lone=load(rate))) for number in range(MINIMUM_ROUNDS)]

    assert verdicts(ratio_bars("threads", 0.95, [run for pair in pairs for run in pair])) == [verdict]


def test_one_bad_run_hides_few_pairs_but_not_many() -> None:
    pairs = [(alone(), done("with", lone=load(0.97))) for _ in range(MINIMUM_ROUNDS)]
    pairs[3] = (alone(1.5), pairs[3][1])

    few, many = ([run for pair in pairs[:count] for run in pair] for count in (5, MINIMUM_ROUNDS))

    assert verdicts(ratio_bars("threads", 0.95, few)) == ["not resolved"]
    assert verdicts(ratio_bars("threads", 0.95, many)) == ["pass"]


@pytest.mark.parametrize(
    ("p99", "batch", "us", "expected"),
    [
        (2.6, 0.80, 500, ["pass", "pass"]),
        (2.9, 0.80, 500, ["fail", "pass"]),
        (2.6, 0.80, 100, ["fail", "pass"]),
        (2.6, 0.70, 500, ["pass", "fail"]),
        (9.9, 0.10, 5000, []),
    ],
)
def test_latency(p99: float, batch: float, us: int, expected: list[str]) -> None:
    job = "burst"
    burst = alone(0.1, job=job, held=0.1, latencies_ms=[2.0] * 100)
    ref = alone(length_ns=us * 1000)
    beside = {f"b{number}": load(batch / 2, length_ns=us * 1000) for number in range(2)}
    with_ = done("with", latency=load(0.1, job, latencies_ms=[2.0] * 98 + [p99] * 2), **beside)

    bars, shown = latency_bars("latency", [burst, ref, with_, ref, burst])

    assert [bar.verdict for bar in bars] == expected
    assert len(bars) + len(shown) == 2


@pytest.mark.parametrize(
    ("windows", "before", "verdict"),
    [
        ([0.6, 0.4, 0.3] + [0.2] * 27, 0.6, "pass"),
        ([0.6, 0.4, 0.3, 0.26] + [0.2] * 26, 0.6, "fail"),
        ([0.2] * 30, 0.2, "not resolved"),
    ],
)
def test_change(windows: list[float], before: float, verdict: str) -> None:
    change = {"how": "request", "call_s": 0.002, "before": before, "window_ms": 50, "windows": windows}
    runs = [alone(), done("with", {"changes": [change]}, changing=load(0.4)), alone()]

    assert verdicts(change_bars(60, 20, runs)) == [verdict]


@pytest.mark.parametrize(
    ("before", "pause_s", "after", "gate", "expected"),
    [
        (0.30, 1.2, 0.305, "closed", ["pass", "pass"]),
        (0.30, 1.2, 0.250, "closed", ["pass", "pass"]),
        (0.30, 1.6, 0.300, "closed", ["fail", "pass"]),
        (0.30, 1.2, 0.320, "closed", ["pass", "fail"]),
        (0.30, 1.2, 0.300, "free", ["not resolved", "not resolved"]),
        (1.00, 0.1, 1.000, "closed", ["not resolved", "fail"]),
    ],
)
def test_killed(before: float, pause_s: float, after: float, gate: str, expected: list[str]) -> None:
    seen = {"before": before, "pause_s": pause_s, "after": after}
    events = {"gates": {"s30": gate}, "loads": {"s30": seen}}
    runs = [alone(), done("with", events, s30=load(0.3)), alone()]

    assert verdicts(killed_bars({"s30": 30}, runs)) == expected


def test_rows_are_dealt_once_in_parts_under_eight_minutes() -> None:
    every = rows()

    for parts in (2, 3, 4):
        dealt = deal(every, parts)
        names = [row.name for part in dealt for row in part]
        assert sorted(names) == sorted(row.name for row in every)
        assert len(set(names)) == len(names)
        assert all(seconds_of(part) < 480 for part in dealt)


def test_every_job_is_done_alone_in_its_own_row() -> None:
    for row in rows():
        members = {member.name for member in row.pool.members}
        jobs = {job for step in row.steps for _, job in step.jobs}
        alone_jobs = {job for step in row.steps if step.role == "alone" for _, job in step.jobs}
        assert alone_jobs == jobs, row.name
        assert {name for step in row.steps for name, _ in step.jobs} <= members


def test_training_counts_its_steps_and_short_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def __init__(self, at_ms: float) -> None:
            self.at_ms = at_ms

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return other.at_ms - self.at_ms

    class Training:
        """Steps of 10 ms, the pauses before which are 0.1 and 2 ms."""

        def __init__(self, file: LoadFile) -> None:
            self.file = file
            self.left = [(0.0, 10.0), (10.1, 20.1), (22.1, 32.1)]

        def step(self) -> tuple[Event, Event]:
            before, after = self.left.pop(0)
            if not self.left:
                self.file.set(UNTIL_NS, 0)
            return Event(before), Event(after)

    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    share_torch = importlib.import_module("bench.share_torch")
    file = LoadFile(tmp_path / "load")
    file.give(saturate(1), 0, time.monotonic_ns() + 60 * SECOND_NS)

    share_torch.work(Training(file), share_torch.Account(file))

    series = file.series(0)
    assert series.kernels == (0, 1, 2, 3)
    assert series.held_ns == pytest.approx((0, 10_000_000, 20_100_000, 30_100_000), abs=10)
    assert (file.finished(), file.word(PID), file.word(FINISHED)) == (False, 0, 0)


def test_it_comes_to_its_end_on_the_simulated_card(programs: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench.share", "--sim", "--programs", str(programs), "--out", str(tmp_path)]
    small = ["--seconds=1", "--alone=1", "--rounds=1", "--only", "waiting", "four", "crowd", "caps-torch"]

    ended = run([*argv, *small], {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)}, 300)

    assert (tmp_path / "share.json").exists(), ended.stdout + ended.stderr
    document = json.loads((tmp_path / "share.json").read_text())
    missing = {one["row"]: one["reason"] for one in document["unmeasured"]}
    assert [row["name"] for row in document["rows"]] == ["crowd", "four", "waiting"], missing
    assert missing.pop("caps-torch") == "PyTorch does not run on the simulated card"
    assert set(missing.values()) == {"not asked for"}
    assert all(load["rate"] > 0 for row in document["rows"] for one in row["runs"] for load in one["loads"].values())
    assert str(tmp_path) not in (tmp_path / "share.json").read_text()


def test_gangs_go_on_side_by_side_on_simulated_cards(programs: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench.gang", "--sim", "--programs", str(programs), "--out", str(tmp_path)]

    ended = run([*argv, "--seconds=2"], {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)}, 120)

    assert (tmp_path / "gang.json").exists(), ended.stdout + ended.stderr
    document = json.loads((tmp_path / "gang.json").read_text())
    assert document["shared"]["faults"] == []
    assert document["shared"]["longest_s"] < 5
    assert document["shared"]["slots"] > 4
    assert min(document["shared"]["rates"]) > 0
