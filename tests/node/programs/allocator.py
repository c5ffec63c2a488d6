"""A program of the CUDA driver API that takes and gives back memory as it is told, and says how each call went.

    python allocator.py

Reads lines: `alloc MIB`, `free` (the last one), `pool MIB` (leaves as much unused in the default pool), `quit`. Answers
each with the result's number.
"""

import ctypes
import sys

MIB = 1 << 20
RELEASE_THRESHOLD = 4  # CU_MEMPOOL_ATTR_RELEASE_THRESHOLD

cuda = ctypes.CDLL("libcuda.so.1")


def say(code: int) -> None:
    print(code, flush=True)


def main() -> None:
    device, context, pool = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    blocks: list[ctypes.c_uint64] = []
    for code in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        cuda.cuCtxSetCurrent(context),
        cuda.cuDeviceGetDefaultMemPool(ctypes.byref(pool), device),
        cuda.cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, ctypes.byref(ctypes.c_uint64((1 << 64) - 1))),
    ):
        if code != 0:
            sys.exit(f"failed: {code}")
    say(0)
    for line in sys.stdin:
        verb, *size = line.split()
        block = ctypes.c_uint64()
        if verb == "quit":
            return
        if verb == "free":
            say(cuda.cuMemFree_v2(blocks.pop()))
        elif verb == "alloc":
            code = cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(int(size[0]) * MIB))
            say(code)
            blocks += [block] if code == 0 else []
        elif verb == "pool":
            code = cuda.cuMemAllocAsync(ctypes.byref(block), ctypes.c_size_t(int(size[0]) * MIB), None)
            code = code or cuda.cuMemFreeAsync(block, None) or cuda.cuStreamSynchronize(None)
            say(code)


main()
