"""Fills the card with JAX; the XLA_PYTHON_CLIENT_ variables choose the allocator and what it takes at the start."""

from __future__ import annotations

import gc
from typing import Any

from bench.fillers.common import MIB, Filler, Kernel, main
from bench.guest import need

jax = need("jax")
jnp = need("jax.numpy")


class Jax(Filler):
    """jnp.zeros on the card."""

    sizes = (256 * MIB, 32 * MIB, 4 * MIB, 1 * MIB)

    def __init__(self) -> None:
        platform = jax.devices()[0].platform
        if platform not in ("gpu", "cuda"):
            raise RuntimeError(f"JAX runs on {platform}, not on the card")
        self.matrix = jnp.arange(65536, dtype=jnp.float32).reshape(256, 256).block_until_ready()
        self.images = jnp.ones((4, 3, 64, 64)).block_until_ready()
        self.weight = jnp.ones((8, 3, 3, 3)).block_until_ready()

    def take(self, size: int) -> Any:
        return jnp.zeros((size,), dtype=jnp.uint8).block_until_ready()

    def drop(self, pieces: list[Any], keep: int) -> None:
        del pieces[keep:]
        gc.collect()

    def kernels(self) -> list[Kernel]:
        calls: list[Kernel] = [
            ("matmul", lambda: self.matrix @ self.matrix),
            ("conv", lambda: jax.lax.conv(self.images, self.weight, (1, 1), "SAME")),
            ("fft", lambda: jnp.fft.fft2(self.matrix)),
            ("sort", lambda: jnp.sort(self.matrix)),
            ("softmax", lambda: jax.nn.softmax(self.matrix)),
            ("cumsum", lambda: jnp.cumsum(self.matrix, axis=0)),
            ("cholesky", lambda: jnp.linalg.cholesky(jnp.eye(256))),
            ("random", lambda: jax.random.normal(jax.random.key(1), (256, 256))),
        ]
        return [(name, _finished(call)) for name, call in calls]

    def check(self, piece: Any) -> bool:
        return bool(int((piece + 3).astype(jnp.int32).sum()) == 3 * piece.size)

    def is_own_error(self, error: BaseException) -> bool:
        kind = getattr(jax.errors, "JaxRuntimeError", RuntimeError)
        return isinstance(error, kind) and "RESOURCE_EXHAUSTED" in str(error)

    def evidence(self) -> dict[str, Any]:
        device = jax.devices()[0]
        return {"jax": jax.__version__, "device": str(device), "memory_stats": device.memory_stats()}


def _finished(call: Any) -> Any:
    return lambda: jax.block_until_ready(call())


if __name__ == "__main__":
    main(Jax)
