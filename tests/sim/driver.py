"""The two libraries through ctypes, with just enough types to read well in tests."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

MIB = 1 << 20
CONTEXT_MIB = 520

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
NOT_FOUND = 500
NOT_READY = 600
ILLEGAL_ADDRESS = 700
NOT_SUPPORTED = 801
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_UNJOINED = 904
CAPTURE_ISOLATION = 905
CAPTURE_IMPLICIT = 906
CAPTURED_EVENT = 907
CAPTURE_WRONG_THREAD = 908

PTX = b"""
.version 8.0
.target sm_90
.address_size 64

.global .align 4 .b8 table[3145728];
.global .align 4 .u32 counter;

.visible .entry hm_spin(
    .param .u64 hm_spin_param_0
)
{
    ret;
}

.visible .entry hm_fill(
    .param .u64 hm_fill_param_0,
    .param .u32 hm_fill_param_1,
    .param .u64 hm_fill_param_2
)
{
    ret;
}

.visible .entry deep(
    .param .align 8 .b8 deep_param_0[24]
)
{
    .local .align 16 .b8 __local_depot0[4096];
    ret;
}

.visible .entry nothing()
{
    ret;
}
"""


class DriverError(Exception):
    """A call answered something else than success."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} answered {code}")
        self.code = code


class Library:
    """A library whose functions all answer a code."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(str(path))

    def code(self, name: str, *arguments: Any) -> int:
        """Call `name` and return its code."""
        function = self.lib[name]
        function.restype = c_int
        result: int = function(*arguments)
        return result

    def __call__(self, name: str, *arguments: Any) -> None:
        code = self.code(name, *arguments)
        if code != SUCCESS:
            raise DriverError(name, code)

    def get(self, kind: Any, name: str, *arguments: Any) -> Any:
        """Call a function whose first argument is its output."""
        out = kind()
        self(name, byref(out), *arguments)
        return out.value

    def stub_calls(self, name: str) -> int:
        function = self.lib.hm_sim_stub_calls
        function.restype = c_uint64
        result: int = function(name.encode())
        return result


class MemLocation(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp; `handle_types` 1 is a POSIX file descriptor."""

    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", MemLocation),
        ("win32", c_void_p),
        ("flags", c_uint64),
    )


class AccessDesc(ctypes.Structure):
    _fields_ = (("location", MemLocation), ("flags", c_int))


class PoolProps(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", MemLocation),
        ("win32", c_void_p),
        ("max_bytes", c_size_t),
        ("rest", c_char * 56),
    )


class IpcHandle(ctypes.Structure):
    """Passed by value."""

    _fields_ = (("reserved", c_char * 64),)


class AllocNodeParams(ctypes.Structure):
    _fields_ = (
        ("pool", PoolProps),
        ("access", c_void_p),
        ("access_count", c_size_t),
        ("bytes", c_size_t),
        ("address", c_uint64),
    )


DEVICE_LOCATION = MemLocation(1, 0)


class Cuda(Library):
    """libcuda, with the sequences that most tests begin with."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "libcuda.so.1")
        self.keep: list[Any] = []

    def context(self, device: int = 0) -> c_void_p:
        """Initialize and make a device's primary context current."""
        self("cuInit", 0)
        context = c_void_p(self.get(c_void_p, "cuDevicePrimaryCtxRetain", device))
        self("cuCtxSetCurrent", context)
        return context

    def uuids(self) -> list[str]:
        """The visible devices by the last byte of their UUID."""
        self("cuInit", 0)
        found = []
        for device in range(self.get(c_int, "cuDeviceGetCount")):
            raw = (c_char * 16)()
            self("cuDeviceGetUuid_v2", raw, device)
            found.append(raw.raw.hex())
        return found

    def alloc(self, size: int) -> c_uint64:
        return c_uint64(self.get(c_uint64, "cuMemAlloc_v2", c_size_t(size)))

    def free(self, address: c_uint64) -> None:
        self("cuMemFree_v2", address)

    def info(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = c_size_t(), c_size_t()
        self("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def used_mib(self) -> int:
        free, total = self.info()
        return (total - free) // MIB

    def read(self, address: c_uint64, size: int) -> bytes:
        out = (c_char * size)()
        self("cuMemcpyDtoH_v2", out, address, c_size_t(size))
        return out.raw

    def stream(self, flags: int = 1) -> c_void_p:
        """A new stream; flag 1 is non-blocking."""
        return c_void_p(self.get(c_void_p, "cuStreamCreate", flags))

    def event(self, flags: int = 0) -> c_void_p:
        return c_void_p(self.get(c_void_p, "cuEventCreate", flags))

    def module(self, image: bytes = PTX) -> c_void_p:
        return c_void_p(self.get(c_void_p, "cuModuleLoadData", c_char_p(image)))

    def function(self, module: c_void_p, name: str) -> c_void_p:
        return c_void_p(self.get(c_void_p, "cuModuleGetFunction", module, name.encode()))

    def launch_code(self, function: c_void_p, stream: Any, *values: Any, name: str = "cuLaunchKernel") -> int:
        """Launch one block of one thread with those ctypes values."""
        pointers = (c_void_p * max(len(values), 1))(*[ctypes.addressof(value) for value in values])
        shape = [c_uint(1)] * 6
        return self.code(name, function, *shape, c_uint(0), stream, pointers, None)

    def launch(self, function: c_void_p, stream: Any, *values: Any) -> None:
        code = self.launch_code(function, stream, *values)
        if code != SUCCESS:
            raise DriverError("cuLaunchKernel", code)

    def elapsed_ms(self, start: c_void_p, end: c_void_p) -> float:
        value: float = self.get(c_float, "cuEventElapsedTime_v2", start, end)
        return value

    def pool_number(self, pool: c_void_p, attribute: int) -> int:
        value = c_uint64()
        self("cuMemPoolGetAttribute", pool, attribute, byref(value))
        return value.value


class NvmlMemory(ctypes.Structure):
    _fields_ = (("total", c_uint64), ("free", c_uint64), ("used", c_uint64))


class NvmlProcess(ctypes.Structure):
    _fields_ = (("pid", c_uint), ("used", c_uint64), ("gpu_instance", c_uint), ("compute_instance", c_uint))


class Nvml(Library):
    """libnvidia-ml."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "libnvidia-ml.so.1")

    def device(self, index: int = 0) -> c_void_p:
        self("nvmlInit_v2")
        handle = c_void_p()
        self("nvmlDeviceGetHandleByIndex_v2", index, byref(handle))
        return handle

    def memory(self, device: c_void_p) -> NvmlMemory:
        memory = NvmlMemory()
        self("nvmlDeviceGetMemoryInfo", device, byref(memory))
        return memory

    def processes(self, device: c_void_p) -> dict[int, int]:
        """MiB by pid."""
        count = c_uint(64)
        rows = (NvmlProcess * 64)()
        self("nvmlDeviceGetComputeRunningProcesses_v3", device, byref(count), rows)
        return {row.pid: row.used // MIB for row in rows[: count.value]}
