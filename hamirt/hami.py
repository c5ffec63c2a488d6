"""The table of HAMi's metrics, under its names and labels, for dashboards that were built on them."""

import os
from collections.abc import Callable, Iterator

from hamirt.metrics import Metric, Sample, Samples, caps_bytes, of_card
from hamirt.model import Card, Health, Node, TenantCard

_NAMESPACE = "hamirt"  # of a tenant that is in no pod
_ZONE = "vGPU"
_NODE_NAME_VARIABLE = "NODE_NAME"  # HAMi's own, set from spec.nodeName


def _node_name() -> str:
    return os.environ.get(_NODE_NAME_VARIABLE) or os.uname().nodename


def _host(value: Callable[[Node, Card], float | None], labels: int = 5) -> Callable[..., Samples]:
    """Get a value of each card under the first `labels` of _HOST and "device_cores", which is 100."""

    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for card in node.driver.cards if node.driver else ():
            number = value(node, card)
            if number is not None:
                names = (_ZONE, _node_name(), str(card.index), card.uuid, f"NVIDIA-{card.name}", "100")
                yield names[:labels], number

    return get


def _container(value: Callable[[TenantCard], float | None]) -> Callable[..., Samples]:
    """Get a value of each tenant's card under (zone, namespace, pod, container, index in the tenant, uuid)."""

    def get(node: Node, _health: Health) -> Iterator[Sample]:
        for tenant in node.tenants:
            namespace, slash, pod = (tenant.pod or "").partition("/")
            if not slash:
                namespace, pod = _NAMESPACE, namespace or tenant.name
            for position, card in enumerate(tenant.cards):
                number = value(card)
                if number is not None:
                    place = (namespace, pod, tenant.container or tenant.id)
                    yield (_ZONE, *place, str(position), card.uuid), number

    return get


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else ratio * 100


_HOST = ("zone", "node", "device_index", "device_uuid", "device_type")
_OLD_HOST = ("zone", "nodeid", "deviceidx", "deviceuuid", "devicetype")
_BOX = ("zone", "namespace", "pod", "container", "vdevice_index", "device_uuid")
_OLD_BOX = ("zone", "podnamespace", "podname", "ctrname", "vdeviceid", "deviceuuid")

# (name, name before HAMi 2.9, help, getter), of its vGPU monitor. Its utilizations run from 0 to 100.
_MONITOR_HOST = (
    ("hami_host_gpu_memory_used_bytes", "HostGPUMemoryUsage", "Memory of the card in use.",
     _host(lambda _node, card: card.used_bytes)),
    ("hami_host_gpu_utilization_ratio", "HostCoreUtilization", "Utilization of the card, 0 to 100.",
     _host(lambda _node, card: _percent(card.busy_ratio))),
)  # fmt: skip
_MONITOR_BOX = (
    ("hami_vgpu_memory_used_bytes", "vGPU_device_memory_usage_in_bytes", "Memory that the container holds.",
     _container(lambda card: card.used_bytes)),
    ("hami_vgpu_memory_limit_bytes", "vGPU_device_memory_limit_in_bytes", "Cap; the card's size where there is none.",
     _container(lambda card: card.card_bytes if card.cap_bytes is None else card.cap_bytes)),
    ("hami_container_device_memory_bytes", "Device_memory_desc_of_container", "Memory that the container holds.",
     _container(lambda card: card.used_bytes)),
    ("hami_container_device_utilization_ratio", "Device_utilization_desc_of_container",
     "Share of GPU time, 0 to 100; absent where it is not known.",
     _container(lambda card: _percent(card.busy_ratio))),
)  # fmt: skip

HAMI_METRICS: tuple[Metric, ...] = (
    *(Metric(name, "gauge", text, _HOST, get) for name, _old, text, get in _MONITOR_HOST),
    *(Metric(old, "gauge", text, _OLD_HOST, get) for _name, old, text, get in _MONITOR_HOST),
    *(Metric(name, "gauge", text, _BOX, get) for name, _old, text, get in _MONITOR_BOX),
    *(Metric(old, "gauge", text, _OLD_BOX, get) for _name, old, text, get in _MONITOR_BOX),
    # Of its scheduler; its dashboard finds nodes and cards by the first.
    Metric("hami_gpu_memory_limit_bytes", "gauge", "Memory of the card.", _HOST,
           _host(lambda _node, card: card.total_bytes)),
    Metric("hami_gpu_memory_allocated_bytes", "gauge", "Sum of the caps on the card.", (*_HOST, "device_cores"),
           _host(caps_bytes, labels=6)),
    Metric("hami_node_gpu_memory_allocated_ratio", "gauge", "Sum of the caps by the card's memory, 0 to 1.", _HOST[:4],
           _host(lambda node, card: caps_bytes(node, card) / card.total_bytes if card.total_bytes else None, labels=4)),
    Metric("hami_gpu_core_allocated_ratio", "gauge", "Sum of the caps on GPU time, 0 to 100 for each card.", _HOST,
           _host(lambda node, card: sum(on.time_percent or 0 for on in of_card(node, card.uuid)))),
    Metric("hami_gpu_shared_count", "gauge", "Tenants on the card.", _HOST,
           _host(lambda node, card: len(of_card(node, card.uuid)))),
)  # fmt: skip
"""What HAMi exports and its dashboards ask for, under its names and labels (docs/metrics.md says of which version)."""
