"""The answers that come out of a connection, taken apart as HTTP has them. Nothing of them is believed."""

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from tests.fuzz.request_cases import Sending

_REFUSALS = {400, 403, 404, 405, 409, 413, 503}
_BY_HTTP = {400, 417}
GLANCE_SECONDS = 0.02  # how long an answer may take to what is no complete request


class NoHttpError(Exception):
    """What came is no answer by HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `type` is its content's."""

    status: int
    type: str
    body: bytes

    @property
    def is_by_http(self) -> bool:
        """Return whether the HTTP library gave it before hamirt saw the request."""
        return self.status in _BY_HTTP and not self.type.startswith("application/json")


def fault_of(answer: Answer) -> str | None:
    """Return what is wrong with an answer, None for success and for a refusal that gives a reason."""
    if answer.status == 200 or answer.is_by_http:
        return None
    if answer.status not in _REFUSALS:
        return f"it answered {answer.status}"
    if not answer.body:  # to HEAD
        return None
    try:
        refusal = json.loads(answer.body)
    except ValueError:
        return f"it answered {answer.status} without JSON"
    text = refusal.get("error") if isinstance(refusal, dict) else None
    if not isinstance(text, str) or [*refusal] != ["error"] or not 10 < len(text) < 6000:
        return f"it answered {answer.status} without a sentence"
    return None if text.isprintable() else "a reason can't be printed"


def exchange(connection: socket.socket, sending: Sending, seconds: float, *, hasty: bool) -> list[Answer]:
    """Send all packets and return the answers, without waiting for any if `hasty`.

    What is no complete request may get none; then we close our side, and the other one has `seconds` to close its own.
    Raises NoHttpError.
    """
    with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):  # it says no before it has read all of it
        for packet in sending.packets:
            connection.sendall(packet)
    if hasty:
        return []
    without_body = sending.request.method == "HEAD"
    answers = read_answers(connection, sending.answers, without_body=without_body)
    if answers or sending.is_whole:
        return answers
    connection.settimeout(seconds)
    with suppress(OSError):  # it has closed the connection
        connection.shutdown(socket.SHUT_WR)
    began = time.monotonic()
    answers = read_answers(connection, 1, without_body=without_body)
    if time.monotonic() - began >= seconds:
        raise NoHttpError("the connection stays open although we closed our side")
    return answers


def read_answers(connection: socket.socket, most: int, *, without_body: bool) -> list[Answer]:
    """Read `most` answers, or as many as come before the other side closes or our patience is over.

    Raises NoHttpError for something else, and for half an answer.
    """
    content = b""
    found: list[Answer] = []
    while len(found) < most:
        try:
            more = connection.recv(1 << 16)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            more = b""
        content += more
        while len(found) < most and (taken := _take(content, without_body=without_body)) is not None:
            answer, content = taken
            if answer.status != 100:
                found.append(answer)
        if not more:
            break
    if content and len(found) < most:
        raise NoHttpError(f"half an answer: {content[:200]!r}")
    return found


def _take(content: bytes, *, without_body: bool) -> tuple[Answer, bytes] | None:
    """Return the first answer and what follows it, None where it is not complete."""
    head, end, rest = content.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *lines = head.split(b"\r\n")
    version, _, status = line.partition(b" ")
    if not version.startswith(b"HTTP/") or not status[:3].isdigit():
        raise NoHttpError(f"no answer: {content[:200]!r}")
    pairs = (one.decode("latin-1").partition(":") for one in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    number = int(status[:3])
    size = 0 if without_body or number in (100, 204, 304) else int(headers.get("content-length", "0"))
    if len(rest) < size:
        return None
    return Answer(number, headers.get("content-type", ""), rest[:size]), rest[size:]
