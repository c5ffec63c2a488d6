"""HAMIRT_SIM_FAULT: chosen calls fail, wait or are not there."""

from __future__ import annotations

import time
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p

from tests.sim.conftest import Side, Sim
from tests.sim.driver import NOT_FOUND, OUT_OF_MEMORY, SUCCESS


def allocate(side: Side) -> list[int]:
    side.cuda.context()
    return [side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1)) for _ in range(3)]


def test_nth_call(sim: Sim) -> None:
    assert sim.run(allocate, HAMIRT_SIM_FAULT="cuMemAlloc_v2:2=2") == [SUCCESS, OUT_OF_MEMORY, SUCCESS]


def test_every_call_and_several_faults(sim: Sim) -> None:
    faults = "cuMemAlloc_v2:*=999,cuMemGetInfo_v2:1=3"

    assert sim.run(allocate, HAMIRT_SIM_FAULT=faults) == [999, 999, 999]


def test_twin_has_a_name_of_its_own(sim: Sim) -> None:
    def free(side: Side) -> list[int]:
        side.cuda.context()
        return [side.cuda.code(name, c_uint64(0), None) for name in ("cuMemFreeAsync", "cuMemFreeAsync_ptsz")]

    assert sim.run(free, HAMIRT_SIM_FAULT="cuMemFreeAsync_ptsz:1=7") == [SUCCESS, 7]
    assert sim.run(free, HAMIRT_SIM_FAULT="cuMemFreeAsync:1=7") == [7, SUCCESS]


def test_delay(sim: Sim) -> None:
    def timed(side: Side) -> float:
        side.cuda.context()
        start = time.monotonic()
        side.cuda.info()
        return time.monotonic() - start

    assert sim.run(timed, HAMIRT_SIM_FAULT="cuMemGetInfo_v2:delay=50000") >= 0.05


def test_absent(sim: Sim) -> None:
    def look_up(side: Side) -> int:
        return side.cuda.code("cuGetProcAddress", b"cuMemAlloc", byref(c_void_p()), 12000, c_uint64(0))

    assert sim.run(look_up) == SUCCESS
    assert sim.run(look_up, HAMIRT_SIM_FAULT="cuMemAlloc:absent") == NOT_FOUND


def test_nvml(sim: Sim) -> None:
    def count(side: Side) -> list[int]:
        side.nvml("nvmlInit_v2")
        return [side.nvml.code("nvmlDeviceGetCount_v2", byref(c_uint())) for _ in range(2)]

    assert sim.run(count, HAMIRT_SIM_FAULT="nvmlDeviceGetCount_v2:1=15") == [15, SUCCESS]
