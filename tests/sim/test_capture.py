"""The rules of stream capture."""

from __future__ import annotations

import threading
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import pytest

from tests.sim.conftest import Side, Sim
from tests.sim.driver import (
    CAPTURE_IMPLICIT,
    CAPTURE_INVALIDATED,
    CAPTURE_ISOLATION,
    CAPTURE_UNJOINED,
    CAPTURE_UNSUPPORTED,
    CAPTURE_WRONG_THREAD,
    CAPTURED_EVENT,
    SUCCESS,
)

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
NONE, ACTIVE, INVALIDATED = 0, 1, 2


def begin(side: Side, mode: int = RELAXED, flags: int = 1) -> tuple[c_void_p, c_void_p]:
    """A capturing stream and a kernel."""
    side.cuda.context()
    kernel = side.cuda.function(side.cuda.module(), "nothing")
    stream = side.cuda.stream(flags)
    side.cuda("cuStreamBeginCapture_v2", stream, mode)
    return stream, kernel


def end(side: Side, stream: c_void_p) -> int:
    return side.cuda.code("cuStreamEndCapture", stream, byref(c_void_p()))


def status(side: Side, stream: c_void_p) -> int:
    seen = c_int()
    side.cuda("cuStreamIsCapturing", stream, byref(seen))
    return seen.value


def test_work_in_a_capture_is_not_run(sim: Sim) -> None:
    def capture(side: Side) -> list[int]:
        stream, kernel = begin(side)
        during = status(side, stream)
        side.cuda.launch(kernel, stream)
        graph, count = c_void_p(), c_size_t()
        side.cuda("cuStreamEndCapture", stream, byref(graph))
        side.cuda("cuGraphGetNodes", graph, None, byref(count))
        return [during, status(side, stream), count.value]

    assert sim.run(capture) == [ACTIVE, NONE, 1]


@pytest.mark.parametrize(
    ("mode", "thread_mode", "code"),
    [
        (GLOBAL, GLOBAL, CAPTURE_UNSUPPORTED),
        (THREAD_LOCAL, GLOBAL, CAPTURE_UNSUPPORTED),
        (RELAXED, GLOBAL, SUCCESS),
        (GLOBAL, RELAXED, SUCCESS),
        (THREAD_LOCAL, THREAD_LOCAL, CAPTURE_UNSUPPORTED),
    ],
)
def test_unsafe_calls_of_the_capturing_thread(sim: Sim, mode: int, thread_mode: int, code: int) -> None:
    def unsafe(side: Side) -> list[int]:
        stream, _ = begin(side, mode)
        side.cuda("cuThreadExchangeStreamCaptureMode", byref(c_int(thread_mode)))
        allocated = side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1))
        return [allocated, end(side, stream)]

    assert sim.run(unsafe) == [code, SUCCESS if code == SUCCESS else CAPTURE_INVALIDATED]


@pytest.mark.parametrize(("mode", "code"), [(GLOBAL, CAPTURE_UNSUPPORTED), (THREAD_LOCAL, SUCCESS)])
def test_unsafe_calls_of_another_thread(sim: Sim, mode: int, code: int) -> None:
    def unsafe(side: Side) -> list[int]:
        context = side.cuda.context()
        event = side.cuda.event()
        side.cuda("cuEventRecord", event, None)
        stream, _ = begin(side, mode)
        codes = []

        def elsewhere() -> None:
            side.cuda("cuCtxSetCurrent", context)
            codes.append(side.cuda.code("cuEventQuery", event))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return [*codes, end(side, stream)]

    assert sim.run(unsafe) == [code, SUCCESS if code == SUCCESS else CAPTURE_INVALIDATED]


def test_legacy_stream_breaks_blocking_captures(sim: Sim) -> None:
    def legacy(side: Side) -> list[int]:
        event = None
        codes = []
        for flags in (0, 1):
            stream, _ = begin(side, RELAXED, flags)
            event = event or side.cuda.event(2)
            codes += [side.cuda.code("cuEventRecord", event, None), status(side, stream), end(side, stream)]
        return codes

    assert sim.run(legacy) == [CAPTURE_IMPLICIT, INVALIDATED, CAPTURE_INVALIDATED, SUCCESS, ACTIVE, SUCCESS]


@pytest.mark.parametrize("call", ["cuStreamSynchronize", "cuStreamQuery"])
def test_asking_a_capturing_stream_breaks_it(sim: Sim, call: str) -> None:
    def ask(side: Side) -> list[int]:
        stream, kernel = begin(side)
        codes = [side.cuda.code(call, stream)]
        return [*codes, side.cuda.launch_code(kernel, stream), end(side, stream), status(side, stream)]

    assert sim.run(ask) == [CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_INVALIDATED, NONE]


def test_synchronizing_the_context_breaks_captures(sim: Sim) -> None:
    def ask(side: Side) -> list[int]:
        stream, _ = begin(side)
        return [side.cuda.code("cuCtxSynchronize"), end(side, stream)]

    assert sim.run(ask) == [CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED]


def test_legacy_stream_can_not_capture(sim: Sim) -> None:
    def legacy(side: Side) -> int:
        side.cuda.context()
        return side.cuda.code("cuStreamBeginCapture_v2", None, RELAXED)

    assert sim.run(legacy) == CAPTURE_UNSUPPORTED


def test_fork_and_join(sim: Sim) -> None:
    def fork(side: Side) -> list[int]:
        stream, kernel = begin(side)
        other, forked, joined = side.cuda.stream(), side.cuda.event(2), side.cuda.event(2)
        side.cuda.launch(kernel, stream)
        side.cuda("cuEventRecord", forked, stream)
        side.cuda("cuStreamWaitEvent", other, forked, 0)
        side.cuda.launch(kernel, other)
        captured = side.cuda.code("cuEventQuery", side.cuda.event())
        side.cuda("cuEventRecord", joined, other)
        side.cuda("cuStreamWaitEvent", stream, joined, 0)
        side.cuda.launch(kernel, stream)
        graph, edges = c_void_p(), c_size_t()
        code = side.cuda.code("cuStreamEndCapture", stream, byref(graph))
        side.cuda("cuGraphGetEdges", graph, None, None, byref(edges))
        return [captured, code, edges.value, status(side, other)]

    assert sim.run(fork) == [SUCCESS, SUCCESS, 3, NONE]


def test_unjoined_fork(sim: Sim) -> None:
    def fork(side: Side) -> int:
        stream, kernel = begin(side)
        other, event = side.cuda.stream(), side.cuda.event(2)
        side.cuda("cuEventRecord", event, stream)
        side.cuda("cuStreamWaitEvent", other, event, 0)
        side.cuda.launch(kernel, other)
        return end(side, stream)

    assert sim.run(fork) == CAPTURE_UNJOINED


def test_events_across_the_border(sim: Sim) -> None:
    def border(side: Side) -> list[int]:
        side.cuda.context()
        outside, inside = side.cuda.event(2), side.cuda.event(2)
        side.cuda("cuEventRecord", outside, None)
        first, _ = begin(side)
        codes = [side.cuda.code("cuStreamWaitEvent", first, outside, 0), end(side, first)]
        second, _ = begin(side)
        side.cuda("cuEventRecord", inside, second)
        codes += [side.cuda.code("cuEventSynchronize", inside), end(side, second)]
        return codes

    assert sim.run(border) == [CAPTURE_ISOLATION, CAPTURE_INVALIDATED, CAPTURED_EVENT, CAPTURE_INVALIDATED]


def test_end_by_another_thread(sim: Sim) -> None:
    def wrong(side: Side) -> list[int]:
        context = side.cuda.context()
        stream, _ = begin(side, THREAD_LOCAL)
        codes = []

        def elsewhere() -> None:
            side.cuda("cuCtxSetCurrent", context)
            codes.append(end(side, stream))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return [*codes, end(side, stream)]

    assert sim.run(wrong) == [CAPTURE_WRONG_THREAD, SUCCESS]
