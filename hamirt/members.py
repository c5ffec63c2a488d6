"""Which processes belong to which tenant, as far as /proc says it."""

import os
import time
from pathlib import Path

from hamirt import config

_PROC = Path("/proc")
_EXEC_SECONDS = 0.02  # how long a process without any environment is asked again


def tenant_folders() -> set[str]:
    """Return the tenant folders that living processes were started with, by their environment."""
    found: set[str] = set()
    unclear = [pid for pid in _pids() if not _note_folder(pid, found)]
    deadline = time.monotonic() + _EXEC_SECONDS
    while unclear and time.monotonic() < deadline:
        unclear = [pid for pid in unclear if not _note_folder(pid, found)]
    return found


def own_namespace() -> int | None:
    """Return the inode of our PID namespace, which region.h calls pid_ns."""
    return _namespace("self")


def outside_pids(wanted: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Map (pid_ns, pid inside of it) to the pid here, for the processes in other namespaces that can be seen."""
    found: dict[tuple[int, int], int] = {}
    if not wanted:
        return found
    spaces = {space for space, _pid in wanted}
    for pid in _pids():
        space = _namespace(pid)
        if space is None or space not in spaces:
            continue
        inside = _pid_inside(pid)
        if inside is not None and (space, inside) in wanted:
            found[(space, inside)] = int(pid)
    return found


def _pids() -> list[str]:
    return [name for name in os.listdir(_PROC) if name.isdigit()]


def _note_folder(pid: str, found: set[str]) -> bool:
    """Add the tenant folder in the environment of `pid` to `found`; False if it has none at all for now.

    That is so in the middle of an exec, which is over in microseconds, and for good under `env -i`.
    """
    prefix = f"{config.TENANT_VARIABLE}=".encode()
    try:
        environment = (_PROC / pid / "environ").read_bytes()
        if not environment:
            os.readlink(_PROC / pid / "exe")  # fails for a kernel thread and for a zombie
            return False
    except OSError:
        return True
    found.update(os.fsdecode(entry[len(prefix) :]) for entry in environment.split(b"\0") if entry.startswith(prefix))
    return True


def _namespace(pid: str) -> int | None:
    try:
        return os.stat(_PROC / pid / "ns" / "pid").st_ino
    except OSError:
        return None


def _pid_inside(pid: str) -> int | None:
    try:
        for line in (_PROC / pid / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except OSError:
        pass
    return None
