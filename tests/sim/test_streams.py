"""Order, time and host functions on streams; on a clock that only waiting moves."""

from __future__ import annotations

import ctypes
import threading
import time
from ctypes import byref, c_int, c_uint, c_uint64, c_void_p

import pytest

from tests.sim.conftest import Side, Sim
from tests.sim.driver import INVALID_HANDLE, MIB, NOT_READY, SUCCESS

MS = 1_000_000


@pytest.fixture
def virtual(sim: Sim) -> Sim:
    sim.env["HAMIRT_SIM_CLOCK"] = "virtual"
    return sim


def test_launches_return_at_once(virtual: Sim) -> None:
    def queue(side: Side) -> tuple[list[int], float]:
        side.cuda.context()
        spin = side.cuda.function(side.cuda.module(), "hm_spin")
        stream, start, end = side.cuda.stream(), side.cuda.event(), side.cuda.event()
        side.cuda("cuEventRecord", start, stream)
        for _ in range(10):
            side.cuda.launch(spin, stream, c_uint64(3 * MS))
        side.cuda("cuEventRecord", end, stream)
        codes = [side.cuda.code("cuStreamQuery", stream), side.cuda.code("cuEventQuery", end)]
        side.cuda("cuStreamSynchronize", stream)
        codes += [side.cuda.code("cuStreamQuery", stream), side.cuda.code("cuEventQuery", end)]
        return codes, side.cuda.elapsed_ms(start, end)

    assert virtual.run(queue) == ([NOT_READY, NOT_READY, SUCCESS, SUCCESS], 30.0)


def test_other_kernels_take_ten_microseconds(virtual: Sim) -> None:
    def many(side: Side) -> float:
        side.cuda.context()
        nothing = side.cuda.function(side.cuda.module(), "nothing")
        start, end = side.cuda.event(), side.cuda.event()
        side.cuda("cuEventRecord", start, None)
        for _ in range(100):
            side.cuda.launch(nothing, None)
        side.cuda("cuEventRecord", end, None)
        side.cuda("cuEventSynchronize", end)
        return side.cuda.elapsed_ms(start, end)

    assert virtual.run(many) == 1.0


def test_real_time(sim: Sim) -> None:
    def spin(side: Side) -> float:
        side.cuda.context()
        kernel = side.cuda.function(side.cuda.module(), "hm_spin")
        start = time.monotonic()
        side.cuda.launch(kernel, None, c_uint64(30 * MS))
        side.cuda("cuCtxSynchronize")
        return time.monotonic() - start

    assert 0.03 <= sim.run(spin) < 0.2


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_host_function_holds_its_stream_only(sim: Sim, clock: str) -> None:
    def hold(side: Side) -> list[object]:
        side.cuda.context()
        nothing = side.cuda.function(side.cuda.module(), "nothing")
        one, two = side.cuda.stream(), side.cuda.stream()
        release, calls = threading.Event(), []
        called = ctypes.CFUNCTYPE(None, c_void_p)(lambda data: calls.append((data, release.wait(10))))
        side.cuda("cuLaunchHostFunc", one, called, c_void_p(77))
        side.cuda.launch(nothing, one)
        side.cuda.launch(nothing, two)
        side.cuda("cuStreamSynchronize", two)
        codes = [side.cuda.code("cuStreamQuery", one)]
        release.set()
        side.cuda("cuStreamSynchronize", one)
        return [codes, calls]

    assert sim.run(hold, HAMIRT_SIM_CLOCK=clock) == [[NOT_READY], [(77, True)]]


def test_wait_event_orders_streams(sim: Sim) -> None:
    """Data written behind a host function on one stream is there for the stream that waited."""

    def order(side: Side) -> bytes:
        side.cuda.context()
        fill = side.cuda.function(side.cuda.module(), "hm_fill")
        first, second, event = side.cuda.stream(), side.cuda.stream(), side.cuda.event(2)
        source, target = side.cuda.alloc(MIB), side.cuda.alloc(MIB)
        release = threading.Event()
        called = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: (release.wait(10), None)[1])
        side.cuda("cuLaunchHostFunc", first, called, None)
        side.cuda.launch(fill, first, source, c_uint(5), c_uint64(4))
        side.cuda("cuEventRecord", event, first)
        side.cuda("cuStreamWaitEvent", second, event, 0)
        side.cuda("cuMemcpyDtoDAsync_v2", target, source, c_uint64(4), second)
        release.set()
        side.cuda("cuStreamSynchronize", second)
        return side.cuda.read(target, 5)

    assert sim.run(order) == b"\x05\x05\x05\x05\x00"


def test_stream_waits_for_a_value(sim: Sim) -> None:
    def value(side: Side) -> list[int]:
        side.cuda.context()
        stream, other = side.cuda.stream(), side.cuda.stream()
        flag = side.cuda.alloc(8)
        side.cuda("cuStreamWaitValue32_v2", stream, flag, 5, 0)
        waiting = side.cuda.code("cuStreamQuery", stream)
        side.cuda("cuStreamWriteValue32_v2", other, flag, 6, 0)
        side.cuda("cuStreamSynchronize", stream)
        return [waiting, side.cuda.code("cuStreamQuery", stream)]

    assert sim.run(value) == [NOT_READY, SUCCESS]


def test_legacy_stream_waits_for_blocking_streams(sim: Sim) -> None:
    def legacy(side: Side) -> list[int]:
        side.cuda.context()
        blocking, free = side.cuda.stream(0), side.cuda.stream(1)
        flag = side.cuda.alloc(8)
        side.cuda("cuStreamWaitValue32_v2", blocking, flag, 1, 1)
        event, other = side.cuda.event(2), side.cuda.event(2)
        side.cuda("cuEventRecord", event, None)
        side.cuda("cuEventRecord", other, free)
        held = [side.cuda.code("cuEventQuery", event), side.cuda.code("cuEventQuery", other)]
        side.cuda("cuStreamWriteValue32_v2", free, flag, 1, 0)
        side.cuda("cuEventSynchronize", event)
        return held

    assert sim.run(legacy) == [NOT_READY, SUCCESS]


def test_per_thread_stream_is_the_threads_own(sim: Sim) -> None:
    def twins(side: Side) -> list[bool]:
        context = side.cuda.context()
        legacy, own, other = c_uint64(), c_uint64(), c_uint64()
        side.cuda("cuStreamGetId", None, byref(legacy))
        side.cuda("cuStreamGetId_ptsz", None, byref(own))

        def elsewhere() -> None:
            side.cuda("cuCtxSetCurrent", context)
            side.cuda("cuStreamGetId", c_void_p(2), byref(other))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        again = c_uint64()
        side.cuda("cuStreamGetId", c_void_p(2), byref(again))
        return [legacy.value != own.value, own.value == again.value, own.value != other.value]

    assert sim.run(twins) == [True, True, True]


def test_destroyed_stream_finishes(virtual: Sim) -> None:
    def destroy(side: Side) -> list[int]:
        side.cuda.context()
        spin = side.cuda.function(side.cuda.module(), "hm_spin")
        stream, event = side.cuda.stream(), side.cuda.event()
        side.cuda.launch(spin, stream, c_uint64(MS))
        side.cuda("cuEventRecord", event, stream)
        side.cuda("cuStreamDestroy_v2", stream)
        return [
            side.cuda.code("cuStreamQuery", stream),
            side.cuda.code("cuEventQuery", event),
            side.cuda.code("cuEventSynchronize", event),
        ]

    assert virtual.run(destroy) == [INVALID_HANDLE, NOT_READY, SUCCESS]


def test_priorities(sim: Sim) -> None:
    def priority(side: Side) -> int:
        side.cuda.context()
        stream, seen = c_void_p(), c_int()
        side.cuda("cuStreamCreateWithPriority", byref(stream), 1, -3)
        side.cuda("cuStreamGetPriority", stream, byref(seen))
        return seen.value

    assert sim.run(priority) == -3
