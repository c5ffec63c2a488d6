"""How close the cards of a node are to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class Link(IntEnum):
    """How two cards reach each other; what is less is closer."""

    NVLINK = 0
    """Directly, or through NVSwitch."""
    SWITCH = 1
    """Through PCIe switches."""
    BRIDGE = 2
    """Through a PCIe host bridge."""
    NODE = 3
    """Within a NUMA node."""
    ACROSS = 4
    """Between NUMA nodes."""
    UNKNOWN = 5


@dataclass(frozen=True, slots=True)
class Topology:
    """What is known of the cards' places, by UUID: their NUMA nodes, and the link of each pair. Much may be missing."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[frozenset[str], Link] = field(default_factory=dict)

    def link(self, one: str, other: str) -> Link:
        """Return how two cards reach each other; where nobody said, their NUMA nodes may tell."""
        known = self.links.get(frozenset((one, other)))
        if known is not None:
            return known
        if one not in self.nodes or other not in self.nodes:
            return Link.UNKNOWN
        return Link.NODE if self.nodes[one] == self.nodes[other] else Link.ACROSS
