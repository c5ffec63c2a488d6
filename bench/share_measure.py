"""One run of bench/share.py: jobs given to loads, what happens meanwhile, and what they got done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from bench.machine import MeasureError, environment
from bench.process import TOP
from bench.share_bars import Run
from bench.share_load import PID, SECOND_NS, Job, Series, rate, seconds
from bench.share_rows import SETTLE_S, Step
from bench.share_tenants import Crew
from bench.supervisor_daemon import wait_until

START_NS = 100_000_000
TAIL_NS = 100_000_000
DRAIN_S = 20.0
COMMAND_S = 30.0
LOOK_S = 0.0002

KILL_EVERY_S = 1.0
CHANGE_BEFORE_S, CHANGE_AFTER_S = 1.5, 2.0
CHANGES = ("hamirt set", "request", "hamirt set", "request")
CHANGE_WINDOW_MS, CHANGE_SHOWN_S = 50, 1.5
CHANGE_FROM, CHANGE_TO = 60, 20
BEFORE_KILL_S, SEARCH_S = 2.0, 1.0
"""How long caps are looked at, and then a moment looked for in which all gates are closed."""
RESUMED_S, HELD_FOR_S = 1.5, 5.0
"""After the daemon's death: from when on caps are judged, and for how long."""

Parts = dict[str, list[Series]]


class Action:
    """Something that happens during a run; by itself, nothing does."""

    def __init__(self, crew: Crew, jobs: dict[str, Job]) -> None:
        self.crew = crew
        self.jobs = jobs

    def act(self, start_ns: int, end_ns: int) -> None:
        """Do it, between two moments."""

    def events(self, parts: Parts) -> dict[str, Any]:
        """Return what is to be known of it, now that the run is over."""
        return {}


class KillProcesses(Action):
    """Kills the process that leads the tenant and another one, each second; of a load without a tenant any two."""

    def __init__(self, crew: Crew, jobs: dict[str, Job]) -> None:
        super().__init__(crew, jobs)
        self.kills: list[dict[str, Any]] = []
        self._luck = random.Random(1)

    def act(self, start_ns: int, end_ns: int) -> None:
        for name in self.jobs:
            while time.monotonic_ns() + KILL_EVERY_S * SECOND_NS < end_ns:
                time.sleep(KILL_EVERY_S)
                self._kill(name, start_ns)

    def events(self, parts: Parts) -> dict[str, Any]:
        return {"kills": self.kills}

    def _kill(self, name: str, start_ns: int) -> None:
        files = {pid: file for file in self.crew.loads[name].files if (pid := file.word(PID))}
        page = self.crew.page(name, "rw/usage") if self.crew.is_tenant(name) else None
        leader = page.leader() if page else 0
        first = leader or (page.first_pid() if page else next(iter(files), 0))
        others = [pid for pid in files if pid != first]
        for victim in (first, self._luck.choice(others) if others else None):
            if victim is not None and victim in files:
                files[victim].set(PID, 0)
                os.kill(victim, signal.SIGKILL)
                at = round((time.monotonic_ns() - start_ns) / 1e9, 3)
                self.kills.append({"at_s": at, "leader": victim == leader})


class ChangeTheCap(Action):
    """Changes the tenant's cap from 60 to 20 and back, by command and by request."""

    def __init__(self, crew: Crew, jobs: dict[str, Job]) -> None:
        super().__init__(crew, jobs)
        (self.name,) = jobs
        self._changes: list[tuple[str, int, int]] = []

    def act(self, start_ns: int, end_ns: int) -> None:
        uuid = self._uuid()
        for how in CHANGES:
            self._request(uuid, CHANGE_FROM)
            time.sleep(CHANGE_BEFORE_S)
            asked_ns = time.monotonic_ns()
            if how == "request":
                self._request(uuid, CHANGE_TO)
            else:
                self._command()
            self._changes.append((how, asked_ns, time.monotonic_ns()))
            time.sleep(CHANGE_AFTER_S)
        self._request(uuid, CHANGE_FROM)

    def events(self, parts: Parts) -> dict[str, Any]:
        changes = []
        for how, asked_ns, said_ns in self._changes:
            end_ns, length_ns = said_ns + int(CHANGE_SHOWN_S * SECOND_NS), CHANGE_WINDOW_MS * 1_000_000
            rates = seconds(parts[self.name], said_ns, end_ns, length_ns, length_ns)
            changes.append(
                {
                    "how": how,
                    "call_s": round((said_ns - asked_ns) / 1e9, 4),
                    "before": rate(parts[self.name], asked_ns - SECOND_NS, asked_ns),
                    "window_ms": CHANGE_WINDOW_MS,
                    "windows": [round(one, 4) for one in rates],
                }
            )
        return {"changes": changes}

    def _uuid(self) -> str:
        tenants = self.crew.node().client().node()["tenants"]
        return next(str(one["cards"][0]["uuid"]) for one in tenants if one["name"] == self.name)

    def _request(self, uuid: str, percent: int) -> None:
        self.crew.node().client().change(self.name, {uuid: {"time_percent": percent}})

    def _command(self) -> None:
        argv = [sys.executable, "-m", "hamirt", "set", self.name, "--sm", str(CHANGE_TO)]
        env = environment(self.crew.setup, {"HAMIRT_ROOT": str(self.crew.root)})
        done = subprocess.run(argv, env=env, cwd=TOP, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        if done.returncode != 0:
            raise MeasureError(f"hamirt set: {done.stderr[-300:]}")


class KillTheDaemon(Action):
    """Kills the daemon at a moment when the gates are closed; it is started again after the run."""

    def __init__(self, crew: Crew, jobs: dict[str, Job]) -> None:
        super().__init__(crew, jobs)
        self.counted_ns = self.killed_ns = 0
        self.gates: dict[str, str] = {}

    def act(self, start_ns: int, end_ns: int) -> None:
        pages = {name: self.crew.page(name, "ro/limits") for name in self.jobs}
        self.counted_ns = start_ns + int(SETTLE_S * SECOND_NS)
        time.sleep(BEFORE_KILL_S)
        until = time.monotonic() + SEARCH_S
        while time.monotonic() < until and any(page.gate() != "closed" for page in pages.values()):
            time.sleep(LOOK_S)
        self.killed_ns = time.monotonic_ns()
        self.crew.node().kill()
        self.gates = {name: page.gate() for name, page in pages.items()}

    def events(self, parts: Parts) -> dict[str, Any]:
        self.crew.node().start()
        self.crew.node().wait()
        first = self.killed_ns + int(RESUMED_S * SECOND_NS)
        last = first + int(HELD_FOR_S * SECOND_NS)
        around = {
            name: {
                "before": rate(series, self.counted_ns, self.killed_ns),
                "pause_s": max(part.longest_pause_s(self.killed_ns, last) for part in series),
                "after": rate(series, first, last),
            }
            for name, series in parts.items()
        }
        return {"gates": self.gates, "loads": around}


ACTIONS: dict[str, Callable[[Crew, dict[str, Job]], Action]] = {
    "": Action,
    "kill processes": KillProcesses,
    "change the cap": ChangeTheCap,
    "kill the daemon": KillTheDaemon,
}


def take(crew: Crew, step: Step) -> Run:
    """Do one step. Raises MeasureError where a load ends or does not come to the end of its work."""
    jobs = dict(step.jobs)
    loads = {name: crew.loads[name] for name in jobs}
    wait_until(lambda: all(load.ready() for load in loads.values()), DRAIN_S, "not all loads are ready")
    from_ns = time.monotonic_ns() + START_NS
    start_ns = from_ns + int(SETTLE_S * SECOND_NS)
    end_ns = start_ns + int(step.seconds * SECOND_NS)
    for name, load in loads.items():
        for file in load.files:
            file.give(jobs[name], from_ns, end_ns + TAIL_NS)
    action = ACTIONS[step.action](crew, jobs)
    _sleep_until(from_ns)
    card = crew.nvml.handle(crew.setup.gpu)
    charged = {name: _charged_ns(crew, name) for name in jobs}
    mark = crew.nvml.busy_mark(card)
    action.act(from_ns, end_ns)
    _sleep_until(end_ns)
    possessed = {name: (_charged_ns(crew, name) - before) / (end_ns - from_ns) for name, before in charged.items()}
    gates = crew.gates()
    busy = crew.nvml.busy_between(mark, crew.nvml.busy_mark(card))
    card_busy = {"utilization": crew.nvml.utilization(card), **({} if busy is None else asdict(busy))}
    _sleep_until(end_ns + TAIL_NS)

    def drained() -> bool:
        for load in loads.values():
            load.check()
        return all(file.finished() for load in loads.values() for file in load.files)

    wait_until(drained, DRAIN_S, f"{', '.join(jobs)}: its work did not come to an end")
    parts = {name: [file.series(from_ns - SECOND_NS) for file in load.files] for name, load in loads.items()}
    return {
        "role": step.role,
        "seconds": step.seconds,
        "loads": {name: _figures(crew, name, jobs[name], parts[name], start_ns, end_ns) for name in jobs},
        "events": action.events(parts),
        "card": card_busy,
        "possessed": {name: round(part, 4) for name, part in possessed.items()},
        "gates": gates,
    }


def _figures(crew: Crew, name: str, job: Job, parts: Sequence[Series], start_ns: int, end_ns: int) -> dict[str, Any]:
    whole = rate(parts, start_ns, end_ns)
    windows = seconds(parts, start_ns, end_ns) or [whole]  # a run of less than a second is one window
    latencies = [one for file in crew.loads[name].files for one in file.latencies_ms(start_ns, end_ns)]
    return {
        "job": job.label,
        "length_ns": job.length_ns,
        "rate": whole,
        "low": min(windows),
        "high": max(windows),
        "windows": [round(one, 5) for one in windows],
        "kernels_per_s": round(rate(parts, start_ns, end_ns, "kernels") * 1e9, 1),
        "held": rate(parts, start_ns, end_ns, "held_ns"),
        "latencies_ms": [round(one, 3) for one in latencies] if job.every_ns else [],
    }


def _charged_ns(crew: Crew, name: str) -> int:
    """Return the GPU time that a tenant was charged for so far, by the supervisor or by a leader; 0 of what is none."""
    if not crew.is_tenant(name):
        return 0
    return sum(crew.page(name, which).charged_ns() for which in ("ro/limits", "rw/usage"))


def _sleep_until(moment_ns: int) -> None:
    time.sleep(max(0.0, (moment_ns - time.monotonic_ns()) / 1e9))
