"""The folders of tenants below the root: made, listed, read, removed, and swept when their processes are gone.

`<root>/tenants/<id>` holds `ro/limits` and `rw/usage` (region.h), `alive`, which the tenant's `hamirt run` keeps
locked, and `tenant.json`, a note for people. A folder appears and disappears by a rename, so that nobody meets half a
tenant. Where no daemon serves the root, making and sweeping happen under the lock of `<root>/lock`, and what lies there
unlocked and without a process is dead; a root that is served is swept by its daemon alone.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hamirt import config, members, pages, region
from hamirt.errors import HamirtError
from hamirt.model import Limits, TenantPages, TenantRecord

DAEMON_LOCK = "daemon.lock"  # in the root; locked by the daemon that serves it for as long as it lives
PARTIAL = "."  # how the name of a folder that is being made or removed begins
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDENTITY = re.compile(r"(.+)-[0-9a-f]{6}")
_MOST_NOTE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class OwnTenant:
    """A tenant whose `hamirt run` we are; it lives at least as long as `alive_fd` is open."""

    id: str
    name: str
    folder: Path
    alive_fd: int


def make_identity(name: str) -> str:
    """Return an id for a tenant of this name, one that no other tenant has or had."""
    return f"{name}-{os.urandom(3).hex()}"


def name_in(identity: str) -> str:
    """Return the name in an id of make_identity's.

    Raises HamirtError where it can't be one.
    """
    match = _IDENTITY.fullmatch(identity)
    if match is None:
        raise HamirtError(f"{identity[:80]!r} can't be a tenant's id: that is a name, '-' and six digits of hex")
    check_name(match.group(1))
    return match.group(1)


def check_name(name: str) -> None:
    """Raise HamirtError unless `name` can be a tenant's name."""
    if not _NAME.fullmatch(name) or len(name) > region.NAME_BYTES:
        raise HamirtError(
            f"{name!r} can't name a tenant: use letters, digits, '.', '_' and '-', "
            f"{region.NAME_BYTES} at most, with a letter or a digit first"
        )


def create(root: Path, name: str | None, command: tuple[str, ...], limits: Limits, notes: "Notes") -> OwnTenant:
    """Make a tenant's folder, complete, and keep it alive.

    Without a `name` it is the command's with a number. Raises HamirtError where the name is taken or the disk is full;
    nothing is left behind then.
    """
    config.make_root(root)
    try:
        with locked(root):
            _sweep(root)
            taken = {record.name for record in map(read_record, folders(root)) if record is not None}
            chosen = name or free_name(command[0], taken)
            if chosen in taken:
                raise HamirtError(f"a tenant named {chosen} is running already: choose another --name")
            identity = make_identity(chosen)
            record = TenantRecord(
                identity, chosen, os.getpid(), command, notes.simulated, notes.unenforced, uid=os.geteuid()
            )
            folder = root / "tenants" / identity
            alive_fd = make_folder(folder, record, limits)
            return OwnTenant(record.id, record.name, folder, alive_fd)
    except OSError as error:
        raise HamirtError(why_not_made(root, error)) from None


@dataclass(frozen=True, slots=True)
class Notes:
    """What status tells people about a tenant that the pages don't say."""

    simulated: bool
    unenforced: str | None


def remove(tenant: OwnTenant) -> None:
    """Take the tenant's folder away; its last process has ended."""
    remove_folder(tenant.folder)


def list_pages(root: Path) -> tuple[TenantPages, ...]:
    """Read all living tenants below `root`, after sweeping the dead away; none where there is no root.

    Raises HamirtError where we may not look.
    """
    try:
        config.check_root(root)
        with locked(root):
            _sweep(root)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise HamirtError(f"the tenants in {root} can't be read ({error.strerror}): ask as their user") from None
    return tuple(pages for folder in folders(root) if (pages := read_pages(folder)) is not None)


def read_one(folder: Path) -> tuple[TenantPages, ...]:
    """Read the tenant in this folder; none if it isn't there."""
    pages = read_pages(folder)
    return () if pages is None else (pages,)


def read_pages(folder: Path) -> TenantPages | None:
    """Read what a tenant's folder holds; None if it went meanwhile."""
    record, limits, usage, problem = read_record(folder), None, None, None
    try:
        limits = region.read_limits(folder / "ro" / "limits")
        usage = region.read_usage(folder / "rw" / "usage", len(limits.devices))
    except HamirtError as error:
        if not folder.exists():
            return None
        problem = str(error)
    return TenantPages(record.id if record else folder.name, folder, record, limits, usage, problem)


def hold(folder: Path) -> int:
    """Keep a tenant that a daemon made for us alive, for as long as the descriptor returned is open.

    Raises OSError where it is gone or not ours.
    """
    fd = _open_alive(folder)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def make_folder(
    folder: Path,
    record: TenantRecord,
    limits: Limits,
    *,
    owner: int | None = None,
    note: Mapping[str, Any] | None = None,
) -> int:
    """Make a tenant's folder, complete; return a descriptor that keeps it alive while it is open.

    With an `owner` all of it stays ours, but for the two files that this user's processes need: so they can replace
    nothing, and other users reach nothing of value. `note` goes into tenant.json with the record. Raises OSError or
    HamirtError, and leaves nothing behind then.
    """
    partial = folder.with_name(PARTIAL + folder.name)
    alive_fd = -1
    try:
        partial.mkdir(mode=0o700)
        for name in ("ro", "rw"):
            (partial / name).mkdir()
            (partial / name).chmod(0o755)  # whatever the umask
        alive_fd = os.open(partial / "alive", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive_fd, fcntl.LOCK_SH)
        pages.create_limits(partial / "ro" / "limits", replace(limits, tenant=record.name))
        pages.create_usage(partial / "rw" / "usage")
        (partial / "tenant.json").write_text(json.dumps({"schema": 1, **asdict(record), **(note or {})}) + "\n")
        if owner is not None:
            _give(partial, owner)
        partial.rename(folder)
    except BaseException:
        if alive_fd >= 0:
            os.close(alive_fd)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return alive_fd


def _give(folder: Path, owner: int) -> None:
    for own in (folder / "alive", folder / "rw" / "usage"):
        own.chmod(0o600)
        os.chown(own, owner, -1)
    (folder / "tenant.json").chmod(0o644)
    folder.chmod(0o711)


def remove_folder(folder: Path) -> None:
    """Take a tenant's folder away, unless somebody else did or only they may."""
    partial = folder if folder.name.startswith(PARTIAL) else folder.with_name(PARTIAL + folder.name)
    try:
        if folder != partial:
            folder.rename(partial)
    except OSError:
        return
    shutil.rmtree(partial, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove the folders of dead tenants, unless that is a daemon's work. Called under the root's lock."""
    tenants = root / "tenants"
    tenants.mkdir(mode=0o700, exist_ok=True)
    if is_served(root):
        return
    sweep_partial(root)
    for folder in dead_among(folders(root)):
        remove_folder(folder)


def sweep_partial(root: Path) -> None:
    """Remove what was left of folders by makers and removers that were killed. Nobody else may make one meanwhile."""
    for folder in _all_folders(root):
        if folder.name.startswith(PARTIAL) and not is_held(folder):
            shutil.rmtree(folder, ignore_errors=True)


def dead_among(candidates: Sequence[Path]) -> list[Path]:
    """Return those of the tenants' folders that have neither a `hamirt run` nor a process.

    It looks at every process of the machine. What a process says of itself in its environment keeps no container's
    tenant alive: any container could say that of another.
    """
    orphaned = [folder for folder in candidates if not is_held(folder)]
    orphaned = [folder for folder in orphaned if not region.has_living_slot(folder / "rw" / "usage")]
    if not orphaned:
        return []
    named, cgroups = members.tenant_folders(), members.living_cgroups()
    return [folder for folder in orphaned if not _is_inhabited(folder, read_record(folder), named, cgroups)]


def _is_inhabited(folder: Path, record: TenantRecord | None, named: Set[str], cgroups: Set[str]) -> bool:
    if record is not None and record.cgroup is not None and record.cgroup.rstrip("/") in cgroups:
        return True
    if record is not None and record.start is not None:
        return members.lives(record.pid, record.start)
    return str(folder) in named


def is_held(folder: Path) -> bool:
    """Return whether somebody keeps the tenant alive: its `hamirt run`, or a daemon for it."""
    try:
        fd = _open_alive(folder)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _open_alive(folder: Path) -> int:
    return os.open(folder / "alive", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def is_served(root: Path) -> bool:
    """Return whether a living daemon serves this root. Called under the root's lock, or a daemon could be refused."""
    try:
        fd = os.open(root / DAEMON_LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it belongs to root's daemon, which sweeps
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def locked(root: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep the makers and sweepers of this root apart; each of them needs milliseconds.

    Raises BlockingIOError where another one is at work and we don't `wait`.
    """
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def folders(root: Path) -> list[Path]:
    """Return the folders of all tenants, dead ones too."""
    return [folder for folder in _all_folders(root) if not folder.name.startswith(PARTIAL)]


def _all_folders(root: Path) -> list[Path]:
    try:
        return sorted((root / "tenants").iterdir())
    except OSError:
        return []


def read_record(folder: Path) -> TenantRecord | None:
    """Return what is noted of a tenant, None where that can't be read."""
    return record_of(read_note(folder), folder.name)


def read_note(folder: Path) -> dict[str, Any]:
    """Return what tenant.json holds, nothing where it can't be read or is no object."""
    try:
        # O_NONBLOCK and O_NOFOLLOW: the folder's owner could have put a FIFO or a link there
        fd = os.open(folder / "tenant.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return {}
    try:
        note = json.loads(os.read(fd, _MOST_NOTE_BYTES)) if stat.S_ISREG(os.fstat(fd).st_mode) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(fd)
    return note if isinstance(note, dict) else {}


def record_of(note: Mapping[str, Any], identity: str) -> TenantRecord | None:
    """Return the record in a note, None unless all of it is right and it is of this tenant."""
    with suppress(HamirtError, ValueError, KeyError, TypeError):
        record = TenantRecord(
            id=str(note["id"]),
            name=str(note["name"]),
            pid=int(note["pid"]),
            command=tuple(map(str, note["command"])),
            simulated=bool(note["simulated"]),
            unenforced=_text_or_none(note["unenforced"]),
            uid=int(note.get("uid", 0)),
            cgroup=_text_or_none(note.get("cgroup")),
            container=_text_or_none(note.get("container")),
            pod=_text_or_none(note.get("pod")),
            start=None if note.get("start") is None else int(note["start"]),
        )
        check_name(record.name)
        return record if record.id == identity else None
    return None


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def free_name(command: str, taken: Set[str]) -> str:
    """Return the command's name with the first number that makes it a tenant's."""
    base = base_name(command)
    number = 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"


def base_name(command: str) -> str:
    """Return what can be a tenant's name of a command's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(command)).lstrip("._-")[:40] or "tenant"


def why_not_made(root: Path, error: OSError) -> str:
    """Return a sentence on why a tenant's folder can't be made."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{root} has no room for a tenant's pages ({error.strerror}): "
            f"free 1MiB there, or name another folder with {config.ROOT_VARIABLE}"
        )
    return f"a tenant can't be set up in {root} ({error.strerror}): name another folder with {config.ROOT_VARIABLE}"
