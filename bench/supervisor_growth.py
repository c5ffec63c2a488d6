"""Thousands of tenants that come and go through the socket: the daemon must be after them as it was before."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.machine import GIB, Setup
from bench.supervisor_daemon import Daemon
from hamirt import config, tenants

CLIENTS = 4
KEPT = 50
"""Tenants of the control that are not removed at once."""
ASK_EVERY = 20
CAP_BYTES = GIB
IDLE_S = 1.5
"""After each step, for what the daemon's next sample gives back."""
ANSWER_S = 30.0


class Connection:
    """Asks the daemon as any HTTP client would: on one connection, or with `kept` False on a new one each time."""

    def __init__(self, root: Path, kept: bool) -> None:
        self._root = root
        self._kept = kept
        self._http: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return the answer. Raises OSError, HTTPException, and ValueError for a refusal."""
        for last in (self._http is None, True):
            try:
                return self._ask(method, path, body)
            except (OSError, http.client.HTTPException):
                self.close()  # the daemon closes those that were open for a minute
                if last:
                    raise
        raise AssertionError

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _ask(self, method: str, path: str, body: object) -> dict[str, Any]:
        if self._http is None:
            self._http = http.client.HTTPConnection("hamirt", timeout=ANSWER_S)
            self._http.sock = socket.socket(socket.AF_UNIX)
            self._http.sock.settimeout(ANSWER_S)
            self._http.sock.connect(str(config.socket_path(self._root)))
        self._http.request(method, path, None if body is None else json.dumps(body))
        response = self._http.getresponse()
        content = response.read()
        if not self._kept:
            self.close()
        if response.status != 200:
            raise ValueError(f"{method} {path}: {response.status} {content[:300].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(content)
        return answer


def measure_growth(setup: Setup, daemon: Daemon, count: int, warm: int, every: int) -> dict[str, Any]:
    """Return what the daemon took after each `every` tenants; what it grows in the first `warm` is its start."""
    uuid = str(daemon.client().node()["cards"][0]["uuid"])
    rows, done, start = [_row(daemon, 0, 0.0)], 0, time.monotonic()
    errors: list[str] = []
    while done < count and setup.left_s() > 0 and not errors:
        step = min(every, count - done)
        errors += _come_and_go(daemon.root, uuid, done, step)
        done += step
        time.sleep(IDLE_S)
        rows.append(_row(daemon, done, time.monotonic() - start))
    left = sorted(folder.name for folder in (daemon.root / "tenants").iterdir())
    left += [one["id"] for one in daemon.client().node()["tenants"]]
    control = _keep_some(daemon, uuid, time.monotonic() - start)
    warm_row = next((index for index, row in enumerate(rows) if row["tenants"] >= warm), len(rows) - 1)
    return {"asked": count, "warm_row": warm_row, "rows": rows, "errors": errors, "left": left, "control": control}


def _come_and_go(root: Path, uuid: str, first: int, count: int) -> list[str]:
    """Make and remove so many tenants, several at a time; return what went wrong."""
    errors: list[str] = []
    numbers: Iterator[int] = iter(range(first, first + count))
    lock = threading.Lock()

    def one_client(kept: bool) -> None:
        with contextlib.closing(Connection(root, kept)) as connection:
            while not errors:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    _one(connection, uuid, number)
                except (OSError, ValueError, http.client.HTTPException) as error:
                    errors.append(f"tenant {number}: {error!r}")

    hands = [threading.Thread(target=one_client, args=(index % 2 == 0,)) for index in range(CLIENTS)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    return errors


def _one(connection: Connection, uuid: str, number: int) -> None:
    path = _create(connection, uuid, f"g{number}")
    if number % ASK_EVERY == 0:
        connection.ask("PATCH", path, {"devices": {uuid: {"memory_bytes": 2 * CAP_BYTES}}})
        connection.ask("GET", "/v1/node")
    connection.ask("DELETE", path)


def _create(connection: Connection, uuid: str, name: str) -> str:
    """Make a tenant, and return its path."""
    path = f"/v1/tenants/{tenants.make_identity(name)}"
    connection.ask("PUT", path, {"simulated": True, "devices": [{"uuid": uuid, "memory_bytes": CAP_BYTES}]})
    return path


def _keep_some(daemon: Daemon, uuid: str, seconds: float) -> dict[str, Any]:
    """Return what the daemon takes with some tenants that stay."""
    with contextlib.closing(Connection(daemon.root, kept=True)) as connection:
        paths = [_create(connection, uuid, f"kept{index}") for index in range(KEPT)]
        row = _row(daemon, len(paths), seconds)
        for path in paths:
            connection.ask("DELETE", path)
    return row


def _row(daemon: Daemon, count: int, seconds: float) -> dict[str, Any]:
    return {"tenants": count, "seconds": round(seconds, 1), **daemon.figures().as_dict()}
