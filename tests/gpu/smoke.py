"""The first thing to run on a card: a PyTorch program held to 8 GiB, seen from inside and from outside."""

from __future__ import annotations

import sys
import time
from typing import Any

from bench.machine import (
    GIB,
    MIB,
    MeasureError,
    Setup,
    environment,
    mem_option,
    print_bars,
    table,
    tenant_argv,
    write,
)
from bench.measure import Bar
from bench.process import Program
from bench.sampler import Sampler
from bench.status import StatusError, read_document, read_tenant

NAME = "smoke"
CAP_BYTES = 8 * GIB
ROOM_LOST_BYTES = 64 * MIB
FULL_S = 120.0

Check = tuple[str, bool, str]


def run_smoke(setup: Setup) -> int:
    """Run it, write smoke.json and return the exit status."""
    env = environment(setup, {"HM_SMOKE": "driver"} if setup.sim else None)
    inside = [sys.executable, "-m", "tests.gpu.smoke_inside", str(CAP_BYTES + GIB)]
    argv = tenant_argv(setup, inside, mem_option(CAP_BYTES), NAME)
    status: dict[str, Any] | None = None
    document: dict[str, Any] | None = None
    with (
        setup.nvml() as nvml,
        Program(argv, env) as program,
        Sampler(nvml, setup.gpu, program.pid, nvml.memory(nvml.handle(setup.gpu)).used) as sampler,
    ):
        if _wait_full(program):
            time.sleep(0.3)
            try:
                document = read_document(setup)
                found = read_tenant(setup, NAME)
                status = found.as_dict() if found is not None else None
            except StatusError as error:
                status = {"error": str(error)}
        program.say("go on")
        ended = program.finish(60)
    trace = sampler.trace
    result = ended.result() or {}
    full = trace.peak_tree(result.get("filled_ns", 0), result.get("left_ns"))
    checks = checks_of(result, ended.why(), trace.peak_tree(), full, status, setup.sim)
    bad = [name for name, good, _ in checks if not good]
    verdict: Any = "fail" if bad else "pass"
    bars = [Bar("smoke", "8 GiB from inside and outside", f"{len(checks) - len(bad)} of {len(checks)}", verdict)]
    body = {"checks": checks, "result": result, "status": status, "status_document": document}
    path = write(setup, "smoke", bars, {**body, "trace": trace.summary(), "ended": ended.as_dict()})
    print(table([[name, "yes" if good else "NO", seen] for name, good, seen in checks], ["check", "", "seen"]))
    print_bars(bars, setup.sim)
    print(path)
    return 1 if bad else 0


def checks_of(
    result: dict[str, Any], why: str, peak: int, full: int, status: dict[str, Any] | None, sim: bool
) -> list[Check]:
    """Return what the run shows: the name of each check, whether it holds, and what was seen."""
    if not result:
        return [("the program ran", False, why)]
    total = result["mem_get_info"][1]
    expected = "2" if sim else "torch.OutOfMemoryError"
    smi, query = result["nvidia_smi"], result["nvidia_smi_query"]
    said = status or {"error": "status does not know the tenant"}
    checks: list[Check] = [
        ("the program ran", why == "ended well", f"{result['with']}, {why}"),
        (
            "it was refused by its own error",
            result["error"] in (expected, "torch.cuda.OutOfMemoryError"),
            str(result["error"]),
        ),
        ("footprint never above 8192 MiB", 0 < peak <= CAP_BYTES, f"{peak / MIB:.1f} MiB"),
        (
            "it got all but 64 MiB",
            CAP_BYTES - full <= ROOM_LOST_BYTES,
            f"{full / MIB:.1f} MiB, asked for {result['obtained_bytes'] >> 20}",
        ),
        ("it goes on after freeing", bool(result.get("again")), str(result.get("again"))),
        ("cuMemGetInfo shows the cap", total == CAP_BYTES, f"{total >> 20} MiB"),
        ("status knows it", "error" not in said, str(said)[:150]),
        (
            "status agrees with NVML",
            abs(said.get("used_bytes", 0) - full) <= ROOM_LOST_BYTES,
            f"{said.get('used_bytes', 0) >> 20} MiB",
        ),
    ]
    if smi is not None or not sim:
        checks.append(("nvidia-smi shows / 8192MiB", "8192MiB" in (smi or ""), str(query).strip()))
    return checks


def _wait_full(program: Program) -> bool:
    deadline = time.monotonic() + FULL_S
    while time.monotonic() < deadline and program.running():
        if any(line == "FULL" for line in program.stdout().splitlines()):
            return True
        time.sleep(0.05)
    if program.pid == 0:
        raise MeasureError("the tenant could not be started")
    return False
