"""The daemon that bench/supervisor.py measures, on a root of its own: started, killed, asked, and its figures read."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import MeasureError, Setup, environment, mem_option
from bench.process import Program
from hamirt import client
from hamirt.errors import HamirtError

START_S = 60.0
STOP_S = 30.0
LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Figures:
    """What the daemon's process takes, by /proc."""

    cpu_s: float
    """User and system time of all its threads since it started."""
    rss_bytes: int
    peak_rss_bytes: int
    fds: int
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return asdict(self)


class Daemon:
    """A daemon that can be killed and started again; a context manager that ends it."""

    def __init__(self, setup: Setup, root: Path, **settings: str | float) -> None:
        """Prepare one that serves `root`; `settings` are hamirt.toml's, beside a free port for /metrics."""
        self.root = root
        self.port = _free_port()
        self._env = environment(setup, {"HAMIRT_ROOT": str(root)})
        self._settings = root.with_suffix(".toml")
        values = {"metrics_address": f"127.0.0.1:{self.port}", **settings}
        self._settings.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in values.items()))
        self._program: Program | None = None

    def __enter__(self) -> Daemon:
        self.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Return the daemon's pid, 0 while there is none."""
        return 0 if self._program is None else self._program.pid

    def start(self) -> None:
        """Start it, and don't wait for it."""
        argv = [sys.executable, "-m", "hamirt", "daemon", "--sim", "--config", str(self._settings)]
        self._program = Program(argv, self._env)

    def wait(self) -> dict[str, Any]:
        """Wait until it answers, and return the node. Raises MeasureError where it does not come up."""
        found: list[dict[str, Any]] = []

        def answers() -> bool:
            if self._program is None or not self._program.running():
                raise MeasureError(f"the daemon: {self._ended()}")
            with contextlib.suppress(HamirtError):
                found.append(self.client().node())
            return bool(found)

        wait_until(answers, START_S, "the daemon did not come up")
        return found[0]

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait for its death."""
        if self._program is not None:
            self._program.send(signal.SIGKILL)
            self._program.finish(STOP_S)
            self._close()

    def end(self) -> None:
        """End it with SIGTERM, where it runs."""
        if self._program is not None:
            self._program.send(signal.SIGTERM)
            ended = self._program.finish(STOP_S)
            self._close()
            if ended.status != 0:
                print(f"the daemon: {ended.why()}", file=sys.stderr)

    def client(self) -> client.Client:
        """Return a client of it."""
        return client.Client(self.root)

    def figures(self) -> Figures:
        """Return what it takes now. Raises MeasureError where it is gone."""
        folder = Path(f"/proc/{self.pid}")
        try:
            times = folder.joinpath("stat").read_text().rpartition(")")[2].split()
            lines = folder.joinpath("status").read_text().splitlines()
            fds = len(os.listdir(folder / "fd"))
        except OSError as error:
            raise MeasureError(f"the daemon is gone ({error.strerror}): {self._ended()}") from None
        status = dict(line.split(":", 1) for line in lines)
        kib = {name: int(status[name].split()[0]) for name in ("VmRSS", "VmHWM")}
        cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        return Figures(cpu_s, kib["VmRSS"] << 10, kib["VmHWM"] << 10, fds, int(status["Threads"]))

    def _ended(self) -> str:
        return "it was not started" if self._program is None else self._program.finish(1).why()

    def _close(self) -> None:
        if self._program is not None:
            self._program.__exit__(None, None, None)
            self._program = None


def tenant(setup: Setup, root: Path, name: str, cap_bytes: int, command: list[str], gpu: int, *options: str) -> Program:
    """Start a program as a tenant of the daemon at `root`."""
    argv = [sys.executable, "-m", "hamirt", "run", "--sim", "--name", name, "--gpu", str(gpu)]
    argv += ["--mem", mem_option(cap_bytes), *options, "--", *command]
    return Program(argv, environment(setup, {"HAMIRT_ROOT": str(root)}))


def wait_for_lines(program: Program, word: str, count: int) -> None:
    """Wait until a program has written so many lines that begin with a word. Raises MeasureError."""

    def there() -> bool:
        if not program.running():
            raise MeasureError(f"{' '.join(program.argv[-4:])}: {program.finish(1).why()}")
        return sum(line.startswith(word) for line in program.stdout().splitlines()) >= count

    wait_until(there, START_S, f"{' '.join(program.argv[-4:])} was not ready")


def wait_until(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait until something holds. Raises MeasureError, with `otherwise`, where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise MeasureError(f"{otherwise} within {seconds:g} s")
        time.sleep(LOOK_S)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _toml(value: str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
