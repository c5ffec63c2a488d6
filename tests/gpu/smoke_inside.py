"""The tenant of the smoke test: allocates until it is refused, looks at nvidia-smi, waits, goes on.

PyTorch where there is one, else the driver itself; the last line is "HMRESULT " and JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from tests.gpu.cuda import Cuda, CudaError

MIB = 1 << 20
PIECES = (256 * MIB, 32 * MIB, 12 * MIB, 1 * MIB)


def with_torch(torch: Any, limit: int) -> dict[str, Any]:
    """Fill with PyTorch; return what happened. The tensors live until the end of this function's result."""
    pieces: list[Any] = []
    obtained, error = 0, None
    for size in PIECES:
        try:
            while obtained + size <= limit:
                pieces.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                obtained += size
        except Exception as refused:
            error = f"{type(refused).__module__}.{type(refused).__qualname__}"
    found = {"with": f"torch {torch.__version__}", "obtained_bytes": obtained, "error": error}
    found["mem_get_info"] = list(torch.cuda.mem_get_info())
    ask(found)
    del pieces
    torch.cuda.empty_cache()
    again = torch.ones(1 << 20, device="cuda").sum().item()
    return {**found, "again": again == 1 << 20}


def with_driver(limit: int) -> dict[str, Any]:
    """Fill with cuMemAlloc; return what happened."""
    cuda = Cuda()
    pieces: list[int] = []
    obtained, error = 0, None
    for size in PIECES:
        try:
            while obtained + size <= limit:
                pieces.append(cuda.allocate(size))
                obtained += size
        except CudaError as refused:
            error = str(refused.code)
    found: dict[str, Any] = {"with": "the driver", "obtained_bytes": obtained, "error": error}
    found["mem_get_info"] = list(cuda.info())
    ask(found)
    for pointer in pieces:
        cuda.free(pointer)
    cuda.free(cuda.allocate(64 * MIB))
    return {**found, "again": True}


def ask(found: dict[str, Any]) -> None:
    """While full: note what nvidia-smi shows, tell whoever started this, and wait for its answer."""
    found["nvidia_smi"] = output(["nvidia-smi"])
    found["nvidia_smi_query"] = output(["nvidia-smi", "--query-gpu=memory.total,memory.used", "--format=csv,noheader"])
    found["filled_ns"] = time.monotonic_ns()
    print("FULL", flush=True)
    sys.stdin.readline()
    found["left_ns"] = time.monotonic_ns()


def output(argv: list[str]) -> str | None:
    """Return what a program prints; None where the machine lacks it."""
    if shutil.which(argv[0]) is None:
        return None
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def main() -> int:
    """Run with the limit in bytes that the command line names; return the exit status."""
    limit = int(sys.argv[1])
    try:
        torch = None if os.environ.get("HM_SMOKE") == "driver" else importlib.import_module("torch")
    except ImportError as error:
        print(f"PyTorch is not there: {error}", file=sys.stderr)
        torch = None
    found = with_torch(torch, limit) if torch is not None else with_driver(limit)
    print("\nHMRESULT " + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
