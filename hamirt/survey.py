"""What `hamirt status` shows, put together from NVML and the tenants' pages. Decides, and touches nothing."""

from collections.abc import Mapping, Sequence

from hamirt.model import (
    Card,
    Driver,
    Enforcement,
    Level,
    Limit,
    Node,
    ProcessView,
    Slot,
    Tenant,
    TenantCard,
    TenantPages,
    Use,
)

Pids = Mapping[tuple[int, int], int]


def survey(
    driver: Driver | None, problem: str | None, pages: Sequence[TenantPages], pids: Pids, *, inside: bool
) -> Node:
    """Return the node as a person is shown it. `pids` maps (pid_ns, pid inside) to the pid here."""
    return Node(driver, tuple(_tenant(tenant, driver, pids) for tenant in pages), inside, problem)


def select(node: Node, uuid: str | None, tenant: str | None) -> Node:
    """Keep one card, one tenant (by name or id), or both."""
    driver = node.driver
    if driver is not None and uuid is not None:
        cards = tuple(card for card in driver.cards if card.uuid == uuid)
        driver = Driver(driver.version, cards, driver.simulated)
    tenants = []
    for one in node.tenants:
        on_cards = tuple(card for card in one.cards if uuid in (None, card.uuid))
        if tenant in (None, one.name, one.id) and (on_cards or uuid is None):
            tenants.append(Tenant(one.id, one.name, one.simulated, one.problem, on_cards))
    return Node(driver, tuple(tenants), node.inside, node.problem)


def slots_of(pages: Sequence[TenantPages]) -> set[tuple[int, int]]:
    """Return (pid_ns, pid inside) of all processes in these tenants."""
    return {(slot.pid_ns, slot.pid) for tenant in pages if tenant.usage for slot in tenant.usage.slots}


def _tenant(pages: TenantPages, driver: Driver | None, pids: Pids) -> Tenant:
    record, limits = pages.record, pages.limits
    simulated = record.simulated if record else False
    shown = driver if driver is not None and driver.simulated == simulated else None
    return Tenant(
        id=pages.id,
        name=limits.tenant if limits else pages.id,
        simulated=simulated,
        problem=pages.problem,
        cards=tuple(
            _tenant_card(pages, position, limit, shown, pids)
            for position, limit in enumerate(limits.devices if limits else ())
        ),
    )


def _tenant_card(pages: TenantPages, position: int, limit: Limit, driver: Driver | None, pids: Pids) -> TenantCard:
    card = next((card for card in driver.cards if card.uuid == limit.uuid), None) if driver else None
    slots = [slot for slot in (pages.usage.slots if pages.usage else ()) if _is_on(slot.uses[position])]
    uses = [slot.uses[position] for slot in slots]
    processes = tuple(_process(slot, position, card, pids) for slot in slots)
    overhead = sum(use.overhead_bytes for use in uses)
    used = sum(use.used_bytes for use in uses)
    pools = min(sum(use.kinds.pools for use in uses), used)
    footprint = _footprint(processes)
    held = max(used + overhead, footprint or 0)
    over = limit.memory_bytes is not None and held > limit.memory_bytes
    return TenantCard(
        index=card.index if card else None,
        uuid=limit.uuid,
        cap_bytes=limit.memory_bytes,
        card_bytes=limit.card_bytes,
        allocation_bytes=used - pools,
        pool_bytes=pools,
        overhead_bytes=overhead,
        footprint_bytes=footprint,
        denials=sum(use.denials for use in uses),
        over=over,
        enforcement=_enforcement(pages, position, limit, over=over),
        processes=processes,
    )


def _is_on(use: Use) -> bool:
    """Return whether a process uses, used or was refused anything on this device."""
    return bool(use.used_bytes or use.overhead_bytes or use.contexts or use.denials)


def _process(slot: Slot, position: int, card: Card | None, pids: Pids) -> ProcessView:
    pid = pids.get((slot.pid_ns, slot.pid))
    use = slot.uses[position]
    on_card = next((process.used_bytes for process in card.processes if process.pid == pid), None) if card else None
    return ProcessView(pid, slot.pid, slot.command, use.used_bytes + use.overhead_bytes, on_card)


def _footprint(processes: Sequence[ProcessView]) -> int | None:
    """Return what NVML shows for the processes together, None unless it shows every one of them."""
    sizes = [process.card_bytes for process in processes]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _enforcement(pages: TenantPages, position: int, limit: Limit, *, over: bool) -> Enforcement:
    if limit.memory_bytes is None:
        return Enforcement(Level.NONE, "uncapped")
    if pages.record is not None and pages.record.unenforced is not None:
        return Enforcement(Level.NONE, pages.record.unenforced)
    if pages.usage is None:
        return Enforcement(Level.NONE, pages.problem)
    if over:
        return Enforcement(Level.PARTIAL, "holds more of the card than its cap")
    if pages.usage.devices[position].estimated:
        return Enforcement(Level.PARTIAL, "overhead is estimated, since NVML does not show these processes")
    return Enforcement(Level.FULL, None)


def owners(node: Node) -> dict[int, str]:
    """Map the pids of tenants' processes to the tenants' ids."""
    return {
        process.pid: tenant.id
        for tenant in node.tenants
        for card in tenant.cards
        for process in card.processes
        if process.pid is not None
    }
