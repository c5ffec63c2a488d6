"""Tenants of containers: made when an OCI hook says that one starts, with cards that are chosen here.

Such a tenant lives as long as the container's init process, or any process in the container's own cgroup. The hook that
says that the container has ended only makes it quicker.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hamirt import annotations, config, contexts, members, placement, region, tenants
from hamirt.annotations import Wish
from hamirt.daemon.admission import room
from hamirt.daemon.peers import Peer
from hamirt.daemon.refusal import BAD_REQUEST, CONFLICT, UNAVAILABLE, RefusalError
from hamirt.daemon.registry import Registry
from hamirt.daemon.requests import Containment
from hamirt.daemon.tenant import HeldTenant
from hamirt.errors import HamirtError
from hamirt.members import Process
from hamirt.model import Driver, Limit, Limits, TenantRecord
from hamirt.placement import Candidate, NoPlaceError
from hamirt.topology import Topology

_SHORT_ID = 12  # of a container's id, as engines show it


@dataclass(frozen=True, slots=True)
class Contained:
    """What came of a container's request: its tenant, if it is to have one, whether that is new, and warnings."""

    tenant: HeldTenant | None
    is_new: bool
    warnings: tuple[str, ...]


class Containers:
    """The containers among the tenants of a root. All of it is quick and runs in the daemon's own thread."""

    def __init__(self, registry: Registry, root: Path, *, simulated: bool) -> None:
        self._registry = registry
        self._root = root
        self._simulated = simulated

    def find(self, container: str) -> HeldTenant | None:
        """Return the tenant of the container with this id, None where it has none."""
        return next((one for one in self._registry.all() if one.container == container), None)

    def put(
        self, container: str, asked: Containment, peer: Peer, driver: Driver | None, topology: Topology
    ) -> Contained:
        """Make a container's tenant, or return the one that it has already. An earlier one, which has ended, goes.

        Raises RefusalError; nothing is left behind then.
        """
        warnings = annotations.warnings(asked.annotations)
        try:
            said = annotations.ours(asked.annotations, asked.settings)
            if not said:
                return Contained(None, False, warnings)
            wish = annotations.read(said, asked.annotations)
        except HamirtError as error:
            raise RefusalError(BAD_REQUEST, str(error)) from None
        init = _read_init(asked.pid)
        there = self.find(container)
        if there is not None:
            if _is_init(there, init):
                _check_same(there, said)
                return Contained(there, False, warnings)
            self._replace(container, there)
        self._check_library()
        limits = self._place(wish, driver, topology)
        name = self._choose_name(wish.name or tenants.base_name(container[:_SHORT_ID]))
        record = TenantRecord(
            tenants.make_identity(name), name, init.pid, (), self._simulated, None, peer.uid,
            self._own_cgroup(init, peer), container, wish.pod, init.start,
        )  # fmt: skip
        return Contained(self._registry.add(record, limits, {"annotations": said}), True, warnings)

    def answer(self, contained: Contained) -> dict[str, Any]:
        """Return what the hook is told: what to mount into the container."""
        tenant, warnings = contained.tenant, list(contained.warnings)
        if tenant is None:
            return {"id": None, "warnings": warnings}
        state = os.environ.get(config.SIM_STATE_VARIABLE) or str(config.sim_state_path(self._root))
        return {
            "id": tenant.id,
            "name": tenant.name,
            "folder": str(tenant.folder),
            "library": str(config.shim_path()),
            "uuids": [limit.uuid for limit in tenant.limits.devices] if tenant.limits else [],
            "warnings": warnings,
            "simulated": self._simulated,
            "sim": {"libraries": str(config.sim_dir()), "state": state} if self._simulated else None,
        }

    def _replace(self, container: str, there: HeldTenant) -> None:
        """Remove the tenant of a container that is started again.

        What its cgroup holds is the new one's by now: an engine makes no container before an earlier one with its id
        has ended.
        """
        init = there.init
        if init is not None and members.lives(*init):
            raise RefusalError(
                CONFLICT,
                f"another container with the id {container} lives, as tenant {there.name} (init process {init[0]}): "
                "end it, or give this one another id",
            )
        self._registry.remove(there)

    def _check_library(self) -> None:
        library = config.shim_path()
        if not library.exists():  # the dynamic linker would go on without it, and nothing would be limited
            raise RefusalError(UNAVAILABLE, f"{library} is missing: install hamirt again, then start the container")

    def _place(self, wish: Wish, driver: Driver | None, topology: Topology) -> Limits:
        if driver is None:
            sentence = "NVML does not answer the daemon, so nobody knows what is free: try again soon"
            raise RefusalError(UNAVAILABLE, sentence)
        measured, promises = contexts.read(self._root), self._registry.promises()
        sizes = {card.uuid: measured.get(contexts.key(driver, card)) for card in driver.cards}
        candidates = [
            Candidate(
                index=card.index,
                uuid=card.uuid,
                model=card.name,
                total_bytes=card.total_bytes,
                free_bytes=max(0, room(card, promises.get(card.uuid, ()), self._registry.settings.overcommit_ratio)),
                least_bytes=(sizes[card.uuid] or region.CONTEXT_BYTES) + region.RESERVE_BYTES,
                tenants=len(promises.get(card.uuid, ())),
                mig=card.mig,
            )
            for card in driver.cards
        ]
        try:
            chosen = placement.choose(wish.cards, candidates, topology)
        except NoPlaceError as error:
            raise RefusalError(BAD_REQUEST if error.lasting else CONFLICT, str(error)) from None
        totals, memory = {card.uuid: card.total_bytes for card in driver.cards}, wish.cards.memory
        devices = tuple(
            Limit(
                uuid, None if memory is None else memory.resolve(totals[uuid]), totals[uuid], sizes[uuid],
                wish.time_percent, wish.weight, wish.latency_class,
            )
            for uuid in chosen
        )  # fmt: skip
        return Limits("", False, len(driver.cards), devices)

    def _choose_name(self, wished: str) -> str:
        taken = self._registry.names()
        return wished if wished not in taken else tenants.free_name(wished, taken)

    def _own_cgroup(self, init: Process, peer: Peer) -> str | None:
        """Return the cgroup that the container has for itself, None where it has none: then descent has to tell.

        It has none where it was started in that of its engine, of the hook, of the daemon or of another container.
        """
        others = {path for pid in (os.getpid(), peer.pid, init.parent) for path in members.cgroups_of(pid)}
        taken = {one.record.cgroup for one in self._registry.all() if one.record}
        own = (path for path in members.cgroups_of(init.pid) if path and path not in taken)
        return next((path for path in own if not any(f"{other}/".startswith(f"{path}/") for other in others)), None)


def _read_init(pid: int) -> Process:
    init = members.read_process(pid) if pid != os.getpid() else None
    if init is None:
        raise RefusalError(
            CONFLICT,
            f"the daemon sees no process {pid}, which is to be the container's init: it has ended, "
            "or the daemon runs in a PID namespace of its own and has to run in the host's",
        )
    return init


def _is_init(tenant: HeldTenant, init: Process) -> bool:
    return tenant.init == (init.pid, init.start)


def _check_same(tenant: HeldTenant, said: Mapping[str, str]) -> None:
    """Raise RefusalError where a container that has its tenant already asks for something else."""
    before = tenants.read_note(tenant.folder).get("annotations")
    before = before if isinstance(before, dict) else {}
    more = sorted(key for key, value in said.items() if before.get(key) != value)
    if more:
        raise RefusalError(
            CONFLICT,
            f"{tenant.name} was set up already, with another {', '.join(more)}: "
            "give a container one hamirt.io/vgpu device, or all in its annotations",
        )
