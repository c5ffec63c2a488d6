"""The allocators whose cap is measured: how each is started, and what may be expected of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.machine import GIB, MIB

CAPS_GIB = (2, 8, 40)
CONTROL_GIB = 8
OVERSHOOT_BYTES = GIB
"""How far beyond the cap a filler goes when nothing stops it."""


@dataclass(frozen=True, slots=True)
class Allocator:
    """One way to take memory of a card."""

    name: str
    command: tuple[str, ...]
    """A compiled program (first word) or Python's -m and a module; the limit and the hold are added."""
    env: Mapping[str, str] = field(default_factory=dict)
    driver: bool = False
    """It is a driver-API program: runs on the simulated card too, and alone on the card."""
    truth: Literal["tree", "card"] = "tree"
    """Where its footprint shows: at its processes in NVML, or only in what the whole card has in use."""
    room: bool = True
    """It asks until it is refused; False: it takes a fixed part by itself."""
    least_gib: int = 0
    """Smaller caps are not tried."""
    control_takes_bytes: int = (CONTROL_GIB * GIB) + OVERSHOOT_BYTES
    """What it takes of the card without a cap."""


def python(module: str) -> tuple[str, ...]:
    """Return the command of a filler module."""
    return (sys.executable, "-m", f"bench.fillers.{module}")


def torch(conf: str) -> dict[str, str]:
    """Return the environment that gives PyTorch's allocator this configuration."""
    return {"PYTORCH_CUDA_ALLOC_CONF": conf} if conf else {}


JAX_PLATFORM = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}

ALLOCATORS = (
    Allocator("torch native", python("torch_fill"), torch("")),
    Allocator("torch expandable_segments", python("torch_fill"), torch("expandable_segments:True")),
    Allocator("torch cudaMallocAsync", python("torch_fill"), torch("backend:cudaMallocAsync")),
    Allocator("cupy pool", python("cupy_fill")),
    Allocator("cupy async", python("cupy_fill"), {"HM_CUPY": "async"}),
    Allocator("jax platform", python("jax_fill"), JAX_PLATFORM),
    # Of 2 GiB it takes three quarters at its start, and XLA then aborts for want of memory.
    Allocator("jax default", python("jax_fill"), room=False, least_gib=8, control_takes_bytes=64 * GIB),
    Allocator("cuMemAlloc", ("fill", "malloc"), driver=True),
    Allocator("cuMemAllocPitch", ("fill", "pitch"), driver=True),
    Allocator("cuMemAllocAsync", ("fill", "async"), driver=True),
    Allocator("cuMemCreate", ("fill", "vmm"), driver=True),
    Allocator("cuArrayCreate", ("fill", "array"), driver=True),
    Allocator("cuMemAllocManaged", ("fill", "managed"), driver=True, truth="card"),
)


@dataclass(frozen=True, slots=True)
class Exceeder:
    """Something that may take memory behind an allocator's back, tried on a full card."""

    kind: str
    size: int
    """Bytes: of local memory a thread, or of the limit set."""

    @property
    def name(self) -> str:
        """Return how the table calls it."""
        unit = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size} B a thread"
        return f"{EXCEEDER_NAMES[self.kind]} of {unit}"


EXCEEDER_NAMES = {
    "local": "local memory",
    "global": "global array of a module",
    "stack": "stack limit",
    "heap": "malloc heap",
    "printf": "printf buffer",
}

EXCEEDERS = (
    Exceeder("local", 1024),
    Exceeder("local", 2048),
    Exceeder("local", 4096),
    Exceeder("local", 65536),
    Exceeder("stack", 4096),
    Exceeder("stack", 32768),
    Exceeder("global", 64 * MIB),
    Exceeder("global", 512 * MIB),
    Exceeder("heap", 256 * MIB),
    Exceeder("printf", 128 * MIB),
)
EXCEEDER_CAP_GIB = 8
