"""Whether sharing holds for long: tenants join, leave, are killed, stopped and changed at random beside each other.

    python3 -m bench.soak --sim [--seconds 1800] [--seed N] [--out DIR]

On the simulated card. All along: no tenant is without progress for 2 s unless it is stopped; the card is not idle
while a tenant without a cap wants it; caps hold over 10 s in which no daemon died. Writes soak.log and soak.json; the
exit status is 1 if something did not hold.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from bench.machine import MeasureError, Setup, environment, main_of, parser, print_bars, setup_of, write
from bench.measure import Bar
from bench.process import Program, run
from bench.share_load import (
    PID,
    QUIT,
    SAMPLES,
    SAMPLES_AT,
    SAMPLES_KEPT,
    UNTIL_NS,
    Job,
    LoadFile,
    burst,
    graph,
    saturate,
    threads,
    wait,
)
from bench.share_tenants import NodeDaemon, simulated_card
from bench.supervisor_daemon import wait_until

LEAST, MOST = 3, 5
TICK_S = 0.25
HANG_S = 2.0
SETTLE_S = 1.5
"""After a change its effect may take so long, and what is measured begins afterwards."""
CAP_S, CAP_SLACK = 10.0, 0.02
BUSY_S, BUSY_LEAST = 1.5, 0.8
FOREVER_NS = 1 << 62
SATURATING = (saturate(500), saturate(5000), graph(50), threads(4, 200))
JOBS = (*SATURATING, wait(500), burst())
CAPS = (None, None, None, None, 10, 25, 40, 60)
CLASSES = ("normal", "normal", "latency", "batch")


class Meter(LoadFile):
    """A load's file, of which only the newest total is read."""

    def last_ns(self) -> int:
        """Return the work done, ever."""
        count = self.word(SAMPLES)
        place = SAMPLES_AT + 32 * ((count - 1) % SAMPLES_KEPT)
        return int(struct.unpack_from("4Q", self._map, place)[1]) if count else 0


@dataclass
class Tenant:
    """A tenant of `hamirt run`, and what was seen of it."""

    name: str
    job: Job
    file: Meter
    program: Program
    cap: int | None
    stopped_until: float | None = None
    moved: float = 0.0
    """When it was last seen to have got something done, or got the chance to."""
    work_ns: int = 0
    steady: list[tuple[float, int]] = field(default_factory=list)
    """Its work at the ticks since its cap last changed."""

    def restart_window(self) -> None:
        self.steady = []


class Soak:
    """Everything that runs, and what went wrong."""

    def __init__(self, setup: Setup, root: Path, seed: int, log: TextIO) -> None:
        self.setup, self.root, self.log = setup, root, log
        self.dice = random.Random(seed)
        self.daemon = NodeDaemon(setup, root)
        self.daemon_back: float | None = None
        self.tenants: list[Tenant] = []
        self.count = 0
        self.done: dict[str, int] = {}
        self.faults: dict[str, list[str]] = {"hang": [], "idle": [], "cap": [], "end": []}
        self.checks = dict.fromkeys(self.faults, 0)
        self.least_busy = 1.0
        self.busy: list[tuple[float, int]] = []

    def say(self, text: str) -> None:
        self.log.write(f"{time.monotonic():.3f} {text}\n")
        self.log.flush()

    def fault(self, kind: str, text: str) -> None:
        self.faults[kind].append(text)
        self.say(f"FAULT {kind}: {text}")

    def limits(self) -> tuple[int | None, list[str]]:
        """Return a cap and the options for it, a weight and a class."""
        cap = self.dice.choice(CAPS)
        options = ["--sm", str(cap or 100), "--weight", str(self.dice.choice((50, 100, 300)))]
        return cap, [*options, "--class", self.dice.choice(CLASSES)]

    # what may happen

    def join(self) -> None:
        if len(self.tenants) >= MOST or self.daemon_back is not None:
            return
        self.count += 1
        name, job = f"t{self.count}", self.dice.choice(JOBS)
        cap, options = self.limits()
        file = Meter(self.root / f"{name}.load")
        load = [self.setup.program("load"), str(file.path), "1", "0"]
        argv = [sys.executable, "-m", "hamirt", "run", "--sim", "--name", name, "--mem", "4GiB", *options]
        program = Program([*argv, "--", *load], environment(self.setup, {"HAMIRT_ROOT": str(self.root)}))
        tenant = Tenant(name, job, file, program, cap)
        self.tenants.append(tenant)  # first: whatever happens now, it is ended with the others
        self.say(f"join {name}: {job.label}, {' '.join(options)}")
        wait_until(lambda: file.ready() or not program.running(), 30.0, f"{name} takes no jobs")
        tenant.moved = time.monotonic()
        file.give(job, time.monotonic_ns(), FOREVER_NS)

    def end(self, tenant: Tenant, status: int) -> None:
        """Wait until it has ended, and check how."""
        self.tenants.remove(tenant)
        ended = tenant.program.finish(10.0)
        self.checks["end"] += 1
        if ended.status != status:
            self.fault("end", f"{tenant.name} ended with {ended.status}, not {status}: {ended.why()}")
        tenant.program.__exit__(None, None, None)

    def leave(self) -> None:
        if tenant := self.some():
            self.say(f"leave {tenant.name}")
            tenant.file.set(QUIT, 1)
            tenant.file.set(UNTIL_NS, 0)
            self.end(tenant, 0)

    def kill(self) -> None:
        if tenant := self.some():
            self.say(f"kill {tenant.name}")
            os.kill(tenant.file.word(PID), signal.SIGKILL)
            self.end(tenant, 128 + signal.SIGKILL)

    def stop(self) -> None:
        if tenant := self.some():
            self.say(f"stop {tenant.name}")
            os.kill(tenant.file.word(PID), signal.SIGSTOP)
            tenant.stopped_until = time.monotonic() + self.dice.uniform(0.5, 3)

    def change(self) -> None:
        tenant = self.some()
        if tenant is None or self.daemon_back is not None:
            return
        cap, options = self.limits()
        self.say(f"set {tenant.name} {' '.join(options)}")
        argv = [sys.executable, "-m", "hamirt", "set", tenant.name, *options]
        ended = run(argv, environment(self.setup, {"HAMIRT_ROOT": str(self.root)}), 20.0)
        if ended.status != 0:
            self.fault("end", f"hamirt set: {ended.why()}")
        tenant.cap = cap
        tenant.restart_window()

    def restart(self) -> None:
        if self.daemon_back is None:
            self.say("daemon killed")
            self.daemon.kill()
            for tenant in self.tenants:  # what is open stays so until the lease ends
                tenant.restart_window()
            self.daemon_back = time.monotonic() + self.dice.uniform(0, 3)

    def some(self) -> Tenant | None:
        """Return a tenant that is not stopped."""
        there = [tenant for tenant in self.tenants if tenant.stopped_until is None]
        return self.dice.choice(there) if there else None

    def is_lonely(self) -> bool:
        """Tell whether too few tenants are there to disturb each other."""
        return len(self.tenants) < LEAST and self.daemon_back is None

    def act(self) -> None:
        """Have something happen."""
        actions: list[tuple[Callable[[], None], int]] = [
            (self.join, 6), (self.leave, 1), (self.kill, 1), (self.stop, 2), (self.change, 3), (self.restart, 1),
        ]  # fmt: skip
        (action,) = self.dice.choices([one for one, _ in actions], [weight for _, weight in actions])
        if self.is_lonely():
            action = self.join
        self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
        action()
        self.busy = []

    def recover(self, now: float) -> None:
        """Continue what was stopped, and start the daemon again, when it is time."""
        for tenant in self.tenants:
            if tenant.stopped_until is not None and now > tenant.stopped_until:
                self.say(f"continue {tenant.name}")
                os.kill(tenant.file.word(PID), signal.SIGCONT)
                tenant.stopped_until, tenant.moved = None, now
                self.busy = []
        if self.daemon_back is not None and now > self.daemon_back:
            self.say("daemon started")
            self.daemon.start()
            self.daemon.wait()
            self.daemon_back = None
            self.busy = []

    # what is checked

    def look(self, now: float) -> None:
        """Take what each has done, and check it."""
        for tenant in self.tenants:
            work_ns = tenant.file.last_ns()
            if work_ns > tenant.work_ns or tenant.stopped_until is not None:
                tenant.moved, tenant.work_ns = now, work_ns
            self.checks["hang"] += 1
            if now > tenant.moved + HANG_S:
                self.fault("hang", f"{tenant.name} ({tenant.job.label}) did nothing for {now - tenant.moved:.1f} s")
                tenant.moved = now
            tenant.steady.append((now, work_ns))
            self.look_at_cap(tenant)
        self.look_at_card(now)

    def look_at_cap(self, tenant: Tenant) -> None:
        while tenant.steady[0][0] < tenant.steady[-1][0] - CAP_S - SETTLE_S:
            tenant.steady.pop(0)
        start = next((one for one in tenant.steady if one[0] > tenant.steady[0][0] + SETTLE_S), None)
        if start is None or tenant.cap is None or tenant.steady[-1][0] < start[0] + CAP_S - 2 * TICK_S:
            return
        (began, before), (ended, after) = start, tenant.steady[-1]
        share = (after - before) / (ended - began) / 1e9
        self.checks["cap"] += 1
        if share > tenant.cap / 100 + CAP_SLACK:
            self.fault("cap", f"{tenant.name} ({tenant.job.label}) had {share:.3f} over 10 s, its cap is {tenant.cap}")
            tenant.restart_window()
            tenant.steady.append((ended, after))

    def look_at_card(self, now: float) -> None:
        """The card's busy share, where nothing happens and somebody without a cap wants all of it."""
        wanted = any(one.cap is None and one.job in SATURATING and one.stopped_until is None for one in self.tenants)
        if not wanted or self.daemon_back is not None:
            self.busy = []
            return
        self.busy.append((now, sum(tenant.work_ns for tenant in self.tenants)))
        start = next((one for one in self.busy if one[0] > self.busy[0][0] + SETTLE_S), None)
        if start is None or now < start[0] + BUSY_S:
            return
        share = (self.busy[-1][1] - start[1]) / (now - start[0]) / 1e9
        self.checks["idle"] += 1
        self.least_busy = min(self.least_busy, share)
        if share < BUSY_LEAST:
            self.fault("idle", f"the card was busy for {share:.3f} of {now - start[0]:.1f} s")
        self.busy = [(now, self.busy[-1][1])]

    def run(self, seconds: float) -> None:
        """Have things happen for so long."""
        end, due = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < end:
            if now > due or self.is_lonely():
                self.act()
                due = time.monotonic() + self.dice.choice((0.1, 0.3, 1, 2, 3, 12))
            self.recover(time.monotonic())
            self.look(time.monotonic())
            time.sleep(TICK_S)

    def kill_all(self) -> None:
        """End what still runs."""
        for tenant in self.tenants:
            tenant.program.__exit__(None, None, None)

    def bars(self) -> list[Bar]:
        """Return what must be zero."""
        names = {"hang": "2 s without progress", "idle": "slots lost", "cap": "caps exceeded", "end": "wrong ends"}
        return [
            Bar(
                name,
                "0",
                str(len(self.faults[kind])),
                "fail" if self.faults[kind] else "pass",
                f"{self.checks[kind]} looks",
            )
            for kind, name in names.items()
        ]


@contextlib.contextmanager
def soaking(setup: Setup, seed: int) -> Iterator[Soak]:
    """Have a node with a daemon, and end everything afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hamirt-soak-")))
        stack.enter_context(simulated_card(setup, folder))
        root = folder / "root"
        root.mkdir(mode=0o700)
        soak = Soak(setup, root, seed, stack.enter_context(open(setup.out / "soak.log", "w")))
        stack.enter_context(soak.daemon)
        stack.callback(soak.kill_all)
        yield soak


def measure_soak() -> int:
    """Soak as the options say and write soak.json; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=1800.0)
    options.add_argument("--seed", type=int, default=int(time.time()))
    asked = options.parse_args()
    if not asked.sim:
        raise MeasureError("the soak is for the simulated card: use --sim")
    setup = setup_of(asked)
    print(f"seed {asked.seed}", flush=True)
    with soaking(setup, asked.seed) as soak:
        soak.say(f"seed {asked.seed}")
        soak.run(asked.seconds)
        body = {"seed": asked.seed, "seconds": asked.seconds, "events": soak.done, "checks": soak.checks}
        bars = soak.bars()
        write(setup, "soak", bars, {**body, "least_busy": soak.least_busy, "faults": soak.faults})
    print_bars(bars, setup.sim)
    return 1 if any(soak.faults.values()) else 0


if __name__ == "__main__":
    main_of(measure_soak)
