"""What the simulator's tests share: processes that start afresh, each on the cards of its test."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))  # tests/ and simgpu/ are no installed packages

from tests.sim.driver import Cuda, Nvml  # noqa: E402

DEADLINE_S = 30.0
_FOREIGN = ("HAMIRT_", "CUDA_")

Pipe = multiprocessing.connection.Connection


def libraries() -> Path:
    """Return the folder of the simulator's libraries; fail when they are not built."""
    folder = Path(os.environ.get("HAMIRT_NATIVE", TOP / "hamirt" / "_native")) / "sim"
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        if not (folder / name).exists():
            pytest.fail(f"{folder / name} is not built: run make build")
    return folder


@dataclass(slots=True)
class Process:
    """A process that runs one function of a test; its end of a pipe is the function's argument."""

    pid: int
    pipe: Pipe
    ended: bool = False

    def receive(self) -> Any:
        """Return what the process sends next."""
        if not self.pipe.poll(DEADLINE_S):
            pytest.fail(f"process {self.pid} sent nothing for {DEADLINE_S:g} s")
        kind, value = self.pipe.recv()
        if kind == "failed":
            pytest.fail(f"in process {self.pid}:\n{value}")
        return value

    def send(self, value: object = None) -> None:
        """Let the process go on."""
        self.pipe.send(("sent", value))

    def kill(self) -> None:
        """Kill it where it stands, and wait until it is gone."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.ended = True


@dataclass(frozen=True, slots=True)
class Side:
    """The process's own view: both libraries, and the way to the test."""

    cuda: Cuda
    nvml: Nvml
    pipe: Pipe

    def send(self, value: object = None) -> None:
        self.pipe.send(("sent", value))

    def receive(self) -> Any:
        return self.pipe.recv()[1]


@dataclass(slots=True)
class Sim:
    """Simulated cards of one test."""

    root: Path
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.root / "sim"

    def start(self, function: Callable[[Side], object], **env: str) -> Process:
        """Run `function` in a fork of this process, which has never touched the driver."""
        here, there = multiprocessing.Pipe()
        pid = os.fork()
        if pid == 0:
            here.close()
            self._child(function, there, env)
        there.close()
        process = Process(pid, here)
        self.processes.append(process)
        return process

    def run(self, function: Callable[[Side], Any], **env: str) -> Any:
        """Run `function` to its end and return what it returns."""
        process = self.start(function, **env)
        value = process.receive()
        os.waitpid(process.pid, 0)
        process.ended = True
        return value

    def _child(self, function: Callable[[Side], object], pipe: Pipe, env: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            del os.environ[name]
        os.environ |= {"HAMIRT_ROOT": str(self.root), **self.env, **env}
        status = 1
        try:
            pipe.send(("sent", function(Side(Cuda(self.folder), Nvml(self.folder), pipe))))
            status = 0
        except BaseException:
            pipe.send(("failed", traceback.format_exc()))
        finally:
            os._exit(status)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition()` holds, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.001)


@pytest.fixture(scope="session")
def fresh_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: processes are forked off this one, where other tests may have loaded the originals for other cards."""
    return Path(shutil.copytree(libraries(), tmp_path_factory.mktemp("libraries") / "sim"))


@pytest.fixture
def sim(tmp_path: Path, fresh_libraries: Path) -> Iterator[Sim]:
    """One simulated card with a state of its own."""
    simulated = Sim(tmp_path / "root", fresh_libraries)
    yield simulated
    for process in simulated.processes:
        process.kill()
