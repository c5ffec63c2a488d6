"""What gates and waits say: who answers for them, what was metered, and how far a cap on GPU time holds."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt.metering import ALONE, ALONE_WITH_WISHES, NOBODY, NOTHING, enforcement, meter, wait_at_most
from hamirt.model import DeviceUsage, Enforcement, Gate, GateState, KindBytes, LatencyClass, Level, Limit, Metering, Use
from hamirt.units import GIB

NOW, LATER, BEFORE = 1_000, 1_001, 999
UNCAPPED = Limit("GPU-aa", None, 80 * GIB, None)
CAPPED = replace(UNCAPPED, time_percent=30)
WEIGHTED = replace(UNCAPPED, weight=300)
QUICK = replace(CAPPED, latency_class=LatencyClass.LATENCY)
USE = Use(0, 0, 0, KindBytes(0, 0, 0, 0, 0, 0, 0), 0, 1)
BUSY = replace(USE, busy=True)
OPEN = Gate(GateState.WINDOWED, 3_000_000_000, 2_000_000_000, 5, 1, unpreemptible=True)
SUPERVISED = Gate(GateState.CLOSED, 4_000_000_000, 0, 7, 0, lease_ns=LATER)
FULL = Enforcement(Level.FULL, None)
WAITS = (0,) * 24


def device(gate: Gate = NOTHING) -> DeviceUsage:
    return DeviceUsage(False, None, gate, WAITS)


def test_what_both_arbiters_charged_is_the_tenants() -> None:
    uses = (replace(USE, waiting=2), replace(USE, waiting=1))

    seen = meter(CAPPED, SUPERVISED, replace(device(OPEN), ganged=True), uses, NOW)

    assert seen == Metering(
        GateState.CLOSED, True, 7.0, 4.0, 2.0, 12, 1, unpreemptible=False, ganged=True, waiting=3, waits=WAITS
    )


@pytest.mark.parametrize(
    ("limit", "supervised", "state"),
    [
        (CAPPED, SUPERVISED, GateState.CLOSED),
        (UNCAPPED, SUPERVISED, GateState.CLOSED),
        (CAPPED, replace(SUPERVISED, lease_ns=BEFORE), GateState.WINDOWED),
        (UNCAPPED, replace(SUPERVISED, lease_ns=BEFORE), GateState.FREE),
        (UNCAPPED, NOTHING, GateState.FREE),
    ],
)
def test_the_gate_is_that_of_who_arbitrates(limit: Limit, supervised: Gate, state: GateState) -> None:
    seen = meter(limit, supervised, device(OPEN), (USE,), NOW)

    assert seen.gate is state
    assert seen.unpreemptible is not seen.supervised is (supervised.lease_ns == LATER)


@pytest.mark.parametrize(
    ("limit", "supervised", "own", "use", "held"),
    [
        pytest.param(UNCAPPED, SUPERVISED, NOTHING, BUSY, None, id="nothing asked for"),
        pytest.param(UNCAPPED, NOTHING, NOTHING, BUSY, None, id="nothing asked for, alone"),
        pytest.param(CAPPED, SUPERVISED, NOTHING, BUSY, FULL, id="supervised"),
        pytest.param(WEIGHTED, SUPERVISED, NOTHING, BUSY, FULL, id="weight, supervised"),
        pytest.param(CAPPED, NOTHING, replace(OPEN, lease_ns=LATER), BUSY, Enforcement(Level.FULL, ALONE), id="led"),
        pytest.param(CAPPED, NOTHING, OPEN, USE, Enforcement(Level.FULL, ALONE), id="idle"),
        pytest.param(CAPPED, NOTHING, OPEN, BUSY, Enforcement(Level.NONE, NOBODY), id="nobody"),
        pytest.param(CAPPED, replace(SUPERVISED, lease_ns=NOW), OPEN, BUSY, Enforcement(Level.NONE, NOBODY), id="gone"),
        pytest.param(WEIGHTED, NOTHING, NOTHING, BUSY, Enforcement(Level.PARTIAL, ALONE_WITH_WISHES), id="weight"),
        pytest.param(QUICK, NOTHING, NOTHING, USE, Enforcement(Level.PARTIAL, ALONE_WITH_WISHES), id="class"),
    ],
)
def test_how_far_what_was_asked_for_holds(
    limit: Limit, supervised: Gate, own: Gate, use: Use, held: Enforcement | None
) -> None:
    assert enforcement(limit, supervised, device(own), (use,), NOW) == held


@pytest.mark.parametrize(
    ("counts", "p50", "p99"),
    [
        ({}, None, None),
        ({0: 1}, 1e-6, 1e-6),
        ({0: 99, 10: 1}, 1e-6, 1e-6),
        ({0: 98, 10: 2}, 1e-6, 1024e-6),
        ({5: 1, 12: 1}, 32e-6, 4096e-6),
        ({23: 1}, 4194304e-6, 4194304e-6),
    ],
)
def test_percentiles_are_the_ends_of_buckets(counts: dict[int, int], p50: float | None, p99: float | None) -> None:
    waits = tuple(counts.get(bucket, 0) for bucket in range(24))

    assert (wait_at_most(waits, 0.5), wait_at_most(waits, 0.99)) == (p50, p99)


@given(st.lists(st.integers(0, 1 << 48), min_size=24, max_size=24), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_higher_percentile_is_no_shorter_wait(waits: list[int], one: float, other: float) -> None:
    shorter, longer = (wait_at_most(waits, ratio) for ratio in sorted((one, other)))

    if shorter is None or longer is None:
        assert not any(waits)
    else:
        assert shorter <= longer
