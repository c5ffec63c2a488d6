"""What the rows of bench/accuracy.py amount to: one row's figures, and the bars over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.allocators import Allocator
from bench.machine import GIB, MIB
from bench.measure import Bar, Verdict
from bench.process import Ended
from bench.sampler import Trace

ROOM_LOST_BYTES = 64 * MIB
DRIVER_OOM = "CUDA_ERROR_OUT_OF_MEMORY"
BATCH_BYTES = 128 * MIB
"""The driver takes memory for managed allocations in batches, for all processes together, and gives the rest of one to
whoever asks (H100, driver 580: bench/results/rules-h100.json). So the card's use is exact to one batch."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run of one filler."""

    allocator: Allocator
    cap_bytes: int
    capped: bool
    ended: Ended
    result: dict[str, Any] | None
    trace: Trace

    def order(self) -> tuple[str, bool, int]:
        """Return the key that sorts rows by allocator, capped ones first, by cap."""
        return (self.allocator.name, not self.capped, self.cap_bytes)

    def broken(self) -> str | None:
        """Return why the run says nothing; None: it went through to the end."""
        if self.result is None:
            return f"no result, {self.ended.why()}"
        if "not_available" in self.result:
            return f"not available: {self.result['not_available']}"
        if "broke" in self.result:
            return "broke: " + str(self.result["broke"]).strip().splitlines()[-1]
        return None

    def peak_bytes(self) -> int:
        """Return the highest footprint of the whole run."""
        return self._footprint(0, None)

    def filled_bytes(self) -> int | None:
        """Return the footprint right after the last refusal; None where that was not reached."""
        phases = (self.result or {}).get("phases_ns", {})
        if "filled" not in phases:
            return None
        return self._footprint(phases["filled"], phases["filled"] + 250_000_000)

    def _footprint(self, start_ns: int, end_ns: int | None) -> int:
        """Return the highest footprint between two times; with what NVML bills to no process, as it was obtained."""
        tree = self.trace.peak_tree(start_ns, end_ns)
        if self.allocator.truth == "tree":
            return tree
        obtained = int((self.result or {}).get("obtained_bytes", 0))
        return max(tree + obtained, self.trace.peak_card(start_ns, end_ns) - BATCH_BYTES)

    def room_lost_bytes(self) -> int | None:
        """Return cap - footprint at the refusal: what neither the program nor its overhead could have."""
        filled = self.filled_bytes()
        if not self.capped or not self.allocator.room or filled is None or self.result is None:
            return None
        return None if self.result.get("limit_reached") else self.cap_bytes - filled

    def refusal(self) -> str | None:
        """Return the type of the error that ended the filling; None: there was none."""
        oom = (self.result or {}).get("oom")
        if not oom or self.result is None or self.result.get("limit_reached"):
            return None
        return str(oom["type"])

    def refused_properly(self) -> bool:
        """Tell whether every refusal was the allocator's own out-of-memory error."""
        if self.allocator.driver:
            return self.refusal() == DRIVER_OOM
        refusals = (self.result or {}).get("refusals", [])
        return bool(refusals) and all(refusal["own"] for refusal in refusals)

    def goes_on(self) -> bool:
        """Tell whether, memory given back, an allocation worked and computed right."""
        return self.result is not None and bool(self.result.get("again", {}).get("ok"))

    def kernels_failed(self, phase: str) -> list[str]:
        """Return the kernels that did not run in a phase, "full" or "room"."""
        steps = (self.result or {}).get("kernels", [])
        return [step["name"] for step in steps if step["phase"] == phase and not step["ok"]]

    def kernels_refused(self) -> list[str]:
        """Return the new kernels that could not run while the tenant was full, with the error's type."""
        steps = (self.result or {}).get("kernels", [])
        failed = [step for step in steps if step["phase"] == "full" and not step["ok"]]
        return [f"{step['name']}: {_type_of(step['error'])}" for step in failed]

    def cells(self) -> list[str]:
        """Return the row of the printed table, sizes in MiB."""
        broken = self.broken()
        over = (self.peak_bytes() - self.cap_bytes) / MIB
        lost = self.room_lost_bytes()
        return [
            self.allocator.name,
            f"{self.cap_bytes // GIB} GiB" if self.capped else "none (8)",
            f"{over:+.1f} MiB",
            "-" if lost is None else f"{lost / MIB:.1f} MiB",
            self.refusal() or "-",
            "-" if broken or not self.capped else "yes" if self.goes_on() else "NO",
            broken or f"{len(self.kernels_refused())} kernels refused while full, {self.trace.rate():.0f} Hz",
        ]

    def line(self) -> str:
        """Return the row as one line, for progress."""
        return "  ".join(self.cells())

    def as_dict(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        return {
            "allocator": self.allocator.name,
            "cap_bytes": self.cap_bytes,
            "capped": self.capped,
            "truth": self.allocator.truth,
            "peak_bytes": self.peak_bytes(),
            "peak_tree_bytes": self.trace.peak_tree(),
            "peak_card_bytes": self.trace.peak_card(),
            "filled_bytes": self.filled_bytes(),
            "room_lost_bytes": self.room_lost_bytes(),
            "broken": self.broken(),
            "refused_properly": self.refused_properly(),
            "goes_on": self.goes_on(),
            "kernels_refused": self.kernels_refused(),
            "result": self.result,
            "trace": self.trace.summary(),
            "ended": self.ended.as_dict(2000),
        }


def bars_of(rows: Sequence[Row], natively: Sequence[Row], left_out: Sequence[str], hz: float) -> list[Bar]:
    """Return the bars on footprint, room, errors and going on; a gap in what was measured resolves nothing.

    `natively` are the frameworks on a full card without hamirt: a kernel that fails there after memory was given back,
    as in libraries that do not recover from a failed start, is no fault of the cap.
    """
    capped = [row for row in rows if row.capped]
    controls = [row for row in rows if not row.capped]
    good = [row for row in capped if row.broken() is None]
    gaps = [f"{row.allocator.name} {row.cap_bytes // GIB} GiB: {row.broken()}" for row in capped if row.broken()]
    gaps += [f"{name}: no time left" for name in left_out]
    excused = {
        name: {
            kernel
            for row in (*controls, *natively)
            if row.allocator.name == name
            for kernel in row.kernels_failed("room")
        }
        for name in {row.allocator.name for row in rows}
    }
    return [
        _footprint(good, gaps, hz),
        _control(controls),
        _room([row for row in good if row.allocator.room], gaps),
        _each("out of memory is the framework's own error", good, gaps, Row.refused_properly),
        _each("goes on and allocates again after freeing", good, gaps, Row.goes_on),
        _each(
            "once there is room, kernels run that run natively after a full card",
            good,
            gaps,
            lambda row: set(row.kernels_failed("room")) <= excused[row.allocator.name],
        ),
    ]


def _footprint(rows: Sequence[Row], gaps: list[str], hz: float) -> Bar:
    title, asked = "footprint while filled and running new kernels", "never above the cap"
    if not rows:
        return Bar(title, asked, "not measured", "not resolved", _join(gaps))
    worst = max(rows, key=lambda row: row.peak_bytes() - row.cap_bytes)
    over = worst.peak_bytes() - worst.cap_bytes
    slow = [f"{row.allocator.name}: {row.trace.rate():.0f} Hz" for row in rows if row.trace.rate() < hz]
    blind = [f"{row.allocator.name}: NVML saw nothing" for row in rows if row.peak_bytes() == 0]
    measured = f"worst {over / MIB:+.1f} MiB ({worst.allocator.name}, {worst.cap_bytes // GIB} GiB), {len(rows)} runs"
    return Bar(title, asked, measured, _verdict(over <= 0, gaps + slow + blind), _join(gaps + slow + blind))


def _control(rows: Sequence[Row]) -> Bar:
    title, asked = "negative control: no cap", "every allocator goes beyond 8 GiB"
    short = [row.allocator.name for row in rows if row.peak_bytes() <= row.cap_bytes]
    measured = f"{len(rows) - len(short)} of {len(rows)} went beyond"
    verdict: Verdict = "pass" if rows and not short else "not resolved"
    return Bar(title, asked, measured, verdict, "stayed below: " + ", ".join(short) if short else "")


def _room(rows: Sequence[Row], gaps: list[str]) -> Bar:
    title, asked = "room the tenant gets", "cap - its overhead - at most 64 MiB"
    known = [(lost, row) for row in rows if (lost := row.room_lost_bytes()) is not None]
    if not known:
        return Bar(title, asked, "not measured", "not resolved", _join(gaps))
    lost, worst = max(known, key=lambda pair: pair[0])
    beyond = [f"{row.allocator.name}: never refused" for row in rows if row.room_lost_bytes() is None]
    measured = f"at most {lost / MIB:.1f} MiB lost ({worst.allocator.name}, {worst.cap_bytes // GIB} GiB)"
    return Bar(title, asked, measured, _verdict(lost <= ROOM_LOST_BYTES, gaps + beyond), _join(gaps + beyond))


def _each(title: str, rows: Sequence[Row], gaps: list[str], holds: Callable[[Row], bool]) -> Bar:
    wrong = [f"{row.allocator.name} {row.cap_bytes // GIB} GiB ({row.refusal()})" for row in rows if not holds(row)]
    measured = f"{len(rows) - len(wrong)} of {len(rows)} runs"
    verdict = "fail" if wrong else _verdict(bool(rows), gaps)
    return Bar(title, "every allocator, every cap", measured, verdict, _join(wrong + gaps))


def _verdict(holds: bool, gaps: Sequence[str]) -> Verdict:
    """Return fail where the bar is broken, however much is missing; pass only where nothing is."""
    if not holds:
        return "fail"
    return "not resolved" if gaps else "pass"


def _join(reasons: Sequence[str]) -> str:
    shown = "; ".join(reasons[:4])
    return shown + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")


def _type_of(error: Any) -> str:
    return str(error["type"]) if isinstance(error, dict) else str(error)
