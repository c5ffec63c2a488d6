"""What the OCI hook reads, asks and says, within a deadline.

A container waits for the hook, which starts in half the time that the usual modules would take: `json` costs 6 ms,
`socket` 3, `http.client` 15. `_json` and `_socket` are what those are made of.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
import time

from hamirt.errors import HamirtError

TYPE_CHECKING = False  # as in typing, which costs 3 ms
if TYPE_CHECKING:
    from typing import Any

_SOCKET = "hamirt.sock"  # as in config.py
_MOST_INPUT_BYTES, _CHUNK_BYTES = 1 << 24, 1 << 16
_SPACES = " \t\r\n"


class RefusedError(HamirtError):
    """The daemon said no, and has left nothing behind."""


class Deadline:
    """The time there is for everything."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds left, never below a millisecond."""
        return max(0.001, self._end - time.monotonic())


def read_input(deadline: Deadline | None = None) -> bytes:
    """Read standard input to its end. Raises HamirtError where that is too much, or does not come in time."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    content = b""
    while True:
        if deadline is not None and not poll.poll(deadline.left_s() * 1e3):
            raise HamirtError(
                "standard input does not end: this is called by an OCI runtime, which writes a state there"
            )
        chunk = os.read(0, _CHUNK_BYTES)
        content += chunk
        if not chunk:
            return content
        if len(content) > _MOST_INPUT_BYTES:
            raise HamirtError(f"standard input has more than {_MOST_INPUT_BYTES} bytes")


def read_object(content: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises HamirtError where it is none; `what` it should be is in the sentence."""
    try:
        value = _parse(content.decode().strip(_SPACES))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HamirtError(f"{what} is no JSON object")
    return value


def ask(deadline: Deadline, root: str, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Ask the daemon of `root`, in HTTP/1.0, where an answer ends with the connection.

    Raises RefusedError where it says no, HamirtError where it says nothing.
    """
    content = b"" if body is None else _json(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    answer = b""
    try:
        folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
        client = _socket.socket(_socket.AF_UNIX)
        client.settimeout(deadline.left_s())
        client.connect(f"/proc/self/fd/{folder}/{_SOCKET}")  # a socket's path has 108 bytes at most
        client.sendall(head.encode() + content)
        while True:
            client.settimeout(deadline.left_s())
            chunk = client.recv(_CHUNK_BYTES)
            if not chunk:
                break
            answer += chunk
    except (TimeoutError, BlockingIOError):
        raise HamirtError(f"the daemon of {root} does not answer: see whether it is stopped, and its log") from None
    except OSError:
        raise HamirtError(f"no daemon answers at {root}/{_SOCKET}: start it, as with systemctl start hamirt") from None
    line, _blank, document = answer.partition(b"\r\n\r\n")
    try:
        status, said = int(line.split(None, 2)[1]), read_object(document, "the answer")
    except (HamirtError, ValueError, IndexError):
        raise HamirtError(f"the daemon of {root} gave an answer that is none of hamirt's: see its log") from None
    if status >= 500:
        raise HamirtError(str(said.get("error")))
    if status >= 400:
        raise RefusedError(str(said.get("error")))
    return said


def say(message: str) -> None:
    """Tell whoever reads the hook's standard error."""
    try:  # noqa: SIM105  # contextlib costs a millisecond
        print(f"hamirt: {message}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):  # it was started without one
        pass


class _Grammar:
    """What json.JSONDecoder tells its scanner."""

    strict, memo = True, dict[str, str]()
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


def _parse(text: str) -> object:
    """Parse JSON. What its scanner does not take alone, or a Python that has none, is for json to judge."""
    try:
        from _json import make_scanner

        value, end = make_scanner(_Grammar())(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return value
    except (ImportError, StopIteration, SystemError, ValueError):  # without json it can't even say what is wrong
        pass
    import json

    return json.loads(text)


def _json(value: object) -> str:
    """Return objects of texts and whole numbers as JSON."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(map(_escape, str(value))) + '"'


def _escape(character: str) -> str:
    if character in '"\\' or not character.isprintable() or ord(character) > 126:
        units = character.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
    return character
