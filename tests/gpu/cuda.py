"""The few driver calls that the tests make themselves, through ctypes: a context, blocks of memory, the totals."""

from __future__ import annotations

import ctypes
import uuid

SUCCESS = 0
OUT_OF_MEMORY = 2


class CudaError(Exception):
    """A call failed; `code` is the driver's."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} answered {code}")
        self.code = code


class Cuda:
    """Device 0 with its primary context current in this thread."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", ctypes.c_uint(0))
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def count(self) -> int:
        """Return how many devices CUDA shows."""
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def uuid(self) -> str:
        """Return the device's UUID as nvidia-smi prints it."""
        raw = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", raw, self._device)
        return f"GPU-{uuid.UUID(bytes=bytes(raw))}"

    def total(self) -> int:
        """Return the device's memory in bytes by cuDeviceTotalMem."""
        total = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), self._device)
        return total.value

    def info(self) -> tuple[int, int]:
        """Return free and total bytes by cuMemGetInfo."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Return a pointer to `size` new bytes. Raises CudaError, with OUT_OF_MEMORY where it is refused."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Free what allocate returned."""
        self._call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def _call(self, name: str, *arguments: object) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code != SUCCESS:
            raise CudaError(name, code)
