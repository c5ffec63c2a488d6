"""The arithmetic behind the figures: intervals, verdicts, what a row or a view amounts to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from bench.allocators import ALLOCATORS
from bench.machine import GIB, MIB
from bench.measure import compare, judge, median_interval, orders
from bench.process import Ended
from bench.report import markdown
from bench.sampler import Sample, Trace
from bench.status import TenantStatus
from bench.storm import BEAT_BYTES, HELD_BYTES, mismatch
from bench.verdicts import Row, bars_of

NATIVE = [100.0 + i % 3 for i in range(24)]


def test_interval_of_twenty_is_the_sixth_and_the_fifteenth() -> None:
    interval = median_interval([float(n) for n in range(1, 21)])

    assert (interval.median, interval.low, interval.high) == (10.5, 6.0, 15.0)
    assert interval.confidence == pytest.approx(0.9586, abs=1e-4)


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    luck = random.Random(5)
    trials = [median_interval([luck.gauss(0, 1) for _ in range(21)]) for _ in range(4000)]

    covered = sum(trial.low <= 0 <= trial.high for trial in trials) / len(trials)

    assert covered >= 0.95 - 0.011


def test_few_values_say_how_little_they_are_sure() -> None:
    interval = median_interval([3.0, 1.0, 2.0])

    assert (interval.low, interval.high, interval.confidence) == (1.0, 3.0, 0.75)


def test_each_role_is_as_often_first_as_last() -> None:
    rounds = list(orders(24))

    assert Counter(order[0] for order in rounds) == Counter({"N": 8, "H": 8, "A": 8})
    assert all(order == other[::-1] for order, other in zip(rounds[::2], rounds[1::2], strict=True))


@pytest.mark.parametrize(
    ("factor", "noise", "limit", "verdict"),
    [
        (1.01, 0.001, 1.03, "pass"),
        (1.05, 0.001, 1.03, "fail"),
        (1.01, 0.08, 1.03, "not resolved"),
        (1.50, 0.08, 1.03, "fail"),
        (0.10, 0.05, 1.00, "pass"),
        (1.40, 0.05, 1.00, "fail"),
    ],
)
def test_verdicts(factor: float, noise: float, limit: float, verdict: str) -> None:
    luck = random.Random(11)
    shaky = [value * luck.uniform(1 - noise, 1 + noise) for value in NATIVE]

    comparison = compare(NATIVE, [value * factor for value in NATIVE], shaky, "ratio")

    assert judge(comparison, limit)[0] == verdict


def test_too_few_rounds_resolve_nothing() -> None:
    comparison = compare(NATIVE[:8], NATIVE[:8], NATIVE[:8], "ratio")

    assert judge(comparison, 1.03) == ("not resolved", "8 rounds, 20 are needed")


def row(peak: int, lost: int = 10 * MIB, capped: bool = True, **more: Any) -> Row:
    """Return a row of the first allocator with an 8 GiB cap that peaked at `peak`."""
    result = {
        "phases_ns": {"filled": 1_000_000_000},
        "obtained_bytes": 7 * GIB,
        "oom": {"type": "torch.OutOfMemoryError"},
        "refusals": [{"own": True}],
        "limit_reached": not capped,
        "again": {"ok": True},
        "kernels": [],
        **more,
    }
    samples = [Sample(n * 2_000_000, 8 * GIB - lost, 0) for n in range(600)]
    samples.append(Sample(2_000_000_000, peak, 0))
    ended = Ended(("fill",), 0, "", "", 1.0)
    return Row(ALLOCATORS[0], 8 * GIB, capped, ended, result, Trace(tuple(samples), 0, 0))


def verdicts(rows: list[Row], left_out: list[str] | None = None, natively: Sequence[Row] = ()) -> list[str]:
    """Return the verdicts on footprint, control, room, errors, going on and kernels."""
    return [bar.verdict for bar in bars_of(rows, natively, left_out or [], 100.0)]


def test_accuracy_passes_where_all_rows_do() -> None:
    rows = [row(8 * GIB), row(9 * GIB, capped=False)]

    assert verdicts(rows) == ["pass"] * 6


def test_one_byte_above_the_cap_fails() -> None:
    assert verdicts([row(8 * GIB + 1), row(9 * GIB, capped=False)])[0] == "fail"


def test_a_control_that_stays_below_resolves_nothing() -> None:
    assert verdicts([row(8 * GIB), row(8 * GIB, capped=False)])[1] == "not resolved"


def test_more_than_64_mib_of_room_lost_fails() -> None:
    assert verdicts([row(8 * GIB, lost=65 * MIB), row(9 * GIB, capped=False)])[2] == "fail"


def test_another_error_than_the_frameworks_own_fails() -> None:
    assert verdicts([row(8 * GIB, refusals=[{"own": False}]), row(9 * GIB, capped=False)])[3] == "fail"


def test_what_was_left_out_leaves_the_bars_open() -> None:
    found = verdicts([row(8 * GIB), row(9 * GIB, capped=False)], ["torch-native-cap-40"])

    assert found == ["not resolved", "pass"] + ["not resolved"] * 4


def test_a_kernel_that_stays_broken_fails_unless_it_does_so_natively_too() -> None:
    failed: dict[str, Any] = {"kernels": [{"name": "svd", "phase": "room", "ok": False, "error": None}]}
    rows = [row(8 * GIB, **failed), row(9 * GIB, capped=False)]

    assert verdicts(rows)[4:] == ["pass", "fail"]
    assert verdicts(rows, natively=[row(8 * GIB, capped=False, **failed)])[4:] == ["pass", "pass"]


def test_not_allocating_again_fails() -> None:
    assert verdicts([row(8 * GIB, again={"ok": False}), row(9 * GIB, capped=False)])[4] == "fail"


def tenant(pids: set[int], allocation: int, used: int) -> TenantStatus:
    """Return what status might say of a tenant."""
    return TenantStatus(frozenset(pids), len(pids), allocation, 0, used - allocation, used, used, 16 * GIB, 0, False)


@pytest.mark.parametrize(
    ("status", "beating", "wrong"),
    [
        (tenant({1, 2}, 2 * HELD_BYTES, 2 * GIB), False, None),
        (tenant({1, 2}, 2 * HELD_BYTES + BEAT_BYTES, 2 * GIB), True, None),
        (tenant({1, 2}, 2 * HELD_BYTES + BEAT_BYTES, 2 * GIB), False, "allocations"),
        (tenant({1, 2, 3}, 2 * HELD_BYTES, 2 * GIB), False, "status lists"),
        (tenant({1, 2}, 2 * HELD_BYTES, 3 * GIB), False, "the ledger has"),
        (None, False, "status does not know"),
    ],
)
def test_the_ledger_against_the_living(status: TenantStatus | None, beating: bool, wrong: str | None) -> None:
    found = mismatch(status, 2 * GIB, [1, 2], beating)

    assert found is None if wrong is None else found is not None and found.startswith(wrong)


def test_report_is_one_table_that_marks_what_was_simulated() -> None:
    bar = {"name": "room", "bar": "a | b", "measured": "1 MiB", "verdict": "pass", "detail": ""}
    device = {"name": "H100", "driver": "580"}
    document = {"name": "accuracy", "simulated": True, "device": device, "commit": "abc", "date": "now", "bars": [bar]}

    assert markdown([document]).splitlines() == [
        "| bar | asked | measured | verdict | |",
        "|---|---|---|---|---|",
        "| room (simulated) | a \\| b | 1 MiB | **pass** |  |",
        "",
        "accuracy: H100, driver 580, commit abc, now",
    ]


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory\nFor debugging consider this\n", "torch.OutOfMemoryError: CUDA"),
        ("one\nlast\n", "last"),
        ("", "no output on stderr"),
    ],
)
def test_the_end_of_a_program_is_told_by_its_error(stderr: str, said: str) -> None:
    assert Ended(("fill",), 1, "", stderr, 1.0).why().startswith(f"status 1: {said}")
