"""What `hamirt status --json` says of one tenant, read from outside like a person would."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from bench.machine import Setup, environment
from bench.process import run

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """A tenant on one card, sizes in bytes."""

    pids: frozenset[int]
    """As they are outside; a process of another PID namespace that could not be named is left out."""
    processes: int
    allocation: int
    pool: int
    overhead: int
    used: int
    footprint: int | None
    cap: int | None
    denials: int
    over: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {
            "pids": sorted(self.pids),
            "processes": self.processes,
            "allocation_bytes": self.allocation,
            "pool_bytes": self.pool,
            "overhead_bytes": self.overhead,
            "used_bytes": self.used,
            "footprint_bytes": self.footprint,
            "cap_bytes": self.cap,
            "denials": self.denials,
            "over": self.over,
        }


class StatusError(Exception):
    """`hamirt status --json` failed or said something that this does not understand."""


def read_document(setup: Setup) -> dict[str, Any]:
    """Return the whole answer of `hamirt status --json`. Raises StatusError."""
    argv = [sys.executable, "-m", "hamirt", "status", "--json", *(["--sim"] if setup.sim else [])]
    ended = run(argv, environment(setup), TIMEOUT_S)
    if ended.status != 0:
        raise StatusError(f"hamirt status: {ended.why()}")
    try:
        document = json.loads(ended.stdout)
    except ValueError:
        raise StatusError(f"hamirt status --json printed {ended.stdout[:200]!r}") from None
    if not isinstance(document, dict) or "tenants" not in document:
        raise StatusError(f"hamirt status --json has no tenants: {ended.stdout[:200]!r}")
    return document


def read_tenant(setup: Setup, name: str) -> TenantStatus | None:
    """Return what status says of the tenant on its first card; None: it does not know it. Raises StatusError."""
    for tenant in read_document(setup)["tenants"]:
        if tenant.get("name") == name and tenant.get("cards"):
            return _tenant(tenant["cards"][0])
    return None


def _tenant(card: dict[str, Any]) -> TenantStatus:
    try:
        processes = card["processes"]
        return TenantStatus(
            frozenset(process["pid"] for process in processes if process["pid"] is not None),
            len(processes),
            card["allocation_bytes"],
            card["pool_bytes"],
            card["overhead_bytes"],
            card["used_bytes"],
            card["footprint_bytes"],
            card["cap_bytes"],
            card["denials"],
            bool(card["over"]),
        )
    except (KeyError, TypeError) as error:
        raise StatusError(f"hamirt status --json has another shape: {error!r}") from None
