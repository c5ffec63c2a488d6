"""What the daemon takes and how it takes being killed: the supervisor's bars that need no card.

    python3 -m bench.supervisor --sim --programs DIR [--out DIR] [--part load,status,set,growth,kill]

It starts a daemon of its own on a root of its own, among the temporary files. What else the machine does disturbs the
delays, and hardly the seconds of CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import Setup, environment, main_of, parser, print_bars, setup_of, write
from bench.measure import Bar
from bench.supervisor_bars import growth_bars, kill_bars, load_bars, set_bars, status_bars
from bench.supervisor_crowd import (
    ANSWERED,
    CARDS,
    DIRECTLY,
    crowd,
    measure_load,
    measure_set,
    measure_status,
    timed,
)
from bench.supervisor_daemon import Daemon
from bench.supervisor_growth import measure_growth
from bench.supervisor_kill import measure_kills

PARTS = ("load", "status", "set", "growth", "kill")
CROWDED = ("load", "status", "set")
BUDGET_S = 3600.0
BARE_RUNS = 10

Part = Callable[[Setup, argparse.Namespace, Path], tuple[list[Bar], dict[str, Any]]]


def measure_supervisor() -> int:
    """Measure what the options ask for and write supervisor.json; return the exit status."""
    options = parser(__doc__)
    options.set_defaults(budget=BUDGET_S)
    options.add_argument("--part", default=",".join(PARTS), help="what to measure, a comma between")
    options.add_argument("--tenants", type=int, default=64, help="of four processes each, for load, set and status")
    options.add_argument("--seconds", type=float, default=60.0, help="of load")
    options.add_argument("--sets", type=int, default=50, help="changes of a cap, each way; as commands too")
    options.add_argument("--runs", type=int, default=30, help="of each `hamirt status`")
    options.add_argument("--come-and-go", type=int, default=10_000, help="tenants of growth")
    options.add_argument("--warm-up", type=int, default=1_000, help="of them")
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    parts = asked.part.split(",")
    if not asked.sim or not set(parts) <= set(PARTS):
        options.error(f"these bars are about simulated cards, give --sim; parts are {', '.join(PARTS)}")
    setup = setup_of(asked)

    bars: list[Bar] = []
    body: dict[str, Any] = {"command": ["bench/supervisor.py", *_without_paths(sys.argv[1:])], "load_average": []}
    with tempfile.TemporaryDirectory(prefix="hamirt-bench-") as name:
        os.environ.update({"HAMIRT_SIM": str(CARDS), "HAMIRT_SIM_STATE": f"{name}/sim"})
        for key, part in (("crowd", _crowded), ("growth", _growth), ("kill", _kill)):
            if key in parts or (key == "crowd" and set(CROWDED) & set(parts)):
                root = Path(name, key)
                root.mkdir(mode=0o700)
                more, found = part(setup, asked, root)
                bars += more
                body |= found
                body["load_average"].append([key, *os.getloadavg()])
        path = write(setup, "supervisor", bars, body)
    print_bars(bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def _crowded(setup: Setup, asked: argparse.Namespace, root: Path) -> tuple[list[Bar], dict[str, Any]]:
    parts, bars, body = asked.part.split(","), [], dict[str, Any]()
    with Daemon(setup, root) as daemon, crowd(setup, daemon, asked.tenants) as everybody:
        if "load" in parts:
            body["load"] = measure_load(daemon, asked.tenants, asked.seconds)
            bars += load_bars(body["load"])
        if "status" in parts:
            runs = measure_status(setup, root, ANSWERED, asked.tenants, asked.runs)
            daemon.end()
            runs += measure_status(setup, root, DIRECTLY, asked.tenants, asked.runs)
            daemon.start()
            daemon.wait()
            body["status"] = {"tenants": asked.tenants, "bare_s": _bare_python_s(setup), "runs": runs}
            bars += status_bars(body["status"])
        if "set" in parts:
            everybody[-1].kill()  # the simulated cards take 256 processes, and one more is to come
            body["set"] = measure_set(setup, daemon, asked.sets)
            bars += set_bars(body["set"])
    return bars, body


def _growth(setup: Setup, asked: argparse.Namespace, root: Path) -> tuple[list[Bar], dict[str, Any]]:
    with Daemon(setup, root) as daemon:
        found = measure_growth(setup, daemon, asked.come_and_go, asked.warm_up, max(1, asked.warm_up // 2))
    return growth_bars(found), {"growth": found}


def _kill(setup: Setup, asked: argparse.Namespace, root: Path) -> tuple[list[Bar], dict[str, Any]]:
    with Daemon(setup, root) as daemon:
        found = measure_kills(setup, daemon, asked.kills, asked.seed)
    return kill_bars(found), {"kill": found}


def _bare_python_s(setup: Setup) -> float:
    """Return how long an interpreter takes to start and end: the floor of every command."""
    runs = [timed([sys.executable, "-c", "pass"], environment(setup))[0] for _ in range(BARE_RUNS)]
    return float(statistics.median(run["seconds"] for run in runs))


def _without_paths(words: list[str]) -> list[str]:
    """Return the command line without folders of this machine."""
    return [Path(word).name if word.startswith("/") else word for word in words]


if __name__ == "__main__":
    main_of(measure_supervisor)
