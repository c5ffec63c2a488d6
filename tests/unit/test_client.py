"""The client: whether a daemon is there, silent or somebody else's, and what its answers become."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hamirt import client
from hamirt.client import Client, Reach, RefusedError, UnansweredError
from hamirt.errors import HamirtError


@contextmanager
def listening(root: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server, client.short_path(root / "hamirt.sock") as path:
        server.bind(path)
        server.listen(1)
        yield server


@contextmanager
def answering(root: Path, content: bytes) -> Iterator[None]:
    """Answer one connection with these bytes."""

    def serve(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(content)

    with listening(root) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield
        thread.join()


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)


def test_where_nothing_is_there_is_no_daemon(tmp_path: Path) -> None:
    assert client.reach(tmp_path) is Reach.ABSENT
    assert client.reach(tmp_path / "missing") is Reach.ABSENT
    with pytest.raises(UnansweredError, match=r"hamirt\.sock: start one with hamirt daemon$"):
        Client(tmp_path).node()


def test_a_socket_that_was_left_behind_is_no_daemon(tmp_path: Path) -> None:
    with listening(tmp_path):
        pass

    assert (tmp_path / "hamirt.sock").exists()
    assert client.reach(tmp_path) is Reach.ABSENT
    assert not client.available(tmp_path)


def test_a_daemon_that_says_nothing_is_silent(tmp_path: Path) -> None:
    with listening(tmp_path):
        assert client.reach(tmp_path, 0.05) is Reach.SILENT
        with pytest.raises(UnansweredError, match="does not answer: see whether it is stopped"):
            Client(tmp_path, 0.05).node()


def test_a_daemon_with_a_full_queue_is_silent(tmp_path: Path) -> None:
    with listening(tmp_path), client.short_path(tmp_path / "hamirt.sock") as path:
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(path)

        assert client.reach(tmp_path, 0.05) is Reach.SILENT
        for one in waiting:
            one.close()


def test_a_path_longer_than_a_socket_address_may_be(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 120)
    root.mkdir()

    with answering(root, http(200, b"{}")):
        assert client.reach(root) is Reach.ANSWERS


def test_a_daemon_of_somebody_else_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: client._PEER.pack(1, mine + 77, 0))

    with listening(tmp_path), pytest.raises(HamirtError, match=f"belongs to user {mine + 77}, neither to you nor"):
        Client(tmp_path).node()


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (http(409, b'{"error": "no room"}'), 409, "no room"),
        (http(500, b"{}"), 500, r"the daemon refused \(500\): see its log"),
        (http(200, b"[]"), 200, "an answer that is none of hamirt's"),
        (http(200, b"\xff"), 200, "an answer that is none of hamirt's"),
    ],
)
def test_what_a_refusal_says(tmp_path: Path, content: bytes, status: int, says: str) -> None:
    with answering(tmp_path, content), pytest.raises(RefusedError, match=says) as refusal:
        Client(tmp_path).remove("web")

    assert refusal.value.status == status


@pytest.mark.parametrize("content", [b"", b"HTTP/1.1 200", http(200, b"{}")[:-1], http(200, b"{}")[:-2]])
def test_a_daemon_that_ends_over_a_request_did_not_answer(tmp_path: Path, content: bytes) -> None:
    with answering(tmp_path, content), pytest.raises(UnansweredError):
        Client(tmp_path).node()
