"""JAX: jit, grad, matmul, convolution, fft and scan; XLA told to choose its algorithms without timing them."""

from __future__ import annotations

import sys
from typing import Any

from bench.guest import digest, need, not_available, show

jax = need("jax")
jnp = need("jax.numpy")
numpy = need("numpy")


def bits(value: Any) -> str:
    """Return the hash of an array."""
    return digest(numpy.asarray(value).tobytes())


def main() -> int:
    """Print the results; return the exit status."""
    if jax.devices()[0].platform not in ("gpu", "cuda"):
        not_available(f"JAX runs on {jax.devices()[0].platform}, not on the card")
    left = jax.random.normal(jax.random.key(7), (256, 256), dtype=jnp.float32)
    images = jax.random.normal(jax.random.key(8), (4, 3, 32, 32))
    weight = jax.random.normal(jax.random.key(9), (8, 3, 3, 3))

    def loss(matrix: Any) -> Any:
        return jnp.tanh(matrix @ matrix).sum()

    def step(state: Any, _: Any) -> Any:
        return (state * 3 + 1) % 65537, state

    show("jax", product=bits(jax.jit(lambda x: x @ x)(left)), gradient=bits(jax.jit(jax.grad(loss))(left)))
    show("jax", conv=bits(jax.lax.conv(images, weight, (1, 1), "SAME")), fft=bits(jnp.fft.fft2(left)))
    show("jax", scan=bits(jax.lax.scan(step, jnp.arange(64), None, length=100)[1]), sort=bits(jnp.sort(left)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
