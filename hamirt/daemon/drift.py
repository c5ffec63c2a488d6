"""Where a tenant's ledger and NVML part: kernels and libraries are loaded by launches, which no ledger sees by itself."""

from collections.abc import Iterator

from hamirt.model import Node
from hamirt.units import MIB

_NEWS_BYTES = 8 * MIB


class Drift:
    """Remembers what measuring could not explain, so that nobody is asked for it again and again."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], int] = {}

    def find(self, node: Node) -> tuple[str, ...]:
        """Return the tenants, by id, whose processes should measure their overhead now."""
        return tuple({
            tenant: None
            for (tenant, uuid), gap in _gaps(node)
            if abs(gap - self._left.get((tenant, uuid), 0)) > _NEWS_BYTES
        })  # fmt: skip

    def settle(self, node: Node) -> None:
        """Take what is left once they have: managed memory, for one, is billed to no process."""
        self._left = dict(_gaps(node))


def _gaps(node: Node) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield what NVML shows beyond the ledger, in bytes, of each tenant on each card where all its processes are ours."""
    for tenant in node.tenants:
        for card in tenant.cards:
            if card.footprint_bytes is not None and not card.unshimmed:
                yield (tenant.id, card.uuid), card.footprint_bytes - card.used_bytes
