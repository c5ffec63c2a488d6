#!/usr/bin/env python3
"""Runs what needs a GPU, natively and in tenants, in parts of less than 8 minutes each.

    python3 tests/gpu/run.py --part PART|all --out DIR [--programs BIN] [--sim]

PART: smoke, programs, accuracy, stress, overhead, views, supervised, share (`-- --part 1/3` of it fits), gang (takes
two GPUs), containers (takes runc). vllm is not among all, and takes `-- --site DIR` and --only: see bench/vllm.py.

Each part writes JSON files into DIR and prints a short table. Ends with 0 if every bar was reached, 1 if not.
"""

from __future__ import annotations

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP))

from collections.abc import Callable  # noqa: E402

from bench import report  # noqa: E402
from bench.machine import MeasureError, Setup, environment, parser, setup_of  # noqa: E402
from bench.nvml import NvmlError  # noqa: E402
from bench.process import Program  # noqa: E402
from tests.gpu.compare import run_programs  # noqa: E402
from tests.gpu.contained import run_contained  # noqa: E402
from tests.gpu.smoke import run_smoke  # noqa: E402
from tests.gpu.supervised import run_supervised  # noqa: E402
from tests.gpu.views import run_views  # noqa: E402

MEASURED = ("accuracy", "stress", "overhead", "share", "gang", "vllm")
PARTS = ("smoke", "programs", "accuracy", "stress", "overhead", "views", "supervised", "share", "gang", "containers")
GRACE_S = 60.0


def measured(part: str, more: list[str]) -> Callable[[Setup], int]:
    """Return the part that is a measuring program of bench/, run in a process of its own."""

    def run(setup: Setup) -> int:
        argv = [sys.executable, "-u", "-m", f"bench.{part}", "--out", str(setup.out), "--gpu", str(setup.gpu)]
        argv += ["--programs", str(setup.programs), "--budget", str(int(setup.left_s())), *more]
        argv += ["--sim"] if setup.sim else []
        with Program(argv, environment(setup)) as program:
            ended = program.finish(setup.left_s() + GRACE_S)
        print(ended.stdout, end="")
        print(ended.stderr[-4000:], end="", file=sys.stderr)
        return 1 if ended.status is None else ended.status

    return run


def main() -> int:
    """Run the parts that the command line names; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--part", action="append", choices=[*PARTS, "vllm", "all"], required=True)
    options.add_argument("--only", default="", help="names of the table, for the part programs; comma separated")
    options.add_argument("--jobs", type=int, default=4, help="programs side by side")
    options.add_argument("rest", nargs="*", help="after --: more options for a measured part")
    asked = options.parse_args()
    only = list(filter(None, asked.only.split(",")))
    chosen = [part for part in (*PARTS, "vllm") if part in asked.part or ("all" in asked.part and part in PARTS)]
    runs: dict[str, Callable[[Setup], int]] = {
        "smoke": run_smoke,
        "programs": lambda setup: run_programs(setup, only, asked.jobs),
        "views": run_views,
        "supervised": run_supervised,
        "containers": run_contained,
        **{part: measured(part, asked.rest) for part in MEASURED},
    }
    worst = 0
    for part in chosen:
        setup = setup_of(asked)
        print(f"== {part} ==", flush=True)
        try:
            worst = max(worst, runs[part](setup))
        except (MeasureError, NvmlError) as error:
            print(f"error: {error}", file=sys.stderr)
            worst = max(worst, 1)
    print(report.markdown(report.load(asked.out)))
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
