"""What the supervisor tells Prometheus: one table of metrics, rendered from a Node and a Health.

Base units, ratios from 0 to 1, and what is not known is absent, never 0. docs/metrics.md describes each metric. The
only user of prometheus_client. Tenants' names are hostile text: the library quotes them, and what can't be printed is
replaced, since a NUL or a lone surrogate would cost the whole scrape.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hamirt import __version__
from hamirt.model import Card, Health, Level, Node, Standing, Tenant, TenantCard

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

EVENTS = ("tenant_created", "tenant_changed", "tenant_removed", "violation", "killed")
"""Kinds of events that are counted from 0, so that their first is seen as an increase."""
REASONS = ("enforced", "uncapped", "unreadable", "unshimmed", "over", "estimated", "not_preloaded", "other")
"""All that a cap's enforcement can be for, as a label: few, and the same in every release."""

_MOST_LABEL_CHARS = 255
_HAMI_NAMESPACE = "hamirt"  # of a tenant that is in no pod
_HAMI_ZONE = "vGPU"
_NODE_NAME_VARIABLE = "NODE_NAME"  # HAMi's own, set from spec.nodeName

Sample = tuple[tuple[str, ...], float]
"""The values of a metric's labels, in their order, and its value."""
Samples = Iterable[Sample]


@dataclass(frozen=True, slots=True)
class Metric:
    """A line of the table; `get` yields no sample for what is not known."""

    name: str
    type: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...]
    get: Callable[[Node, Health], Samples]


def render(node: Node, health: Health, *, hami: bool) -> bytes:
    """Return the answer to a scrape, of CONTENT_TYPE. With `hami` also under HAMi's names, for its dashboards."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Table((*METRICS, *HAMI_METRICS) if hami else METRICS, node, health))
    return generate_latest(registry)


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


class _Table(Collector):
    """The rows of a table as prometheus_client's families, of one node at one moment."""

    def __init__(self, metrics: Iterable[Metric], node: Node, health: Health) -> None:
        self._metrics, self._node, self._health = metrics, node, health

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric in self._metrics:
            family_type = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
            family = family_type(metric.name, metric.help, labels=metric.labels)
            # Two tenants may claim one id; Prometheus takes no series twice, so the first one keeps it.
            samples: dict[tuple[str, ...], float] = {}
            for labels, value in metric.get(self._node, self._health):
                samples.setdefault(tuple(map(_printable, labels)), value)
            for labels, value in samples.items():
                family.add_metric(labels, value)
            if samples:
                yield family


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:_MOST_LABEL_CHARS])


def _cards(value: Callable[[Node, Card], float | None]) -> Callable[[Node, Health], Samples]:
    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for card in node.driver.cards if node.driver else ():
            number = value(node, card)
            if number is not None:
                yield (card.uuid, str(card.index)), number

    return get


def _on_cards(value: Callable[[TenantCard], float | None]) -> Callable[[Node, Health], Samples]:
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


def _of_card(node: Node, uuid: str) -> list[TenantCard]:
    """Return the tenants on a card of this driver; a simulated tenant is not on a real card."""
    simulated = node.driver is not None and node.driver.simulated
    return [card for tenant, card in _tenant_cards(node) if card.uuid == uuid and tenant.simulated == simulated]


def _caps(node: Node, card: Card) -> int:
    return sum(card.total_bytes if on.cap_bytes is None else on.cap_bytes for on in _of_card(node, card.uuid))


def _foreign(card: Card) -> int | None:
    """Return what processes of no tenant hold, None unless all are judged and the size of each foreign one is known."""
    sizes = [process.used_bytes for process in card.processes if process.standing is Standing.FOREIGN]
    known = [size for size in sizes if size is not None]
    judged = all(process.standing is not None for process in card.processes)
    return sum(known) if judged and len(known) == len(sizes) else None


def _unclaimed(node: Node, card: Card) -> int | None:
    foreign = _foreign(card)
    return None if foreign is None else card.total_bytes - foreign - _caps(node, card)


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
            level = card.time_enforcement.level
            reason = {Level.FULL: "enforced", Level.PARTIAL: "other", Level.NONE: "not_capped_yet"}[level]
            yield (tenant.id, card.uuid, level.value, reason), 1


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
           _cards(_caps)),
    Metric("hamirt_gpu_memory_foreign_bytes", "gauge",
           "Held by processes of no tenant; absent where the size of one is not known.", _GPU,
           _cards(lambda _node, card: _foreign(card))),
    Metric("hamirt_gpu_memory_unclaimed_bytes", "gauge",
           "Left for further caps: total less caps less foreign; below 0 where caps are overcommitted.", _GPU,
           _cards(_unclaimed)),
    Metric("hamirt_gpu_busy_ratio", "gauge", "Part of the time in which the card ran a kernel, by NVML.", _GPU,
           _cards(lambda _node, card: card.busy_ratio)),
    Metric("hamirt_gpu_mig_enabled", "gauge", "1 if the card is in MIG mode; such a card is not divided.", _GPU,
           _cards(lambda _node, card: int(card.mig))),
    Metric("hamirt_gpu_processes", "gauge", "Processes on the card, by what they are to the node's tenants.",
           (*_GPU, "standing"), _standings),
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
           "Cap on the tenant's share of GPU time; absent without one. GPU time is not capped yet.", _ON,
           _on_cards(lambda card: _ratio(card.time_percent))),
    Metric("hamirt_tenant_gpu_time_share_ratio", "gauge", "The tenant's share of GPU time; absent until metered.", _ON,
           _on_cards(lambda card: card.busy_ratio)),
    Metric("hamirt_tenant_weight", "gauge", "Weight among those that want the card.", _ON,
           _on_cards(lambda card: card.weight)),
    Metric("hamirt_tenant_throttled_seconds_total", "counter", "How long launches were held back.", _ON,
           _on_cards(lambda card: card.throttled_seconds)),
    Metric("hamirt_tenant_denials_total", "counter", "Requests for memory that were refused.", _ON,
           _on_cards(lambda card: card.denials)),
    Metric("hamirt_tenant_processes", "gauge", "Living processes with the shim that use the card.", _ON,
           _on_cards(lambda card: len(card.processes))),
    Metric("hamirt_tenant_unshimmed_processes", "gauge", "The tenant's processes on the card without the shim.", _ON,
           _on_cards(lambda card: len(card.unshimmed))),
    Metric("hamirt_tenant_enforcement_info", "gauge", "How far the memory cap holds (full, partial, none), and why.",
           (*_ON, "level", "reason"), _enforcement),
    Metric("hamirt_tenant_gpu_time_enforcement_info", "gauge",
           "How far the cap on GPU time holds, and why; absent without one. GPU time is not capped yet.",
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


def _node_name() -> str:
    return os.environ.get(_NODE_NAME_VARIABLE) or os.uname().nodename


def _hami_host(value: Callable[[Node, Card], float | None], labels: int = 5) -> Callable[..., Samples]:
    """Get a value of each card under the first `labels` of _HOST and "device_cores", which is 100."""

    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for card in node.driver.cards if node.driver else ():
            number = value(node, card)
            if number is not None:
                names = (_HAMI_ZONE, _node_name(), str(card.index), card.uuid, f"NVIDIA-{card.name}", "100")
                yield names[:labels], number

    return get


def _hami_container(value: Callable[[TenantCard], float | None]) -> Callable[..., Samples]:
    """Get a value of each tenant's card under (zone, namespace, pod, container, index in the tenant, uuid)."""

    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for tenant in node.tenants:
            namespace, slash, pod = (tenant.pod or "").partition("/")
            if not slash:
                namespace, pod = _HAMI_NAMESPACE, namespace or tenant.name
            for position, card in enumerate(tenant.cards):
                number = value(card)
                if number is not None:
                    place = (namespace, pod, tenant.container or tenant.id)
                    yield (_HAMI_ZONE, *place, str(position), card.uuid), number

    return get


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else ratio * 100


_HOST = ("zone", "node", "device_index", "device_uuid", "device_type")
_OLD_HOST = ("zone", "nodeid", "deviceidx", "deviceuuid", "devicetype")
_BOX = ("zone", "namespace", "pod", "container", "vdevice_index", "device_uuid")
_OLD_BOX = ("zone", "podnamespace", "podname", "ctrname", "vdeviceid", "deviceuuid")

# (name, name before HAMi 2.9, help, getter), of its vGPU monitor. Its utilizations run from 0 to 100.
_HAMI_MONITOR_HOST = (
    ("hami_host_gpu_memory_used_bytes", "HostGPUMemoryUsage", "Memory of the card in use.",
     _hami_host(lambda _node, card: card.used_bytes)),
    ("hami_host_gpu_utilization_ratio", "HostCoreUtilization", "Utilization of the card, 0 to 100.",
     _hami_host(lambda _node, card: _percent(card.busy_ratio))),
)  # fmt: skip
_HAMI_MONITOR_BOX = (
    ("hami_vgpu_memory_used_bytes", "vGPU_device_memory_usage_in_bytes", "Memory that the container holds.",
     _hami_container(lambda card: card.used_bytes)),
    ("hami_vgpu_memory_limit_bytes", "vGPU_device_memory_limit_in_bytes", "Cap; the card's size where there is none.",
     _hami_container(lambda card: card.card_bytes if card.cap_bytes is None else card.cap_bytes)),
    ("hami_container_device_memory_bytes", "Device_memory_desc_of_container", "Memory that the container holds.",
     _hami_container(lambda card: card.used_bytes)),
    ("hami_container_device_utilization_ratio", "Device_utilization_desc_of_container",
     "Share of GPU time, 0 to 100; absent until metered.",
     _hami_container(lambda card: _percent(card.busy_ratio))),
)  # fmt: skip

HAMI_METRICS: tuple[Metric, ...] = (
    *(Metric(name, "gauge", text, _HOST, get) for name, _old, text, get in _HAMI_MONITOR_HOST),
    *(Metric(old, "gauge", text, _OLD_HOST, get) for _name, old, text, get in _HAMI_MONITOR_HOST),
    *(Metric(name, "gauge", text, _BOX, get) for name, _old, text, get in _HAMI_MONITOR_BOX),
    *(Metric(old, "gauge", text, _OLD_BOX, get) for _name, old, text, get in _HAMI_MONITOR_BOX),
    # Of its scheduler; its dashboard finds nodes and cards by the first.
    Metric("hami_gpu_memory_limit_bytes", "gauge", "Memory of the card.", _HOST,
           _hami_host(lambda _node, card: card.total_bytes)),
    Metric("hami_gpu_memory_allocated_bytes", "gauge", "Sum of the caps on the card.", (*_HOST, "device_cores"),
           _hami_host(_caps, labels=6)),
    Metric("hami_node_gpu_memory_allocated_ratio", "gauge", "Sum of the caps by the card's memory, 0 to 1.", _HOST[:4],
           _hami_host(lambda node, card: _caps(node, card) / card.total_bytes if card.total_bytes else None, labels=4)),
    Metric("hami_gpu_core_allocated_ratio", "gauge",
           "Sum of the caps on GPU time, 0 to 100. GPU time is not capped yet.", _HOST,
           _hami_host(lambda node, card: sum(on.time_percent or 0 for on in _of_card(node, card.uuid)))),
    Metric("hami_gpu_shared_count", "gauge", "Tenants on the card.", _HOST,
           _hami_host(lambda node, card: len(_of_card(node, card.uuid)))),
)  # fmt: skip
"""What HAMi exports and its dashboards ask for, under its names and labels (docs/metrics.md says of which version)."""
