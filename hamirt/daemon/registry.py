"""The tenants of a root as its daemon knows them: made, changed and removed here, and nowhere else while it lives.

What it knows lies in the folders (tenants.py); a daemon that starts reads them, and goes on where the last one ended.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hamirt import contexts, plan, region, tenants
from hamirt.daemon.admission import Promise, admit, grows
from hamirt.daemon.arbiter import Arbiter
from hamirt.daemon.peers import Peer
from hamirt.daemon.refusal import BAD_REQUEST, CONFLICT, FORBIDDEN, NOT_FOUND, UNAVAILABLE, RefusalError
from hamirt.daemon.requests import Change, Creation, WishedDevice
from hamirt.daemon.settings import Settings
from hamirt.daemon.tenant import HeldTenant, Keeper
from hamirt.errors import HamirtError
from hamirt.model import Card, Driver, Limit, Limits, TenantPages, TenantRecord
from hamirt.units import Cap, format_size

LEASE_SECONDS = 1.0
_INHABITED_SECONDS = 5.0  # how long a tenant without a `hamirt run` but with processes is left alone


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for something, and whether he may do everything."""

    peer: Peer
    admin: bool


class Registry:
    """The tenants below one root. Everything but `find_dead` is quick and runs in the daemon's own thread."""

    def __init__(
        self,
        root: Path,
        settings: Settings,
        *,
        simulated: bool,
        owned: bool,
        clock: Callable[[], float] = time.monotonic,
        arbiter: Arbiter | None = None,
    ) -> None:
        """Serve `root`. With `owned` folders, as root's daemon makes them, each is for the user who asked."""
        self._arbiter = arbiter
        self.settings = settings
        self._root = root
        self._simulated = simulated
        self._owned = owned
        self._clock = clock
        self._tenants: dict[str, HeldTenant] = {}

    def refresh(self) -> None:
        """Take over tenants that somebody else made, while no daemon was there, and forget those that went."""
        there = {folder.name: folder for folder in tenants.folders(self._root)}
        for identity in self._tenants.keys() - there.keys():
            self._tenants.pop(identity).close()
        for identity in there.keys() - self._tenants.keys():
            self._tenants[identity] = HeldTenant.open(there[identity], self._arbiter)

    def pages(self) -> tuple[TenantPages, ...]:
        """Read all tenants, for the sampler, whose thread it may be that asks."""
        return tuple(tenant.read() for _id, tenant in sorted(self._tenants.copy().items()))

    def find(self, key: str, asker: Asker) -> HeldTenant:
        """Return the tenant with this id or name, which the asker may touch.

        Raises RefusalError.
        """
        tenant = self._tenants.get(key) or next((one for one in self._tenants.values() if one.name == key), None)
        if tenant is None:
            there = ", ".join(sorted(one.name for one in self._tenants.values())[:16]) or "none at all"
            raise RefusalError(NOT_FOUND, f"no tenant is called {key[:80]!r}: there is {there}")
        if not asker.admin and tenant.uid != asker.peer.uid:
            raise RefusalError(FORBIDDEN, f"{tenant.name} belongs to user {tenant.uid}: ask as that user, or as root")
        return tenant

    def all(self) -> tuple[HeldTenant, ...]:
        """Return all tenants."""
        return tuple(self._tenants.values())

    def names(self) -> set[str]:
        """Return what no other tenant can be called: names and ids."""
        return {one.name for one in self._tenants.values()} | self._tenants.keys()

    def promises(self, besides: HeldTenant | None = None) -> dict[str, list[Promise]]:
        """Return what was promised of each card, by UUID, to all tenants but one."""
        found: dict[str, list[Promise]] = {}
        for tenant in self._tenants.values():
            for limit in tenant.limits.devices if tenant.limits and tenant is not besides else ():
                found.setdefault(limit.uuid, []).append(Promise(tenant.name, limit.memory_bytes))
        return found

    def knows(self, tenant: HeldTenant) -> bool:
        """Return whether this tenant is still there."""
        return self._tenants.get(tenant.id) is tenant

    def create(
        self, identity: str, creation: Creation, body: bytes, asker: Asker, driver: Driver | None
    ) -> tuple[HeldTenant, bool]:
        """Make a tenant, or return the one that the same request made before; and whether it is new.

        Raises RefusalError; nothing is left behind then.
        """
        request = hashlib.sha256(body).hexdigest()
        try:
            base = tenants.name_in(identity)
        except HamirtError as error:
            raise RefusalError(BAD_REQUEST, str(error)) from None
        there = self._tenants.get(identity)
        if there is not None:
            if there.request == request and there.uid == asker.peer.uid:
                return there, False
            raise RefusalError(CONFLICT, f"there is a tenant {identity} already, made by another request")
        self._check_asker(creation, asker)
        name = self._choose_name(creation.name, base)
        limits = self._plan(creation, driver)
        peer = asker.peer
        record = TenantRecord(
            identity, name, peer.pid, creation.command, creation.simulated, creation.unenforced,
            peer.uid, creation.cgroup, creation.container, creation.pod,
        )  # fmt: skip
        return self.add(record, limits, {"request": request}, owner=peer.uid if self._owned else None), True

    def add(
        self, record: TenantRecord, limits: Limits, note: Mapping[str, Any], *, owner: int | None = None
    ) -> HeldTenant:
        """Make a tenant's folder, as tenants.make_folder does, and hold it.

        Raises RefusalError; nothing is left behind then.
        """
        folder = self._root / "tenants" / record.id
        try:
            alive_fd = tenants.make_folder(folder, record, limits, owner=owner, note=note)
        except OSError as error:
            raise RefusalError(UNAVAILABLE, tenants.why_not_made(self._root, error)) from None
        tenant = HeldTenant.open(folder, self._arbiter)
        if record.start is None:
            tenant.keeper = Keeper.of(alive_fd, record.pid, self._clock())
        else:  # opened, it has one of its own
            os.close(alive_fd)
        self._tenants[record.id] = tenant
        self.renew()
        return tenant

    def change(
        self, tenant: HeldTenant, change: Change, driver: Driver | None, footprints: dict[str, int | None]
    ) -> list[dict[str, Any]]:
        """Change a tenant's limits, and return them with how much it is over them.

        `footprints` is what it holds of each card by NVML, where that is known. Raises RefusalError.
        """
        limits = tenant.limits
        if limits is None:
            raise RefusalError(CONFLICT, tenant.problem or f"the limits of {tenant.name} can't be read")
        given = {limit.uuid for limit in limits.devices}
        for uuid in change.devices:
            if uuid not in given:
                raise RefusalError(BAD_REQUEST, f"{tenant.name} has no GPU {uuid[:80]!r}: it has {', '.join(given)}")
        devices = tuple(replace(limit, **change.devices.get(limit.uuid, {})) for limit in limits.devices)
        pairs = list(zip(limits.devices, devices, strict=True))
        recapped = [new for old, new in pairs if new.memory_bytes != old.memory_bytes]
        if recapped:
            cards = _cards(driver, [limit.uuid for limit in recapped])
            for limit in recapped:
                _check_cap(limit, cards[limit.uuid])
            self._admit([new for old, new in pairs if grows(old, new)], cards, besides=tenant)
        try:
            tenant.change(devices)
            held = _held_bytes(tenant)
            over = [_over(limit, max(held[at], footprints.get(limit.uuid) or 0)) for at, limit in enumerate(devices)]
            if recapped and any(over):
                tenant.ask_to_trim()
        except OSError as error:
            sentence = f"the limits of {tenant.name} can't be written ({error.strerror}): see to {self._root}"
            raise RefusalError(UNAVAILABLE, sentence) from None
        return [_limit_json(limit, excess) for limit, excess in zip(devices, over, strict=True)]

    def remove(self, tenant: HeldTenant) -> None:
        """Take a tenant away, whatever lives of it."""
        self._tenants.pop(tenant.id, None)
        tenant.close()
        tenants.remove_folder(tenant.folder)

    def renew(self) -> None:
        """Extend the lease of every tenant."""
        self._lease(int((time.monotonic() + LEASE_SECONDS) * 1e9))

    def ask_to_measure(self, identities: Iterable[str]) -> None:
        """Have the processes of these tenants look in NVML at what they hold."""
        for tenant in filter(None, map(self._tenants.get, identities)):
            with suppress(OSError):  # a page that can't be written is told of when its lease is renewed
                tenant.ask_to_measure()

    def close(self) -> None:
        """End all leases and let go; the tenants go on."""
        self._lease(0)
        for tenant in self._tenants.values():
            tenant.close()
        self._tenants.clear()

    def orphans(self) -> list[HeldTenant]:
        """Return the tenants that nobody keeps alive, for `find_dead`."""
        now = self._clock()
        for tenant in self._tenants.values():
            if tenant.keeper is not None and tenant.keeper.has_ended(now):
                tenant.keeper.close()
                tenant.keeper = None
        candidates = [one for one in self._tenants.values() if one.keeper is None and now >= one.look_again_at]
        return [tenant for tenant in candidates if not tenants.is_held(tenant.folder)]

    def bury(self, orphans: Sequence[HeldTenant], dead: Sequence[HeldTenant]) -> list[HeldTenant]:
        """Remove the dead among the orphans, unless they were removed or taken up meanwhile; return the removed."""
        for orphan in orphans:
            orphan.look_again_at = self._clock() + _INHABITED_SECONDS
        gone = [one for one in dead if self.knows(one) and not tenants.is_held(one.folder)]
        for tenant in gone:
            self.remove(tenant)
        return gone

    def _lease(self, lease_ns: int) -> None:
        for tenant in self._tenants.values():
            try:
                tenant.renew(lease_ns)
            except OSError as error:  # its shims find the lease run out, and see to themselves
                tenant.problem = tenant.problem or f"its lease can't be renewed: {error.strerror}"

    def _check_asker(self, creation: Creation, asker: Asker) -> None:
        if creation.simulated != self._simulated:
            here = "simulated GPUs: use --sim" if self._simulated else "the real GPUs: leave --sim out"
            raise RefusalError(CONFLICT, f"the daemon of {self._root} serves {here}, or name another HAMIRT_ROOT")
        if asker.admin:
            return
        if creation.cgroup or creation.container or creation.pod:
            raise RefusalError(FORBIDDEN, "only administrators may say which container a tenant is")
        count = sum(one.uid == asker.peer.uid for one in self._tenants.values())
        if count >= self.settings.tenants_per_user:
            sentence = f"user {asker.peer.uid} has {count} tenants, and tenants_per_user allows no more: end some"
            raise RefusalError(CONFLICT, sentence)

    def _choose_name(self, wished: str | None, base: str) -> str:
        taken = self.names()
        if wished is None:
            return tenants.free_name(base, taken)
        if wished in taken:
            raise RefusalError(CONFLICT, f"a tenant named {wished} is running already: choose another --name")
        return wished

    def _plan(self, creation: Creation, driver: Driver | None) -> Limits:
        cards = _cards(driver, [device.uuid for device in creation.devices])
        assert driver is not None
        measured = contexts.read(self._root)
        limits = [_limit(device, cards[device.uuid], driver, measured) for device in creation.devices]
        for limit in limits:
            _check_cap(limit, cards[limit.uuid])
        self._admit(limits, cards)
        in_order = sorted(limits, key=lambda limit: cards[limit.uuid].index)
        return Limits("", creation.allow_on_error, len(driver.cards), tuple(in_order))

    def _admit(self, wishes: Sequence[Limit], cards: dict[str, Card], besides: HeldTenant | None = None) -> None:
        try:
            admit(wishes, self.promises(besides), cards, self.settings.overcommit_ratio)
        except HamirtError as error:
            raise RefusalError(CONFLICT, str(error)) from None


def find_dead(orphans: Sequence[HeldTenant]) -> list[HeldTenant]:
    """Return those without any process. It looks at every process of the machine, so do it beside the daemon's work."""
    dead = set(tenants.dead_among([orphan.folder for orphan in orphans]))
    return [orphan for orphan in orphans if orphan.folder in dead]


def _cards(driver: Driver | None, uuids: Sequence[str]) -> dict[str, Card]:
    """Return the cards by UUID. Raises RefusalError where there is one that tenants can't have."""
    if driver is None:
        raise RefusalError(UNAVAILABLE, "NVML does not answer the daemon, so nobody knows what is free: try again soon")
    cards = {card.uuid: card for card in driver.cards}
    for uuid in uuids:
        if uuid not in cards:
            raise RefusalError(BAD_REQUEST, f"there is no GPU {uuid!r} on this node: there is {', '.join(cards)}")
        if cards[uuid].mig:
            sentence = f"GPU {cards[uuid].index} is in MIG mode, which hamirt can't divide further for now"
            raise RefusalError(BAD_REQUEST, sentence)
    return cards


def _limit(device: WishedDevice, card: Card, driver: Driver, measured: dict[str, int]) -> Limit:
    context_bytes = measured.get(contexts.key(driver, card))
    return Limit(
        device.uuid, device.memory_bytes, card.total_bytes, context_bytes,
        device.time_percent, device.weight, device.latency_class,
    )  # fmt: skip


def _check_cap(limit: Limit, card: Card) -> None:
    if limit.memory_bytes is None:
        return
    cap = Cap(format_size(limit.memory_bytes), limit.memory_bytes, None)
    try:
        plan.check_cap(cap, card, limit.context_bytes, region.CONTEXT_BYTES, region.RESERVE_BYTES)
    except HamirtError as error:
        raise RefusalError(BAD_REQUEST, str(error)) from None


def _held_bytes(tenant: HeldTenant) -> tuple[int, ...]:
    """Return what the living processes hold of each device by their ledger, 0 where that is damaged."""
    assert tenant.limits is not None
    positions = range(len(tenant.limits.devices))
    try:
        slots = tenant.usage().slots
    except HamirtError:
        return tuple(0 for _ in positions)
    uses = [[slot.uses[position] for slot in slots] for position in positions]
    return tuple(sum(use.used_bytes + use.overhead_bytes for use in device) for device in uses)


def _over(limit: Limit, held_bytes: int) -> int:
    return 0 if limit.memory_bytes is None else max(0, held_bytes - limit.memory_bytes)


def _limit_json(limit: Limit, over_bytes: int) -> dict[str, Any]:
    return {
        "uuid": limit.uuid,
        "memory_bytes": limit.memory_bytes,
        "time_percent": limit.time_percent,
        "weight": limit.weight,
        "latency_class": limit.latency_class.value,
        "over_bytes": over_bytes,
    }
