"""CuPy: its pool, the stream-ordered pool, kernels compiled at run time, matmul, fft, sort and streams."""

from __future__ import annotations

from bench.guest import digest, need, show

cupy = need("cupy")

SOURCE = 'extern "C" __global__ void twice(int *x, int n)\
{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] = 2 * x[i] + 1; }'


def chain(name: str) -> None:
    """Run the operations with the allocator that is set."""
    numbers = cupy.arange(1 << 18, dtype=cupy.float32).reshape(512, 512) / 1024
    product = numbers @ numbers.T
    spectrum = cupy.fft.fft2(numbers)
    order = cupy.sort((numbers * 7919) % 13, axis=None)
    whole = cupy.arange(1 << 16, dtype=cupy.int32)
    cupy.RawKernel(SOURCE, "twice")((256,), (256,), (whole, whole.size))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        beside = cupy.cumsum(cupy.arange(1 << 16, dtype=cupy.int64))
    stream.synchronize()
    show("cupy", allocator=name, product=digest(product.tobytes()), spectrum=digest(spectrum.tobytes()))
    show("cupy", allocator=name, order=digest(order.tobytes()), raw=digest(whole.tobytes()))
    show("cupy", allocator=name, beside=digest(beside.tobytes()))


def main() -> None:
    """Print the results."""
    chain("pool")
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.cuda.set_allocator(cupy.cuda.MemoryAsyncPool().malloc)
    chain("async")
    cupy.cuda.set_allocator(None)
    chain("none")


if __name__ == "__main__":
    main()
