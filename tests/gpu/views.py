"""Whether everything that reports memory tells the same story in a tenant: totals, use, devices, processes."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench.machine import GIB, MIB, Setup, environment, mem_option, print_bars, table, tenant_argv, write
from bench.measure import Bar, Verdict
from bench.process import UNSHARE, Program, can_unshare, run
from bench.storm import shared_file

CAP_BYTES = 8 * GIB
HOLD_MIB = 1024
NEIGHBOUR_BYTES = 2 * GIB
SLACK_BYTES = 130 * MIB
"""Two readings of what is in use: another process's context may come or go, and a reserve may or may not count."""
CONTEXT_BYTES = 700 * MIB
TIMEOUT_S = 300.0

Check = tuple[str, str, str]
"""What is checked, "yes", "NO" or "?" (could not be looked at), and what was seen."""


def run_views(setup: Setup) -> int:
    """Look from outside, from a tenant, and from PID namespaces; write views.json and return the exit status."""
    env = environment(setup)
    inside = [sys.executable, "-m", "tests.gpu.views_inside", str(HOLD_MIB)]
    ways: dict[str, list[str]] = {
        "native": inside,
        "tenant": tenant_argv(setup, inside, mem_option(CAP_BYTES), "views"),
    }
    if can_unshare():
        ways["namespace in a tenant"] = tenant_argv(setup, [*UNSHARE, *inside], mem_option(CAP_BYTES), "views-inner")
        ways["tenant in a namespace"] = [*UNSHARE, *tenant_argv(setup, inside, mem_option(CAP_BYTES), "views-outer")]
    found: dict[str, Any] = {}
    with neighbour(setup, env) as pid:
        for way, argv in ways.items():
            ended = run(argv, env, min(TIMEOUT_S, max(30.0, setup.left_s())))
            found[way] = {"result": ended.result(), "ended": ended.as_dict(2000), "why": ended.why()}
    checks = {
        way: checks_of(found[way]["result"], found[way]["why"], pid, namespace="namespace" in way, sim=setup.sim)
        for way in ways
        if way != "native"
    }
    bars = [bar_of(way, found_checks) for way, found_checks in checks.items()]
    if "namespace in a tenant" not in ways:
        bars.append(Bar("views in a PID namespace", "all agree", "not measured", "not resolved", "unshare is refused"))
    path = write(setup, "views", bars, {"neighbour_pid": pid, "checks": checks, "views": found})
    for way, way_checks in checks.items():
        print(table(way_checks, [way, "", "seen"]))
        print()
    print_bars(bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def checks_of(result: dict[str, Any] | None, why: str, neighbour_pid: int, namespace: bool, sim: bool) -> list[Check]:
    """Return all checks on what one tenant saw."""
    if result is None:
        return [("it ran", "NO", why)]
    libraries, commands = result["libraries"], result["commands"]
    checks = [*_totals(libraries, commands, sim), *_devices(libraries, commands), *_use(libraries, commands)]
    for name, seen in libraries.items():
        if isinstance(seen.get("processes"), dict):
            checks.append(_processes(name, seen["processes"], result["pid"], neighbour_pid, namespace))
    checks.append(_smi_processes(commands["nvidia-smi"], result["pid"], neighbour_pid, namespace))
    return checks


def _totals(libraries: dict[str, Any], commands: dict[str, Any], sim: bool) -> Iterator[Check]:
    """Each total that a library or a command shows is the cap."""
    for name, seen in libraries.items():
        if "not_available" in seen:
            yield (f"{name}: there", "?" if name in ("nvitop", "gpustat") or sim else "NO", str(seen["not_available"]))
            continue
        for key in [key for key in seen if key.startswith("total")]:
            yield _same(f"{name}: {key}", seen[key], CAP_BYTES)
    yield _shown("nvidia-smi: total", commands["nvidia-smi"], r"\d+MiB\s*/\s*8192MiB")
    yield _shown("nvidia-smi -q: total", commands["nvidia-smi -q"], r"FB Memory Usage\s+Total\s*: 8192 MiB")
    yield _shown("nvidia-smi -q -d MEMORY: total", commands["nvidia-smi -q -d MEMORY"], r"Total\s*: 8192 MiB")
    yield _shown("nvidia-smi --query-gpu: total", commands["nvidia-smi --query-gpu"], r"^\d+, GPU-\S+, 8192, \d+, \d+$")


def _devices(libraries: dict[str, Any], commands: dict[str, Any]) -> Iterator[Check]:
    """There is one device, and it has the same UUID everywhere."""
    seen = {name: view for name, view in libraries.items() if "count" in view}
    uuids = {str(view["uuid"]).lower() for view in seen.values()}
    counts = {name: view["count"] for name, view in seen.items()}
    yield ("one device everywhere", _word(set(counts.values()) == {1}), str(counts))
    yield ("the same UUID everywhere", _word(len(uuids) == 1), ", ".join(sorted(uuids)))
    listed = commands["nvidia-smi -L"]
    if listed["text"] is None:
        yield ("nvidia-smi -L: one line", "?", str(listed["error"]))
        return
    lines = listed["text"].strip().splitlines()
    ours = len(lines) == 1 and any(uuid in lines[0].lower() for uuid in uuids)
    yield ("nvidia-smi -L: one line, that UUID", _word(ours), listed["text"].strip())


def _use(libraries: dict[str, Any], commands: dict[str, Any]) -> Iterator[Check]:
    """What is in use is what this tenant holds, not the neighbour's: the same by all ways, but for contexts."""
    readings: dict[str, int] = {}
    for name, seen in libraries.items():
        if "used" in seen:
            readings[name] = seen["used"]
        elif "total" in seen and "free" in seen:
            readings[name] = seen["total"] - seen["free"]
    query = re.search(r"^\d+, GPU-\S+, \d+, (\d+), \d+$", commands["nvidia-smi --query-gpu"]["text"] or "", re.M)
    if query:
        readings["nvidia-smi"] = int(query.group(1)) * MIB
    low, high = HOLD_MIB * MIB, HOLD_MIB * MIB + CONTEXT_BYTES + SLACK_BYTES
    for name, used in readings.items():
        most = high + (CONTEXT_BYTES if name == "torch" else 0)  # it has a context of its own
        yield (f"{name}: used is the tenant's", _word(low <= used <= most), f"{used / MIB:.0f} MiB")
    steady = [used for name, used in readings.items() if name != "torch"]
    spread = max(steady, default=0) - min(steady, default=0)
    yield ("readings of use agree", _word(bool(steady) and spread <= SLACK_BYTES), f"{spread / MIB:.0f} MiB apart")


def _processes(name: str, listed: dict[str, Any], pid: int, neighbour_pid: int, namespace: bool) -> Check:
    """A list of processes has the one that looks, and not the neighbour (whose pid means nothing in a namespace)."""
    good = str(pid) in listed and (namespace or str(neighbour_pid) not in listed)
    return (f"{name}: processes", _word(good), f"{listed}; looking is {pid}, the neighbour {neighbour_pid}")


def _smi_processes(shown: dict[str, Any], pid: int, neighbour_pid: int, namespace: bool) -> Check:
    """In a PID namespace nvidia-smi's own table is the tenant's; under a bare `hamirt run` it is the whole node's."""
    if shown["text"] is None:
        return ("nvidia-smi: process table", "?", str(shown["error"]))
    rows = re.findall(r"^\|\s+\d+\s+N/A\s+N/A\s+(\d+)\s+\S+\s+(.*?)\s*\|$", shown["text"], re.M)
    pids = [int(row[0]) for row in rows]
    if not namespace:
        return ("nvidia-smi: process table (everybody's, documented)", "?", f"pids {pids}, looking is {pid}")
    return ("nvidia-smi: process table", _word(pids == [pid]), f"pids {pids}, looking is {pid}, not {neighbour_pid}")


def bar_of(way: str, checks: list[Check]) -> Bar:
    """Return the bar of one way to look: a wrong view fails it, one that is missing leaves it open."""
    wrong = [name for name, word, _ in checks if word == "NO"]
    missing = [name for name, word, _ in checks if word == "?" and "documented" not in name]
    verdict: Verdict = "fail" if wrong else "not resolved" if missing else "pass"
    good = sum(word == "yes" for _, word, _ in checks)
    return Bar(f"views, {way}", "all agree", f"{good} of {len(checks)}", verdict, "; ".join((wrong + missing)[:6]))


class neighbour:  # noqa: N801
    """A process outside of every tenant that holds memory of the card; gives its pid."""

    def __init__(self, setup: Setup, env: dict[str, str]) -> None:
        self._file = shared_file()
        self._argv = [setup.program("victim"), "hold", self._file.__enter__(), "1", str(NEIGHBOUR_BYTES)]
        self._program = Program(self._argv, env)

    def __enter__(self) -> int:
        time.sleep(3)
        return self._program.pid

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._file.__exit__(None, None, None)


def _same(name: str, seen: object, expected: int) -> Check:
    return (name, _word(seen == expected), str(seen))


def _shown(name: str, shown: dict[str, Any], pattern: str) -> Check:
    if shown["text"] is None:
        return (name, "?", str(shown["error"]))
    found = re.search(pattern, shown["text"], re.M)
    return (name, _word(found is not None), found.group(0) if found else shown["text"][:80].strip())


def _word(good: bool) -> str:
    return "yes" if good else "NO"
