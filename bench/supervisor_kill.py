"""A daemon that is killed with -9 at random moments while tenants allocate, come and go, and get other limits."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import GIB, MIB, MeasureError, Setup, environment
from bench.process import Program, descendants, run
from bench.supervisor_daemon import Daemon, tenant, wait_for_lines, wait_until
from bench.supervisor_state import differences, read_pages, shown
from hamirt import region
from hamirt.errors import HamirtError

CHURNERS, STILL, PROCESSES = 4, 3, 2
CHURN_CAP_BYTES, STILL_CAP_BYTES = 3 * GIB, 4 * GIB
HELD_BYTES, MOST_BYTES = 256 * MIB, 256 * MIB
CHANGED = "changed"
"""The tenant whose weight is changed all the time."""
LONGEST_S = 1.0
EARLY_EVERY, EARLY_S = 5, 0.6
"""Every so many kills another one follows within so many seconds of the new daemon's start."""
RUNNERS = 2
RUN_S = 60.0
SETTLE_S = 30.0
CHANGE_EVERY_S = 0.02
STOPPED_S = 2.0
CONTROL_DIFFERENCES = 2
"""Places in which a changed cap has to be found."""


@dataclass
class Changer:
    """Counts a tenant's weight up, and knows what the daemon said yes to. The figures change under `lock`."""

    daemon: Daemon
    uuid: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    confirmed: int = 1
    tried: int = 1
    requests: int = 0

    def go_on(self) -> None:
        """Change it until `over`."""
        while not self.over.wait(CHANGE_EVERY_S):
            with self.lock, contextlib.suppress(HamirtError):
                self.tried = self.tried % 10_000 + 1
                self.requests += 1
                self.daemon.client().change(CHANGED, {self.uuid: {"weight": self.tried}})
                self.confirmed = self.tried

    def wrong(self, folder: Path, node: dict[str, Any]) -> list[str]:
        """Return what the page and the node say against what was asked last. Called under the lock."""
        try:
            weight = region.read_limits(folder / "ro" / "limits").devices[0].weight
        except HamirtError as error:
            return [f"{CHANGED}: {error}"]
        said = [one["cards"][0]["weight"] for one in node["tenants"] if one["name"] == CHANGED]
        wrong = []
        if weight not in (self.confirmed, self.tried):
            wrong.append(f"{CHANGED}: the weight is {weight}, {self.confirmed} was confirmed, {self.tried} asked for")
        if said != [weight]:
            wrong.append(f"{CHANGED}: the node says {said}, the page {weight}")
        self.confirmed = self.tried = weight
        return wrong


@dataclass
class Runners:
    """Starts short tenants, one after the other, and keeps how they ended."""

    setup: Setup
    root: Path
    over: threading.Event = field(default_factory=threading.Event)
    ended: list[dict[str, Any]] = field(default_factory=list)

    def go_on(self, number: int) -> None:
        """Start them until `over`."""
        count = 0
        while not self.over.is_set():
            argv = [sys.executable, "-m", "hamirt", "run", "--sim", "--name", f"short{number}-{count}", "--gpu", "1"]
            argv += ["--mem", "1GiB", "--", self.setup.program("victim"), "once"]
            ended = run(argv, environment(self.setup, {"HAMIRT_ROOT": str(self.root)}), RUN_S)
            self.ended.append({"status": ended.status, "seconds": round(ended.seconds, 3), "why": ended.why()})
            count += 1


@dataclass(frozen=True)
class Storm:
    """The tenants that live through it all: `still` ones hold what they have, `churn` allocates and frees."""

    still: dict[str, Program]
    churn: dict[str, Program]
    ids: dict[str, str]

    def state(self, root: Path, node: dict[str, Any]) -> dict[str, Any]:
        """Return by name all that must not change of them."""
        return {
            name: {
                "pages": read_pages(root / "tenants" / self.ids[name], still=name in self.still),
                "node": shown(node, self.ids[name], still=name in self.still),
            }
            for name in [*self.still, *self.churn]
        }

    def died(self) -> list[str]:
        """Return which have ended."""
        return [f"{name} has ended" for name, one in [*self.still.items(), *self.churn.items()] if not one.running()]


def measure_kills(setup: Setup, daemon: Daemon, kills: int, seed: int) -> dict[str, Any]:
    """Kill the daemon so often, and return all that was seen."""
    with _tenants(setup, daemon) as storm, _changed(setup, daemon) as changed:
        before = storm.state(daemon.root, daemon.client().node())
        changer, runners = Changer(daemon, _uuid_of(daemon, CHANGED)), Runners(setup, daemon.root)
        hands = [threading.Thread(target=changer.go_on)]
        hands += [threading.Thread(target=runners.go_on, args=(number,)) for number in range(RUNNERS)]
        for hand in hands:
            hand.start()
        try:
            rounds, done = _rounds(setup, daemon, storm, before, changer, changed, kills, random.Random(seed))
        finally:
            changer.over.set()
            runners.over.set()
            for hand in hands:
                hand.join()
        left = _left(daemon, {*storm.ids.values(), changed.name})
        died = storm.died()
        churn = [_end_churn(program) for program in storm.churn.values()]
        control = {"differences": _changed_cap(daemon, storm, before), "stall_s": _stopped(setup, daemon)}
    return {
        "asked": kills,
        "kills": done,
        "seed": seed,
        "rounds": rounds,
        "changes_asked": changer.requests,
        "runs": runners.ended,
        "churn": churn,
        "died": died,
        "left": left,
        "control": control,
    }


def _rounds(
    setup: Setup,
    daemon: Daemon,
    storm: Storm,
    before: dict[str, Any],
    changer: Changer,
    changed: Path,
    kills: int,
    luck: random.Random,
) -> tuple[list[dict[str, Any]], int]:
    rounds: list[dict[str, Any]] = []
    done = 0
    while done < kills and setup.left_s() > 0:
        time.sleep(luck.uniform(0, LONGEST_S))
        daemon.kill()
        done += 1
        with changer.lock:
            if len(rounds) % EARLY_EVERY == EARLY_EVERY - 1 and done < kills:
                daemon.start()
                time.sleep(luck.uniform(0, EARLY_S))
                daemon.kill()
                done += 1
            start = time.monotonic()
            daemon.start()
            node = daemon.wait()
            back_s = time.monotonic() - start
            now = storm.state(daemon.root, node)
            differ = [text for name in before for text in differences(name, before[name], now[name])]
            differ += changer.wrong(changed, node)
        rounds.append({"kill": done, "back_s": round(back_s, 3), "differences": differ})
    return rounds, done


@contextlib.contextmanager
def _tenants(setup: Setup, daemon: Daemon) -> Iterator[Storm]:
    load = setup.program("tenant_load")
    with contextlib.ExitStack() as stack:

        def started(name: str, cap: int, mode: str, size: int, gpu: int) -> Program:
            command = [load, mode, str(PROCESSES), str(size)]
            return stack.enter_context(tenant(setup, daemon.root, name, cap, command, gpu))

        still = {
            f"still{index}": started(f"still{index}", STILL_CAP_BYTES, "idle", HELD_BYTES, index % 2)
            for index in range(STILL)
        }
        churn = {
            f"churn{index}": started(f"churn{index}", CHURN_CAP_BYTES, "churn", MOST_BYTES, index % 2)
            for index in range(CHURNERS)
        }
        for program in still.values():
            wait_for_lines(program, "ready", PROCESSES)
        names = [*still, *churn]
        wait_until(lambda: all(_processes(daemon, name) == PROCESSES for name in names), SETTLE_S, "not all came up")
        ids = {one["name"]: one["id"] for one in daemon.client().node()["tenants"]}
        yield Storm(still, churn, ids)


@contextlib.contextmanager
def _changed(setup: Setup, daemon: Daemon) -> Iterator[Path]:
    """Have the tenant that gets other limits; yield its folder."""
    command = [setup.program("tenant_load"), "idle", "1", str(HELD_BYTES)]
    with tenant(setup, daemon.root, CHANGED, STILL_CAP_BYTES, command, 0, "--weight", "1") as program:
        wait_for_lines(program, "ready", 1)
        wait_until(lambda: _processes(daemon, CHANGED) == 1, SETTLE_S, f"{CHANGED} did not come up")
        yield next((daemon.root / "tenants").glob(f"{CHANGED}-*"))


def _processes(daemon: Daemon, name: str) -> int:
    """Return how many processes of a tenant the daemon knows by pid."""
    found = [one["cards"][0]["processes"] for one in daemon.client().node()["tenants"] if one["name"] == name]
    return sum(process["pid"] is not None for process in found[0]) if found else 0


def _uuid_of(daemon: Daemon, name: str) -> str:
    return next(str(one["cards"][0]["uuid"]) for one in daemon.client().node()["tenants"] if one["name"] == name)


def _left(daemon: Daemon, expected: set[str]) -> list[str]:
    """Return the folders of tenants that are still there though they ended, or are not though they live."""

    def wrong() -> set[str]:
        return {folder.name for folder in (daemon.root / "tenants").iterdir()} ^ expected

    with contextlib.suppress(MeasureError):
        wait_until(lambda: not wrong(), SETTLE_S, "")
    return [f"the folder {name} is left behind or missing" for name in sorted(wrong())]


def _end_churn(program: Program) -> dict[str, Any]:
    program.send(signal.SIGTERM)
    ended = program.finish(RUN_S)
    return {"status": ended.status, "why": ended.why(), "result": ended.result()}


def _changed_cap(daemon: Daemon, storm: Storm, before: dict[str, Any]) -> list[str]:
    """Change a cap, and return what the comparison says of it: in the page, and with the next sample in the node."""
    name = next(iter(storm.still))
    daemon.client().change(name, {_uuid_of(daemon, name): {"memory_bytes": STILL_CAP_BYTES + GIB}})

    def found() -> list[str]:
        now = storm.state(daemon.root, daemon.client().node())
        return list(differences(name, before[name], now[name]))

    with contextlib.suppress(MeasureError):
        wait_until(lambda: len(found()) >= CONTROL_DIFFERENCES, SETTLE_S, "")
    return found()


def _stopped(setup: Setup, daemon: Daemon) -> float:
    """Stop a tenant for a while, and return the longest pause that it saw, in seconds."""
    command = [setup.program("tenant_load"), "churn", "1", str(MOST_BYTES)]
    with tenant(setup, daemon.root, "stopped", CHURN_CAP_BYTES, command, 0) as program:
        wait_until(lambda: _processes(daemon, "stopped") == 1, SETTLE_S, "the tenant to be stopped did not come up")
        inside = descendants(program.pid)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in inside:
                os.kill(pid, number)
            time.sleep(STOPPED_S)
        result = _end_churn(program)["result"] or {}
    return float(result.get("longest_gap_ns", 0)) / 1e9
