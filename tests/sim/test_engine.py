"""How the card's time is shared between processes: the measured shares of an H100."""

from __future__ import annotations

import time
from ctypes import byref, c_uint, c_uint64
from itertools import count

import pytest

from tests.sim.conftest import Side, Sim, wait_for

pytestmark = pytest.mark.realtime

US = 1000
SECONDS = 0.6


def saturate(side: Side) -> None:
    """Keep eight kernels of 500 us queued; send the share of the time they ran."""
    work(side, depth=8)


def wait_for_each(side: Side) -> None:
    """Wait for each kernel of 500 us before the next."""
    work(side, depth=1)


def work(side: Side, depth: int) -> None:
    side.cuda.context()
    spin = side.cuda.function(side.cuda.module(), "hm_spin")
    stream = side.cuda.stream()
    events = [side.cuda.event(2) for _ in range(depth)]
    side.send()
    side.receive()
    start = time.monotonic()
    for number in count():
        event = events[number % depth]
        if number >= depth:
            side.cuda("cuEventSynchronize", event)
        if time.monotonic() - start > SECONDS:
            break
        side.cuda.launch(spin, stream, c_uint64(500 * US))
        side.cuda("cuEventRecord", event, stream)
    side.send((number - depth + 1) * 500e-6 / (time.monotonic() - start))


def shares(sim: Sim, *functions: object) -> list[float]:
    processes = [sim.start(function) for function in functions]  # type: ignore[arg-type]
    for process in processes:
        process.receive()
    for process in processes:
        process.send()
    return [process.receive() for process in processes]


def test_one_alone_has_it_all(sim: Sim) -> None:
    assert shares(sim, saturate) == [pytest.approx(1.0, abs=0.03)]


def test_two_saturating(sim: Sim) -> None:
    assert shares(sim, saturate, saturate) == [pytest.approx(0.449, abs=0.04)] * 2


def test_one_that_waits_gets_little(sim: Sim) -> None:
    waits, saturates = shares(sim, wait_for_each, saturate)

    assert waits == pytest.approx(0.171, abs=0.05)
    assert saturates == pytest.approx(0.701, abs=0.05)


def test_killed_tenant_gives_the_card_up(sim: Sim) -> None:
    def forever(side: Side) -> None:
        side.cuda.context()
        spin = side.cuda.function(side.cuda.module(), "hm_spin")
        side.cuda.launch(spin, None, c_uint64(3600 * 10**9))
        side.send()
        side.receive()

    def quick(side: Side) -> float:
        side.cuda.context()
        spin = side.cuda.function(side.cuda.module(), "hm_spin")
        start = time.monotonic()
        side.cuda.launch(spin, None, c_uint64(20_000 * US))
        side.cuda("cuCtxSynchronize")
        return time.monotonic() - start

    process = sim.start(forever)
    process.receive()
    assert sim.run(quick) > 0.035
    process.kill()

    assert sim.run(quick) < 0.035


def test_utilization(sim: Sim) -> None:
    def busy(side: Side) -> None:
        side.cuda.context()
        spin = side.cuda.function(side.cuda.module(), "hm_spin")
        side.cuda.launch(spin, None, c_uint64(3600 * 10**9))
        side.send()
        side.receive()

    def percent(side: Side) -> int:
        rates = (c_uint * 2)()
        side.nvml("nvmlDeviceGetUtilizationRates", side.nvml.device(), byref(rates))
        return rates[0]

    assert sim.run(percent) == 0
    process = sim.start(busy)
    process.receive()
    wait_for(lambda: sim.run(percent) == 100, "a busy card")
    process.kill()
    wait_for(lambda: sim.run(percent) == 0, "an idle card")
