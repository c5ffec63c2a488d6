"""What hamirt costs a program: its driver calls and its context, native against tenant, interleaved in one run.

    python3 -m bench.overhead [--rounds 24] [--context-rounds 24] [--mem 40GiB] [--sim]

The calls of the bars are paired within one process of a tenant (bench/probes/paired.c): batches through the driver's
own function (N), through the hook (H), and through the driver's own again (A), in an order that changes, since two
processes differ by more than a hook costs. What a whole process pays, its first context among it, is measured with
three fresh processes a round, native, tenant, native again. See bench/measure.py for the verdicts.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bench import measure
from bench.machine import Setup, environment, main_of, parser, print_bars, setup_of, table, tenant_argv, write
from bench.measure import Bar, Comparison
from bench.process import Ended, run

TIMEOUT_S = 90.0
PAIRED_TIMEOUT_S = 200.0


@dataclass(frozen=True, slots=True)
class Limit:
    """A bar of the issue on one series."""

    series: str
    title: str
    kind: Literal["ratio", "difference"]
    at_most: float
    """A ratio, or ns."""


CALLS = (
    Limit("malloc_free_4KiB", "cudaMalloc+Free 4 KiB", "ratio", 1.03),
    Limit("malloc_free_64MiB", "cudaMalloc+Free 64 MiB", "ratio", 1.03),
    Limit("malloc_async_free_async_1MiB", "MallocAsync+FreeAsync 1 MiB", "ratio", 1.15),
    Limit("mem_get_info", "MemGetInfo", "ratio", 1.00),
    Limit("launch_throughput", "launch throughput with a memory cap", "ratio", 1.005),
)
SHOWN = ("launch_sync",)
CONTEXT = Limit("context", "context creation, first of a process", "difference", 5e6)
LATER_CONTEXT = Limit("context", "context creation, within a process", "difference", 5e6)

Figures = dict[str, float]
Rounds = dict[str, list[Figures]]


def figures_of(ended: Ended) -> Figures | None:
    """Return the median of each series in ns; None where the program failed or printed something else."""
    if ended.status != 0:
        return None
    for line in reversed(ended.stdout.splitlines()):
        if line.startswith("{"):
            return {name: statistics.median(values) for name, values in json.loads(line).items()}
    return None


def take_rounds(
    setup: Setup, command: list[str], mem: str, rounds: int, share: float, cpus: set[int] | None
) -> tuple[Rounds, list[dict[str, Any]]]:
    """Run `command` `rounds` times in each role; stops early when `share` of the time left is used up.

    Returns the figures of complete rounds by role, and what failed.
    """
    taken: Rounds = {role: [] for role in measure.ROLES}
    failed: list[dict[str, Any]] = []
    env = environment(setup)
    until = setup.left_s() * (1 - share)
    for number, order in enumerate(measure.orders(rounds)):
        if setup.left_s() <= until or len(failed) > 3:
            break
        figures: dict[str, Figures] = {}
        for role in order:
            argv = tenant_argv(setup, command, mem, f"overhead-{number}") if role == "H" else command
            ended = _on_cpus(cpus, partial(run, argv, env, TIMEOUT_S))
            found = figures_of(ended)
            if found is None:
                failed.append({"role": role, "round": number, **ended.as_dict()})
                break
            figures[role] = found
        else:
            for role, found in figures.items():
                taken[role].append(found)
    return taken, failed


def paired_rounds(
    setup: Setup, mem: str, rounds: int, context_rounds: int, cpus: set[int] | None
) -> tuple[Rounds, list[dict[str, Any]]]:
    """Run paired.c once in a tenant: the figures of its rounds by role, those of contexts last, and what failed."""
    command = [setup.program("paired"), str(rounds), str(context_rounds)]
    argv = tenant_argv(setup, command, mem, "paired")
    ended = _on_cpus(cpus, partial(run, argv, environment(setup), PAIRED_TIMEOUT_S))
    for line in reversed(ended.stdout.splitlines()) if ended.status == 0 else ():
        if line.startswith("{"):
            found = json.loads(line)
            return {role: found[role] for role in measure.ROLES}, []
    return {role: [] for role in measure.ROLES}, [{"role": "paired", **ended.as_dict()}]


def compare_series(rounds: Rounds, series: str, kind: Literal["ratio", "difference"]) -> Comparison | None:
    """Compare one series over all rounds; None where it was never measured."""
    columns = [[figures[series] for figures in rounds[role] if series in figures] for role in measure.ROLES]
    if not columns[0] or len({len(column) for column in columns}) != 1:
        return None
    return measure.compare(columns[0], columns[1], columns[2], kind)


def bar_of(limit: Limit, comparison: Comparison | None) -> Bar:
    """Judge one series against its bar."""
    ratio = limit.kind == "ratio"
    asked = f"ratio <= {limit.at_most:g}" if ratio else f"<= +{limit.at_most / 1e6:g} ms"
    if comparison is None:
        return Bar(limit.title, asked, "not measured", "not resolved", "every round failed: see `failed`")
    figure, noise, native = comparison.figure, comparison.noise, comparison.native
    scale, unit = (1.0, "") if ratio else (1e6, " ms")
    verdict, reason = measure.judge(comparison, limit.at_most)
    measured = f"{figure.median / scale:.4f} [{figure.low / scale:.4f}, {figure.high / scale:.4f}]{unit}"
    detail = f"native {_time(native.median)}; A/A [{noise.low / scale:.4f}, {noise.high / scale:.4f}]; {reason}"
    return Bar(limit.title, asked, measured, verdict, f"{detail}; {figure.count} rounds")


def nvml_cost(setup: Setup, count: int) -> dict[str, Any]:
    """Return what NVML costs a native process alone, and beside a context being made, in ns by step."""
    program = setup.program("overhead")
    env = environment(setup)
    cost: dict[str, Any] = {}
    for mode in ("--nvml", "--context-only", "--nvml-beside"):
        runs = [figures_of(run([program, mode], env, TIMEOUT_S)) for _ in range(count) if setup.left_s() > 0]
        good = [figures for figures in runs if figures is not None]
        cost[mode] = {
            "runs": len(runs),
            "failed": len(runs) - len(good),
            "median_ns": {name: statistics.median(f[name] for f in good) for name in (good[0] if good else ())},
            "samples": good,
        }
    return cost


def measure_overhead() -> int:
    """Measure everything and write overhead.json; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=24)
    options.add_argument("--context-rounds", type=int, default=24)
    options.add_argument("--paired-rounds", type=int, default=40, help="within one process")
    options.add_argument("--nvml-runs", type=int, default=10)
    options.add_argument("--mem", default="40GiB")
    options.add_argument("--cpus", default="", help="pin all programs to these cpus, as in 2-5")
    asked = options.parse_args()
    setup = setup_of(asked)
    cpus = _cpu_set(asked.cpus)
    runtime = setup.program("overhead" if setup.sim else "overhead_rt")

    with setup.nvml():  # so that the driver never unloads the card between two processes
        nvml = nvml_cost(setup, asked.nvml_runs)
        context, context_failed = take_rounds(
            setup, [runtime, "--context-only"], asked.mem, asked.context_rounds, 0.35, cpus
        )
        whole, whole_failed = take_rounds(setup, [runtime], asked.mem, asked.rounds, 0.5, cpus)
        calls, paired_failed = paired_rounds(setup, asked.mem, asked.paired_rounds, asked.context_rounds, cpus)
        calls_failed = whole_failed + paired_failed

    contexts = {role: [found for found in rounds if "context" in found] for role, rounds in calls.items()}
    later_context = compare_series(contexts, "context", "difference")
    calls = {role: [found for found in rounds if "context" not in found] for role, rounds in calls.items()}
    compared = {limit.series: compare_series(calls, limit.series, limit.kind) for limit in CALLS}
    shown = {series: compare_series(calls, series, "ratio") for series in SHOWN}
    bars = [bar_of(limit, compared[limit.series]) for limit in CALLS]
    context_compared = compare_series(context, CONTEXT.series, CONTEXT.kind)
    bars.append(bar_of(CONTEXT, context_compared))
    bars.append(bar_of(LATER_CONTEXT, later_context))
    whole_process = {limit.series: compare_series(whole, limit.series, limit.kind) for limit in CALLS}
    comparisons = {**compared, **shown, "context": context_compared, "later_context": later_context}
    body = {
        "mem": asked.mem,
        "program": runtime,
        "cpus": asked.cpus,
        "comparisons": {name: found and found.as_dict() for name, found in comparisons.items()},
        "whole_process": {name: found and found.as_dict() for name, found in whole_process.items()},
        "nvml": nvml,
        "rounds": {"calls": calls, "context": context, "whole_process": whole},
        "failed": calls_failed + context_failed,
    }
    path = write(setup, "overhead", bars, body)
    print_bars(bars, setup.sim)
    rows = [[name, f"{found.figure.median:.4f}", f"{found.noise.median:.4f}"] for name, found in shown.items() if found]
    print(table(rows, ["not in a bar", "ratio", "A/A"]))
    print(table(_nvml_rows(nvml), ["NVML in a native process", "step", "median"]))
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def _nvml_rows(nvml: dict[str, Any]) -> list[list[str]]:
    return [[mode, name, _time(ns)] for mode, found in nvml.items() for name, ns in found["median_ns"].items()]


def _time(ns: float) -> str:
    return f"{ns / 1e6:.2f} ms" if ns >= 1e6 else f"{ns / 1e3:.3f} us"


def _cpu_set(text: str) -> set[int] | None:
    """Return the cpus of a list such as 2-5 or 0,2; None for an empty one."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus or None


def _on_cpus(cpus: set[int] | None, call: Callable[[], Ended]) -> Ended:
    """Call with this process, and so its children, bound to some cpus."""
    if cpus is None:
        return call()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        return call()
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    main_of(measure_overhead)
