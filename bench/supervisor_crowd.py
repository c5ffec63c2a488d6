"""A node full of tenants that do nothing: what the daemon takes, how fast `hamirt set` and `hamirt status` are."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import GIB, MIB, MeasureError, Setup, environment
from bench.process import TOP, Program
from bench.supervisor_daemon import Daemon, tenant, wait_for_lines, wait_until

PROCESSES = 4
CARDS = 8
CAP_BYTES = 8 * GIB
HELD_BYTES = 64 * MIB
SIDE_BY_SIDE = 4
EVERY_S = 5.0
RUN_S = 30.0
LOW_BYTES, HIGH_BYTES, ASKED_BYTES = 2 * GIB, 4 * GIB, 2 * GIB
"""Caps of the tenant that asks again and again for ASKED_BYTES: the lower one refuses them."""
CONTROL_S = 1.0
SET_S = 5.0
SCRAPES = 10
ANSWERED, DIRECTLY = "from the daemon", "read directly"
"""Where `hamirt status` has it from, in its own words."""


@contextlib.contextmanager
def crowd(setup: Setup, daemon: Daemon, count: int) -> Iterator[list[Program]]:
    """Have so many tenants of four processes on the cards."""
    command = [setup.program("tenant_load"), "idle", str(PROCESSES), str(HELD_BYTES)]
    everybody: list[Program] = []
    with contextlib.ExitStack() as stack:
        for first in range(0, count, SIDE_BY_SIDE):
            new = [
                stack.enter_context(tenant(setup, daemon.root, f"t{index}", CAP_BYTES, command, index % CARDS))
                for index in range(first, min(count, first + SIDE_BY_SIDE))
            ]
            for program in new:
                wait_for_lines(program, "ready", PROCESSES)
            everybody += new
        wait_until(lambda: registered(daemon) == count * PROCESSES, RUN_S, "not all processes were registered")
        yield everybody


def registered(daemon: Daemon) -> int:
    """Return how many processes the daemon knows as registered."""
    return sum(one["standing"] == "registered" for card in daemon.client().node()["cards"] for one in card["processes"])


def measure_load(daemon: Daemon, count: int, seconds: float) -> dict[str, Any]:
    """Return what the daemon takes with nobody asking it anything, and what a scrape costs it."""
    time.sleep(min(5.0, seconds / 4))  # its first samples of the newest tenants cost more
    health, first, start = daemon.client().health(), daemon.figures(), time.monotonic()
    samples = []
    while (left := start + seconds - time.monotonic()) > 0:
        time.sleep(min(EVERY_S, left))
        now = daemon.figures()
        row = {"seconds": round(time.monotonic() - start, 2), "cpu_s": round(now.cpu_s - first.cpu_s, 2)}
        samples.append({**now.as_dict(), **row})
    took = time.monotonic() - start
    taken = daemon.client().health()["samples"] - health["samples"]
    node = daemon.client().node()
    return {
        "tenants": count,
        "processes": count * PROCESSES,
        "tenants_seen": len(node["tenants"]),
        "processes_seen": registered(daemon),
        "seconds": round(took, 3),
        "cpu_s": samples[-1]["cpu_s"],
        "samples_taken": taken,
        "samples": samples,
        "scrapes": _scrapes(daemon),
    }


def _scrapes(daemon: Daemon) -> dict[str, Any]:
    """Return what /metrics costs; the samples that are taken meanwhile are in it."""
    from urllib.request import urlopen

    before, start, size = daemon.figures(), time.monotonic(), 0
    for _ in range(SCRAPES):
        with urlopen(f"http://127.0.0.1:{daemon.port}/metrics", timeout=RUN_S) as answer:
            size = len(answer.read())
    after = daemon.figures()
    return {
        "count": SCRAPES,
        "bytes": size,
        "cpu_s": round(after.cpu_s - before.cpu_s, 2),
        "seconds": round(time.monotonic() - start, 3),
        "rss_bytes": after.rss_bytes,
    }


def measure_set(setup: Setup, daemon: Daemon, rounds: int) -> dict[str, Any]:
    """Return how long it takes from a new cap to the first allocation that is answered by it."""
    command = [setup.program("tenant_load"), "poll", str(ASKED_BYTES)]
    found: dict[str, Any] = {"request": {"up": [], "down": []}, "command": {"up": [], "down": []}}
    with tenant(setup, daemon.root, "poll", LOW_BYTES, command, 0) as program:
        wait_for_lines(program, "refused", 1)
        wait_until(lambda: _uuid(daemon) is not None, RUN_S, "the daemon did not show the tenant")
        uuid = _uuid(daemon) or ""
        found["control"] = _control(daemon, program, uuid)
        for how in ("request", "command"):
            for _ in range(rounds):
                for way, cap in (("up", HIGH_BYTES), ("down", LOW_BYTES)):
                    if setup.left_s() > 0:
                        row = _change(setup, daemon, program, how, cap, uuid)
                        found[how][way].append(row)
    return found


def _change(setup: Setup, daemon: Daemon, program: Program, how: str, cap: int, uuid: str) -> dict[str, Any]:
    """Change the cap; return how long the request, or the command, took and when the answer changed."""
    before = len(_answers(program))
    start = time.monotonic_ns()
    if how == "request":
        daemon.client().change("poll", {uuid: {"memory_bytes": cap}})
    else:
        argv = [sys.executable, "-m", "hamirt", "set", "poll", "--mem", f"{cap // MIB}MiB"]
        env = environment(setup, {"HAMIRT_ROOT": str(daemon.root)})
        done = subprocess.run(argv, env=env, cwd=TOP, capture_output=True, text=True, timeout=RUN_S, check=False)
        if done.returncode != 0:
            raise MeasureError(f"hamirt set: {done.stderr[-300:]}")
    ended = time.monotonic_ns()
    wait_until(lambda: len(_answers(program)) > before, SET_S, f"a cap of {cap // MIB} MiB changed no answer")
    answer, asked_ns, answered_ns = _answers(program)[before]
    wanted = "granted" if cap == HIGH_BYTES else "refused"
    if answer != wanted or answered_ns < start:
        raise MeasureError(
            f"a cap of {cap // MIB} MiB was answered by {answer!r}, {(answered_ns - start) / 1e6:.1f} ms"
        )
    return {
        "seconds": (answered_ns - start) / 1e9,
        "call_s": (answered_ns - asked_ns) / 1e9,
        f"{how}_s": (ended - start) / 1e9,
    }


def _control(daemon: Daemon, program: Program, uuid: str) -> dict[str, Any]:
    """Change something else, and see whether that is granted too."""
    daemon.client().change("poll", {uuid: {"weight": 200, "memory_bytes": LOW_BYTES}})
    deadline = time.monotonic() + CONTROL_S
    while len(_answers(program)) == 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    return {"seconds": CONTROL_S, "granted": len(_answers(program)) > 1}


def _answers(program: Program) -> list[tuple[str, int, int]]:
    complete = program.stdout().split("\n")[:-1]
    return [(answer, int(asked), int(answered)) for answer, asked, answered in map(str.split, complete)]


def _uuid(daemon: Daemon) -> str | None:
    for one in daemon.client().node()["tenants"]:
        if one["name"] == "poll":
            return str(one["cards"][0]["uuid"])
    return None


def measure_status(setup: Setup, root: Path, source: str, count: int, runs: int) -> list[dict[str, Any]]:
    """Return how long `hamirt status` takes, as a table and as JSON; each run has to show all tenants."""
    mark = '"supervisor": null' if source == DIRECTLY else '"supervisor": {'
    rows = []
    for option in ("", " --json"):
        argv = [sys.executable, "-m", "hamirt", "status", "--sim", *option.split()]
        found = []
        for _ in range(runs):
            run, text = timed(argv, environment(setup, {"HAMIRT_ROOT": str(root)}))
            wanted = {"the last tenant": f"t{count - 1}", "its source": mark if option else source}
            missing = [what for what, word in wanted.items() if word not in text]
            found.append({**run, "wrong": f"it does not show {missing[0]}" if missing else None})
        rows.append({"option": option, "source": source, "runs": found})
    return rows


def timed(argv: Sequence[str], env: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Run a program to its end; return its seconds, from its start, and CPU seconds, and what it wrote."""
    start = time.monotonic()
    with subprocess.Popen(argv, env=env, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as one:
        assert one.stdout is not None
        text = one.stdout.read()
        _pid, status, used = os.wait4(one.pid, 0)
        took = time.monotonic() - start
        one.returncode = os.waitstatus_to_exitcode(status)
    if one.returncode != 0:
        raise MeasureError(f"{' '.join(argv[1:])} ended with {one.returncode}: {text[-300:]}")
    return {"seconds": round(took, 4), "cpu_s": round(used.ru_utime + used.ru_stime, 4)}, text
