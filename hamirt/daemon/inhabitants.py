"""The living processes of a tenant, and how they are ended: by what the kernel says, never by what a page claims."""

import os
import signal
import time
from pathlib import Path

from hamirt import config
from hamirt.daemon.tenant import HeldTenant
from hamirt.members import Anchor, Look, Process, judge_now

_MOST_ENVIRONMENT_BYTES = 1 << 20
_AFTER_KILL_SECONDS = 2.0
_LOOK_SECONDS = 0.02


def living(tenant: HeldTenant) -> tuple[Process, ...]:
    """Return its members, by cgroup or as descendants of its `hamirt run`, and what its user started in its folder.

    That `hamirt run` itself is none of them: it ends by itself. The init process of a container is one.
    """
    anchor = tenant.anchor()
    not_meant = (os.getpid(), anchor.pid if anchor.start is None else None)
    look = Look((anchor,), {})
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        process = look.process(pid)
        if process is None or pid in not_meant:
            continue
        if look.judge(process).members or _is_of(pid, tenant):
            found.append(process)
    return tuple(found)


def end(tenant: HeldTenant, kill_after_seconds: float) -> tuple[Process, ...]:
    """Send its processes SIGTERM and, `kill_after_seconds` later, SIGKILL to what goes on; return what lives even then.

    Takes up to two seconds more than that. Processes that others start meanwhile are found too.
    """
    now = time.monotonic()
    kill_at, give_up_at = now + kill_after_seconds, now + kill_after_seconds + _AFTER_KILL_SECONDS
    told: set[tuple[int, int, signal.Signals]] = set()
    while (left := living(tenant)) and (now := time.monotonic()) < give_up_at:
        number = signal.SIGTERM if now < kill_at else signal.SIGKILL
        for process in sorted(left, key=lambda one: tenant.init == (one.pid, one.start)):  # it ties the others to us
            if (process.pid, process.start, number) not in told:
                told.add((process.pid, process.start, number))
                _send(tenant, process, number)
        time.sleep(_LOOK_SECONDS)
    return left


def _send(tenant: HeldTenant, process: Process, number: signal.Signals) -> None:
    """Send a signal to a process that is looked at again once a pidfd holds its pid."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return  # it has ended
    try:
        if _is_still(process, tenant.anchor(), tenant):
            signal.pidfd_send_signal(fd, number)
    except OSError:
        pass
    finally:
        os.close(fd)


def _is_still(process: Process, anchor: Anchor, tenant: HeldTenant) -> bool:
    verdict = judge_now((anchor,), process.pid)
    if verdict is None or verdict.process.start != process.start:
        return False
    return bool(verdict.members) or _is_of(process.pid, tenant)


def _is_of(pid: int, tenant: HeldTenant) -> bool:
    """Return whether its user started this process with the tenant's folder in the environment.

    A container's processes don't know that folder, and what they say of others is nothing to go by.
    """
    if tenant.init is not None:
        return False
    wanted = f"{config.TENANT_VARIABLE}={tenant.folder}".encode()
    try:
        process = Path(f"/proc/{pid}")
        if process.stat().st_uid != tenant.uid:
            return False
        with open(process / "environ", "rb") as file:
            return wanted in file.read(_MOST_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return False
