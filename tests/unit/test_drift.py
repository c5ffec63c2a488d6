"""Who is asked to measure, and who is left alone."""

from dataclasses import replace

from hamirt.daemon.drift import Drift
from hamirt.model import CardProcess, Driver, Enforcement, Level, Node, Tenant, TenantCard
from hamirt.units import GIB, MIB

CARD = TenantCard(
    0, "GPU-aa", 8 * GIB, 80 * GIB, 1 * GIB, 0, 520 * MIB, None, 0, False, Enforcement(Level.FULL, None), ()
)


def node(gap: int | None, **changes: object) -> Node:
    """Return a node on which NVML shows so much more than the ledger of one tenant."""
    footprint = None if gap is None else CARD.used_bytes + gap
    card = replace(CARD, footprint_bytes=footprint, **changes)  # type: ignore[arg-type]
    return Node(Driver("580", (), True), (Tenant("web-1", "web", True, None, (card,)),), False, None)


def test_only_a_gap_is_asked_about() -> None:
    assert Drift().find(node(8 * MIB)) == frozenset()
    assert Drift().find(node(None)) == frozenset()
    assert Drift().find(node(8 * MIB + 1)) == {"web-1"}
    assert Drift().find(node(-8 * MIB - 1)) == {"web-1"}


def test_a_process_without_the_shim_cannot_be_asked() -> None:
    assert Drift().find(node(GIB, unshimmed=(CardProcess(7, GIB),))) == frozenset()


def test_what_measuring_left_is_not_asked_about_again_but_what_comes_on_top_is() -> None:
    drift = Drift()

    assert drift.find(node(-GIB)) == {"web-1"}
    assert drift.find(node(-GIB)) == frozenset()
    assert drift.find(node(-GIB - 4 * MIB)) == frozenset()
    assert drift.find(node(-GIB + 100 * MIB)) == {"web-1"}


def test_a_tenant_that_went_is_forgotten() -> None:
    drift = Drift()
    drift.find(node(-GIB))
    drift.find(node(-GIB))
    drift.find(node(None))

    assert drift.find(node(-GIB)) == {"web-1"}
