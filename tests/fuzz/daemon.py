"""A daemon as a person starts it, for the fuzzer of its requests: on simulated cards, in a process of its own."""

import grp
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hamirt import client, config
from tests.fuzz.outcome import Holdings

_START_SECONDS = 30.0
_EVENTS = {"started", "stopped", "tenant_created", "tenant_changed", "tenant_removed", "violation", "violation_ended"}


@dataclass(frozen=True, slots=True)
class Asker:
    """Who connects; whether he may do everything is the daemon's to know, and we know it too."""

    uid: int
    gid: int
    is_admin: bool


def askers() -> tuple[Asker, ...]:
    """Return us, and as root also a user with no rights and one in the administrators' group."""
    own = Asker(os.geteuid(), os.getegid(), True)
    if own.uid != 0:
        return (own,)
    return (own, Asker(65534, 65534, False), Asker(65533, _group().gr_gid, True))


def _group() -> grp.struct_group:
    """Return a group that we are not in."""
    return next(group for group in grp.getgrall() if group.gr_gid not in (os.getegid(), 65534, *os.getgroups()))


@dataclass(slots=True)
class Daemon:
    """A running daemon, and how to reach it."""

    root: Path
    metrics_port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def connect(self, asker: Asker, seconds: float) -> socket.socket:
        """Connect to the API as this user: the kernel notes who it was that connected."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(seconds)
        own = os.geteuid(), os.getegid()
        try:
            if asker.uid != own[0]:
                os.setegid(asker.gid)
                os.seteuid(asker.uid)
            connection.connect(str(config.socket_path(self.root)))
        finally:
            if asker.uid != own[0]:
                os.seteuid(own[0])
                os.setegid(own[1])
        return connection

    def connect_metrics(self, seconds: float) -> socket.socket:
        """Connect to what serves Prometheus."""
        return socket.create_connection(("127.0.0.1", self.metrics_port), seconds)

    def holdings(self) -> Holdings:
        """Return what it holds now."""
        return Holdings.of(self.process.pid)

    def oddities(self) -> list[tuple[str, str]]:
        """Return the lines of its log that are none of the events which requests may cause, and what they are."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [(event, line) for line in lines if (event := _event(line)) not in _EVENTS]


def _event(line: str) -> str:
    try:
        return str(json.loads(line)["event"])
    except (ValueError, KeyError, TypeError):
        return "a line that is no event"


@contextmanager
def running(root: Path, data_file: Path | None) -> Iterator[Daemon]:
    """Run a daemon on `root`, with its lines counted where there is a file for that."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    settings: dict[str, Any] = {
        "metrics_address": f"127.0.0.1:{port}", "compat_hami": True, "tenants_per_user": 6, "kill_after_seconds": 0.2,
    }  # fmt: skip
    if os.geteuid() == 0:
        settings["admin_group"] = _group().gr_name
    file, log = root.parent / "hamirt.toml", root.parent / "daemon.log"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    command: Sequence[str] = ("hamirt", "daemon", "--sim", "--config", str(file))
    if data_file is not None:
        command = ("coverage", "run", f"--data-file={data_file}", "--include=hamirt/*", "-m", *command)
    with open(log, "wb") as stream:
        process = subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stderr=stream)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not client.available(root):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the daemon does not answer"
            time.sleep(0.05)
        yield Daemon(root, port, process, log)
        process.send_signal(signal.SIGTERM)
        process.wait(_START_SECONDS)
    finally:
        process.kill()
        process.wait()
