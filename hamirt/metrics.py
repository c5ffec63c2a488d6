"""The table of hamirt's metrics: what a Node and a Health say to Prometheus. docs/metrics.md describes each.

Base units, ratios from 0 to 1, and what is not known is absent, never 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hamirt import __version__, metering
from hamirt.model import Card, Health, Level, Metering, Node, ShareSource, Standing, Tenant, TenantCard

EVENTS = ("tenant_created", "tenant_changed", "tenant_removed", "violation", "killed")
"""Kinds of events that are counted from 0, so that their first is seen as an increase."""
REASONS = (
    "enforced", "uncapped", "unreadable", "unshimmed", "over", "estimated", "unsupervised", "not_arbitrated",
    "not_preloaded", "other",
)  # fmt: skip
"""All that a cap's enforcement can be for, as a label: few, and the same in every release."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lay below each of the `bounds` and above the one before, then above all; and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


Sample = tuple[tuple[str, ...], float | Histogram]
"""The values of a metric's labels, in their order, and its value."""
Samples = Iterable[Sample]


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the table; `get` yields no sample for what is not known."""

    name: str
    type: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...]
    get: Callable[[Node, Health], Samples]


def reason_code(tenant: Tenant, card: TenantCard) -> str:
    """Return which of REASONS explains how far the tenant's memory cap holds on this card."""
    enforcement = card.enforcement
    if enforcement.level is Level.FULL:
        return "enforced"
    if card.cap_bytes is None:
        return "uncapped"
    if tenant.problem is not None:
        return "unreadable"
    if card.unshimmed:
        return "unshimmed"
    if card.over:
        return "over"
    if "estimated" in (enforcement.reason or ""):
        return "estimated"
    return "not_preloaded" if enforcement.level is Level.NONE else "other"


def time_reason_code(tenant: Tenant, card: TenantCard) -> str | None:
    """Return which of REASONS explains how far what was asked for of GPU time holds, None where nothing was."""
    held = card.time_enforcement
    if held is None:
        return None
    if held.reason is None:
        return "enforced"
    if held.level is not Level.NONE:
        return "unsupervised"
    if held.reason == tenant.problem:
        return "unreadable"
    if held.reason == metering.NOBODY:
        return "not_arbitrated"
    return "unshimmed" if card.unshimmed else "not_preloaded"


def _cards(value: Callable[[Node, Card], float | None]) -> Callable[[Node, Health], Samples]:
    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for card in node.driver.cards if node.driver else ():
            number = value(node, card)
            if number is not None:
                yield (card.uuid, str(card.index)), number

    return get


def _on_cards(value: Callable[[TenantCard], float | Histogram | None]) -> Callable[[Node, Health], Samples]:
    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for tenant, card in _tenant_cards(node):
            number = value(card)
            if number is not None:
                yield (tenant.id, card.uuid), number

    return get


def _daemon(value: Callable[[Node, Health], float | None]) -> Callable[[Node, Health], Samples]:
    def get(node: Node, health: Health) -> Iterator[Sample]:
        number = value(node, health)
        if number is not None:
            yield (), number

    return get


def _counts(value: Callable[[Health], Mapping[str, int]]) -> Callable[[Node, Health], Samples]:
    return lambda _node, health: [((key,), count) for key, count in sorted(value(health).items())]


def _tenant_cards(node: Node) -> Iterator[tuple[Tenant, TenantCard]]:
    return ((tenant, card) for tenant in node.tenants for card in tenant.cards)


def of_card(node: Node, uuid: str) -> list[TenantCard]:
    """Return the tenants on a card of this driver; a simulated tenant is not on a real card."""
    simulated = node.driver is not None and node.driver.simulated
    return [card for tenant, card in _tenant_cards(node) if card.uuid == uuid and tenant.simulated == simulated]


def caps_bytes(node: Node, card: Card) -> int:
    """Return the sum of the caps on a card; a tenant without one counts as the whole card."""
    return sum(card.total_bytes if on.cap_bytes is None else on.cap_bytes for on in of_card(node, card.uuid))


def _foreign(card: Card) -> int | None:
    """Return what processes of no tenant hold, None unless all are judged and the size of each foreign one is known."""
    sizes = [process.used_bytes for process in card.processes if process.standing is Standing.FOREIGN]
    known = [size for size in sizes if size is not None]
    judged = all(process.standing is not None for process in card.processes)
    return sum(known) if judged and len(known) == len(sizes) else None


def _unclaimed(node: Node, card: Card) -> int | None:
    foreign = _foreign(card)
    return None if foreign is None else card.total_bytes - foreign - caps_bytes(node, card)


def _standings(node: Node, _health: Health) -> Iterator[Sample]:
    for card in node.driver.cards if node.driver else ():
        standings = [process.standing for process in card.processes]
        for standing in Standing if None not in standings else ():
            yield (card.uuid, str(card.index), standing.value), standings.count(standing)


def _memory_kinds(node: Node, _health: Health) -> Iterator[Sample]:
    for tenant, card in _tenant_cards(node):
        for kind, size in (
            ("allocations", card.allocation_bytes),
            ("pools", card.pool_bytes),
            ("overhead", card.overhead_bytes),
        ):
            yield (tenant.id, card.uuid, kind), size


def _enforcement(node: Node, _health: Health) -> Samples:
    return [
        ((tenant.id, card.uuid, card.enforcement.level.value, reason_code(tenant, card)), 1)
        for tenant, card in _tenant_cards(node)
    ]


def _time_enforcement(node: Node, _health: Health) -> Iterator[Sample]:
    for tenant, card in _tenant_cards(node):
        if card.time_enforcement is not None:
            reason = time_reason_code(tenant, card) or "other"
            yield (tenant.id, card.uuid, card.time_enforcement.level.value, reason), 1


def _metered(value: Callable[[Metering], float]) -> Callable[[Node, Health], Samples]:
    return _on_cards(lambda card: None if card.metering is None else value(card.metering))


def _waits(card: TenantCard) -> Histogram | None:
    if card.metering is None or not card.metering.waits:
        return None
    counts = card.metering.waits
    bounds = tuple(map(metering.bucket_end_seconds, range(len(counts) - 1)))
    return Histogram(bounds, counts, card.throttled_seconds)


def _tenant_info(node: Node, _health: Health) -> Iterator[Sample]:
    for tenant in node.tenants:
        classes = {card.latency_class.value for card in tenant.cards}
        latency_class = classes.pop() if len(classes) == 1 else "mixed" if classes else ""
        place = (tenant.container or "", tenant.pod or "")
        yield (tenant.id, tenant.name, *place, latency_class, _flag(tenant.simulated)), 1


def _ratio(percent: int | None) -> float | None:
    return None if percent is None else percent / 100


def _flag(value: bool) -> str:
    return "true" if value else "false"


_GPU, _ON, _NONE = ("uuid", "index"), ("tenant", "uuid"), ()

METRICS: tuple[Metric, ...] = (
    # The cards, by NVML.
    Metric("hamirt_gpu_info", "gauge", "A card of this node.", (*_GPU, "model"),
           lambda node, _health: [((card.uuid, str(card.index), card.name), 1)
                                  for card in (node.driver.cards if node.driver else ())]),
    Metric("hamirt_gpu_memory_total_bytes", "gauge", "Memory of the card.", _GPU,
           _cards(lambda _node, card: card.total_bytes)),
    Metric("hamirt_gpu_memory_used_bytes", "gauge", "Memory of the card in use by anybody, by NVML.", _GPU,
           _cards(lambda _node, card: card.used_bytes)),
    Metric("hamirt_gpu_memory_caps_bytes", "gauge",
           "Sum of the caps of the tenants on the card; an uncapped tenant counts as the whole card.", _GPU,
           _cards(caps_bytes)),
    Metric("hamirt_gpu_memory_foreign_bytes", "gauge",
           "Held by processes of no tenant; absent where the size of one is not known.", _GPU,
           _cards(lambda _node, card: _foreign(card))),
    Metric("hamirt_gpu_memory_unclaimed_bytes", "gauge",
           "Left for further caps: total less caps less foreign; below 0 where caps are overcommitted.", _GPU,
           _cards(_unclaimed)),
    Metric("hamirt_gpu_busy_ratio", "gauge", "Part of the time in which the card ran a kernel, by NVML.", _GPU,
           _cards(lambda _node, card: card.busy_ratio)),
    Metric("hamirt_gpu_open", "gauge",
           "1 while its tenants take no turns, since turns left it idle: weights and classes do not count.", _GPU,
           _cards(lambda node, card: int(card.uuid in node.supervisor.open_cards) if node.supervisor else None)),
    Metric("hamirt_gpu_mig_enabled", "gauge", "1 if the card is in MIG mode; such a card is not divided.", _GPU,
           _cards(lambda _node, card: int(card.mig))),
    Metric("hamirt_gpu_processes", "gauge", "Processes on the card, by what they are to the node's tenants.",
           (*_GPU, "standing"), _standings),
    Metric("hamirt_gpu_handover_seconds_total", "counter",
           "GPU time that went to changes from one tenant to the next while another waited, charged to nobody.", _GPU,
           lambda node, health: [((card.uuid, str(card.index)), health.handover_seconds[card.uuid])
                                 for card in (node.driver.cards if node.driver else ())
                                 if card.uuid in health.handover_seconds]),
    # A tenant on a card.
    Metric("hamirt_tenant_memory_used_bytes", "gauge",
           "Held against the cap, by the ledger: allocations, pools (held for reuse), overhead (contexts, modules).",
           (*_ON, "kind"), _memory_kinds),
    Metric("hamirt_tenant_memory_cap_bytes", "gauge", "Cap on the footprint; absent for an uncapped tenant.", _ON,
           _on_cards(lambda card: card.cap_bytes)),
    Metric("hamirt_tenant_memory_footprint_bytes", "gauge", "What NVML reports for the tenant's processes.", _ON,
           _on_cards(lambda card: card.footprint_bytes)),
    Metric("hamirt_tenant_memory_drift_bytes", "gauge", "Footprint less what the ledger takes to be on the card.", _ON,
           _on_cards(lambda card: card.drift_bytes)),
    Metric("hamirt_tenant_memory_over_bytes", "gauge",
           "Held above the cap, by the ledger or by NVML; absent for an uncapped tenant.", _ON,
           _on_cards(lambda card: None if card.cap_bytes is None else card.over_bytes)),
    Metric("hamirt_tenant_gpu_time_cap_ratio", "gauge",
           "Cap on the tenant's share of GPU time; absent without one.", _ON,
           _on_cards(lambda card: _ratio(card.time_percent))),
    Metric("hamirt_tenant_gpu_time_share_ratio", "gauge",
           "The tenant's share of GPU time between the last two looks; absent where it is not known.", _ON,
           _on_cards(lambda card: card.busy_ratio)),
    Metric("hamirt_tenant_gpu_time_share_sampled", "gauge",
           "1 if that share is the card's utilization by NVML, at least in part; 0 if it was metered.", _ON,
           _on_cards(lambda card: card.busy_source and int(card.busy_source is ShareSource.SAMPLED))),
    Metric("hamirt_tenant_gpu_time_seconds_total", "counter", "GPU time of the tenant, as far as it was metered.", _ON,
           _metered(lambda seen: seen.charged_seconds)),
    Metric("hamirt_tenant_gate_free_seconds_total", "counter",
           "Time in which the tenant's GPU time was not metered, each stretch once it has ended.", _ON,
           _metered(lambda seen: seen.free_seconds)),
    Metric("hamirt_tenant_slots_total", "counter", "Slots of GPU time that the tenant was given.", _ON,
           _metered(lambda seen: seen.slots)),
    Metric("hamirt_tenant_slot_misses_total", "counter", "Slots of the tenant whose work did not end in time.", _ON,
           _metered(lambda seen: seen.misses)),
    Metric("hamirt_tenant_unpreemptible", "gauge", "1 if that is so often of late that its neighbours suffer.", _ON,
           _metered(lambda seen: int(seen.unpreemptible))),
    Metric("hamirt_tenant_ganged", "gauge", "1 if the tenant is given all its cards together.", _ON,
           _metered(lambda seen: int(seen.ganged))),
    Metric("hamirt_tenant_launch_wait_seconds", "histogram", "How long launches waited for the gate to open.", _ON,
           _on_cards(_waits)),
    Metric("hamirt_tenant_waiting_threads", "gauge", "Threads of the tenant that wait for the gate to open.", _ON,
           _metered(lambda seen: seen.waiting)),
    Metric("hamirt_tenant_weight", "gauge", "Weight among those that want the card.", _ON,
           _on_cards(lambda card: card.weight)),
    Metric("hamirt_tenant_throttled_seconds_total", "counter", "How long launches were held back.", _ON,
           _on_cards(lambda card: card.throttled_seconds)),
    Metric("hamirt_tenant_bus_bytes_total", "counter", "Copied over the bus by the tenant, both ways.", _ON,
           _on_cards(lambda card: card.bus_bytes)),
    Metric("hamirt_tenant_denials_total", "counter", "Requests for memory that were refused.", _ON,
           _on_cards(lambda card: card.denials)),
    Metric("hamirt_tenant_processes", "gauge", "Living processes with the shim that use the card.", _ON,
           _on_cards(lambda card: len(card.processes))),
    Metric("hamirt_tenant_unshimmed_processes", "gauge", "The tenant's processes on the card without the shim.", _ON,
           _on_cards(lambda card: len(card.unshimmed))),
    Metric("hamirt_tenant_enforcement_info", "gauge", "How far the memory cap holds (full, partial, none), and why.",
           (*_ON, "level", "reason"), _enforcement),
    Metric("hamirt_tenant_gpu_time_enforcement_info", "gauge",
           "How far cap, weight and class hold for GPU time, and why; absent where none was asked for.",
           (*_ON, "level", "reason"), _time_enforcement),
    # A tenant.
    Metric("hamirt_tenant_info", "gauge", "What the tenant is.",
           ("tenant", "name", "container", "pod", "class", "simulated"), _tenant_info),
    Metric("hamirt_tenant_problem", "gauge", "1 if the tenant's pages could not be read in full.", ("tenant",),
           lambda node, _health: [((tenant.id,), int(tenant.problem is not None)) for tenant in node.tenants]),
    # The supervisor.
    Metric("hamirt_build_info", "gauge", "The version that answers.", ("version",),
           lambda _node, _health: [((__version__,), 1)]),
    Metric("hamirt_supervisor_info", "gauge", "What the supervisor does about a violation: report or kill.",
           ("policy",),
           lambda node, _health: [((node.supervisor.policy,), 1)] if node.supervisor else []),
    Metric("hamirt_supervisor_start_time_seconds", "gauge", "When the supervisor started, in Unix time.", _NONE,
           _daemon(lambda _node, health: health.started_unix_seconds)),
    Metric("hamirt_supervisor_up", "gauge", "1 while a supervisor answers.", _NONE,
           _daemon(lambda node, _health: int(node.supervisor is not None))),
    Metric("hamirt_nvml_up", "gauge", "1 if NVML answered at the last look.", _NONE,
           _daemon(lambda _node, health: int(health.nvml_answers))),
    Metric("hamirt_driver_info", "gauge", "The driver that NVML names.", ("version", "simulated"),
           lambda node, _health: [((node.driver.version, _flag(node.driver.simulated)), 1)] if node.driver else []),
    Metric("hamirt_samples_total", "counter", "Looks at the cards and the tenants.", _NONE,
           _daemon(lambda _node, health: health.samples)),
    Metric("hamirt_sample_failures_total", "counter", "Looks that failed in part or in whole.", _NONE,
           _daemon(lambda _node, health: health.sample_failures)),
    Metric("hamirt_sample_seconds_total", "counter", "Time spent looking.", _NONE,
           _daemon(lambda _node, health: health.sample_seconds)),
    Metric("hamirt_last_sample_timestamp_seconds", "gauge", "When the last look ended, in Unix time.", _NONE,
           _daemon(lambda _node, health: health.last_sample_unix_seconds)),
    Metric("hamirt_api_requests_total", "counter", "Requests to the supervisor's API, by HTTP status.", ("status",),
           _counts(lambda health: health.requests)),
    Metric("hamirt_events_total", "counter", "What happened to tenants.", ("kind",),
           _counts(lambda health: dict.fromkeys(EVENTS, 0) | dict(health.events))),
    Metric("hamirt_tenants", "gauge", "Living tenants.", _NONE,
           _daemon(lambda node, _health: len(node.tenants))),
)  # fmt: skip
"""Every metric of hamirt's own."""
