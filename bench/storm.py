"""200 processes of a tenant killed with -9 at random moments: the ledger has to end up with exactly the living.

`run_storm` is called by bench/stress.py. bench/storm_host.py does the killing, inside the tenant; this side asks
`hamirt status --json` and NVML after every 50 kills, and in the end kills the whole tenant, `hamirt run` included.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench.machine import GIB, MIB, Setup, environment, mem_option, tenant_argv
from bench.measure import Bar
from bench.process import Program, descendants, run
from bench.sampler import Sampler
from bench.status import StatusError, TenantStatus, read_tenant

NAME = "storm"
CAP_BYTES = 16 * GIB
SURVIVORS = 3
HELD_BYTES = 256 * MIB
BEAT_BYTES = 2 * MIB
SETTLE_S = 15.0
OVERHEAD_SLACK_BYTES = 64 * MIB
SLOWER_S = 1.0
PAUSE_S = 20.0


def run_storm(setup: Setup, kills: int, side_by_side: int, seed: int) -> tuple[list[Bar], Any]:
    """Run the storm; return its bars and everything that was recorded."""
    env = environment(setup)
    with shared_file() as path:
        host = [sys.executable, "-m", "bench.storm_host", setup.program("victim"), path, str(SURVIVORS)]
        host += [str(HELD_BYTES), str(kills), str(side_by_side), str(seed)]
        argv = tenant_argv(setup, host, mem_option(CAP_BYTES), NAME)
        with setup.nvml() as nvml, Program(argv, env) as program:
            baseline = nvml.memory(nvml.handle(setup.gpu)).used
            with Sampler(nvml, setup.gpu, program.pid, baseline) as sampler:
                checks, end = _follow(setup, program, sampler)
                swept = _kill_tenant(setup, program)
            ended = program.finish(10)
            trace = sampler.trace
    fresh = _fresh_start(setup, env)
    body = {
        "cap_bytes": CAP_BYTES,
        "checks": checks,
        "end": end,
        "swept": swept,
        "fresh_tenant_start": fresh,
        "peak_bytes": trace.peak_tree(),
        "trace": trace.summary(),
        "ended": ended.as_dict(),
    }
    return _bars(kills, checks, end, swept, fresh, trace.peak_tree()), body


def mismatch(status: TenantStatus | None, truth: int, pids: list[int], beating: bool) -> str | None:
    """Return how the ledger differs from the living, None where it is exactly them.

    `truth` is the living processes' footprint in NVML, in bytes.
    """
    if status is None:
        return "status does not know the tenant"
    if status.pids != frozenset(pids) or status.processes != len(pids):
        return f"status lists {sorted(status.pids)} ({status.processes}), living are {sorted(pids)}"
    held = HELD_BYTES * len(pids)
    most = held + BEAT_BYTES * len(pids) * beating
    if not held <= status.allocation <= most:
        return f"allocations are {status.allocation}, the living hold {held}"
    if abs(status.used - truth) > OVERHEAD_SLACK_BYTES:
        return f"the ledger has {status.used}, NVML shows {truth}"
    return None


def _follow(setup: Setup, program: Program, sampler: Sampler) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answer the host's lines until its end; return the checks and its last word ({} where it died)."""
    checks: list[dict[str, Any]] = []
    for line in _lines(setup, program):
        if line["event"] == "check":
            checks.append(_check(setup, sampler, line))
            program.say("go on")
        elif line["event"] == "end":
            return checks, line
    return checks, {}


def _lines(setup: Setup, program: Program) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines that the host writes, while it lives and there is time."""
    seen = 0
    while True:
        running = program.running()
        complete = program.stdout().split("\n")[:-1]
        for text in complete[seen:]:
            with contextlib.suppress(ValueError):
                found = json.loads(text)
                if isinstance(found, dict) and "event" in found:
                    yield found
        seen = len(complete)
        if not running or setup.left_s() == 0:
            return
        time.sleep(0.05)


def _check(setup: Setup, sampler: Sampler, line: dict[str, Any]) -> dict[str, Any]:
    """Compare the ledger with the living until they agree or the time to settle is over."""
    start = time.monotonic()
    while True:
        status, truth = None, sampler.tree_bytes()
        try:
            status = read_tenant(setup, NAME)
            wrong = mismatch(status, truth, line["pids"], line["beating"])
        except StatusError as error:
            wrong = str(error)
        took = time.monotonic() - start
        if wrong is None or took > SETTLE_S:
            return {
                "kills": line["kills"],
                "mismatch": wrong,
                "settled_s": round(took, 3),
                "truth_bytes": truth,
                "status": status and status.as_dict(),
            }
        time.sleep(0.1)


def _kill_tenant(setup: Setup, program: Program) -> dict[str, Any]:
    """Kill `hamirt run` and everything in its tenant; the next status must know nothing of it."""
    for pid in [program.pid, *descendants(program.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    while True:
        try:
            left = read_tenant(setup, NAME)
            wrong = None if left is None else f"status still shows it: {left.as_dict()}"
        except StatusError as error:
            wrong = str(error)
        took = time.monotonic() - start
        if wrong is None or took > SETTLE_S:
            return {"mismatch": wrong, "settled_s": round(took, 3)}
        time.sleep(0.1)


def _fresh_start(setup: Setup, env: dict[str, str]) -> list[dict[str, Any]]:
    """Start a new tenant of the same name three times."""
    starts = []
    for _ in range(3):
        argv = tenant_argv(setup, [setup.program("victim"), "once"], mem_option(CAP_BYTES), NAME)
        ended = run(argv, env, 60.0)
        starts.append({"ok": ended.status == 0, "seconds": round(ended.seconds, 3), "why": ended.why()})
    return starts


def _bars(
    kills: int, checks: list[dict[str, Any]], end: dict[str, Any], swept: dict[str, Any], fresh: Any, peak: int
) -> list[Bar]:
    return [
        _ledger_bar(kills, checks, end, swept),
        _hang_bar(end),
        _start_bar(end, fresh),
        Bar(
            "kill storm: footprint",
            "never above the cap",
            f"{(peak - CAP_BYTES) / MIB:+.0f} MiB at its peak",
            "pass" if 0 < peak <= CAP_BYTES else "not resolved" if peak == 0 else "fail",
        ),
    ]


def _ledger_bar(kills: int, checks: list[dict[str, Any]], end: dict[str, Any], swept: dict[str, Any]) -> Bar:
    title, asked = f"{kills} processes killed with -9", "the ledger is exactly the living"
    wrong = [f"after {check['kills']} kills: {check['mismatch']}" for check in checks if check["mismatch"]]
    wrong += [f"tenant killed: {swept['mismatch']}"] if swept["mismatch"] else []
    done = int(end.get("kills", 0))
    slowest = max([check["settled_s"] for check in checks] + [swept["settled_s"]])
    by_mode = ", ".join(f"{count} {mode}" for mode, count in sorted(end.get("by_mode", {}).items()))
    measured = f"{done} killed; {len(checks)} checks, agreed within {slowest:.2f} s"
    if wrong:
        return Bar(title, asked, measured, "fail", "; ".join(wrong[:3]))
    every_mode = min(end.get("by_mode", {}).values(), default=0) > 0
    complete = done >= kills and every_mode and end.get("namespaces") and end.get("survivors_alive") == SURVIVORS
    reason = by_mode if complete else f"incomplete: {by_mode or 'the host died'}; namespaces {end.get('namespaces')}"
    return Bar(title, asked, measured, "pass" if complete else "not resolved", reason)


def _hang_bar(end: dict[str, Any]) -> Bar:
    title, asked = "kill storm: nothing hangs", "every victim goes, survivors go on"
    if not end:
        return Bar(title, asked, "not measured", "not resolved", "the host did not reach its end")
    pause, stuck = float(end["longest_pause_s"]), end["stuck"]
    measured = f"slowest death {end['slowest_gone_s']:.2f} s, longest pause of a survivor {pause:.2f} s"
    broken = stuck or pause > PAUSE_S or end["survivors_alive"] != SURVIVORS
    return Bar(title, asked, measured, "fail" if broken else "pass", "; ".join(map(str, stuck[:3])))


def _start_bar(end: dict[str, Any], fresh: list[dict[str, Any]]) -> Bar:
    title, asked = "kill storm: the next start", f"works, at most {SLOWER_S:g} s slower"
    before, after = end.get("next_start_before_s", []), end.get("next_start_after_s", [])
    if not before or None in before:
        return Bar(title, asked, "not measured", "not resolved", "no start before the storm to compare with")
    failed = sum(took is None for took in after) + sum(not start["ok"] for start in fresh)
    slower = statistics.median([took for took in after if took is not None] or [0.0]) - statistics.median(before)
    measured = f"{slower:+.3f} s, {failed} of {len(after) + len(fresh)} failed"
    return Bar(title, asked, measured, "pass" if failed == 0 and slower <= SLOWER_S else "fail")


@contextlib.contextmanager
def shared_file() -> Iterator[str]:
    """Give the path of a page of zeros that programs map to talk to each other."""
    with tempfile.NamedTemporaryFile(prefix="hamirt-bench-") as file:
        file.write(bytes(4096))
        file.flush()
        yield file.name
