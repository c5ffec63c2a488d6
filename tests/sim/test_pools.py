"""Stream-ordered memory: what pools hold, and when they give it back."""

from __future__ import annotations

import socket
from ctypes import byref, c_char, c_int, c_size_t, c_ubyte, c_uint64, c_void_p

from tests.sim.conftest import Side, Sim
from tests.sim.driver import CONTEXT_MIB, DEVICE_LOCATION, MIB, OUT_OF_MEMORY, SUCCESS, PoolProps

THRESHOLD, RESERVED, RESERVED_HIGH, USED, USED_HIGH = 4, 5, 6, 7, 8


def alloc_async(side: Side, size: int, stream: c_void_p | None = None) -> c_uint64:
    pointer = c_uint64()
    side.cuda("cuMemAllocAsync", byref(pointer), c_size_t(size), stream)
    return pointer


def default_pool(side: Side) -> c_void_p:
    return c_void_p(side.cuda.get(c_void_p, "cuDeviceGetDefaultMemPool", 0))


def test_growth_and_release_at_synchronize(sim: Sim) -> None:
    def cycle(side: Side) -> list[tuple[int, int, int]]:
        side.cuda.context()
        pool = default_pool(side)

        def state() -> tuple[int, int, int]:
            reserved, used = (side.cuda.pool_number(pool, name) // MIB for name in (RESERVED, USED))
            return reserved, used, side.cuda.used_mib() - CONTEXT_MIB

        seen = [state()]
        one, two = alloc_async(side, 20 * MIB), alloc_async(side, 20 * MIB)
        seen.append(state())
        side.cuda("cuMemFreeAsync", one, None)
        side.cuda("cuMemFreeAsync", two, None)
        seen.append(state())
        side.cuda("cuStreamSynchronize", None)
        seen.append(state())
        return seen

    assert sim.run(cycle) == [(0, 0, 0), (64, 40, 64), (64, 0, 64), (0, 0, 0)]


def test_release_threshold_and_trim(sim: Sim) -> None:
    def keep(side: Side) -> list[int]:
        side.cuda.context()
        pool = default_pool(side)
        side.cuda("cuMemPoolSetAttribute", pool, THRESHOLD, byref(c_uint64(100 * MIB)))
        pointer = alloc_async(side, 300 * MIB)
        side.cuda("cuMemFreeAsync", pointer, None)
        seen = [side.cuda.pool_number(pool, RESERVED) // MIB]
        side.cuda("cuCtxSynchronize")
        seen.append(side.cuda.pool_number(pool, RESERVED) // MIB)
        side.cuda("cuMemPoolTrimTo", pool, c_size_t(0))
        seen += [side.cuda.pool_number(pool, name) // MIB for name in (RESERVED, RESERVED_HIGH, USED_HIGH)]
        return seen

    assert sim.run(keep) == [320, 128, 0, 320, 300]


def test_own_pool_outlives_its_handle(sim: Sim) -> None:
    def own(side: Side) -> list[int]:
        side.cuda.context()
        props = PoolProps(type=1, location=DEVICE_LOCATION)
        pool = c_void_p(side.cuda.get(c_void_p, "cuMemPoolCreate", byref(props)))
        pointer = c_uint64()
        side.cuda("cuMemAllocFromPoolAsync", byref(pointer), c_size_t(MIB), pool, None)
        side.cuda("cuMemPoolDestroy", pool)
        held = side.cuda.used_mib() - CONTEXT_MIB
        code = side.cuda.code("cuMemAllocFromPoolAsync", byref(c_uint64()), c_size_t(MIB), pool, None)
        side.cuda("cuMemFreeAsync", pointer, None)
        return [held, code, side.cuda.used_mib() - CONTEXT_MIB]

    assert sim.run(own) == [32, 1, 0]


def test_current_pool(sim: Sim) -> None:
    def current(side: Side) -> list[bool]:
        side.cuda.context()
        props = PoolProps(type=1, location=DEVICE_LOCATION)
        pool = c_void_p(side.cuda.get(c_void_p, "cuMemPoolCreate", byref(props)))
        side.cuda("cuDeviceSetMemPool", 0, pool)
        alloc_async(side, MIB)
        seen = c_void_p()
        side.cuda("cuMemGetMemPool", byref(seen), byref(DEVICE_LOCATION), 1)
        return [seen.value == pool.value, side.cuda.pool_number(pool, USED) == MIB]

    assert sim.run(current) == [True, True]


def test_out_of_memory_after_trimming_other_pools(sim: Sim) -> None:
    def full(side: Side) -> list[int]:
        side.cuda.context()
        half = side.cuda.info()[0] // 2 // (64 * MIB) * 64 * MIB
        side.cuda("cuMemPoolSetAttribute", default_pool(side), THRESHOLD, byref(c_uint64(1 << 60)))
        side.cuda("cuMemFreeAsync", alloc_async(side, half), None)
        pool = c_void_p(side.cuda.get(c_void_p, "cuMemPoolCreate", byref(PoolProps(type=1, location=DEVICE_LOCATION))))
        return [
            side.cuda.code("cuMemAllocFromPoolAsync", byref(c_uint64()), c_size_t(size), pool, None)
            for size in (2 * half, half)
        ]

    assert sim.run(full) == [SUCCESS, OUT_OF_MEMORY]


def test_free_behind_a_host_function_waits(sim: Sim) -> None:
    def ordered(side: Side) -> list[int]:
        side.cuda.context()
        pool, stream, flag = default_pool(side), side.cuda.stream(), side.cuda.alloc(4)
        pointer = alloc_async(side, MIB, stream)
        side.cuda("cuStreamWaitValue32_v2", stream, flag, 1, 1)
        side.cuda("cuMemFreeAsync", pointer, stream)
        held = side.cuda.pool_number(pool, USED)
        side.cuda("cuStreamWriteValue32_v2", side.cuda.stream(), flag, 1, 0)
        side.cuda("cuStreamSynchronize", stream)
        return [held, side.cuda.pool_number(pool, USED)]

    assert sim.run(ordered) == [MIB, 0]


def test_pool_of_another_process(sim: Sim) -> None:
    ours, theirs = socket.socketpair()

    def exporter(side: Side) -> None:
        side.cuda.context()
        props = PoolProps(type=1, handle_types=1, location=DEVICE_LOCATION)
        pool = c_void_p(side.cuda.get(c_void_p, "cuMemPoolCreate", byref(props)))
        pointer, fd, data = c_uint64(), c_int(), (c_char * 64)()
        side.cuda("cuMemAllocFromPoolAsync", byref(pointer), c_size_t(MIB), pool, None)
        side.cuda("cuMemPoolExportToShareableHandle", byref(fd), pool, 1, c_uint64(0))
        side.cuda("cuMemPoolExportPointer", data, pointer)
        socket.send_fds(theirs, [data.raw], [fd.value])
        side.send()
        side.receive()

    def importer(side: Side) -> list[int]:
        data, fds, _, _ = socket.recv_fds(ours, 64, 1)
        side.cuda.context()
        before = side.cuda.used_mib()
        pool, pointer = c_void_p(), c_uint64()
        side.cuda("cuMemPoolImportFromShareableHandle", byref(pool), c_void_p(fds[0]), 1, c_uint64(0))
        side.cuda("cuMemPoolImportPointer", byref(pointer), pool, (c_char * 64).from_buffer_copy(data))
        side.cuda("cuMemsetD8_v2", pointer, c_ubyte(1), c_size_t(MIB))
        taken = side.cuda.used_mib() - before
        return [taken, side.cuda.code("cuMemFreeAsync", pointer, None)]

    process = sim.start(exporter)
    process.receive()
    assert sim.run(importer) == [0, SUCCESS]
