"""Which processes belong to which tenant, by what the kernel says in /proc; never by what a page claims.

A process is a tenant's *member* if it is in the tenant's cgroup, or descends from the tenant's `hamirt run` or its
container's init process. It is *registered* if it holds the tenant's usage page open or mapped, so that the shim is in
it.

A tenant chooses what its processes open, FUSE files among them, and an ordinary stat() of those could wait for ever. So
files are asked with AT_STATX_DONT_SYNC, which answers from what the kernel knows, and each look is bounded.
"""

import ctypes
import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from hamirt import config
from hamirt.model import Standing
from hamirt.region import printable

Inode = tuple[int, int]
"""st_dev and st_ino."""

_PROC = Path("/proc")
_EXEC_SECONDS = 0.02  # how long a process without any environment is asked again
_MOST_ANCESTORS = 1000

_FIRST_OF_SHIM = 200  # the shim's descriptors are numbered from here on (shim/region.c)
_MOST_FILES = 4096
_MOST_MAPS_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 18

# struct statx of linux/stat.h: stx_ino, stx_dev_major, stx_dev_minor
_STATX = struct.Struct("<32xQ96xII")
_STATX_BYTES = 256
_STATX_INO = 0x100
_AT_STATX_DONT_SYNC = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What ties processes to a tenant: its usage page, the `alive` file and pid of its `hamirt run`, its cgroup.

    With a `start` that pid is the init process of a container, which knows nothing of `alive`.
    """

    tenant: str
    usage: Inode | None
    alive: Inode | None
    pid: int | None
    cgroup: str | None
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A living process. `start` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    start: int
    parent: int
    command: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose a process is. `standing` is None where we may not look; `members` are tenants that it is a member of."""

    process: Process
    standing: Standing | None
    tenant: str | None
    members: tuple[str, ...]


def judge_now(anchors: Sequence[Anchor], pid: int) -> Verdict | None:
    """Judge one process afresh, nothing remembered; None if there is none."""
    look = Look(anchors, {})
    process = look.process(pid)
    return None if process is None else look.judge(process)


class Look:
    """One look at the node, in which every process is read once."""

    def __init__(self, anchors: Sequence[Anchor], roots: dict[str, tuple[int, int]]) -> None:
        self.tenants = {anchor.tenant: anchor for anchor in anchors}
        self.asked: set[int] = set()
        self._roots = roots
        self._processes: dict[int, Process | None] = {}
        self._by_pid: dict[int, list[Anchor]] = {}
        for anchor in anchors:
            if anchor.pid is not None:
                self._by_pid.setdefault(anchor.pid, []).append(anchor)
        self._by_cgroup = {a.cgroup.rstrip("/"): a.tenant for a in anchors if a.cgroup and a.cgroup.strip("/")}
        self._by_usage: dict[Inode, str] = {a.usage: a.tenant for a in anchors if a.usage is not None}

    def process(self, pid: int) -> Process | None:
        """Return a living process."""
        if pid not in self._processes:
            self._processes[pid] = read_process(pid)
        return self._processes[pid]

    def judge(self, process: Process) -> Verdict:
        """Return whose the process is: of several tenants that it is a member of, the one whose page it holds."""
        members = tuple(dict.fromkeys((*self._by_its_cgroup(process), *self._by_descent(process))))
        if members:
            return self._judge_member(process, members)
        held = held_of(process.pid, frozenset(self._by_usage)) if self._by_usage else None
        owners = [self._by_usage[usage] for usage in held or ()]
        if len(owners) == 1:
            return Verdict(process, Standing.REGISTERED, owners[0], ())
        return Verdict(process, Standing.FOREIGN, None, ())

    def _judge_member(self, process: Process, members: tuple[str, ...]) -> Verdict:
        pages = {usage: tenant for tenant in members if (usage := self.tenants[tenant].usage) is not None}
        held = held_of(process.pid, frozenset(pages))
        for usage, tenant in pages.items():
            if held is not None and usage in held:
                return Verdict(process, Standing.REGISTERED, tenant, members)
        knows = held is not None and len(pages) == len(members)
        return Verdict(process, Standing.UNSHIMMED if knows else None, members[0], members)

    def _by_its_cgroup(self, process: Process) -> Iterator[str]:
        """Yield the tenants whose cgroups the process is in, the innermost first."""
        if not self._by_cgroup:
            return
        for path in cgroups_of(process.pid):
            while path:
                if path in self._by_cgroup:
                    yield self._by_cgroup[path]
                path = path.rpartition("/")[0]

    def _by_descent(self, process: Process) -> Iterator[str]:
        """Yield the tenants whose `hamirt run` or init is the process or above it, the nearest first."""
        one: Process | None = process
        for _ in range(_MOST_ANCESTORS):
            if one is None:
                return
            yield from (anchor.tenant for anchor in self._by_pid.get(one.pid, ()) if self._is_root(anchor, one))
            parent = self.process(one.parent) if one.parent else None
            one = parent if parent is not None and parent.start <= one.start else None

    def _is_root(self, anchor: Anchor, process: Process) -> bool:
        """Return whether this is the tenant's `hamirt run` or init, and not a later process with its pid.

        A `hamirt run` holds `alive`.
        """
        if anchor.start is not None:
            return process.start == anchor.start
        if self._roots.get(anchor.tenant) == (process.pid, process.start):
            return True
        if anchor.alive is None or not held_of(process.pid, frozenset((anchor.alive,))):
            return False
        self._roots[anchor.tenant] = (process.pid, process.start)
        return True


def read_process(pid: int) -> Process | None:
    """Return what the kernel says of a process, None if it is gone or a zombie without living threads."""
    stat = _read(f"/proc/{pid}/stat", 1024)
    if stat is None:
        return None
    name, _, rest = stat.partition(b"(")[2].rpartition(b") ")
    fields = rest.split(b" ", 20)  # state, ppid, ...: fields 3 and on of proc_pid_stat(5)
    if len(fields) < 20 or (fields[0] in (b"Z", b"X") and int(fields[17]) <= 1):
        return None
    return Process(pid, int(fields[19]), int(fields[1]), printable(name))


def cgroups_of(pid: int) -> tuple[str, ...]:
    """Return the paths of a process's cgroups, in every hierarchy."""
    lines = (_read(f"/proc/{pid}/cgroup") or b"").splitlines()
    return tuple(dict.fromkeys(os.fsdecode(line.split(b":", 2)[2]).rstrip("/") for line in lines if b":/" in line))


def living_cgroups() -> set[str]:
    """Return the cgroups that living processes are in, those above them too, but for the root."""
    found: set[str] = set()
    for pid in map(int, _pids()):
        for path in cgroups_of(pid) if read_process(pid) is not None else ():
            while path and path not in found:
                found.add(path)
                path = path.rpartition("/")[0]
    return found


def lives(pid: int, start: int) -> bool:
    """Return whether this very process lives, and not a later one with its pid."""
    process = read_process(pid)
    return process is not None and process.start == start


def _read(path: str, most_bytes: int = 65536) -> bytes | None:
    """Read a small file of /proc."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, most_bytes)
        finally:
            os.close(fd)
    except OSError:
        return None


def held_of(pid: int, wanted: frozenset[Inode]) -> frozenset[Inode] | None:
    """Return those of the `wanted` files that a process has open or mapped, None where nobody can tell.

    That is where we may not look, and of a process that ends: it lets go of its files before it is gone.
    """
    try:
        for folder in chain((f"/proc/{pid}",), _other_threads(pid)):
            found = _open_files(folder, wanted) or _mapped_files(folder, wanted)
            if found is not None:
                return found
    except OSError:
        pass
    return None


def _other_threads(pid: int) -> Iterator[str]:
    """Yield a thread or two to look at where the first one has ended before the others, and shows nothing any more."""
    yield from (f"/proc/{pid}/task/{name}" for name in os.listdir(f"/proc/{pid}/task")[-2:] if name != str(pid))


def _open_files(process: str, wanted: frozenset[Inode]) -> frozenset[Inode]:
    found = set()
    folder = os.open(f"{process}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        numbers = sorted(map(int, os.listdir(folder)))
        first = next((at for at, number in enumerate(numbers) if number >= _FIRST_OF_SHIM), len(numbers))
        for number in (numbers[first:] + numbers[:first])[:_MOST_FILES]:
            inode = _inode(folder, number)
            if inode in wanted:
                found.add(inode)
                if len(found) == len(wanted):
                    break
    finally:
        os.close(folder)
    return frozenset(found)


def _inode(folder: int, name: int) -> Inode | None:
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(folder, b"%d" % name, _AT_STATX_DONT_SYNC, _STATX_INO, answer) != 0:
        return None
    inode, major, minor = _STATX.unpack_from(answer)
    return os.makedev(major, minor), inode


def _mapped_files(process: str, wanted: frozenset[Inode]) -> frozenset[Inode] | None:
    """Look into the mappings, since a program may close descriptors that it doesn't know; None where there are none."""
    maps = b""
    with open(f"{process}/maps", "rb", buffering=0) as file:
        while len(maps) < _MOST_MAPS_BYTES and (chunk := file.read(_CHUNK_BYTES)):
            maps += chunk
    found = set()
    for device, inode in wanted:
        field = b"%02x:%02x %d " % (os.major(device), os.minor(device), inode)
        # a file's name comes last on a line, without line breaks: what it imitates is never the fourth field
        if field in maps and re.search(rb"^\S+ \S+ \S+ " + re.escape(field), maps, re.MULTILINE):
            found.add((device, inode))
    return frozenset(found) if maps else None


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
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def _pid_inside(pid: str) -> int | None:
    line = (_read(f"/proc/{pid}/status") or b"").partition(b"\nNSpid:")[2].partition(b"\n")[0]
    return int(line.split()[-1]) if line else None
