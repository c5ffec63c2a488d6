"""A tenant as the daemon holds it: its record, its limits, and the files that are kept open as long as it lives."""

import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from hamirt import members, pages, region, tenants
from hamirt.daemon.arbiter import Arbiter
from hamirt.errors import HamirtError
from hamirt.members import Anchor
from hamirt.model import Limit, Limits, TenantPages, TenantRecord, Usage

_UNSEEN_CREATOR_SECONDS = 10.0  # how long one in a PID namespace of its own has to take the tenant over


@dataclass(slots=True)
class Keeper:
    """Keeps a tenant alive until a process has ended.

    That is the one that asked for it, which holds it too by then, or the init process of a container.
    """

    alive_fd: int
    pidfd: int | None
    until: float

    @classmethod
    def of(cls, alive_fd: int, creator: int, now: float) -> "Keeper":
        """Watch the process `creator`, by pid; 0 is one that can't be seen."""
        try:
            fd = os.pidfd_open(creator) if creator > 0 else None
        except OSError:  # it has ended already
            fd = None
        return cls(alive_fd, fd, now if creator > 0 else now + _UNSEEN_CREATOR_SECONDS)

    @classmethod
    def of_init(cls, folder: Path, pid: int, start: int) -> "Keeper | None":
        """Watch the init process of the container whose tenant is in `folder`; None if it has ended."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return None
        try:
            if members.lives(pid, start):
                return cls(tenants.hold(folder), fd, 0.0)
        except OSError:  # the folder is damaged: the tenant is looked at again and again instead
            pass
        os.close(fd)
        return None

    def has_ended(self, now: float) -> bool:
        """Return whether nothing is left to wait for."""
        if self.pidfd is None:
            return now >= self.until
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let the tenant live or die without us."""
        os.close(self.alive_fd)
        if self.pidfd is not None:
            os.close(self.pidfd)


class File:
    """A descriptor, closed once nobody holds it: the sampler may be reading a page of a tenant that is removed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(slots=True)
class HeldTenant:
    """A tenant of this root. What could not be read of it is None, and `problem` says why."""

    id: str
    folder: Path
    record: TenantRecord | None
    request: str | None
    """What tells the request that it was made for from others."""
    limits: Limits | None = None
    problem: str | None = None
    keeper: Keeper | None = None
    look_again_at: float = 0.0
    """When it is next worth a look whether its last process has ended."""
    arbiter: Arbiter | None = None
    """Who hands out its GPU time."""
    _limits_file: File | None = None
    _usage_file: File | None = None
    _number: int | None = None
    """The arbiter's for it."""
    _lease_ns: int = 0

    @classmethod
    def open(cls, folder: Path, arbiter: Arbiter | None = None) -> "HeldTenant":
        """Take over the tenant in this folder, whatever state it is in. It is arbitrated from its first lease on.

        One of a container is kept alive as long as its init process lives.
        """
        note = tenants.read_note(folder)
        request = note.get("request")
        tenant = cls(
            folder.name, folder, tenants.record_of(note, folder.name), request if isinstance(request, str) else None,
            arbiter=arbiter,
        )  # fmt: skip
        if tenant.record is None:
            tenant.problem = (
                f"{folder / 'tenant.json'} is damaged: end that tenant with hamirt rm --force {folder.name}"
            )
        elif tenant.init is not None:
            tenant.keeper = Keeper.of_init(folder, *tenant.init)
        try:
            tenant._limits_file = File(pages.open_for_change(folder, "ro/limits"))
            tenant.limits = region.read_limits(folder / "ro" / "limits", tenant._limits_file.fd)
            tenant._usage_file = File(pages.open_for_change(folder, "rw/usage"))
        except HamirtError as error:
            tenant.problem = str(error)
        except OSError as error:
            tenant.problem = f"the pages of {folder.name} can't be opened ({error.strerror}): end that tenant"
        return tenant

    @property
    def name(self) -> str:
        """What people call it."""
        return self.record.name if self.record else self.limits.tenant if self.limits else self.id

    @property
    def uid(self) -> int | None:
        """The user that it belongs to; None, and then only administrators may touch it, where that can't be read."""
        return self.record.uid if self.record else None

    @property
    def init(self) -> tuple[int, int] | None:
        """Pid and start of the init process of the container whose tenant this is, None if it is none's."""
        if self.record is None or self.record.start is None:
            return None
        return self.record.pid, self.record.start

    @property
    def container(self) -> str | None:
        """The id of the container whose tenant this is, None if it is none's."""
        return self.record.container if self.record is not None and self.init is not None else None

    def read(self) -> TenantPages:
        """Return all that its folder says, its usage page as it is now. Any thread may ask."""
        usage, problem = None, self.problem
        if self.limits is not None:
            try:
                usage = self.usage()
            except HamirtError as error:
                problem = problem or str(error)
        return TenantPages(self.id, self.folder, self.record, self.limits, usage, problem)

    def anchor(self) -> Anchor:
        """Return what ties processes to it by descent and by cgroup."""
        try:
            alive = os.lstat(self.folder / "alive")
            inode = alive.st_dev, alive.st_ino
        except OSError:
            inode = None
        record = self.record
        if record is None:
            return Anchor(self.id, None, inode, None, None)
        return Anchor(self.id, None, inode, record.pid, record.cgroup, record.start)

    def change(self, devices: tuple[Limit, ...]) -> None:
        """Write changed limits. Raises OSError where the page can't be written."""
        assert self.limits is not None
        assert self._limits_file is not None
        self.limits = pages.change_limits(self._limits_file.fd, self.limits, devices)
        if self.arbiter is not None and self._number is not None:
            self.arbiter.changed(self._number)

    def renew(self, lease_ns: int) -> None:
        """Extend the lease, or end it with 0. Raises OSError."""
        if self._limits_file is None or self.limits is None:
            return
        lapsed = self._lease_ns < time.monotonic_ns()
        pages.renew_lease(self._limits_file.fd, lease_ns)
        self._lease_ns = lease_ns
        if lapsed and lease_ns:
            self._arbitrate()

    def _arbitrate(self) -> None:
        """Have its GPU time handed out by the arbiter, now that its programs listen to it."""
        if self.arbiter is None or self._limits_file is None or self._usage_file is None or self.limits is None:
            return
        if self._number is not None:
            self.arbiter.changed(self._number)
            return
        uuids = [limit.uuid for limit in self.limits.devices]
        self._number = self.arbiter.add(self._limits_file.fd, self._usage_file.fd, uuids)

    def usage(self) -> Usage:
        """Read the usage page.

        Raises HamirtError where it is damaged, or was when the tenant was taken over.
        """
        file, limits = self._usage_file, self.limits
        if file is None or limits is None:
            raise HamirtError(self.problem or f"the pages of {self.id} are closed")
        return region.read_usage(self.folder / "rw" / "usage", len(limits.devices), file.fd)

    def has_living_slot(self) -> bool:
        """Return whether a process holds a slot of its usage page, by the kernel's locks."""
        return region.has_living_slot(self.folder / "rw" / "usage")

    def ask_to_trim(self) -> None:
        """Have its processes give back what their pools hold unused. Raises OSError."""
        if self._usage_file is not None:
            pages.ask_to_trim(self._usage_file.fd)

    def ask_to_measure(self) -> None:
        """Have its processes look in NVML at what they hold. Raises OSError."""
        if self._limits_file is not None and self._usage_file is not None:
            pages.ask_to_measure(self._limits_file.fd, self._usage_file.fd)

    def close(self) -> None:
        """Let go of its files."""
        if self.arbiter is not None and self._number is not None:
            self.arbiter.remove(self._number)
            self._number = None
        self._limits_file = self._usage_file = None
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None
