"""What allocations take, and that data survive."""

from __future__ import annotations

from ctypes import byref, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p

from tests.sim.conftest import Side, Sim
from tests.sim.driver import CONTEXT_MIB, ILLEGAL_ADDRESS, INVALID_VALUE, MIB, OUT_OF_MEMORY, PTX, SUCCESS


def used_by(side: Side, *sizes: int) -> int:
    before = side.cuda.used_mib()
    for size in sizes:
        side.cuda.alloc(size)
    return side.cuda.used_mib() - before


def test_context_takes_its_overhead(sim: Sim) -> None:
    def overhead(side: Side) -> list[int]:
        side.cuda.context()
        held = side.cuda.used_mib()
        second = c_void_p(side.cuda.get(c_void_p, "cuCtxCreate_v2", 0, 0))
        both = side.cuda.used_mib()
        side.cuda("cuCtxDestroy_v2", second)
        return [held, both, side.nvml.memory(side.nvml.device()).used // MIB]

    assert sim.run(overhead) == [CONTEXT_MIB, 2 * CONTEXT_MIB, CONTEXT_MIB + 551]
    assert sim.run(overhead, HAMIRT_SIM_CONTEXT_MIB="100") == [100, 200, 651]


def test_blocks_and_slabs(sim: Sim) -> None:
    def sizes(side: Side) -> list[int]:
        side.cuda.context()
        return [
            used_by(side, 1),
            used_by(side, *[512] * 4000),
            used_by(side, *[512] * 100),
            used_by(side, MIB),
            used_by(side, MIB, MIB),
            used_by(side, MIB + 1),
            used_by(side, 64 * MIB),
        ]

    assert sim.run(sizes) == [2, 0, 2, 0, 2, 2, 64]


def test_freed_memory_comes_back(sim: Sim) -> None:
    def cycle(side: Side) -> list[int]:
        side.cuda.context()
        pointers = [side.cuda.alloc(size) for size in (100, 5000, MIB, 3 * MIB, 700 * MIB)]
        for pointer in pointers:
            side.cuda.free(pointer)
        return [side.cuda.used_mib(), side.cuda.code("cuMemFree_v2", pointers[0])]

    assert sim.run(cycle) == [CONTEXT_MIB, INVALID_VALUE]


def test_out_of_memory_at_the_last_block(sim: Sim) -> None:
    def fill(side: Side) -> list[int]:
        side.cuda.context()
        free, _ = side.cuda.info()
        codes = [side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(free + 1))]
        pointer = side.cuda.alloc(free)
        codes.append(side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1)))
        side.cuda.free(pointer)
        codes.append(side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1)))
        return codes

    assert sim.run(fill) == [OUT_OF_MEMORY, OUT_OF_MEMORY, SUCCESS]


def test_smaller_cards(sim: Sim) -> None:
    def total(side: Side) -> list[int]:
        side.cuda.context()
        return [side.cuda.info()[1] // MIB, side.nvml.memory(side.nvml.device()).total // MIB]

    assert sim.run(total, HAMIRT_SIM_MEM_MIB="4096", HAMIRT_SIM_CONTEXT_MIB="64") == [4070, 4096]


def test_data_survive(sim: Sim) -> None:
    def copy(side: Side) -> bytes:
        side.cuda.context()
        one, two = side.cuda.alloc(4096), side.cuda.alloc(8 * MIB)
        side.cuda("cuMemcpyHtoD_v2", one, bytes(range(256)) * 16, c_size_t(4096))
        side.cuda("cuMemcpyDtoD_v2", two, one, c_size_t(4096))
        side.cuda("cuMemsetD8_v2", c_uint64(two.value + 3), c_ubyte(0xAA), c_size_t(2))
        side.cuda("cuMemsetD32_v2", c_uint64(two.value + 8), c_uint(0x01020304), c_size_t(1))
        return side.cuda.read(two, 14)

    assert sim.run(copy) == bytes([0, 1, 2, 0xAA, 0xAA, 5, 6, 7, 4, 3, 2, 1, 12, 13])


def test_copies_are_checked(sim: Sim) -> None:
    def overrun(side: Side) -> list[int]:
        side.cuda.context()
        small = side.cuda.alloc(512)
        text = bytes(1024)
        return [
            side.cuda.code("cuMemcpyHtoD_v2", small, text, c_size_t(512)),
            side.cuda.code("cuMemcpyHtoD_v2", small, text, c_size_t(513)),
            side.cuda.code("cuMemsetD8_v2", small, c_ubyte(1), c_size_t(513)),
        ]

    assert sim.run(overrun) == [SUCCESS, INVALID_VALUE, INVALID_VALUE]


def test_kernel_fills(sim: Sim) -> None:
    def fill(side: Side) -> tuple[bytes, int, int]:
        side.cuda.context()
        kernel = side.cuda.function(side.cuda.module(), "hm_fill")
        target = side.cuda.alloc(4096)
        side.cuda.launch(kernel, None, target, c_uint(9), c_uint64(4))
        data = side.cuda.read(target, 5)
        side.cuda.launch(kernel, None, target, c_uint(9), c_uint64(5000))
        return data, side.cuda.code("cuCtxSynchronize"), side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1))

    assert sim.run(fill) == (b"\x09\x09\x09\x09\x00", ILLEGAL_ADDRESS, ILLEGAL_ADDRESS)


def test_module_globals_and_local_memory(sim: Sim) -> None:
    def load(side: Side) -> list[int]:
        side.cuda.context()
        module = side.cuda.module()
        loaded = side.cuda.used_mib()
        size = c_size_t()
        side.cuda("cuModuleGetGlobal_v2", byref(c_uint64()), byref(size), module, b"table")
        deep = side.cuda.function(module, "deep")
        local = side.cuda.get(c_uint, "cuFuncGetAttribute", 3, deep)
        side.cuda.launch(deep, None, (c_ubyte * 24)())
        launched = side.cuda.used_mib()
        side.cuda("cuModuleUnload", module)
        return [loaded, size.value, local, launched - loaded, launched - side.cuda.used_mib()]

    # 4 MiB of globals and 2 of code; 3 KiB more local memory for 132 * 2048 threads.
    assert sim.run(load) == [CONTEXT_MIB + 6, 3145728, 4096, 792, 6]


def test_stack_limit_takes_memory(sim: Sim) -> None:
    def limits(side: Side) -> list[int]:
        side.cuda.context()
        side.cuda("cuCtxSetLimit", 0, c_size_t(2048))
        larger = side.cuda.used_mib()
        side.cuda("cuCtxSetLimit", 0, c_size_t(1024))
        side.cuda("cuCtxSetLimit", 2, c_size_t(16 * MIB))
        return [larger, side.cuda.used_mib(), side.cuda.get(c_size_t, "cuCtxGetLimit", 2)]

    assert sim.run(limits) == [CONTEXT_MIB + 264, CONTEXT_MIB + 8, 16 * MIB]


def test_managed_memory_arrives_with_the_first_touch(sim: Sim) -> None:
    def managed(side: Side) -> list[int]:
        side.cuda.context()
        pointer = c_uint64(side.cuda.get(c_uint64, "cuMemAllocManaged", c_size_t(100 * MIB), 1))
        untouched = side.cuda.used_mib()
        side.cuda("cuMemsetD8_v2", pointer, c_ubyte(1), c_size_t(1))
        touched = side.cuda.used_mib()
        side.cuda.free(pointer)
        return [untouched, touched, side.cuda.used_mib()]

    assert sim.run(managed) == [CONTEXT_MIB, CONTEXT_MIB + 100, CONTEXT_MIB]


def test_reset_gives_everything_back(sim: Sim) -> None:
    def reset(side: Side) -> int:
        side.cuda.context()
        side.cuda.alloc(100 * MIB)
        side.cuda.alloc(10)
        side.cuda.module()
        side.cuda.stream()
        side.cuda.event()
        side.cuda("cuDevicePrimaryCtxReset_v2", 0)
        used: int = side.nvml.memory(side.nvml.device()).used // MIB
        return used

    assert sim.run(reset) == 551


def test_a_library_is_loaded_when_it_is_needed(sim: Sim) -> None:
    def library(side: Side) -> list[int]:
        side.cuda.context()
        handle, kernel, local, function = c_void_p(), c_void_p(), c_uint(), c_void_p()
        side.cuda("cuLibraryLoadData", byref(handle), PTX, None, None, 0, None, None, 0)
        side.cuda("cuLibraryGetKernel", byref(kernel), handle, b"deep")
        side.cuda("cuKernelGetAttribute", byref(local), 3, kernel, 0)
        used = [local.value, side.cuda.used_mib() - CONTEXT_MIB]
        side.cuda("cuKernelGetFunction", byref(function), kernel)
        used.append(side.cuda.used_mib() - CONTEXT_MIB)
        side.cuda("cuLibraryUnload", handle)
        return [*used, side.cuda.used_mib() - CONTEXT_MIB]

    assert sim.run(library) == [4096, 0, 6, 0]
