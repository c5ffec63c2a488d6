"""Whether the cap holds under pressure and after kill -9: bench/probes/stress.c and bench/storm.py, judged.

    python3 -m bench.stress [--seconds 30] [--processes 8] [--threads 4] [--kills 200] [--sim]

8 processes x 4 threads allocate and free at the cap: with cudaMalloc, from pools, and half with each. Their own shared
counters and NVML, sampled from outside, must stay within it; and of cudaMalloc no request may be refused that fits
cap - overhead - 64 MiB with everything under way counted.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Any

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
    tenant_argv,
    write,
)
from bench.measure import Bar
from bench.process import Program
from bench.sampler import BAR_HZ, Sampler, Trace
from bench.status import StatusError, read_tenant
from bench.storm import run_storm, shared_file

RESERVE_BYTES = 64 * MIB
READY_S = 90.0
SETTLE_S = 1.0
AFTER_S = 5.0
LIMIT, READY, GO, FINISHED = (8 * word for word in range(4))


class Control:
    """The words of the file that bench/probes/stress.c shares with us."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    def read(self, offset: int) -> int:
        """Return a word."""
        return int(struct.unpack_from("<Q", self._map, offset)[0])

    def write(self, offset: int, value: int) -> None:
        """Set a word."""
        struct.pack_into("<Q", self._map, offset, value)

    def wait(self, offset: int, value: int, program: Program, timeout_s: float) -> bool:
        """Wait until a word has reached `value`; False: the program ended or the time is over."""
        deadline = time.monotonic() + timeout_s
        while self.read(offset) < value:
            if time.monotonic() > deadline or not program.running():
                return False
            time.sleep(0.01)
        return True


def press(setup: Setup, kind: str, processes: int, threads: int, seconds: float, cap: int, seed: int) -> dict[str, Any]:
    """Run one pressure test; return what its programs counted, what NVML showed and what status said."""
    name = f"stress-{kind}"
    env = environment(setup)
    with shared_file() as path:
        control = Control(path)
        command = [setup.program("stress"), path, str(processes), str(threads), str(seconds), str(seed), kind]
        argv = tenant_argv(setup, command, mem_option(cap), name)
        with (
            setup.nvml() as nvml,
            Program(argv, env) as program,
            Sampler(nvml, setup.gpu, program.pid, nvml.memory(nvml.handle(setup.gpu)).used) as sampler,
        ):
            if not control.wait(READY, processes, program, READY_S):
                return {"kind": kind, "broken": f"not all processes got ready: {program.finish(1).why()}"}
            time.sleep(SETTLE_S)
            overhead = sampler.tree_bytes()
            said = _status(setup, name)
            if overhead + RESERVE_BYTES + GIB > cap:
                raise MeasureError(
                    f"a cap of {cap >> 20} MiB leaves too little beside {overhead >> 20} MiB of contexts"
                )
            control.write(LIMIT, cap - overhead - RESERVE_BYTES)
            control.write(GO, 1)
            control.wait(FINISHED, processes, program, seconds + 60)
            overhead_after, said_after = _settled(setup, sampler, name)
            control.write(GO, 2)
            ended = program.finish(60)
    trace = sampler.trace
    return {
        "kind": kind,
        "broken": None if ended.result() is not None else ended.why(),
        "cap_bytes": cap,
        "overhead_bytes": overhead,
        "overhead_after_bytes": overhead_after,
        "status_before": said,
        "status_after": said_after,
        "counted": ended.result(),
        "peak_bytes": trace.peak_sure(),
        "peak_sum_bytes": trace.peak_tree(),
        "peak_card_bytes": trace.peak_card(),
        "hz": trace.rate(),
        "trace": trace.summary(),
        "ended": ended.as_dict(),
        "seconds": seconds,
        "summary": _summary(ended.result(), trace, seconds),
    }


def bars_of(found: dict[str, Any], judged: bool) -> list[Bar]:
    """Return the bars of one pressure test; `judged`: its refusals are."""
    title = f"{found['kind']}: sum at the cap"
    if found["broken"]:
        return [Bar(title, "never above the cap", "not measured", "not resolved", found["broken"])]
    counted, cap = found["counted"], found["cap_bytes"]
    own = counted["live_max_bytes"] + found["overhead_bytes"] - cap
    seen = found["peak_bytes"] - cap
    unfit = []
    if counted["refusals"] == 0:
        unfit.append("nothing was ever refused, so the cap was not reached")
    if counted["failed_processes"] or counted["errors"]:
        unfit.append(f"{counted['failed_processes']} processes failed, {counted['errors']} calls with other errors")
    if counted["not_logged"]:
        unfit.append(f"{counted['not_logged']} calls were not logged")
    if found["hz"] < BAR_HZ:
        unfit.append(f"sampled at {found['hz']:.0f} Hz only")
    listed = found["peak_sum_bytes"] - cap
    measured = f"own count {own / MIB:+.0f} MiB, NVML {seen / MIB:+.0f} MiB at most, sum of a list {listed / MIB:+.0f}"
    over = own > 0 or seen > 0
    verdict: Any = "fail" if over else "not resolved" if unfit else "pass"
    bars = [Bar(title, "never above the cap", measured, verdict, "; ".join([*unfit, found["summary"]]))]
    said = found["status_after"]
    drift = said.get("used_bytes", 0) - found["overhead_after_bytes"]
    measured = said.get("error") or f"{drift / MIB:+.0f} MiB against NVML, {said['pool_bytes'] >> 20} MiB of it pools"
    verdict = "fail" if "error" in said or abs(drift) > RESERVE_BYTES else "pass"
    bars.append(Bar(f"{found['kind']}: ledger, all freed", "what NVML shows", measured, verdict))
    if judged:
        wrong = counted["wrong_refusals"]
        verdict = "fail" if wrong else "not resolved" if unfit else "pass"
        limit = counted["limit_bytes"]
        worst = max((limit - w["held_bytes"] - w["asked_bytes"] for w in counted["wrong"]), default=0)
        detail = f"one with {worst >> 20} MiB to spare" if wrong else "; ".join(unfit)
        asked = "none that fits cap - overhead - 64 MiB"
        measured = f"{wrong} wrong of {counted['judged_refusals']}, {counted['close_refusals']} within 64 MiB of it"
        bars.append(Bar(f"{found['kind']}: refusals", asked, measured, verdict, detail))
    return bars


def _summary(counted: dict[str, Any] | None, trace: Trace, seconds: float) -> str:
    if counted is None:
        return ""
    worst = {kind: counted[f"worst_{kind}_ns"] / 1e6 for kind in ("alloc", "refusal", "free")}
    return (
        f"{counted['allocations'] / seconds:.0f} allocations/s, worst alloc {worst['alloc']:.0f} ms, refusal "
        f"{worst['refusal']:.0f} ms, free {worst['free']:.0f} ms, sampled at {trace.rate():.0f} Hz"
    )


def _settled(setup: Setup, sampler: Sampler, name: str) -> tuple[int, dict[str, Any]]:
    """Return the footprint with everything freed, and what status says once it agrees, or after AFTER_S."""
    deadline = time.monotonic() + AFTER_S
    while True:
        footprint, said = sampler.tree_bytes(), _status(setup, name)
        if abs(said.get("used_bytes", 0) - footprint) <= RESERVE_BYTES or time.monotonic() > deadline:
            return footprint, said
        time.sleep(0.2)


def _status(setup: Setup, name: str) -> dict[str, Any]:
    try:
        status = read_tenant(setup, name)
    except StatusError as error:
        return {"error": str(error)}
    return status.as_dict() if status is not None else {"error": "status does not know the tenant"}


def measure_stress() -> int:
    """Run all pressure tests and the storm and write stress.json; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--processes", type=int, default=8)
    options.add_argument("--threads", type=int, default=4)
    options.add_argument("--cap-gib", type=int, default=8)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--side-by-side", type=int, default=8, help="victims at a time")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", choices=("malloc", "pools", "mixed", "storm"))
    asked = options.parse_args()
    setup = setup_of(asked)

    bars: list[Bar] = []
    body: dict[str, Any] = {"seed": asked.seed}
    for kind, seconds in (("malloc", asked.seconds), ("pools", asked.seconds / 2), ("mixed", asked.seconds / 2)):
        if asked.only in (None, kind):
            cap = asked.cap_gib * GIB
            found = press(setup, kind, asked.processes, asked.threads, seconds, cap, asked.seed)
            bars += bars_of(found, judged=kind == "malloc")
            body[kind] = found
    if asked.only in (None, "storm"):
        more, body["storm"] = run_storm(setup, asked.kills, asked.side_by_side, asked.seed)
        bars += more
    path = write(setup, "stress", bars, body)
    print_bars(bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


if __name__ == "__main__":
    main_of(measure_stress)
