"""How GPU time is shared: caps, weights and latency classes that hold, and how much is done together.

    python3 -m bench.share [--part K/N] [--only ROW ...] [--seconds 5] [--native] [--list] [--sim] [--out DIR]

Loads count their own work (bench/probes/load.c, bench/share_torch.py); a share is that over what the same job does
alone, natively, right before and after. The daemon is one of its own, with the default settings. --native: the same
loads without hamirt, which is the driver's own sharing. What was not measured is listed in the JSON as `unmeasured`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.machine import MeasureError, Setup, main_of, parser, print_bars, setup_of, table, write
from bench.measure import Bar
from bench.share_bars import native_rows
from bench.share_measure import take
from bench.share_rows import Row, deal, rows, seconds_of
from bench.share_tenants import Crew, calibrate, simulated_card
from hamirt.errors import HamirtError

BUDGET_S = 3600.0
PART_BAR_S = 480.0
ENDS_S = 20.0
"""What ending a pool and writing the results may take."""

Missing = dict[str, str]
"""By row, why it was not measured."""


def measure_share() -> int:
    """Measure what the options ask for and write share.json; return the exit status."""
    asked = _options().parse_args()
    every = rows(asked.seconds, asked.alone, asked.rounds)
    chosen, missing = _choose(every, asked)
    if asked.list:
        print(table([[row.name, row.pool.name, f"{row.seconds():.0f} s"] for row in chosen], ["row", "pool", "takes"]))
        over = f": more than a part of {PART_BAR_S:.0f} s" if seconds_of(chosen) > PART_BAR_S else ""
        print(f"{seconds_of(chosen):.0f} s with the start of the pools{over}")
        return 0
    setup = setup_of(asked)
    bars: list[Bar] = []
    shown: list[list[str]] = []
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hamirt-bench-") as name, simulated_card(setup, Path(name)):
        rate = calibrate(setup)
        for row, result in _measured(setup, chosen, Path(name), rate, asked.native):
            if isinstance(result, str):
                missing[row.name] = result
                print(f"{row.name}: not measured: {result}", flush=True)
                continue
            try:
                judged, more = (
                    ([], native_rows(row.name, result["runs"])) if asked.native else row.judge(result["runs"])
                )
            except Exception as error:  # what was measured is kept: time on a card is scarce
                missing[row.name] = f"not judged: {error!r}"
                judged, more = [], []
            bars += judged
            shown += more
            found.append({**result, "shown": more})
            print(f"{row.name}: {result['took_s']:.0f} s, {', '.join(bar.verdict for bar in judged)}", flush=True)
        body = {
            "command": [
                "bench/share.py",
                *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:]),
            ],
            "native": asked.native,
            "options": {"seconds": asked.seconds, "alone": asked.alone, "rounds": asked.rounds, "part": asked.part},
            "iterations_per_us": rate,
            "load_average": os.getloadavg(),
            "rows": found,
            "unmeasured": [{"row": name, "reason": reason} for name, reason in missing.items()],
        }
        path = write(setup, _name(asked), bars, body)
    print_bars(bars, setup.sim)
    if shown:
        print(table(shown, ["by the driver alone" if asked.native else "not in a bar", ""]))
    print(path)
    return 0 if found and all(bar.verdict == "pass" for bar in bars) else 1


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__)
    options.set_defaults(budget=BUDGET_S)
    options.add_argument("--part", metavar="K/N", default="1/1", help="of the rows, dealt by their time")
    options.add_argument("--only", nargs="+", metavar="ROW", default=[], help="see --list")
    options.add_argument("--seconds", type=float, default=5.0, help="of a run")
    options.add_argument("--alone", type=float, default=2.0, help="seconds of a run alone")
    options.add_argument("--rounds", type=int, default=2, help="of alone and with")
    options.add_argument("--native", action="store_true", help="the same loads without hamirt")
    options.add_argument("--list", action="store_true", help="what would be measured, and how long that takes")
    return options


def _choose(every: Sequence[Row], asked: argparse.Namespace) -> tuple[list[Row], Missing]:
    """Return the rows of this part, and of all others why they are not among them. Raises MeasureError."""
    unknown = set(asked.only) - {row.name for row in every}
    if unknown:
        raise MeasureError(f"no row is called {', '.join(sorted(unknown))}: see --list")
    number, _, count = asked.part.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise MeasureError(f"--part {asked.part}: a number and how many there are, such as 1/2")
    left_out: Missing = {}
    wanted = []
    for row in every:
        if asked.only and row.name not in asked.only:
            left_out[row.name] = "not asked for"
        elif asked.native and not row.natively:
            left_out[row.name] = "says nothing without hamirt"
        else:
            wanted.append(row)
    chosen = deal(wanted, int(count))[int(number) - 1]
    left_out |= {row.name: f"in another part than {asked.part}" for row in wanted if row not in chosen}
    return chosen, left_out


def _measured(
    setup: Setup, chosen: Sequence[Row], folder: Path, rate: float, native: bool
) -> Iterator[tuple[Row, dict[str, Any] | str]]:
    """Yield each row with its runs, or why there are none; a pool stays until a row needs another, or one fails."""
    with contextlib.ExitStack() as stack:
        crew: Crew | None = None
        broken: dict[str, str] = {}
        for number, row in enumerate(chosen):
            starts = crew is None or crew.pool is not row.pool
            estimate_s = round(row.seconds() + (row.pool.start_s if starts else 0.0), 1)
            needed = estimate_s + ENDS_S
            if row.pool.name in broken:
                yield row, broken[row.pool.name]
                continue
            if setup.left_s() < needed:
                yield row, f"{setup.left_s():.0f} s were left, it takes {needed:.0f} s"
                continue
            begun = time.monotonic()
            try:
                if crew is None or starts:
                    stack.close()
                    crew = None
                    own = folder / str(number)
                    own.mkdir()
                    crew = _start(stack, setup, row, own, rate, native, broken)
                runs = [take(crew, step) for step in row.steps]
            except (MeasureError, HamirtError) as error:
                stack.close()
                crew = None
                yield row, str(error)
                continue
            times = {"estimate_s": estimate_s, "took_s": round(time.monotonic() - begun, 1)}
            yield row, {"name": row.name, "pool": row.pool.name, **times, "runs": runs}


def _start(
    stack: contextlib.ExitStack, setup: Setup, row: Row, folder: Path, rate: float, native: bool, broken: dict[str, str]
) -> Crew:
    """Start a row's pool; where it can't be, that holds for all its rows."""
    try:
        if setup.sim and any(member.torch for member in row.pool.members):
            raise MeasureError("PyTorch does not run on the simulated card")
        return stack.enter_context(Crew(setup, row.pool, folder, rate, native))
    except MeasureError as error:
        broken[row.pool.name] = str(error)
        raise


def _name(asked: argparse.Namespace) -> str:
    part = "" if asked.part == "1/1" else "-" + asked.part.replace("/", "of")
    return f"share{'-native' if asked.native else ''}{part}"


if __name__ == "__main__":
    main_of(measure_share)
