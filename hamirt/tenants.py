"""The folders of tenants below the root: made, listed, read, removed, and swept when their processes are gone.

`<root>/tenants/<id>` holds `ro/limits` and `rw/usage` (region.h), `alive`, which the tenant's `hamirt run` keeps
locked, and `tenant.json`, a note for people. A folder appears and disappears by a rename, and both the making and the
sweeping happen under the lock of `<root>/lock`; so nobody meets half a tenant, and what lies there unlocked is dead.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hamirt import config, members, region
from hamirt.errors import HamirtError
from hamirt.model import Limits, TenantPages, TenantRecord

_PARTIAL = "."  # how the name of a folder that is being made or removed begins
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class OwnTenant:
    """A tenant whose `hamirt run` we are; it lives at least as long as `alive_fd` is open."""

    record: TenantRecord
    folder: Path
    alive_fd: int


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
        with _locked(root):
            _sweep(root)
            taken = {record.name for record in map(_read_record, _folders(root)) if record is not None}
            chosen = name or _free_name(command[0], taken)
            if chosen in taken:
                raise HamirtError(f"a tenant named {chosen} is running already: choose another --name")
            identity = f"{chosen}-{os.urandom(3).hex()}"
            record = TenantRecord(identity, chosen, os.getpid(), command, notes.simulated, notes.unenforced)
            return _make_folder(root / "tenants" / identity, record, limits)
    except OSError as error:
        raise HamirtError(_why_not_made(root, error)) from None


@dataclass(frozen=True, slots=True)
class Notes:
    """What status tells people about a tenant that the pages don't say."""

    simulated: bool
    unenforced: str | None


def remove(tenant: OwnTenant) -> None:
    """Take the tenant's folder away; its last process has ended."""
    _remove_folder(tenant.folder)


def list_pages(root: Path) -> tuple[TenantPages, ...]:
    """Read all living tenants below `root`, after sweeping the dead away; none where there is no root.

    Raises HamirtError where we may not look.
    """
    try:
        config.check_root(root)
        with _locked(root):
            _sweep(root)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise HamirtError(f"the tenants in {root} can't be read ({error.strerror}): ask as their user") from None
    return tuple(pages for folder in _folders(root) if (pages := read_pages(folder)) is not None)


def read_one(folder: Path) -> tuple[TenantPages, ...]:
    """Read the tenant in this folder; none if it isn't there."""
    pages = read_pages(folder)
    return () if pages is None else (pages,)


def read_pages(folder: Path) -> TenantPages | None:
    """Read what a tenant's folder holds; None if it went meanwhile."""
    record, limits, usage, problem = _read_record(folder), None, None, None
    try:
        limits = region.read_limits(folder / "ro" / "limits")
        usage = region.read_usage(folder / "rw" / "usage", len(limits.devices))
    except HamirtError as error:
        if not folder.exists():
            return None
        problem = str(error)
    return TenantPages(record.id if record else folder.name, folder, record, limits, usage, problem)


def _make_folder(folder: Path, record: TenantRecord, limits: Limits) -> OwnTenant:
    partial = folder.with_name(_PARTIAL + folder.name)
    alive_fd = -1
    try:
        partial.mkdir(mode=0o700)
        for name in ("ro", "rw"):
            (partial / name).mkdir()
            (partial / name).chmod(0o755)  # whatever the umask
        alive_fd = os.open(partial / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive_fd, fcntl.LOCK_EX)
        region.create_limits(partial / "ro" / "limits", _named(limits, record.name))
        region.create_usage(partial / "rw" / "usage")
        (partial / "tenant.json").write_text(json.dumps({"schema": 1, **asdict(record)}) + "\n")
        partial.rename(folder)
    except BaseException:
        if alive_fd >= 0:
            os.close(alive_fd)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return OwnTenant(record, folder, alive_fd)


def _named(limits: Limits, name: str) -> Limits:
    return Limits(name, limits.allow_on_error, limits.node_devices, limits.devices, limits.epoch, limits.lease_ns)


def _remove_folder(folder: Path) -> None:
    partial = folder if folder.name.startswith(_PARTIAL) else folder.with_name(_PARTIAL + folder.name)
    try:
        if folder != partial:
            folder.rename(partial)
    except OSError:
        return  # somebody else removed it, or may and we may not
    shutil.rmtree(partial, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove the folders of tenants that have neither a parent nor a process. Called under the root's lock."""
    tenants = root / "tenants"
    tenants.mkdir(mode=0o700, exist_ok=True)
    orphaned = [folder for folder in tenants.iterdir() if not _has_parent(folder)]
    orphaned = [folder for folder in orphaned if not region.has_living_slot(folder / "rw" / "usage")]
    if not orphaned:
        return
    inhabited = members.tenant_folders()
    for folder in orphaned:
        if folder.name.startswith(_PARTIAL) or str(folder) not in inhabited:
            _remove_folder(folder)


def _has_parent(folder: Path) -> bool:
    try:
        fd = os.open(folder / "alive", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep the makers and sweepers of this root apart; each of them needs milliseconds."""
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _folders(root: Path) -> list[Path]:
    try:
        found = sorted((root / "tenants").iterdir())
    except OSError:
        return []
    return [folder for folder in found if not folder.name.startswith(_PARTIAL)]


def _read_record(folder: Path) -> TenantRecord | None:
    try:
        note = json.loads((folder / "tenant.json").read_text())
        return TenantRecord(
            id=str(note["id"]),
            name=str(note["name"]),
            pid=int(note["pid"]),
            command=tuple(map(str, note["command"])),
            simulated=bool(note["simulated"]),
            unenforced=None if note["unenforced"] is None else str(note["unenforced"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _free_name(command: str, taken: set[str]) -> str:
    base = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(command)).lstrip("._-")[:40] or "tenant"
    number = 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"


def _why_not_made(root: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{root} has no room for a tenant's pages ({error.strerror}): "
            f"free 1MiB there, or name another folder with {config.ROOT_VARIABLE}"
        )
    return f"a tenant can't be set up in {root} ({error.strerror}): name another folder with {config.ROOT_VARIABLE}"
