"""cuBLAS and cuFFT called directly, without a framework: libraries LIBRARY, one of cublas and cufft."""

from __future__ import annotations

import array
import ctypes
import sys
from pathlib import Path
from typing import Any

from bench.guest import digest, not_available, show

SIDE = 256
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
CUFFT_C2C, CUFFT_FORWARD = 0x29, -1


def library(stem: str) -> Any:
    """Load a CUDA library from NVIDIA's wheels or from a toolkit."""
    folders = [wheel for path in sys.path for wheel in Path(path or ".").glob("nvidia/*/lib")]
    folders += [*Path("/usr/local").glob("cuda*/lib64"), *Path("/usr/local").glob("cuda*/targets/*/lib")]
    found = [path for folder in folders for path in sorted(folder.glob(f"lib{stem}.so.[0-9]*"))]
    loaded = None
    for path in found:
        try:
            loaded = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            break
        except OSError as error:
            print(f"{path}: {error}", file=sys.stderr)
    if loaded is None:
        not_available(f"lib{stem}.so is not to be found")
    return loaded


def check(what: str, code: int) -> None:
    """End the program where a call failed."""
    if code != 0:
        sys.exit(f"{what} answered {code}")


class Device:
    """Memory of the card through the CUDA runtime."""

    def __init__(self) -> None:
        self._runtime = library("cudart")

    def put(self, values: array.array[float]) -> ctypes.c_void_p:
        """Copy floats to the card."""
        size = len(values) * values.itemsize
        pointer = ctypes.c_void_p()
        check("cudaMalloc", self._runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)))
        source = (ctypes.c_char * size).from_buffer(values)
        check("cudaMemcpy", self._runtime.cudaMemcpy(pointer, source, ctypes.c_size_t(size), HOST_TO_DEVICE))
        return pointer

    def get(self, pointer: ctypes.c_void_p, count: int) -> bytes:
        """Copy `count` floats back, after all work is done."""
        check("cudaDeviceSynchronize", self._runtime.cudaDeviceSynchronize())
        buffer = ctypes.create_string_buffer(count * 4)
        check("cudaMemcpy", self._runtime.cudaMemcpy(buffer, pointer, ctypes.c_size_t(count * 4), DEVICE_TO_HOST))
        return buffer.raw


def cublas(device: Device) -> None:
    """Multiply two matrices."""
    blas = library("cublas")
    handle = ctypes.c_void_p()
    check("cublasCreate", blas.cublasCreate_v2(ctypes.byref(handle)))
    left = device.put(array.array("f", [(i * 37 % 101) / 101 for i in range(SIDE * SIDE)]))
    right = device.put(array.array("f", [(i * 53 % 97) / 97 for i in range(SIDE * SIDE)]))
    out = device.put(array.array("f", [0.0] * (SIDE * SIDE)))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    shape = [ctypes.c_int(SIDE)] * 3
    operands = (ctypes.byref(one), left, shape[0], right, shape[0], ctypes.byref(zero), out, shape[0])
    for _ in range(3):
        check("cublasSgemm", blas.cublasSgemm_v2(handle, 0, 0, *shape, *operands))
    show("libraries", cublas=digest(device.get(out, SIDE * SIDE)))
    check("cublasDestroy", blas.cublasDestroy_v2(handle))


def cufft(device: Device) -> None:
    """Transform a batch of signals."""
    fft = library("cufft")
    plan = ctypes.c_int()
    check("cufftPlan1d", fft.cufftPlan1d(ctypes.byref(plan), ctypes.c_int(4096), CUFFT_C2C, ctypes.c_int(16)))
    count = 4096 * 16 * 2
    signal = device.put(array.array("f", [(i * 29 % 103) / 103 for i in range(count)]))
    check("cufftExecC2C", fft.cufftExecC2C(plan, signal, signal, CUFFT_FORWARD))
    show("libraries", cufft=digest(device.get(signal, count)))
    check("cufftDestroy", fft.cufftDestroy(plan))


def main() -> int:
    """Run the library that the command line names; return the exit status."""
    chosen = {"cublas": cublas, "cufft": cufft}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if chosen is None:
        print("usage: libraries.py cublas|cufft", file=sys.stderr)
        return 2
    chosen(Device())
    return 0


if __name__ == "__main__":
    sys.exit(main())
