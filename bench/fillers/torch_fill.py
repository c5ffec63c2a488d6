"""Fills the card with PyTorch; PYTORCH_CUDA_ALLOC_CONF chooses the allocator."""

from __future__ import annotations

import gc
from typing import Any

from bench.fillers.common import Filler, Kernel, main
from bench.guest import need

torch = need("torch")


class Torch(Filler):
    """torch.empty on the card."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch.cuda.is_available() is False")
        torch.manual_seed(1)
        self.matrix = torch.arange(65536, dtype=torch.float32, device="cuda").reshape(256, 256)
        self.images = torch.ones(4, 3, 64, 64, device="cuda")
        self.weight = torch.ones(8, 3, 3, 3, device="cuda")
        self.small = torch.ones(2, 4, 128, 64, dtype=torch.bfloat16, device="cuda")
        torch.cuda.synchronize()

    def take(self, size: int) -> Any:
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    def drop(self, pieces: list[Any], keep: int) -> None:
        del pieces[keep:]
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def kernels(self) -> list[Kernel]:
        functional = torch.nn.functional
        calls: list[Kernel] = [
            ("matmul", lambda: self.matrix @ self.matrix),
            ("bf16 linear", lambda: functional.linear(self.small, self.small[0, 0])),
            ("conv2d", lambda: functional.conv2d(self.images, self.weight)),
            ("fft", lambda: torch.fft.fft2(self.matrix)),
            ("sort", lambda: torch.sort(self.matrix)),
            ("softmax", lambda: torch.softmax(self.matrix, 0)),
            ("topk", lambda: torch.topk(self.matrix, 5)),
            ("cumsum", lambda: torch.cumsum(self.matrix, 1)),
            ("unique", lambda: torch.unique(self.matrix)),
            ("attention", lambda: functional.scaled_dot_product_attention(self.small, self.small, self.small)),
            ("solve", lambda: torch.linalg.solve(self.matrix + torch.eye(256, device="cuda") * 1e6, self.matrix)),
            ("randn", lambda: torch.randn(256, 256, device="cuda")),
        ]
        return [(name, _finished(call)) for name, call in calls]

    def check(self, piece: Any) -> bool:
        piece.fill_(3)
        return bool(int(piece.sum(dtype=torch.int64).item()) == 3 * piece.numel())

    def is_own_error(self, error: BaseException) -> bool:
        return isinstance(error, torch.OutOfMemoryError)

    def evidence(self) -> dict[str, Any]:
        backend = torch.cuda.get_allocator_backend()
        segments = torch.cuda.memory_snapshot() if backend == "native" else []  # the other has no snapshot
        return {
            "torch": torch.__version__,
            "backend": backend,
            "expandable": any(segment.get("is_expandable") for segment in segments),
            "reserved_bytes": torch.cuda.memory_reserved(),
            "mem_get_info": list(torch.cuda.mem_get_info()),
        }


def _finished(call: Any) -> Any:
    def finished() -> None:
        call()
        torch.cuda.synchronize()

    return finished


if __name__ == "__main__":
    main(Torch)
