"""A node of one's own for each test of `hamirt run` and `hamirt status`: its root, and simulated cards."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hamirt import config
from tests.support import DEADLINE_SECONDS, need, wait_for

PROGRAMS = Path(__file__).parent / "programs"
HAMIRT = (sys.executable, "-m", "hamirt")
TIMEOUT_SECONDS = 60


@dataclass
class Node:
    """A root folder, and `hamirt` commands that use it."""

    root: Path
    env: dict[str, str]
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def hamirt(self, *arguments: str, **changed: Any) -> "subprocess.CompletedProcess[str]":
        """Run a hamirt command to its end."""
        command = [*HAMIRT, *arguments]
        options: dict[str, Any] = {
            "env": self.env,
            "capture_output": True,
            "text": True,
            "timeout": TIMEOUT_SECONDS,
        } | changed
        ended: subprocess.CompletedProcess[str] = subprocess.run(command, **options)
        return ended

    def run(self, *arguments: str, **changed: Any) -> "subprocess.CompletedProcess[str]":
        """Run `hamirt run --sim` with these arguments."""
        return self.hamirt("run", "--sim", *arguments, **changed)

    def start(self, *arguments: str, **changed: Any) -> "subprocess.Popen[str]":
        """Start `hamirt run --sim`; it is killed when the test ends."""
        command = [*HAMIRT, "run", "--sim", *arguments]
        options: dict[str, Any] = {
            "env": self.env,
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
        } | changed
        process: subprocess.Popen[str] = subprocess.Popen(command, **options)
        self.started.append(process)
        return process

    def status(self, *arguments: str) -> dict[str, Any]:
        """Return what `hamirt status --sim --json` says."""
        ended = self.hamirt("status", "--sim", "--json", *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        answer: dict[str, Any] = json.loads(ended.stdout)
        return answer

    def folders(self) -> list[str]:
        """Return all that lies in the folder of tenants."""
        tenants = self.root / "tenants"
        return sorted(path.name for path in tenants.iterdir()) if tenants.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node with two simulated cards."""
    need("the simulated driver (make build)", (config.sim_dir() / "libnvidia-ml.so.1").exists())
    foreign = ("HAMIRT_", "CUDA_", "LD_", "NVIDIA_", "XDG_RUNTIME_DIR", "NO_COLOR", "PYTEST_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    if config.NATIVE_VARIABLE in os.environ:
        env[config.NATIVE_VARIABLE] = os.environ[config.NATIVE_VARIABLE]
    made = Node(tmp_path / "root", env | {"HAMIRT_ROOT": str(tmp_path / "root"), "HAMIRT_SIM": "2"})
    yield made
    for process in made.started:
        if process.poll() is None:
            kill_tree(process.pid)
        process.wait(TIMEOUT_SECONDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    for orphan in psutil.process_iter():  # programs whose `hamirt run` a test has killed
        with suppress(psutil.Error):
            if orphan.environ().get("HAMIRT_ROOT") == str(made.root):
                orphan.kill()


@pytest.fixture
def seen_from_here(node: Node, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The node, for a test that looks at its cards from this process.

    All such tests share the cards' state, since a process looks at the first that it was told of.
    """
    node.env[config.SIM_STATE_VARIABLE] = str(tmp_path_factory.getbasetemp() / "cards")
    for name in ("HAMIRT_SIM", config.SIM_STATE_VARIABLE):
        monkeypatch.setenv(name, node.env[name])
    config.make_root(node.root)
    return node


def kill_tree(pid: int) -> None:
    """Kill a process and all below it, so that nobody holds its output open."""
    process = psutil.Process(pid)
    for member in [process, *process.children(recursive=True)]:
        member.kill()


@pytest.fixture
def cgroup(root_user: None) -> Iterator[Path]:
    """A cgroup of one's own, in whatever version there is."""
    mounted = Path("/sys/fs/cgroup")
    path = (mounted / "pids" if (mounted / "pids").is_dir() else mounted) / f"hamirt-test-{os.urandom(4).hex()}"
    with suppress(OSError):
        path.mkdir()
    need("cgroup", path.is_dir())
    yield path
    for pid in map(int, (path / "cgroup.procs").read_text().split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: _is_removed(path), "the cgroup to be empty")


def _is_removed(path: Path) -> bool:
    with suppress(OSError):
        path.rmdir()
    return not path.exists()


def read_line(process: "subprocess.Popen[str]") -> str:
    """Read one line that a started program must say, or kill it after a deadline."""
    assert process.stdout is not None
    watchdog = threading.Timer(DEADLINE_SECONDS, kill_tree, [process.pid])
    watchdog.start()
    try:
        return process.stdout.readline().strip()
    finally:
        watchdog.cancel()


@pytest.fixture
def line_of() -> Any:
    """Give read_line."""
    return read_line


@pytest.fixture
def daemon(node: Node) -> Any:
    """A daemon that serves the node."""
    from tests.node.daemons import Daemon  # late: it needs this module

    return Daemon(node).start()
