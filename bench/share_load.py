"""The file that a load shares with us: the job it is given, and what it got done, second by second.

The layout is bench/probes/load.h's. A share is always work done per second against what the same job does alone.
"""

from __future__ import annotations

import bisect
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PID, FINISHED, SAMPLES, REQUESTS = (8 * word for word in range(4))
JOB, LENGTH_NS, KERNELS, GRAPH, DEPTH, THREADS, EVERY_NS, FROM_NS, UNTIL_NS, QUIT, SMALL = (
    8 * word for word in range(16, 27)
)
SAMPLES_AT, SAMPLES_KEPT = 8 * 512, 32768
REQUESTS_AT, REQUESTS_KEPT = SAMPLES_AT + 32 * SAMPLES_KEPT, 8192
FILE_BYTES = REQUESTS_AT + 16 * REQUESTS_KEPT + 32

SECOND_NS = 1_000_000_000
STEP_NS = 100_000_000
"""A second begins every 100 ms: any second."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a load does: units of kernels, some of them queued on each stream."""

    label: str
    length_ns: int
    """Of a kernel; 0: an empty one, for the rate of launches."""
    kernels: int = 1
    """Of a unit."""
    graph: bool = False
    depth: int = 8
    """Units queued; 1: each is waited for."""
    threads: int = 1
    """Each with a stream of its own."""
    every_ns: int = 0
    """One unit each period, and its latency is noted; 0: as fast as it goes."""
    small: int = 0
    """Empty kernels behind a unit, each after 20 us of the program's own."""


def saturate(us: int, depth: int = 8) -> Job:
    """Return the job that always has `depth` kernels of so many microseconds queued."""
    return Job(f"saturate {us} us", us * 1000, depth=depth)


def wait(us: int) -> Job:
    """Return the job that waits for each of its kernels."""
    return Job(f"wait {us} us", us * 1000, depth=1)


def graph(us: int) -> Job:
    """Return the job that launches a graph of 50 nodes, four of them queued."""
    return Job(f"graph 50 x {us} us", us * 1000, kernels=50, graph=True, depth=4)


def decode() -> Job:
    """Return the job of an engine that generates: most of the time of a step it makes the next one ready."""
    return Job("decode 6 ms", 6_000_000, depth=2, small=20)


def burst() -> Job:
    """Return the job that has a request of ten 200 us kernels every 20 ms."""
    return Job("burst 10 x 200 us", 200_000, kernels=10, depth=1, every_ns=20_000_000)


def training() -> Job:
    """Return the job of bench/share_torch.py that keeps the card busy."""
    return Job("PyTorch training step", 0)


def eager() -> Job:
    """Return the one of many kernels that the processor launches more slowly than the card works."""
    return Job("PyTorch eager inference", 0, kernels=300)


def threads(count: int, us: int) -> Job:
    """Return the job of so many threads with a stream each; 0 us: empty kernels, 64 between two looks."""
    label = f"{count} threads, {us} us" if us else f"{count} threads, empty"
    return Job(label, us * 1000, kernels=1 if us else 64, threads=count, depth=8 if us else 4)


@dataclass(frozen=True, slots=True)
class Series:
    """What one process had done at some moments, in order; between them its work went on evenly."""

    at_ns: tuple[int, ...]
    work_ns: tuple[int, ...]
    kernels: tuple[int, ...]
    held_ns: tuple[int, ...]

    def done(self, moment_ns: int, column: str = "work_ns") -> float:
        """Return a total as of a moment; 0 before the first, the last one after the last."""
        values: tuple[int, ...] = getattr(self, column)
        after = bisect.bisect_right(self.at_ns, moment_ns)
        if after == 0 or after == len(self.at_ns):
            return float(values[after - 1] if after else values[0] if values else 0)
        start, end = self.at_ns[after - 1], self.at_ns[after]
        part = (moment_ns - start) / (end - start)
        return values[after - 1] + part * (values[after] - values[after - 1])

    def rate(self, start_ns: int, end_ns: int, column: str = "work_ns") -> float:
        """Return what was done per nanosecond between two moments."""
        return (self.done(end_ns, column) - self.done(start_ns, column)) / (end_ns - start_ns)

    def longest_pause_s(self, start_ns: int, end_ns: int) -> float:
        """Return the longest time between two moments without work done."""
        ends = [at for at, done, before in zip(self.at_ns[1:], self.work_ns[1:], self.work_ns, strict=False)
                if done > before and start_ns < at < end_ns]  # fmt: skip
        return max(b - a for a, b in zip([start_ns, *ends], [*ends, end_ns], strict=True)) / 1e9


def rate(parts: Sequence[Series], start_ns: int, end_ns: int, column: str = "work_ns") -> float:
    """Return what all processes of a load did per nanosecond."""
    return sum(part.rate(start_ns, end_ns, column) for part in parts)


def seconds(
    parts: Sequence[Series], start_ns: int, end_ns: int, length_ns: int = SECOND_NS, step_ns: int = STEP_NS
) -> list[float]:
    """Return the rates of every window of `length_ns` that lies between two moments, one each `step_ns`."""
    starts = range(start_ns, end_ns - length_ns + 1, step_ns)
    return [rate(parts, start, start + length_ns) for start in starts]


class LoadFile:
    """One process's file; made here, mapped by both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, FILE_BYTES)
            self._map = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)

    # native formats: those are copied in one go, others byte by byte

    def word(self, offset: int) -> int:
        """Return a word."""
        return int(struct.unpack_from("Q", self._map, offset)[0])

    def set(self, offset: int, value: int) -> None:
        """Set a word."""
        struct.pack_into("Q", self._map, offset, value)

    def ready(self) -> bool:
        """Tell whether the load takes jobs."""
        return self.word(PID) != 0

    def give(self, job: Job, from_ns: int, until_ns: int) -> None:
        """Have it do a job between two moments of CLOCK_MONOTONIC. It must have finished its last one."""
        fields = {
            LENGTH_NS: job.length_ns,
            KERNELS: job.kernels,
            GRAPH: int(job.graph),
            DEPTH: job.depth,
            THREADS: job.threads,
            EVERY_NS: job.every_ns,
            SMALL: job.small,
            FROM_NS: from_ns,
            UNTIL_NS: until_ns,
        }
        for offset, value in fields.items():
            self.set(offset, value)
        self.set(JOB, self.word(JOB) + 1)

    def finished(self) -> bool:
        """Tell whether it did all jobs that it was given."""
        return self.word(FINISHED) == self.word(JOB)

    def series(self, since_ns: int) -> Series:
        """Return what it noted since a moment, which lies less than the ring before."""
        rows = [row for row in self._ring("4Q", SAMPLES_AT, SAMPLES_KEPT, self.word(SAMPLES)) if row[0] >= since_ns]
        at, work, kernels, held = zip(*rows, strict=True) if rows else ((), (), (), ())
        return Series(at, work, kernels, held)

    def latencies_ms(self, start_ns: int, end_ns: int) -> list[float]:
        """Return how long the requests took that started between two moments."""
        rows = self._ring("2Q", REQUESTS_AT, REQUESTS_KEPT, self.word(REQUESTS))
        return [took / 1e6 for at, took in rows if start_ns <= at < end_ns]

    def note(self, at_ns: int, work_ns: int, kernels: int, held_ns: int) -> None:
        """Note what was done so far, for a load that is written in Python."""
        count = self.word(SAMPLES)
        place = SAMPLES_AT + 32 * (count % SAMPLES_KEPT)
        struct.pack_into("4Q", self._map, place, at_ns, work_ns, kernels, held_ns)
        self.set(SAMPLES, count + 1)

    def _ring(self, form: str, start: int, kept: int, count: int) -> Iterator[tuple[int, ...]]:
        size = struct.calcsize(form)
        for index in range(max(0, count - kept), count):
            yield struct.unpack_from(form, self._map, start + size * (index % kept))
