"""What launches load is on the card and in no ledger: the daemon has the shims look, and shows what they found."""

import struct
from pathlib import Path

from hamirt import wire
from hamirt.model import TenantCard
from hamirt.region import ffi
from hamirt.units import MIB
from tests.node.daemons import Daemon, Program
from tests.support import wait_for

CONTEXT_BYTES = 520 * MIB  # of a simulated card


def on_card(daemon: Daemon) -> TenantCard | None:
    """Return the only tenant on its card, None before a sample has it."""
    cards = [card for tenant in wire.node_from_json(daemon.client.node()).tenants for card in tenant.cards]
    return cards[0] if cards else None


def overhead_bytes(daemon: Daemon) -> int:
    card = on_card(daemon)
    return 0 if card is None else card.overhead_bytes


def forget_overhead(usage: Path) -> None:
    """Make a ledger that missed what the driver took."""
    at = ffi.offsetof("struct hm_usage", "slot", 0, "use", 0, "overhead_bytes")
    with open(usage, "r+b") as page:
        page.seek(at)
        page.write(struct.pack("<Q", 0))


def test_a_ledger_that_missed_something_is_put_right_before_it_is_shown(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--gpu", "0", "--mem", "8GiB")
    assert program("alloc 100") == 0
    wait_for(lambda: overhead_bytes(daemon) == CONTEXT_BYTES, "the context's measurement")
    before = daemon.client.health()["samples"]

    (folder,) = (daemon.root / "tenants").glob("web-*")
    forget_overhead(folder / "rw" / "usage")
    wait_for(lambda: daemon.client.health()["samples"] > before + 1, "two more samples")

    card = on_card(daemon)
    assert card is not None
    assert (card.overhead_bytes, card.footprint_bytes) == (CONTEXT_BYTES, card.used_bytes)
    assert program.end() == 0
