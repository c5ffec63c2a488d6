"""One daemon for each root: its lock, and the socket on which it is asked."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hamirt import client, config, tenants
from hamirt.errors import HamirtError

_LOCK_SECONDS = 5.0  # makers and sweepers need milliseconds; more than that is one that is stopped
_BACKLOG = 128


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Serve `root` alone: make it ready, and keep a second daemon away.

    Raises HamirtError where there is one already, or the root can't be used.
    """
    config.make_root(root)
    try:
        fd = os.open(root / tenants.DAEMON_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(root, error) from None
    try:
        with _makers_away(root):
            _lock(fd, root)
            tenants.sweep_partial(root)
        _open_to_users(root)
        yield
    except OSError as error:
        raise _unusable(root, error) from None
    finally:
        os.close(fd)


@contextmanager
def listening(root: Path) -> Iterator[socket.socket]:
    """Listen on the root's socket, which anybody may connect; what a dead daemon left there is replaced."""
    path = config.socket_path(root)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with client.short_path(path) as short:
            path.unlink(missing_ok=True)
            server.bind(short)
            os.chmod(short, 0o666)
        server.listen(_BACKLOG)
        yield server
    finally:
        server.close()
        with suppress(OSError):
            path.unlink()


def _lock(fd: int, root: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        raise HamirtError(
            f"a daemon serves {root} already (pid {pid or 'unknown'}): stop that one, "
            f"or name another folder with {config.ROOT_VARIABLE}"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


@contextmanager
def _makers_away(root: Path) -> Iterator[None]:
    """Hold the root's lock, as those who make tenants without a daemon do."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            with tenants.locked(root, wait=False):
                yield
                return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HamirtError(
                    f"another process has held {root / 'lock'} for {_LOCK_SECONDS:g} s: "
                    f"see which one with fuser {root / 'lock'}, and end it if it is stopped"
                ) from None
        time.sleep(0.01)


def _open_to_users(root: Path) -> None:
    """Let every user reach the socket and his own tenants, where root is the one who serves them."""
    folder = root / "tenants"
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        folder.chmod(0o711)
        root.chmod(root.stat().st_mode & 0o7777 | 0o711)


def _unusable(root: Path, error: OSError) -> HamirtError:
    return HamirtError(
        f"{root} can't be served ({error.strerror}): free some room there or make it writable, "
        f"or name another folder with {config.ROOT_VARIABLE}"
    )
