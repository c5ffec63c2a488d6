"""What the supervisor tells Prometheus: the tables of metrics, rendered from a Node and a Health.

The only user of prometheus_client. Tenants' names are hostile text: the library quotes them, and what can't be printed
is replaced, since a NUL or a lone surrogate would cost the whole scrape.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from hamirt.hami import HAMI_METRICS as HAMI_METRICS
from hamirt.metrics import METRICS as METRICS
from hamirt.metrics import Histogram, Metric
from hamirt.model import Health, Node

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_LABEL_CHARS = 255
_FAMILIES: dict[str, type[Any]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}
_Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


def render(node: Node, health: Health, *, hami: bool) -> bytes:
    """Return the answer to a scrape, of CONTENT_TYPE. With `hami` also under HAMi's names, for its dashboards."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Table((*METRICS, *HAMI_METRICS) if hami else METRICS, node, health))
    return generate_latest(registry)


class _Table(Collector):
    """The rows of a table as prometheus_client's families, of one node at one moment."""

    def __init__(self, metrics: Iterable[Metric], node: Node, health: Health) -> None:
        self._metrics, self._node, self._health = metrics, node, health

    def collect(self) -> Iterator[_Family]:
        for metric in self._metrics:
            family = _FAMILIES[metric.type](metric.name, metric.help, labels=metric.labels)
            # Two tenants may claim one id; Prometheus takes no series twice, so the first one keeps it.
            samples: dict[tuple[str, ...], float | Histogram] = {}
            for labels, value in metric.get(self._node, self._health):
                samples.setdefault(tuple(map(_printable, labels)), value)
            for labels, value in samples.items():
                family.add_metric(labels, *_arguments(value))
            if samples:
                yield family


def _arguments(value: float | Histogram) -> tuple[Any, ...]:
    if not isinstance(value, Histogram):
        return (value,)
    ends = (*map(floatToGoString, value.bounds), "+Inf")
    return tuple(zip(ends, accumulate(value.counts), strict=True)), value.total


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:_MOST_LABEL_CHARS])
