"""Virtual memory management: who holds physical memory, also across processes."""

from __future__ import annotations

import socket
from ctypes import byref, c_int, c_size_t, c_ubyte, c_uint64, c_void_p

from tests.sim.conftest import Side, Sim
from tests.sim.driver import (
    CONTEXT_MIB,
    DEVICE_LOCATION,
    INVALID_VALUE,
    MIB,
    OUT_OF_MEMORY,
    SUCCESS,
    AccessDesc,
    AllocationProp,
)

SIZE = 64 * MIB
FD = 1


def create(side: Side, size: int = SIZE, handle_types: int = 0) -> c_uint64:
    prop = AllocationProp(type=1, handle_types=handle_types, location=DEVICE_LOCATION)
    return c_uint64(side.cuda.get(c_uint64, "cuMemCreate", c_size_t(size), byref(prop), c_uint64(0)))


def reserve(side: Side, size: int = SIZE) -> c_uint64:
    return c_uint64(
        side.cuda.get(c_uint64, "cuMemAddressReserve", c_size_t(size), c_size_t(0), c_uint64(0), c_uint64(0))
    )


def map_at(side: Side, address: c_uint64, handle: c_uint64, size: int = SIZE) -> None:
    side.cuda("cuMemMap", address, c_size_t(size), c_size_t(0), handle, c_uint64(0))
    access = AccessDesc(location=DEVICE_LOCATION, flags=3)
    side.cuda("cuMemSetAccess", address, c_size_t(size), byref(access), c_size_t(1))


def test_lives_while_held_or_mapped(sim: Sim) -> None:
    def life(side: Side) -> list[int]:
        side.cuda.context()
        used = [side.cuda.used_mib()]
        address, handle = reserve(side), create(side)
        used.append(side.cuda.used_mib())
        map_at(side, address, handle)
        side.cuda("cuMemRelease", handle)
        used.append(side.cuda.used_mib())
        again = c_uint64()
        side.cuda("cuMemRetainAllocationHandle", byref(again), c_void_p(address.value))
        side.cuda("cuMemUnmap", address, c_size_t(SIZE))
        used.append(side.cuda.used_mib())
        side.cuda("cuMemRelease", again)
        used.append(side.cuda.used_mib())
        side.cuda("cuMemAddressFree", address, c_size_t(SIZE))
        return [one - CONTEXT_MIB for one in used]

    assert sim.run(life) == [0, 64, 64, 64, 0]


def test_mapping_needs_access(sim: Sim) -> None:
    def access(side: Side) -> list[object]:
        side.cuda.context()
        address, handle = reserve(side), create(side)
        side.cuda("cuMemMap", address, c_size_t(SIZE), c_size_t(0), handle, c_uint64(0))
        codes = [side.cuda.code("cuMemsetD8_v2", address, c_ubyte(1), c_size_t(8))]
        codes.append(side.cuda.code("cuMemMap", address, c_size_t(SIZE), c_size_t(0), handle, c_uint64(0)))
        desc = AccessDesc(location=DEVICE_LOCATION, flags=3)
        side.cuda("cuMemSetAccess", address, c_size_t(SIZE), byref(desc), c_size_t(1))
        codes.append(side.cuda.code("cuMemsetD8_v2", address, c_ubyte(1), c_size_t(8)))
        return [codes, side.cuda.read(address, 2)]

    assert sim.run(access) == [[INVALID_VALUE, INVALID_VALUE, SUCCESS], b"\x01\x01"]


def test_sizes_are_whole_blocks(sim: Sim) -> None:
    def sizes(side: Side) -> list[int]:
        side.cuda.context()
        prop = AllocationProp(type=1, location=DEVICE_LOCATION)
        granularity = side.cuda.get(c_size_t, "cuMemGetAllocationGranularity", byref(prop), 0)
        return [granularity] + [
            side.cuda.code("cuMemCreate", byref(c_uint64()), c_size_t(size), byref(prop), c_uint64(0))
            for size in (granularity - 1, granularity, 1 << 40)
        ]

    assert sim.run(sizes) == [2 * MIB, INVALID_VALUE, SUCCESS, OUT_OF_MEMORY]


def test_unmap_several_but_only_whole_mappings(sim: Sim) -> None:
    def unmap(side: Side) -> list[int]:
        side.cuda.context()
        address = reserve(side, 2 * SIZE)
        second = c_uint64(address.value + SIZE)
        for place in (address, second):
            handle = create(side)
            map_at(side, place, handle)
            side.cuda("cuMemRelease", handle)
        codes = [side.cuda.code("cuMemUnmap", address, c_size_t(SIZE // 2))]
        codes.append(side.cuda.code("cuMemUnmap", address, c_size_t(2 * SIZE)))
        return [*codes, side.cuda.used_mib() - CONTEXT_MIB]

    assert sim.run(unmap) == [INVALID_VALUE, SUCCESS, 0]


def exporter(ours: socket.socket, side: Side) -> None:
    side.cuda.context()
    address, handle = reserve(side), create(side, handle_types=FD)
    map_at(side, address, handle)
    side.cuda("cuMemsetD8_v2", address, c_ubyte(7), c_size_t(4))
    fd = c_int()
    side.cuda("cuMemExportToShareableHandle", byref(fd), handle, FD, c_uint64(0))
    socket.send_fds(ours, [b"x"], [fd.value])
    side.send()
    while True:
        wanted = side.receive()
        side.send(side.cuda.read(address, 4) if wanted == "read" else side.cuda.used_mib())


def test_shared_through_a_socket(sim: Sim) -> None:
    """Data are shared, the card is charged once, and the importer keeps what the exporter leaves."""
    ours, theirs = socket.socketpair()

    def importer(side: Side) -> None:
        side.cuda.context()
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        handle = c_uint64()
        side.cuda("cuMemImportFromShareableHandle", byref(handle), c_void_p(fds[0]), FD)
        address = reserve(side)
        map_at(side, address, handle)
        data = side.cuda.read(address, 4)
        side.cuda("cuMemsetD8_v2", address, c_ubyte(8), c_size_t(2))
        side.send((data, side.cuda.used_mib()))
        side.receive()
        device = side.nvml.device()
        side.send((side.cuda.used_mib(), list(side.nvml.processes(device).values())))
        side.receive()
        side.cuda("cuMemRelease", handle)
        side.cuda("cuMemUnmap", address, c_size_t(SIZE))
        side.send(side.cuda.used_mib())

    first = sim.start(lambda side: exporter(ours, side))
    first.receive()
    second = sim.start(importer)

    assert second.receive() == (b"\x07" * 4, 2 * CONTEXT_MIB + 64)
    first.send("read")
    assert first.receive() == b"\x08\x08\x07\x07"
    first.kill()
    second.send()
    assert second.receive() == (CONTEXT_MIB + 64, [CONTEXT_MIB + 64])
    second.send()
    assert second.receive() == CONTEXT_MIB


def test_import_of_something_else(sim: Sim) -> None:
    def foreign(side: Side) -> int:
        side.cuda.context()
        with open("/dev/null") as file:
            return side.cuda.code("cuMemImportFromShareableHandle", byref(c_uint64()), c_void_p(file.fileno()), FD)

    assert sim.run(foreign) == INVALID_VALUE
