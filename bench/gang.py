"""Whether tenants on two cards, whose ranks wait for each other there, never stop each other, and what they get done.

    python3 -m bench.gang --out DIR [--seconds 20] [--budget 450] [--sim]

Two jobs of two ranks that reduce all the time, eagerly and in graphs: NCCL through PyTorch, or the simulated driver's
collective. Each alone, both side by side without hamirt, and both as tenants of a daemon. Writes gang.json.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.guest import NOT_AVAILABLE
from bench.machine import MeasureError, Setup, environment, main_of, parser, print_bars, setup_of, write
from bench.measure import Bar
from bench.process import Program
from bench.share_tenants import NodeDaemon, simulated_card
from bench.supervisor_daemon import wait_until
from hamirt import region
from hamirt.model import Gate

RANKS = 2
END, ROUNDS = 8, 16
START_S, END_S = 120.0, 30.0
HANG_S = 5.0
EVEN = 0.05
LOOK_S = 0.05


class Gang:
    """A job and the file that it shares with us: see gang_rank.c."""

    def __init__(self, setup: Setup, folder: Path, name: str, root: Path | None) -> None:
        """Start it, as a tenant of the daemon that serves `root` if there is one."""
        self.name = name
        self.path = folder / f"{name}.gang"
        self.path.write_bytes(struct.pack("2Q", 0, 1 << 62) + bytes(4096 - 16))
        with open(self.path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        command = [sys.executable, "-m", "bench.gang_torch", str(self.path)]
        if setup.sim:
            rank = f"{setup.program('gang_rank')} {self.path}"
            command = ["sh", "-c", f"{rank} 1 {RANKS} & {rank} 0 {RANKS} && wait $!"]
        env = environment(setup)
        if root is not None:
            env["HAMIRT_ROOT"] = str(root)
            cards = [word for rank in range(RANKS) for word in ("--gpu", str(rank))]
            sim = ["--sim"] if setup.sim else []
            command = [
                sys.executable,
                "-m",
                "hamirt",
                "run",
                *cards,
                *sim,
                "--mem",
                "40%",
                "--name",
                name,
                "--",
                *command,
            ]
        self.program = Program(command, env)

    def rounds(self) -> int:
        """Return how many all ranks have done. Raises MeasureError where it has ended."""
        if not self.program.running():
            ended = self.program.finish(1)
            if ended.status == NOT_AVAILABLE:
                raise MeasureError(f"not available: {(ended.result() or {}).get('not_available')}")
            raise MeasureError(f"{self.name}: {ended.why()}")
        return int(min(struct.unpack_from(f"{RANKS}Q", self._map, ROUNDS)))

    def end(self) -> str:
        """Have all ranks end after the same round; return how that went, "" if well."""
        struct.pack_into("Q", self._map, END, max(struct.unpack_from(f"{RANKS}Q", self._map, ROUNDS)) + 100)
        ended = self.program.finish(END_S)
        return "" if ended.status == 0 else f"{self.name}: {ended.why()}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of gangs beside each other."""

    rates: tuple[float, ...]
    """Rounds per second of each."""
    longest_s: float
    """The longest time in which one of them did no round."""
    faults: tuple[str, ...]
    slots: int = 0
    misses: int = 0
    """Slots that were not drained in time."""

    def as_dict(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return asdict(self)


def beside(setup: Setup, folder: Path, names: Sequence[str], root: Path | None, seconds: float) -> Outcome:
    """Run gangs beside each other for so long, as tenants of the daemon that serves `root` if there is one."""
    with contextlib.ExitStack() as stack:
        gangs = []
        for name in names:
            gangs.append(Gang(setup, folder, name, root))
            stack.push(gangs[-1].program)
        wait_until(lambda: all(gang.rounds() > 0 for gang in gangs), START_S, "the ranks did not begin")
        before = gates(root)
        start = time.monotonic()
        first = last = [gang.rounds() for gang in gangs]
        moved, longest = [start] * len(gangs), 0.0
        while (now := time.monotonic()) < start + seconds:
            done = [gang.rounds() for gang in gangs]
            moved = [now if after > old else when for old, after, when in zip(last, done, moved, strict=True)]
            longest = max(longest, *(now - when for when in moved))
            last = done
            time.sleep(LOOK_S)
        passed = time.monotonic() - start
        after = gates(root)
        return Outcome(
            tuple((new - old) / passed for old, new in zip(first, last, strict=True)),
            longest,
            tuple(filter(None, [gang.end() for gang in gangs])),
            after[0] - before[0],
            after[1] - before[1],
        )


def gates(root: Path | None) -> tuple[int, int]:
    """Return the slots that all tenants had on all cards, and those that were not drained in time."""
    found: list[Gate] = []
    for folder in (root / "tenants").glob("[!.]*") if root is not None else ():
        found += region.read_gates(folder / "ro" / "limits", RANKS)
    return sum(gate.slots for gate in found), sum(gate.misses for gate in found)


def measure_gang() -> int:
    """Measure as the options say and write gang.json; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=20.0)
    asked = options.parse_args()
    setup = setup_of(asked)
    names = ("one", "two")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hamirt-gang-")))
        stack.enter_context(simulated_card(setup, folder))
        if setup.sim:
            os.environ["HAMIRT_SIM"] = str(RANKS)
        root = folder / "root"
        root.mkdir(mode=0o700)
        alone = beside(setup, folder, names[:1], None, asked.seconds / 4)
        driver = beside(setup, folder, names, None, asked.seconds / 4)
        stack.enter_context(NodeDaemon(setup, root))
        shared = beside(setup, folder, names, root, asked.seconds)
        bars = judged(alone, driver, shared)
        phases = {"alone": alone, "driver": driver, "shared": shared}
        write(setup, "gang", bars, {name: outcome.as_dict() for name, outcome in phases.items()})
    print_bars(bars, setup.sim)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def judged(alone: Outcome, driver: Outcome, shared: Outcome) -> list[Bar]:
    """Return what has to hold, and what each pair got done of what one does alone."""
    parts = [[rate / alone.rates[0] for rate in outcome.rates] for outcome in (driver, shared)]
    texts = [" + ".join(f"{part:.3f}" for part in each) for each in parts]
    even = abs(parts[1][0] - parts[1][1]) / sum(parts[1])
    told = f"{sum(parts[1]):.3f} ({texts[1]}); the driver alone {sum(parts[0]):.3f} ({texts[0]})"
    return [
        _bar(
            "longest time without a round", f"< {HANG_S:.0f} s", f"{shared.longest_s:.2f} s", shared.longest_s < HANG_S
        ),
        _bar("wrong ends and results", "0", str(len(shared.faults)), not shared.faults, "; ".join(shared.faults)),
        _bar("slots not drained in time", "0", str(shared.misses), shared.misses == 0, f"of {shared.slots} slots"),
        _bar("even", "<= 0.05 apart", f"{even:.3f}", even <= EVEN, told),
    ]


def _bar(name: str, bar: str, measured: str, reached: bool, detail: str = "") -> Bar:
    return Bar(name, bar, measured, "pass" if reached else "fail", detail)


if __name__ == "__main__":
    main_of(measure_gang)
