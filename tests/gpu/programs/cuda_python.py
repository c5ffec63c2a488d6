"""NVIDIA's own Python bindings of the driver API: memory, memset, copies, streams and stream-ordered memory."""

from __future__ import annotations

import sys
from typing import Any

from bench.guest import digest, need, show

driver = need("cuda.bindings.driver")
WORDS = 1 << 20


def call(answer: tuple[Any, ...]) -> Any:
    """Return what a call gives besides its code, which has to be success."""
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        sys.exit(f"the driver answered {answer[0]!r}")
    return answer[1] if len(answer) == 2 else answer[1:]


def read(pointer: Any) -> str:
    """Return the hash of WORDS words of the card."""
    host = bytearray(WORDS * 4)
    call(driver.cuMemcpyDtoH(host, pointer, WORDS * 4))
    return digest(bytes(host))


def main() -> int:
    """Print the results; return the exit status."""
    call(driver.cuInit(0))
    device = call(driver.cuDeviceGet(0))
    call(driver.cuCtxSetCurrent(call(driver.cuDevicePrimaryCtxRetain(device))))
    stream = call(driver.cuStreamCreate(0))
    plain = call(driver.cuMemAlloc(WORDS * 4))
    call(driver.cuMemsetD32(plain, 0x1234, WORDS))
    call(driver.cuMemcpyHtoD(plain, bytes(range(256)), 256))
    ordered = call(driver.cuMemAllocAsync(WORDS * 4, stream))
    call(driver.cuMemsetD32Async(ordered, 0x77, WORDS, stream))
    call(driver.cuStreamSynchronize(stream))
    show("cuda_python", plain=read(plain), ordered=read(ordered))
    refused = driver.cuMemAlloc(1 << 50)[0]
    call(driver.cuMemFreeAsync(ordered, stream))
    call(driver.cuStreamSynchronize(stream))
    call(driver.cuMemFree(plain))
    show("cuda_python", refused=refused.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
