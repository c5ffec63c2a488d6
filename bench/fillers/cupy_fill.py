"""Fills the card with CuPy: its own pool by default, `HM_CUPY=async` for the driver's stream-ordered one."""

from __future__ import annotations

import gc
import os
from typing import Any

from bench.fillers.common import Filler, Kernel, main
from bench.guest import need

cupy = need("cupy")


class Cupy(Filler):
    """cupy.empty."""

    def __init__(self) -> None:
        self.asynchronous = os.environ.get("HM_CUPY") == "async"
        self.pool = cupy.cuda.MemoryAsyncPool() if self.asynchronous else cupy.get_default_memory_pool()
        if self.asynchronous:
            cupy.cuda.set_allocator(self.pool.malloc)
        self.matrix = cupy.arange(65536, dtype=cupy.float32).reshape(256, 256)
        cupy.cuda.runtime.deviceSynchronize()

    def take(self, size: int) -> Any:
        return cupy.empty(size, dtype=cupy.uint8)

    def drop(self, pieces: list[Any], keep: int) -> None:
        del pieces[keep:]
        gc.collect()
        cupy.cuda.runtime.deviceSynchronize()
        self.pool.free_all_blocks()

    def kernels(self) -> list[Kernel]:
        calls: list[Kernel] = [
            ("add", lambda: self.matrix + 1),
            ("matmul", lambda: self.matrix @ self.matrix),
            ("fft", lambda: cupy.fft.fft2(self.matrix)),
            ("sort", lambda: cupy.sort(self.matrix, axis=None)),
            ("cumsum", lambda: cupy.cumsum(self.matrix)),
            ("svd", lambda: cupy.linalg.svd(self.matrix)),
            ("random", lambda: cupy.random.default_rng(1).random((256, 256))),
        ]
        return [(name, _finished(call)) for name, call in calls]

    def check(self, piece: Any) -> bool:
        piece.fill(3)
        return bool(int(piece.sum(dtype=cupy.int64)) == 3 * piece.size)

    def is_own_error(self, error: BaseException) -> bool:
        return isinstance(error, cupy.cuda.memory.OutOfMemoryError)

    def evidence(self) -> dict[str, Any]:
        used = None if self.asynchronous else self.pool.total_bytes()
        return {
            "cupy": cupy.__version__,
            "pool": type(self.pool).__name__,
            "reserved_bytes": used,
            "mem_get_info": list(cupy.cuda.runtime.memGetInfo()),
        }


def _finished(call: Any) -> Any:
    def finished() -> None:
        call()
        cupy.cuda.runtime.deviceSynchronize()

    return finished


if __name__ == "__main__":
    main(Cupy)
