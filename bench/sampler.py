"""The footprint of a tenant as NVML tells it: sampled at 50 Hz or faster over a tree of processes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from bench.nvml import Nvml
from bench.process import parent_of, start_time

PERIOD_S = 0.002
BAR_HZ = 50.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: CLOCK_MONOTONIC in ns, bytes of the tree's processes, bytes in use on the whole card."""

    at_ns: int
    tree_bytes: int
    card_bytes: int


@dataclass(frozen=True, slots=True)
class Trace:
    """All samples of a run, and what went wrong while they were taken."""

    samples: tuple[Sample, ...]
    baseline_card_bytes: int
    unknown: int
    """Samples in which NVML did not tell a process's bytes."""

    def peak_tree(self, start_ns: int = 0, end_ns: int | None = None) -> int:
        """Return the highest footprint between two times, 0 without a sample there."""
        return max((s.tree_bytes for s in self.between(start_ns, end_ns)), default=0)

    def peak_card(self, start_ns: int = 0, end_ns: int | None = None) -> int:
        """Return by how much the whole card's use rose over what it was before, at its highest; never below 0."""
        highest = max((s.card_bytes for s in self.between(start_ns, end_ns)), default=self.baseline_card_bytes)
        return max(0, highest - self.baseline_card_bytes)

    def peak_sure(self) -> int:
        """Return the highest footprint that the card's own figure bears out.

        NVML reads the processes of a list one after the other, so that memory which one gives up and another takes
        meanwhile counts twice in their sum; the card's figure is one number, and never below the footprint.
        """
        return max((min(s.tree_bytes, s.card_bytes - self.baseline_card_bytes) for s in self.samples), default=0)

    def between(self, start_ns: int, end_ns: int | None) -> list[Sample]:
        """Return the samples taken from start_ns on and before end_ns."""
        return [s for s in self.samples if s.at_ns >= start_ns and (end_ns is None or s.at_ns < end_ns)]

    def rate(self) -> float:
        """Return samples per second over the whole trace, 0 for fewer than two."""
        if len(self.samples) < 2:
            return 0.0
        return (len(self.samples) - 1) * 1e9 / (self.samples[-1].at_ns - self.samples[0].at_ns)

    def worst_gap_s(self) -> float:
        """Return the longest time between two samples, in seconds."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return max(((b.at_ns - a.at_ns) / 1e9 for a, b in pairs), default=0.0)

    def summary(self) -> dict[str, Any]:
        """Return what goes into the JSON file: rates and, thinned to 200 points, the curve in MiB."""
        step = max(1, len(self.samples) // 200)
        first = self.samples[0].at_ns if self.samples else 0
        curve = [
            [round((s.at_ns - first) / 1e9, 3), s.tree_bytes >> 20, (s.card_bytes - self.baseline_card_bytes) >> 20]
            for s in self.samples[::step]
        ]
        return {
            "samples": len(self.samples),
            "hz": round(self.rate(), 1),
            "worst_gap_s": round(self.worst_gap_s(), 4),
            "unknown": self.unknown,
            "baseline_card_bytes": self.baseline_card_bytes,
            "curve_s_tree_mib_card_mib": curve,
        }


class Family:
    """Decides whether a pid descends from `root`; remembers those that did, since a child outlives its parent."""

    def __init__(self, root: int) -> None:
        self._members: dict[int, int] = {}
        self._add(root)

    def has(self, pid: int) -> bool:
        """Tell whether the process is the root or a descendant of it. A dead one is judged by what was known."""
        chain: list[int] = []
        while pid > 1:
            started = start_time(pid)
            known = self._members.get(pid)
            if known is not None and started in (known, None):
                for member in chain:
                    self._add(member)
                return True
            parent = parent_of(pid)
            if started is None or parent is None:
                return False
            chain.append(pid)
            pid = parent
        return False

    def _add(self, pid: int) -> None:
        started = start_time(pid)
        if started is not None:
            self._members[pid] = started


class Sampler:
    """Takes samples in a thread while its `with` block runs; then `trace` holds them."""

    def __init__(self, nvml: Nvml, index: int, root: int, baseline_card_bytes: int) -> None:
        self._nvml = nvml
        self._handle = nvml.handle(index)
        self._family = Family(root)
        self._baseline = baseline_card_bytes
        self._samples: list[Sample] = []
        self._unknown = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and value is None:
            raise self._failure

    @property
    def trace(self) -> Trace:
        """Return what was sampled so far."""
        return Trace(tuple(self._samples), self._baseline, self._unknown)

    def tree_bytes(self) -> int:
        """Take one sample now, outside the thread, and return the tree's footprint in bytes."""
        return self._look().tree_bytes

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._samples.append(self._look())
                time.sleep(PERIOD_S)
        except Exception as error:
            self._failure = error

    def _look(self) -> Sample:
        at_ns = time.monotonic_ns()
        tree = 0
        for pid, used in self._nvml.processes(self._handle).items():
            if not self._family.has(pid):
                continue
            if used is None:
                self._unknown += 1
            tree += used or 0
        return Sample(at_ns, tree, self._nvml.memory(self._handle).used)
