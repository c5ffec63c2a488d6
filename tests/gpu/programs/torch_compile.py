"""torch.compile: a pointwise chain and an exact reduction, compiled anew in a cache folder of its own."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from bench.guest import digest, need, show


def main() -> None:
    """Print the results."""
    with tempfile.TemporaryDirectory(prefix="hamirt-inductor-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        run(need("torch"))


def run(torch: Any) -> None:
    """Compile and run two functions, forwards and backwards."""
    torch.manual_seed(7)

    def pointwise(x: Any) -> Any:
        return (x * 2 + 1).relu() - x.abs()

    def reduction(x: Any) -> Any:
        return (x * 3 - 1).sum(0)

    points = torch.randn(1 << 16, device="cuda", requires_grad=True)
    answer = torch.compile(pointwise)(points)
    answer.sum().backward()
    whole = torch.arange(1 << 16, device="cuda").reshape(256, 256)
    sums = torch.compile(reduction)(whole)
    torch.cuda.synchronize()
    show(
        "torch_compile", pointwise=digest(answer.detach().cpu().numpy().tobytes(), points.grad.cpu().numpy().tobytes())
    )
    show("torch_compile", reduction=digest(sums.cpu().numpy().tobytes()))


if __name__ == "__main__":
    main()
