"""The tenant of a `hamirt run`: made by the daemon where one answers, and in the folder of tenants where none does."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import click

from hamirt import client, config, tenants
from hamirt.client import Reach
from hamirt.errors import HamirtError
from hamirt.model import Limits
from hamirt.tenants import Notes, OwnTenant

_RETURN_SECONDS = 2.0  # how long a daemon that was just killed may need to be there again
_REMOVE_SECONDS = 2.0
_MOST_TRIES = 5


@dataclass(frozen=True, slots=True)
class Lease:
    """A tenant of ours, and whether a daemon made it."""

    root: Path
    tenant: OwnTenant
    by_daemon: bool

    def end(self) -> None:
        """Take the tenant away; what nobody can take away now, the next daemon does."""
        if self.by_daemon:
            try:
                client.Client(self.root, _REMOVE_SECONDS).remove(self.tenant.id)
                return
            except client.RefusedError:  # it is gone, or processes of it live on
                return
            except client.UnansweredError:
                pass
        tenants.remove(self.tenant)


def make(root: Path, name: str | None, command: tuple[str, ...], limits: Limits, notes: Notes) -> Lease:
    """Make a tenant and keep it alive.

    Raises HamirtError where the daemon refuses, or where none answers and the root is not ours.
    """
    tenant = _ask_daemon(root, name, command, limits, notes)
    if tenant is not None:
        return Lease(root, tenant, by_daemon=True)
    return Lease(root, tenants.create(root, name, command, limits, notes), by_daemon=False)


def _ask_daemon(
    root: Path, name: str | None, command: tuple[str, ...], limits: Limits, notes: Notes
) -> OwnTenant | None:
    """Return the tenant that the daemon made, None where we are to make it ourselves.

    A daemon that ends over the request is asked again once it is back, for the same tenant.
    """
    identity = tenants.make_identity(name or tenants.base_name(command[0]))
    deadline = time.monotonic() + _RETURN_SECONDS
    for _ in range(_MOST_TRIES):
        reach = _wait_for(root, deadline)
        if reach is Reach.SILENT:
            _go_on_without(root)
        if reach is not Reach.ANSWERS:
            return None
        try:
            made = client.Client(root).create(
                identity,
                name,
                command,
                limits.devices,
                simulated=notes.simulated,
                allow_on_error=limits.allow_on_error,
                unenforced=notes.unenforced,
            )
            return OwnTenant(made.id, made.name, made.folder, tenants.hold(made.folder))
        except client.UnansweredError:
            continue
        except OSError:  # another daemon came, and found the tenant before we held it
            identity = tenants.make_identity(name or tenants.base_name(command[0]))
    _go_on_without(root)
    return None


def _wait_for(root: Path, deadline: float) -> Reach:
    """Return whether a daemon answers; where only one could serve us, wait for one that left its socket behind."""
    while True:
        reach = client.reach(root)
        gone = reach is Reach.ABSENT and config.socket_path(root).exists()
        if not gone or _is_ours(root) or time.monotonic() > deadline:
            return reach
        time.sleep(0.05)


def _go_on_without(root: Path) -> None:
    if not _is_ours(root):
        raise HamirtError(f"the daemon of {root} does not answer: see whether it is stopped, and what its log says")
    click.echo(f"hamirt: the daemon of {root} does not answer: going on without it", err=True)


def _is_ours(root: Path) -> bool:
    return os.access(root, os.W_OK | os.X_OK)
