"""Triton: two kernels compiled at run time, in a cache folder of its own."""

import os
import tempfile
from typing import Any

from bench.guest import digest, need, show

torch = need("torch")
triton = need("triton")
tl = need("triton.language")


def add_kernel(x, y, out, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def,name-defined]  # noqa: N803
    """Add two vectors."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out + at, tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside), mask=inside)


def sum_kernel(x, out, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def,name-defined]  # noqa: N803
    """Sum each row."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * n + at, mask=at < n, other=0)
    tl.store(out + row, tl.sum(values, axis=0))


def main() -> None:
    """Print the results."""
    with tempfile.TemporaryDirectory(prefix="hamirt-triton-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        run()


def run() -> None:
    """Launch both kernels."""
    add: Any = triton.jit(add_kernel)
    total: Any = triton.jit(sum_kernel)
    torch.manual_seed(7)
    left, right = torch.randn(100_003, device="cuda"), torch.randn(100_003, device="cuda")
    out = torch.empty_like(left)
    add[(triton.cdiv(left.numel(), 1024),)](left, right, out, left.numel(), BLOCK=1024)
    whole = torch.arange(64 * 1000, device="cuda", dtype=torch.int32).reshape(64, 1000)
    sums = torch.empty(64, device="cuda", dtype=torch.int32)
    total[(64,)](whole, sums, 1000, BLOCK=1024)
    torch.cuda.synchronize()
    show("triton", add=digest(out.cpu().numpy().tobytes()), sums=digest(sums.cpu().numpy().tobytes()))


if __name__ == "__main__":
    main()
