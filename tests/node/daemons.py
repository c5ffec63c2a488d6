"""A daemon of a test's own, asked as a client asks it, and programs that do as they are told under it."""

import http.client
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hamirt import client, region
from hamirt.client import Client
from hamirt.model import Limits
from tests.node.conftest import HAMIRT, PROGRAMS, TIMEOUT_SECONDS, Node
from tests.support import wait_for

T = TypeVar("T")
UUIDS = tuple(f"GPU-5a1e0000-0000-4000-8000-{index:012x}" for index in range(2))
CARD_MIB = 81559


@dataclass
class Daemon:
    """`hamirt daemon --sim` on a node, which can be killed and started again."""

    node: Node
    settings: dict[str, object] = field(default_factory=dict)
    process: "subprocess.Popen[str] | None" = None

    @property
    def root(self) -> Path:
        return self.node.root

    @property
    def config(self) -> Path:
        return self.root.parent / "hamirt.toml"

    @property
    def log(self) -> Path:
        return self.root.parent / "daemon.log"

    @property
    def client(self) -> Client:
        return Client(self.root)

    def configure(self, **settings: object) -> None:
        """Write the settings' file; JSON's values are TOML's."""
        self.settings |= settings
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.settings.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self, **env: str) -> "Daemon":
        """Start it, and wait until it answers and has seen the node."""
        self.configure(metrics_address=self.settings.get("metrics_address", ""))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*HAMIRT, "daemon", "--sim", "--config", str(self.config)],
                env=self.node.env | env, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        self.node.started.append(self.process)
        wait_for(lambda: self.has_ended() or client.available(self.root), "the daemon")
        assert not self.has_ended(), self.log.read_text()
        self.client.node()
        return self

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it, and return how it ended."""
        assert self.process is not None
        self.send(number)
        return self.process.wait(TIMEOUT_SECONDS)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what it logged."""
        events = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [event for event in events if kind in (None, event["event"])]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send any request; return the status and the answer. Bytes go as they are, all else as JSON."""
        connection = http.client.HTTPConnection("hamirt", timeout=TIMEOUT_SECONDS)
        connection.sock = client._connect(self.root, TIMEOUT_SECONDS)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content)
        response = connection.getresponse()
        answer = response.status, json.loads(response.read())
        connection.close()
        return answer

    def ids(self) -> list[str]:
        """Return the ids of the tenants whose folders are there."""
        return self.node.folders()

    def limits(self, name: str) -> Limits:
        """Return the limits page of the tenant with this name."""
        (folder,) = [folder for folder in (self.root / "tenants").iterdir() if folder.name.startswith(f"{name}-")]
        return region.read_limits(folder / "ro" / "limits")


class Program:
    """programs/allocator.py in a tenant of its own."""

    def __init__(self, node: Node, name: str, *options: str) -> None:
        self._begin(node.start(
            "--name", name, *options, "--", sys.executable, str(PROGRAMS / "allocator.py"), stderr=subprocess.DEVNULL
        ))  # fmt: skip

    @classmethod
    def of(cls, process: "subprocess.Popen[str]") -> "Program":
        """Return the program that was started in this process, outside of any tenant."""
        program = cls.__new__(cls)
        program._begin(process)
        return program

    def _begin(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert self._answer() == 0

    def __call__(self, line: str) -> int:
        """Have it do something; return the driver's answer, 0 or an error."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Let it end by itself; return its tenant's exit code."""
        assert self.process.stdin is not None
        self.process.stdin.write("quit\n")
        self.process.stdin.flush()
        return self.process.wait(TIMEOUT_SECONDS)

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def as_user(uid: int, function: Callable[[], T], groups: Sequence[int] = ()) -> T:
    """Return what the function returns in a child that is this user; what it raises is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer: tuple[bool, object]
            try:
                answer = (True, function())
            except BaseException as error:
                answer = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
            os.write(writing, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        good, value = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    if not good:
        raise AssertionError(value)
    result: T = value
    return result


def device(memory_mib: int | None, uuid: str = UUIDS[0], **fields: object) -> dict[str, object]:
    """Return a card as a request for a tenant names it."""
    return {"uuid": uuid, "memory_bytes": None if memory_mib is None else memory_mib << 20, **fields}


def wish(memory_mib: int | None = 8192, name: str | None = "web", **fields: object) -> dict[str, object]:
    """Return the body of a request for a tenant."""
    return {"name": name, "command": ["train"], "simulated": True, "devices": [device(memory_mib)], **fields}
