"""How exact the memory cap is: the footprint that NVML shows while allocators fill caps of 2, 8 and 40 GiB.

    python3 -m bench.accuracy [--only NAME,...] [--caps 2,8,40] [--jobs 3] [--skip controls,exceeders,full-card] [--sim]

This process carries no shim: it samples NVML over the tenant's processes while each filler asks until it is refused,
runs kernels that it had not loaded, gives back and goes on. Every allocator also runs once without a cap, and has to
go beyond it there, or its figures under a cap say nothing. A framework whose kernels stay broken once there is room
runs again without hamirt on a card that somebody else has filled but for 8 GiB: what does not come back to life there
needs not do so in a tenant either.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.allocators import (
    ALLOCATORS,
    CAPS_GIB,
    CONTROL_GIB,
    EXCEEDER_CAP_GIB,
    EXCEEDERS,
    OVERSHOOT_BYTES,
    Allocator,
    Exceeder,
)
from bench.machine import (
    GIB,
    MIB,
    MeasureError,
    Setup,
    environment,
    main_of,
    mem_option,
    parser,
    print_bars,
    setup_of,
    table,
    tenant_argv,
    write,
)
from bench.measure import Bar
from bench.process import Ended, Program
from bench.sampler import BAR_HZ, Sampler, Trace
from bench.verdicts import Row, bars_of

TIMEOUT_S = 150.0
HOLD_MS = 300
CARD_BYTES = 76 * GIB
"""What runs side by side asks for no more of the card than this."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one allocator: under a cap, or without one as the control."""

    allocator: Allocator
    cap_bytes: int
    capped: bool

    @property
    def name(self) -> str:
        """Return a name that `hamirt run --name` takes."""
        kind = "cap" if self.capped else "control"
        return f"{self.allocator.name}-{kind}-{self.cap_bytes // GIB}".replace(" ", "-").replace("_", "-").lower()

    @property
    def takes_bytes(self) -> int:
        """Return what it may take of the card at most."""
        return self.cap_bytes + OVERSHOOT_BYTES if self.capped else self.allocator.control_takes_bytes


def jobs_of(allocators: Sequence[Allocator], caps_gib: Sequence[int], most_gib: int, controls: bool) -> list[Job]:
    """Return all runs, the largest first so that small ones fill the gaps beside them, and last what takes minutes.

    Memory that is touched gets at most `most_gib`: on the simulated card it is the host's.
    """
    jobs = [Job(a, cap * GIB, True) for a in allocators for cap in caps_gib if _is_tried(a, cap, most_gib)]
    if controls:
        jobs += [Job(a, CONTROL_GIB * GIB, False) for a in allocators]
    return sorted(jobs, key=lambda job: (not job.allocator.room, -job.takes_bytes))


def _is_tried(allocator: Allocator, cap_gib: int, most_gib: int) -> bool:
    return cap_gib >= allocator.least_gib and (cap_gib <= most_gib or allocator.truth == "tree")


def run_job(setup: Setup, job: Job) -> Row:
    """Run one filler while its footprint is sampled."""
    limit_mib = (job.cap_bytes + OVERSHOOT_BYTES) // MIB
    command = list(job.allocator.command)
    if job.allocator.driver:
        command = [setup.program(command[0]), *command[1:], str(limit_mib), str(HOLD_MS)]
    else:
        command += ["--limit-mib", str(limit_mib), "--hold-ms", str(HOLD_MS)]
    mem = mem_option(job.cap_bytes) if job.capped else None
    ended, trace = sampled(setup, tenant_argv(setup, command, mem, job.name), dict(job.allocator.env))
    return Row(job.allocator, job.cap_bytes, job.capped, ended, ended.result(), trace)


def run_exceeder(setup: Setup, exceeder: Exceeder) -> dict[str, Any]:
    """Try one exceeder on a full tenant; return by how much the footprint went over the cap."""
    cap = EXCEEDER_CAP_GIB * GIB
    command = [setup.program("exceed"), exceeder.kind, str(exceeder.size)]
    command += [str((cap + OVERSHOOT_BYTES) // MIB), str(HOLD_MS)]
    name = f"exceed-{exceeder.kind}-{exceeder.size}"
    ended, trace = sampled(setup, tenant_argv(setup, command, mem_option(cap), name), {})
    found = ended.result() or {}
    filled = found.get("phases_ns", {}).get("filled", 0)
    return {
        "name": exceeder.name,
        "cap_bytes": cap,
        "answer": f"{found['code']} at {found['step']}" if "code" in found else ended.why(),
        "full_bytes": trace.peak_tree(filled, filled + HOLD_MS * 1_000_000),
        "peak_bytes": trace.peak_tree(),
        "over_cap_bytes": max(0, trace.peak_tree() - cap),
        "trace": trace.summary(),
        "ended": ended.as_dict(),
    }


def sampled(setup: Setup, argv: list[str], extra: dict[str, str]) -> tuple[Ended, Trace]:
    """Run a command and return its end and what NVML said of it and of the card meanwhile."""
    env = environment(setup, extra)
    with setup.nvml() as nvml:
        baseline = nvml.memory(nvml.handle(setup.gpu)).used
        with Program(argv, env) as program, Sampler(nvml, setup.gpu, program.pid, baseline) as sampler:
            ended = program.finish(min(TIMEOUT_S, max(20.0, setup.left_s() + 20)))
        return ended, sampler.trace


def run_on_full_card(setup: Setup, allocators: Sequence[Allocator]) -> list[Row]:
    """Run fillers without hamirt while another process holds the card but for CONTROL_GIB; return their rows."""
    with setup.nvml() as nvml:
        handle = nvml.handle(setup.gpu)
        ballast_bytes = nvml.memory(handle).free - CONTROL_GIB * GIB
        argv = [setup.program("fill"), "malloc", str(ballast_bytes // MIB), str(int(TIMEOUT_S * 1000))]
        with Program(argv, environment(setup)) as ballast:
            deadline = time.monotonic() + TIMEOUT_S
            while nvml.memory(handle).free > CONTROL_GIB * GIB + OVERSHOOT_BYTES:
                if not ballast.running() or time.monotonic() > deadline:
                    raise MeasureError("the process that was to fill the card did not")
                time.sleep(0.05)
            rows = []
            for allocator in allocators:
                command = [*allocator.command, "--limit-mib", str((CONTROL_GIB * GIB + OVERSHOOT_BYTES) // MIB)]
                env = environment(setup, dict(allocator.env))
                baseline = nvml.memory(handle).used
                with (
                    Program([*command, "--hold-ms", "0"], env) as program,
                    Sampler(nvml, setup.gpu, program.pid, baseline) as sampler,
                ):
                    ended = program.finish(max(20.0, setup.left_s() + 20))
                rows.append(Row(allocator, CONTROL_GIB * GIB, False, ended, ended.result(), sampler.trace))
            return rows


class Room:
    """Lets jobs start while what they may take together fits the card."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._taken = 0
        self._change = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until the card has room for `size` bytes more; a job larger than the card waits to be alone."""
        with self._change:
            self._change.wait_for(lambda: self._taken == 0 or self._taken + size <= self._limit)
            self._taken += size

    def give(self, size: int) -> None:
        """Give the room back."""
        with self._change:
            self._taken -= size
            self._change.notify_all()


def run_all(setup: Setup, jobs: Sequence[Job], workers: int, card_bytes: int) -> tuple[list[Row], list[str]]:
    """Run the jobs, at most `workers` side by side; return the rows and the names that the budget left out."""
    room = Room(card_bytes)
    rows: list[Row] = []
    left_out: list[str] = []
    lock = threading.Lock()

    def one(job: Job) -> None:
        room.take(job.takes_bytes)
        try:
            row = run_job(setup, job) if setup.left_s() > 0 else None
        finally:
            room.give(job.takes_bytes)
        with lock:
            if row is None:
                left_out.append(job.name)
            else:
                rows.append(row)
                print(row.line(), flush=True)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(one, job) for job in jobs]:
            future.result()
    return rows, left_out


def measure_accuracy() -> int:
    """Measure all allocators and exceeders and write accuracy.json; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--only", default="", help="allocators by name, comma separated")
    options.add_argument("--caps", default=",".join(map(str, CAPS_GIB)), help="caps in GiB")
    options.add_argument("--jobs", type=int, default=3, help="fillers side by side")
    options.add_argument("--skip", default="", help="controls, exceeders, full-card; comma separated")
    options.add_argument("--name", default="accuracy", help="name of the JSON file")
    asked = options.parse_args()
    setup = setup_of(asked)
    only = set(filter(None, asked.only.split(",")))
    caps = [int(cap) for cap in asked.caps.split(",")]
    chosen = [a for a in ALLOCATORS if (not only or a.name in only) and (a.driver or not setup.sim)]
    most = 8 if setup.sim else 1024
    unknown = only - {a.name for a in ALLOCATORS}
    if unknown or not chosen:
        print(f"error: no such allocator: {', '.join(sorted(unknown)) or asked.only}")
        return 2

    skip = set(filter(None, asked.skip.split(",")))
    with setup.nvml() as nvml:
        card_bytes = min(CARD_BYTES, nvml.memory(nvml.handle(setup.gpu)).free)
    # What shows only in the use of the whole card runs alone.
    alone, beside = ([a for a in chosen if (a.truth == "card") == whole] for whole in (True, False))
    rows, left_out = run_all(setup, jobs_of(alone, caps, most, "controls" not in skip), 1, card_bytes)
    more, more_left = run_all(setup, jobs_of(beside, caps, most, "controls" not in skip), asked.jobs, card_bytes)
    rows += more
    left_out += more_left
    exceeders: list[dict[str, Any]] = []
    if not only and "exceeders" not in skip and setup.left_s() > 0:
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            exceeders = list(pool.map(lambda exceeder: run_exceeder(setup, exceeder), EXCEEDERS))
    unwell = [a for a in chosen if any(row.allocator is a and row.kernels_failed("room") for row in rows)]
    natively: list[Row] = []
    if unwell and "full-card" not in skip and setup.left_s() > 0:
        natively = run_on_full_card(setup, unwell)

    bars = bars_of(rows, natively, left_out, BAR_HZ)
    body = {
        "rows": [row.as_dict() for row in sorted(rows, key=Row.order)],
        "natively_on_a_full_card": [row.as_dict() for row in natively],
        "left_out": left_out,
        "skipped": sorted(skip),
        "exceeders": exceeders,
        "jobs": asked.jobs,
    }
    path = write(setup, asked.name, bars, body)
    show(rows, exceeders, bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def show(rows: Sequence[Row], exceeders: Sequence[dict[str, Any]], bars: Sequence[Bar], sim: bool) -> None:
    """Print what was measured as tables."""
    header = ["allocator", "cap", "peak - cap", "room lost", "refused with", "goes on", "note"]
    print(table([row.cells() for row in sorted(rows, key=Row.order)], header))
    if exceeders:
        sizes = ("full_bytes", "peak_bytes", "over_cap_bytes")
        cells = [[e["name"], *(str(e[size] >> 20) for size in sizes), e["answer"]] for e in exceeders]
        print(table(cells, ["on a full tenant of 8192 MiB", "full MiB", "peak MiB", "over MiB", "answer"]))
    print_bars(bars, sim)


if __name__ == "__main__":
    main_of(measure_accuracy)
