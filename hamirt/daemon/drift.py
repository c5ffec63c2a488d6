"""Where a tenant's ledger and NVML part: kernels and libraries are loaded by launches, which no ledger sees."""

from collections.abc import Iterator

from hamirt.model import Node
from hamirt.units import MIB

_NEWS_BYTES = 8 * MIB


class Drift:
    """Remembers what measuring could not explain, so that nobody is asked for it again and again."""

    def __init__(self) -> None:
        self._asked: frozenset[str] = frozenset()
        self._left: dict[tuple[str, str], int] = {}

    def find(self, node: Node) -> frozenset[str]:
        """Return the tenants, by id, whose processes should measure their overhead now.

        Of those that were asked after the last sample, what is left is taken as it is: managed memory, for one, is
        billed to no process.
        """
        gaps = dict(_gaps(node))
        self._left = {
            key: gap if key[0] in self._asked else self._left[key]
            for key, gap in gaps.items()
            if key[0] in self._asked or key in self._left
        }
        news = (key[0] for key, gap in gaps.items() if abs(gap - self._left.get(key, 0)) > _NEWS_BYTES)
        self._asked = frozenset(news)
        return self._asked


def _gaps(node: Node) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield what NVML shows beyond the ledger, in bytes, of each tenant on each card that it uses by the shim alone."""
    for tenant in node.tenants:
        for card in tenant.cards:
            if card.drift_bytes is not None and not card.unshimmed:
                yield (tenant.id, card.uuid), card.drift_bytes
