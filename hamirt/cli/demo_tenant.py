"""A tenant of `hamirt demo`: an ordinary program of the CUDA driver API, which knows nothing of hamirt.

    python demo_tenant.py steady|greedy

steady takes 1 GiB and keeps working on it; greedy takes more and more until it is refused. Both say in a line what
they do, and go on until their standard input is closed.
"""

import ctypes
import select
import sys
import time

MIB = 1 << 20
CHUNK_MIB, CHUNKS = 256, 16
STEP_SECONDS = 0.35
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

cuda = ctypes.CDLL("libcuda.so.1")


class CudaError(Exception):
    """A call's result that isn't CUDA_SUCCESS."""

    def __init__(self, call: str, code: int) -> None:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        self.code = code
        self.name = (name.value or b"error %d" % code).decode()
        super().__init__(f"{call}: {self.name}")


def check(call: str, *arguments: object) -> None:
    """Call the driver; raise CudaError if it says no."""
    code = getattr(cuda, call)(*arguments)
    if code != 0:
        raise CudaError(call, code)


def say(line: str) -> None:
    """Print a line at once, for the demo that reads it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make_context() -> None:
    """Take the first GPU that there is."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    check("cuInit", 0)
    check("cuDeviceGet", ctypes.byref(device), 0)
    check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    check("cuCtxSetCurrent", context)


def allocate(size: int) -> ctypes.c_uint64:
    """Return `size` bytes of GPU memory, touched."""
    pointer = ctypes.c_uint64()
    check("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
    check("cuMemsetD8_v2", pointer, ctypes.c_ubyte(1), ctypes.c_size_t(size))
    check("cuCtxSynchronize")
    return pointer


def card_mib() -> str:
    """Return what the driver says of the card: free and total."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    check("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return f"{free.value // MIB} of {total.value // MIB} MiB free"


def is_over() -> bool:
    """Return whether our standard input was closed; wait one step for it."""
    return bool(select.select([sys.stdin], [], [], STEP_SECONDS)[0])


def steady() -> None:
    """Take a little and work on it."""
    size = 1024 * MIB
    block = allocate(size)
    step = 0
    while not is_over():
        step += 1
        check("cuMemsetD8_v2", block, ctypes.c_ubyte(step % 256), ctypes.c_size_t(size))
        check("cuCtxSynchronize")
        if step % 3 == 0:
            say(f"step {step:2d} on 1024 MiB done")
    say(f"finished after {step} steps")


def greedy() -> None:
    """Take more and more until the driver refuses; then show that life goes on."""
    blocks: list[ctypes.c_uint64] = []
    try:
        while len(blocks) < CHUNKS:
            blocks.append(allocate(CHUNK_MIB * MIB))
            say(f"holds {CHUNK_MIB * len(blocks)} MiB, {card_mib()}")
            time.sleep(STEP_SECONDS)
        sys.exit("failed: it was never refused")
    except CudaError as error:
        if error.code != OUT_OF_MEMORY:
            raise
        say(f"asks for {CHUNK_MIB} MiB more: {error.name}")
    check("cuMemFree_v2", blocks.pop())
    blocks.append(allocate(CHUNK_MIB * MIB))
    say(f"frees {CHUNK_MIB} MiB and gets them again: it goes on within its cap")
    while not is_over():
        pass
    say("finished")


if __name__ == "__main__":
    try:
        make_context()
        say(f"sees a GPU with {card_mib()}")
        {"steady": steady, "greedy": greedy}[sys.argv[1]]()
    except CudaError as error:
        sys.exit(f"failed: {error}")
