"""What is shown of a node, put together from NVML, the tenants' pages and who is who. Decides, and touches nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from hamirt import metering
from hamirt.model import (
    Card,
    CardProcess,
    Driver,
    Enforcement,
    Gate,
    Level,
    Limit,
    Node,
    ProcessView,
    Slot,
    Standing,
    Tenant,
    TenantCard,
    TenantPages,
    Use,
)
from hamirt.units import format_mib

if TYPE_CHECKING:  # a person who asks the supervisor needs nothing of it
    from hamirt.members import Verdict


class Claim(NamedTuple):
    """A slot's word for the process that holds it."""

    tenant: str
    pid_ns: int
    pid: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a tenant's processes on one of its devices met, the dead ones too."""

    denials: int
    throttled_ns: int
    bus_bytes: int


Pids = Mapping[Claim, int]
"""The pids here of claims that proved true; the others are missing."""
TotalsOf = Mapping[tuple[str, int], Totals]
"""By tenant and position among its devices; where one is missing, the living slots are summed up."""


@dataclass(frozen=True, slots=True)
class Gates:
    """The supervisor's gates by tenant, as they were at CLOCK_MONOTONIC `now_ns`; some may be missing."""

    of: Mapping[str, tuple[Gate, ...]]
    now_ns: int


def survey(
    driver: Driver | None,
    problem: str | None,
    pages: Sequence[TenantPages],
    pids: Pids,
    *,
    inside: bool,
    totals: TotalsOf | None = None,
    gates: Gates | None = None,
) -> Node:
    """Return the node as a person is shown it. The processes of `driver` are `judged`."""
    tenants = tuple(_tenant(tenant, driver, pids, totals or {}, gates or Gates({}, 0)) for tenant in pages)
    return Node(driver, tenants, inside, problem)


def judged(driver: Driver, verdicts: "Mapping[int, Verdict]") -> Driver:
    """Return the driver with each process on a card called what it is; one without a verdict is gone already."""
    return replace(driver, cards=tuple(replace(card, processes=_judged(card, verdicts)) for card in driver.cards))


def _judged(card: Card, verdicts: "Mapping[int, Verdict]") -> tuple[CardProcess, ...]:
    return tuple(
        CardProcess(one.pid, one.used_bytes, verdict.standing, verdict.tenant, verdict.process.command)
        if (verdict := verdicts.get(one.pid)) is not None
        else one
        for one in card.processes
    )


def select(node: Node, uuid: str | None, tenant: str | None) -> Node:
    """Keep one card, one tenant (by name or id), or both."""
    driver = node.driver
    if driver is not None and uuid is not None:
        driver = replace(driver, cards=tuple(card for card in driver.cards if card.uuid == uuid))
    present = {process.tenant for card in driver.cards for process in card.processes} if driver else set()
    tenants = []
    for one in node.tenants:
        on_cards = tuple(card for card in one.cards if uuid in (None, card.uuid))
        if tenant in (None, one.name, one.id) and (on_cards or uuid is None or one.id in present):
            tenants.append(replace(one, cards=on_cards))
    return replace(node, driver=driver, tenants=tuple(tenants))


def claims_of(pages: Sequence[TenantPages]) -> set[Claim]:
    """Return who holds the slots of these tenants, by their own word."""
    return {Claim(one.id, slot.pid_ns, slot.pid) for one in pages if one.usage for slot in one.usage.slots}


def violations(node: Node) -> list[str]:
    """Return a sentence for each thing that is not as it should be: what `hamirt status --check` prints."""
    found = node.problem.splitlines() if node.problem else []
    for tenant in node.tenants:
        if tenant.problem:
            found.append(f"{tenant.name}: {tenant.problem}")
        for on in tenant.cards:
            where = tenant.name if on.index is None else f"{tenant.name} on GPU {on.index}"
            if is_limited(on):
                found += [f"{where}: {unshimmed_text(process)}" for process in on.unshimmed]
            if on.over:
                found.append(f"{where}: over its cap by {format_mib(on.over_bytes)} MiB")
            found += [f"{where}: {text}" for text in _unheld(tenant, on)]
    names = {tenant.id: tenant.name for tenant in node.tenants}
    for card in node.driver.cards if node.driver else ():
        for process in intruders(node, card):
            name = names.get(process.tenant or "", process.tenant)
            found.append(f"{name} on GPU {card.index}, which it was not given: {unshimmed_text(process)}")
    return found


def _unheld(tenant: Tenant, on: TenantCard) -> Iterator[str]:
    """Yield what is asked for and does not hold, but for what was told already: a problem, and unshimmed processes."""
    told = {tenant.problem}
    for cap, held, what in (
        (on.cap_bytes, on.enforcement, "its cap"),
        (on.time_percent, on.time_enforcement, "its cap on GPU time"),
    ):
        if cap is None or held is None or held.level is not Level.NONE or on.unshimmed:
            continue
        if held.reason not in told:
            told.add(held.reason)
            yield f"{what} is not enforced: {held.reason}"
    if on.metering is not None and on.metering.unpreemptible:
        yield "unpreemptible: its work goes on when its turn is over"


def is_limited(on: TenantCard) -> bool:
    """Return whether the tenant has a cap on the card that a process without the shim gets around."""
    return on.cap_bytes is not None or on.time_percent is not None


def intruders(node: Node, card: Card) -> tuple[CardProcess, ...]:
    """Return the unshimmed processes of tenants that were not given this card at all."""
    others = {tenant.id for tenant in node.tenants if all(on.uuid != card.uuid for on in tenant.cards)}
    return tuple(
        process for process in card.processes if process.standing is Standing.UNSHIMMED and process.tenant in others
    )


def unshimmed_text(process: CardProcess) -> str:
    """Say which process the shim is not in, and what it holds."""
    size = "memory" if process.used_bytes is None else f"{format_mib(process.used_bytes)} MiB"
    name = f" ({process.command})" if process.command else ""
    return f"process {process.pid}{name} holds {size} without the shim"


def _tenant(pages: TenantPages, driver: Driver | None, pids: Pids, totals: TotalsOf, gates: Gates) -> Tenant:
    record, limits = pages.record, pages.limits
    simulated = record.simulated if record else False
    shown = driver if driver is not None and driver.simulated == simulated else None
    return Tenant(
        id=pages.id,
        name=limits.tenant if limits else record.name if record else pages.id,
        simulated=simulated,
        problem=pages.problem,
        cards=tuple(
            _tenant_card(pages, position, limit, shown, pids, totals.get((pages.id, position)), gates)
            for position, limit in enumerate(limits.devices if limits else ())
        ),
        container=record.container if record else None,
        pod=record.pod if record else None,
    )


def _tenant_card(
    pages: TenantPages,
    position: int,
    limit: Limit,
    driver: Driver | None,
    pids: Pids,
    totals: Totals | None,
    gates: Gates,
) -> TenantCard:
    card = next((card for card in driver.cards if card.uuid == limit.uuid), None) if driver else None
    slots = [slot for slot in (pages.usage.slots if pages.usage else ()) if _is_on(slot.uses[position])]
    uses = [slot.uses[position] for slot in slots]
    own = [process for process in card.processes if process.tenant == pages.id] if card else []
    used = sum(use.used_bytes for use in uses)
    pools = min(sum(use.kinds.pools for use in uses), used)
    unshimmed = tuple(process for process in own if process.standing is Standing.UNSHIMMED)
    if totals is None:
        totals = Totals(
            sum(use.denials for use in uses),
            sum(use.throttled_ns for use in uses),
            sum(use.bus_bytes for use in uses),
        )
    processes = _processes(pages.id, slots, position, own, pids)
    supervised = gates.of.get(pages.id, ())[position : position + 1] or (metering.NOTHING,)
    device = pages.usage.devices[position] if pages.usage else None
    held = metering.enforcement(limit, supervised[0], device, uses, gates.now_ns)
    on = TenantCard(
        index=card.index if card else None,
        uuid=limit.uuid,
        cap_bytes=limit.memory_bytes,
        card_bytes=limit.card_bytes,
        allocation_bytes=used - pools,
        pool_bytes=pools,
        overhead_bytes=sum(use.overhead_bytes for use in uses),
        ahead_bytes=sum(use.ahead_bytes for use in uses),
        footprint_bytes=_footprint(card, own, uses, processes, limit),
        denials=totals.denials,
        over=False,
        enforcement=Enforcement(Level.FULL, None),
        processes=processes,
        time_percent=limit.time_percent,
        weight=limit.weight,
        latency_class=limit.latency_class,
        throttled_seconds=totals.throttled_ns / 1e9,
        bus_bytes=totals.bus_bytes,
        unshimmed=unshimmed,
        time_enforcement=held and (_why_nothing_holds(pages, unshimmed) or held),
        metering=metering.meter(limit, supervised[0], device, uses, gates.now_ns) if device else None,
    )
    over = on.over_bytes > 0
    return replace(on, over=over, enforcement=_enforcement(pages, position, limit, own, over=over))


def _why_nothing_holds(pages: TenantPages, unshimmed: Sequence[CardProcess]) -> Enforcement | None:
    """Return why no gate holds the tenant, whoever arbitrates; None if none of that is so."""
    why = pages.record.unenforced if pages.record else None
    if why is None and pages.usage is None:
        why = pages.problem
    if why is None and unshimmed:
        why = "; ".join(map(unshimmed_text, unshimmed))
    return None if why is None else Enforcement(Level.NONE, why)


def _is_on(use: Use) -> bool:
    """Return whether a process uses, used or was refused anything on this device."""
    return bool(use.used_bytes or use.overhead_bytes or use.contexts or use.denials)


def _processes(
    tenant: str, slots: Sequence[Slot], position: int, own: Sequence[CardProcess], pids: Pids
) -> tuple[ProcessView, ...]:
    """Return the tenant's processes by its slots. Of two slots that claim the same process the first gets it."""
    sizes = {process.pid: process.used_bytes for process in own}
    taken: set[int] = set()
    views = []
    for slot in slots:
        pid = pids.get(Claim(tenant, slot.pid_ns, slot.pid))
        if pid in taken:
            pid = None
        if pid is not None:
            taken.add(pid)
        use = slot.uses[position]
        size = None if pid is None else sizes.get(pid)
        views.append(ProcessView(pid, slot.pid, slot.command, use.used_bytes + use.overhead_bytes, size))
    return tuple(views)


def _footprint(
    card: Card | None,
    own: Sequence[CardProcess],
    uses: Sequence[Use],
    views: Sequence[ProcessView],
    limit: Limit,
) -> int | None:
    """Return what NVML shows for the tenant's processes together, None unless it shows every one of them.

    What it does show is told all the same where that alone is more than the cap: no page can hide it.
    """
    if card is None:
        return None
    shown = sum(process.used_bytes for process in own if process.used_bytes is not None)
    holding = [view for use, view in zip(uses, views, strict=True) if use.contexts or use.used_bytes]
    complete = all(process.used_bytes is not None for process in own)
    complete = complete and all(view.card_bytes is not None for view in holding)
    return shown if complete or shown > (limit.memory_bytes or limit.card_bytes) else None


def _enforcement(
    pages: TenantPages, position: int, limit: Limit, own: Sequence[CardProcess], *, over: bool
) -> Enforcement:
    if limit.memory_bytes is None:
        return Enforcement(Level.NONE, "uncapped")
    if pages.record is not None and pages.record.unenforced is not None:
        return Enforcement(Level.NONE, pages.record.unenforced)
    if pages.usage is None:
        return Enforcement(Level.NONE, pages.problem)
    unshimmed = [process for process in own if process.standing is Standing.UNSHIMMED]
    if unshimmed:
        level = Level.NONE if len(unshimmed) == len(own) else Level.PARTIAL
        return Enforcement(level, "; ".join(map(unshimmed_text, unshimmed)))
    if over:
        return Enforcement(Level.PARTIAL, "holds more of the card than its cap")
    if pages.usage.devices[position].estimated:
        return Enforcement(Level.PARTIAL, "overhead is estimated, since NVML does not show these processes")
    return Enforcement(Level.FULL, None)
