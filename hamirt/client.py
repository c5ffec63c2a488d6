"""Talks to the daemon through its unix socket: HTTP with JSON, one connection for each request.

The HTTP library is imported when there is a socket to use it on, since `hamirt run` must start quickly.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hamirt import config
from hamirt.errors import HamirtError
from hamirt.model import Limit

_PROBE_SECONDS = 1.5
_ANSWER_SECONDS = 5.0
_REMOVE_SECONDS = 60.0  # the daemon waits for the tenant's processes to end
_PEER = struct.Struct("3i")  # struct ucred of socket(7): pid, uid, gid
_MOST_WORDS, _MOST_CHARS = 32, 256  # of a command line that is noted for people


class Reach(Enum):
    """Whether a daemon can be talked to."""

    ABSENT = "absent"
    """There is no socket, or nobody listens on it."""
    ANSWERS = "answers"
    SILENT = "silent"
    """There is a daemon, and it says nothing: it is stopped, or its machine is at its limits."""


class UnansweredError(HamirtError):
    """The daemon is not there, does not answer in time, or ended while it was asked."""


class RefusedError(HamirtError):
    """The daemon said no, and why; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Created:
    """A tenant that the daemon made."""

    id: str
    name: str
    folder: Path


def reach(root: Path, seconds: float = _PROBE_SECONDS) -> Reach:
    """Ask the daemon that serves `root` for a sign of life; it takes `seconds` at most."""
    if not config.socket_path(root).exists():
        return Reach.ABSENT
    try:
        Client(root, seconds).health()
    except UnansweredError as error:
        return Reach.SILENT if isinstance(error.__cause__, TimeoutError) else Reach.ABSENT
    return Reach.ANSWERS


def available(root: Path) -> bool:
    """Return whether a daemon answers at `root`."""
    return reach(root) is Reach.ANSWERS


class Client:
    """The daemon of one root. Methods raise UnansweredError where none answers, RefusedError where it says no."""

    def __init__(self, root: Path, seconds: float = _ANSWER_SECONDS) -> None:
        self._root = root
        self._seconds = seconds

    def node(self) -> dict[str, Any]:
        """Return the last sample of the node, for wire.node_from_json."""
        return self._ask("GET", "/v1/node")

    def health(self) -> dict[str, Any]:
        """Return how the daemon itself does: the fields of model.Health."""
        return self._ask("GET", "/v1/health")

    def create(
        self,
        identity: str,
        name: str | None,
        command: Sequence[str],
        devices: Sequence[Limit],
        *,
        simulated: bool,
        allow_on_error: bool,
        unenforced: str | None,
    ) -> Created:
        """Make a tenant; without a `name` the daemon finds one. `identity` is tenants.make_identity's.

        The same request again gives the same answer, so that one whose answer was lost can be repeated.
        """
        wish = {
            "name": name,
            "command": [_plain(word[:_MOST_CHARS]) for word in command[:_MOST_WORDS]],
            "simulated": simulated,
            "allow_on_error": allow_on_error,
            "unenforced": None if unenforced is None else _plain(unenforced),
            "devices": [
                {
                    "uuid": limit.uuid,
                    "memory_bytes": limit.memory_bytes,
                    "time_percent": limit.time_percent,
                    "weight": limit.weight,
                    "latency_class": limit.latency_class.value,
                }
                for limit in devices
            ],
        }
        answer = self._ask("PUT", f"/v1/tenants/{quote(identity, safe='')}", wish)
        return Created(answer["id"], answer["name"], Path(answer["folder"]))

    def change(self, tenant: str, devices: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
        """Change limits of a tenant, named by id or name: by UUID the fields of model.Limit that are to change.

        Returns its limits as they are now, with `over_bytes` for each card.
        """
        return self._ask("PATCH", f"/v1/tenants/{quote(tenant, safe='')}", {"devices": devices})

    def remove(self, tenant: str, *, force: bool = False) -> dict[str, Any]:
        """Remove a tenant, named by id or name. With `force` its processes are ended first."""
        path = f"/v1/tenants/{quote(tenant, safe='')}{'?force=1' if force else ''}"
        return self._ask("DELETE", path, seconds=_REMOVE_SECONDS if force else None)

    def _ask(self, method: str, path: str, body: object = None, seconds: float | None = None) -> dict[str, Any]:
        import http.client  # late: 15 ms

        allowed = self._seconds if seconds is None else seconds
        connection = http.client.HTTPConnection("hamirt", timeout=allowed)
        try:
            connection.sock = _connect(self._root, allowed)
            headers = {"Connection": "close", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
            content = response.read()
            if not content:  # it ended before it had said anything
                raise http.client.IncompleteRead(content)
        except TimeoutError as error:
            raise UnansweredError(
                f"the daemon of {self._root} does not answer: see whether it is stopped, and what its log says"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnansweredError(
                f"no daemon answers at {config.socket_path(self._root)}: start one with hamirt daemon"
            ) from error
        finally:
            connection.close()
        return _answer(response.status, content)


def _answer(status: int, content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RefusedError(status, f"the daemon gave an answer that is none of hamirt's ({status}): see its log")
    if status >= 400:
        raise RefusedError(status, str(answer.get("error", f"the daemon refused ({status}): see its log")))
    return answer


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Yield a path to the same socket that fits into the 108 bytes of unix(7), however long the folder's is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _connect(root: Path, seconds: float) -> socket.socket:
    """Connect to a daemon of ours or of root's: nobody else has a say in our limits."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(seconds)
        with short_path(config.socket_path(root)) as path:
            try:
                client.connect(path)
            except BlockingIOError:  # so many wait already that nobody can have listened for long
                raise TimeoutError from None
        _pid, uid, _gid = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in (0, os.geteuid()):
            raise HamirtError(
                f"the daemon of {root} belongs to user {uid}, neither to you nor to root: "
                f"name another folder with {config.ROOT_VARIABLE}"
            )
    except BaseException:
        client.close()
        raise
    return client


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
