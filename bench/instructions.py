"""How many instructions a launch spends in the hook, on the simulated card: exact, the same on every run of one build.

    python3 -m bench.instructions [--out DIR] [--programs DIR]

bench/probes/instructions.c single-steps launches from the hook's entry to its exit; the driver's own functions are left
out. Free: a tenant without a cap. Windowed: `--sm 99`. A launch that makes no mark counts for the bars; those that
begin or end a mark (one of each per 0.25 ms of GPU time at most) call the driver more often and are shown beside.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import MeasureError, Setup, environment, main_of, parser, print_bars, setup_of, table, write
from bench.measure import Bar, Verdict
from bench.process import run
from bench.share_tenants import simulated_card

TIMEOUT_S = 120.0
MODES: Mapping[str, tuple[Sequence[str], int]] = {"free": ((), 60), "windowed": (("--sm", "99"), 150)}
"""What `hamirt run` is given, and the bar: fewer instructions than this."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of launch in one mode; `barred`: the issue's bar holds for it."""

    mode: str
    what: str
    route: str = "dlsym"
    cards: int = 1
    capture: bool = False

    @property
    def barred(self) -> bool:
        """Tell whether it is the plain case: one device, nothing captures."""
        return self.cards == 1 and not self.capture

    def title(self) -> str:
        """Return its name in the table."""
        extra = [f"{self.cards} devices"] * (self.cards > 1) + ["another stream captures"] * self.capture
        return ", ".join([f"{self.mode}: {self.what} by {self.route}", *extra])


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted: the most of launches without a mark and the usual of them, and the most of those with one."""

    plain: int
    usual: int
    launches: int
    marking: int | None


CASES = (
    *(
        Case(mode, what, route)
        for mode in MODES
        for what in ("kernel", "graph")
        for route in ("linked", "dlsym", "proc")
    ),
    *(Case(mode, "kernel", cards=2) for mode in MODES),
    *(Case(mode, "kernel", capture=True) for mode in MODES),
)


def count_of(pairs: Sequence[tuple[int, int]]) -> Count:
    """Sum up launches as (instructions, calls of the driver); the fewest calls are those that make no mark.

    Raises ValueError without launches.
    """
    fewest = min(calls for _, calls in pairs)
    plain = [instructions for instructions, calls in pairs if calls == fewest]
    marking = [instructions for instructions, calls in pairs if calls > fewest]
    return Count(max(plain), statistics.median_low(plain), len(plain), max(marking, default=None))


def count(setup: Setup, case: Case) -> Count:
    """Step through the launches of one case. Raises MeasureError where nothing can be stepped."""
    program = setup.program("instructions_linked" if case.route == "linked" else "instructions")
    gpus = [word for card in range(case.cards) for word in ("--gpu", str(card))]
    with tempfile.TemporaryDirectory(prefix="hamirt-bench-") as root:
        env = environment(setup, {"HAMIRT_ROOT": root, "HAMIRT_SIM": str(case.cards), "HM_ROUTE": case.route})
        argv = [sys.executable, "-m", "hamirt", "run", "--sim", *gpus, *MODES[case.mode][0]]
        ended = run([*argv, "--", program, case.what, *["capture"] * case.capture], env, TIMEOUT_S)
    if ended.status != 0:
        raise MeasureError(f"{case.title()}: status {ended.status}: {ended.stderr[-400:]}")
    return count_of([(instructions, calls) for instructions, calls in json.loads(ended.stdout)])


def bars_of(counts: Mapping[Case, Count]) -> list[Bar]:
    """Return a bar for each mode: its worst plain case."""
    bars = []
    for mode, (_, below) in MODES.items():
        worst, most = max(
            ((c, n.plain) for c, n in counts.items() if c.mode == mode and c.barred), key=lambda it: it[1]
        )
        verdict: Verdict = "pass" if most < below else "fail"
        bars.append(Bar(f"launch path, {mode}", f"< {below} instructions", str(most), verdict, worst.title()))
    return bars


def measure_instructions() -> int:
    """Count every case, print the table and write instructions.json; return the exit status."""
    options = parser(__doc__)
    options.set_defaults(sim=True)
    setup = setup_of(options.parse_args())
    counts = {case: count(setup, case) for case in CASES}
    rows = [[c.title(), str(n.usual), str(n.plain), str(n.marking or "-"), str(n.launches)] for c, n in counts.items()]
    print(table(rows, ["launch", "usual", "most", "with a mark", "launches"]))
    bars = bars_of(counts)
    print_bars(bars, sim=True)
    body: dict[str, Any] = {"counts": [{**asdict(case), **asdict(found)} for case, found in counts.items()]}
    with tempfile.TemporaryDirectory(prefix="hamirt-bench-") as folder, simulated_card(setup, Path(folder)):
        print(write(setup, "instructions", bars, body))
    return int(any(bar.verdict == "fail" for bar in bars))


if __name__ == "__main__":
    main_of(measure_instructions)
