"""What a container does in tests/gpu/contained.py: looks at its GPU, fills it, and stays until its input ends.

    python3 -m tests.gpu.contained_inside

Prints "HMRESULT " and JSON when the card is full: what nvidia-smi and NVML show, what was taken, and how that ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from typing import Any

from bench.nvml import Nvml
from tests.gpu.cuda import Cuda, CudaError

MIB = 1 << 20
PIECES_BYTES = (64 * MIB, 12 * MIB)
TIMEOUT_S = 60


def fill_with_torch(torch: Any) -> tuple[int, str, Any]:
    """Take the card in tensors until PyTorch says no; return the bytes, its error, and what holds them."""
    held = [torch.ones(PIECES_BYTES[0], dtype=torch.uint8, device="cuda")]  # its kernel has no room later
    refused = ""
    for size in PIECES_BYTES:
        try:
            while True:
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except Exception as error:
            refused = type(error).__name__
    torch.cuda.synchronize()
    return sum(map(len, held)), refused, held


def fill_with_driver(cuda: Cuda) -> tuple[int, str, Any]:
    """The same through cuMemAlloc."""
    taken, refused = 0, ""
    for size in PIECES_BYTES:
        try:
            while True:
                cuda.allocate(size)
                taken += size
        except CudaError as error:
            refused = str(error)
    return taken, refused, cuda


def main() -> int:
    """Look, fill, and wait."""
    cuda = Cuda()
    _, total = cuda.info()
    torch: Any = None
    with contextlib.suppress(ImportError):
        torch = importlib.import_module("torch")
    usable = torch is not None and torch.cuda.is_available()
    taken, error, _held = fill_with_torch(torch) if usable else fill_with_driver(cuda)
    smi = ""
    if shutil.which("nvidia-smi"):
        smi = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False).stdout
    with Nvml() as nvml:
        card = nvml.handle(0)
        seen = {"count": nvml.count(), "total": nvml.memory(card).total, "pids": sorted(nvml.processes(card))}
    with open("/proc/self/maps") as maps:
        preloaded = "libhamirt.so" in maps.read()
    found = {
        "by": "torch" if usable else "driver", "pid": os.getpid(), "total": total, "taken": taken, "error": error,
        "nvml": seen, "smi": smi, "preloaded": preloaded,
    }  # fmt: skip
    print("HMRESULT " + json.dumps(found), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
