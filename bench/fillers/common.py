"""What a filler does, whatever it allocates with: fill, run new kernels while full, give back, allocate again.

The last line of stdout is "HMRESULT " and a JSON object, the same as bench/probes/fill.c prints.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

MIB = 1 << 20
GIVE_BACK_BYTES = 768 * MIB
AGAIN_BYTES = 32 * MIB
"""PyTorch holds 1.9 GiB by itself once it has run these kernels, of a cap that may be 2 GiB."""

Kernel = tuple[str, Callable[[], Any]]


class Filler(ABC):
    """An allocator to fill a card with."""

    sizes: Sequence[int] = (256 * MIB, 32 * MIB, 12 * MIB, 1 * MIB)
    """Sizes of the pieces in bytes, each asked for until it is refused."""

    @abstractmethod
    def take(self, size: int) -> Any:
        """Allocate and return something that holds `size` bytes of the card until it is dropped."""

    @abstractmethod
    def drop(self, pieces: list[Any], keep: int) -> None:
        """Free pieces from the end of the list until `keep` are left, and give unused memory back to the card."""

    @abstractmethod
    def kernels(self) -> list[Kernel]:
        """Return kernels, none of them run so far, on memory that is there already."""

    @abstractmethod
    def check(self, piece: Any) -> bool:
        """Compute on a fresh piece; tell whether the result is right."""

    @abstractmethod
    def is_own_error(self, error: BaseException) -> bool:
        """Tell whether this is the framework's own out-of-memory error."""

    def evidence(self) -> dict[str, Any]:
        """Return what shows that the allocator meant is the one in use."""
        return {}


def main(make: Callable[[], Filler]) -> None:
    """Read the options, run the filler and print its result."""
    options = argparse.ArgumentParser()
    options.add_argument("--limit-mib", type=int, required=True, help="stop here, whatever the cap")
    options.add_argument("--hold-ms", type=int, default=300, help="how long to stay in a state, to be sampled")
    asked = options.parse_args()
    hold_s = asked.hold_ms / 1e3
    limit = asked.limit_mib * MIB

    result: dict[str, Any] = {}
    try:
        fill(make(), limit, hold_s, result)
    except Exception:
        result["broke"] = traceback.format_exc()[-3000:]
    print("\nHMRESULT " + json.dumps(result), flush=True)


def fill(filler: Filler, limit: int, hold_s: float, result: dict[str, Any]) -> None:
    """Go through all the phases; what is known when something breaks is in `result`."""
    pieces: list[Any] = []
    phases: dict[str, int] = {}
    result["phases_ns"] = phases
    result["kernels"] = []
    kernels = filler.kernels()
    phases["context"] = time.monotonic_ns()
    time.sleep(hold_s)

    result["obtained_bytes"], result["oom"], result["refusals"] = _take_all(filler, pieces, limit)
    result["limit_reached"] = result["oom"] is None
    result["evidence"] = _evidence(filler)
    phases["filled"] = time.monotonic_ns()
    time.sleep(hold_s)
    result["kernels"] += _run_kernels(filler, kernels, "full")
    time.sleep(hold_s)

    big = sum(1 for size, _ in pieces if size == filler.sizes[0])
    filler.drop(pieces, max(0, big - GIVE_BACK_BYTES // filler.sizes[0]))
    phases["room"] = time.monotonic_ns()
    result["kernels"] += _run_kernels(filler, kernels, "room")
    time.sleep(hold_s)
    filler.drop(pieces, 0)
    phases["freed"] = time.monotonic_ns()
    result["again"] = _again(filler)
    time.sleep(hold_s)
    phases["end"] = time.monotonic_ns()


def _evidence(filler: Filler) -> dict[str, Any]:
    try:
        return filler.evidence()
    except Exception as error:
        return {"not_available": repr(error)}


def _take_all(filler: Filler, pieces: list[Any], limit: int) -> tuple[int, Any, list[Any]]:
    """Fill with pieces of each size in turn; return the bytes, the last refusal (None: the limit) and all."""
    obtained = 0
    refusals: list[dict[str, Any]] = []
    for size in filler.sizes:
        try:
            while obtained + size <= limit:
                pieces.append((size, filler.take(size)))
                obtained += size
        except Exception as error:
            refusals.append({"asked_bytes": size, **_describe(filler, error)})
    return obtained, refusals[-1] if refusals else None, refusals


def _run_kernels(filler: Filler, kernels: list[Kernel], phase: str) -> list[dict[str, Any]]:
    steps = []
    for name, kernel in kernels:
        step: dict[str, Any] = {"name": name, "phase": phase, "ok": True, "error": None}
        try:
            kernel()
        except Exception as error:
            step.update({"ok": False, "error": _describe(filler, error)})
        steps.append(step)
    return steps


def _again(filler: Filler) -> dict[str, Any]:
    try:
        right = filler.check(filler.take(AGAIN_BYTES))
    except Exception as error:
        return {"ok": False, "error": _describe(filler, error)}
    return {"ok": right, "error": None if right else "a wrong result"}


def _describe(filler: Filler, error: BaseException) -> dict[str, Any]:
    kind = type(error)
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "own": filler.is_own_error(error),
        "message": str(error)[:400],
    }
