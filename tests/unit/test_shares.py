"""Shares of GPU time between samples: metered ones, those that only the card's utilization tells, and unknown ones."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hamirt.daemon.shares import Shares
from hamirt.model import (
    Card,
    CardProcess,
    Driver,
    Enforcement,
    GateState,
    Level,
    Metering,
    Node,
    ProcessView,
    ShareSource,
    Standing,
    Tenant,
    TenantCard,
)

METERED, SAMPLED = ShareSource.METERED, ShareSource.SAMPLED
CLOSED, WINDOWED, FREE = GateState.CLOSED, GateState.WINDOWED, GateState.FREE
NO_WAITS = (0,) * 24
ON = TenantCard(
    index=0,
    uuid="GPU-aa",
    cap_bytes=None,
    card_bytes=1000,
    allocation_bytes=0,
    pool_bytes=0,
    overhead_bytes=0,
    footprint_bytes=None,
    denials=0,
    over=False,
    enforcement=Enforcement(Level.FULL, None),
    processes=(),
)


def tenant(
    name: str, gate: GateState, charged: float = 0.0, free: float = 0.0, pid: int | None = 7, *, supervised: bool = True
) -> Tenant:
    """A tenant with what its gate says; with a process on the card unless `pid` is None."""
    processes = () if pid is None else (ProcessView(pid, pid, "train", 0, None),)
    metering = Metering(gate, supervised, charged, charged if supervised else 0.0, free, waits=NO_WAITS)
    return Tenant(name, name, False, None, (replace(ON, processes=processes, metering=metering),))


def node(*tenants: Tenant, busy: float | None = 0.5, foreign: bool = False) -> Node:
    """A node with one card, on which the tenants' processes are."""
    processes = [
        CardProcess(view.pid or 0, None, Standing.REGISTERED, one.id)
        for one in tenants
        for view in one.cards[0].processes
    ]
    if foreign:
        processes.append(CardProcess(99, None, Standing.FOREIGN))
    card = Card(0, "GPU-aa", "H100", 1000, 0, busy, False, tuple(processes))
    return Node(Driver("580", (card,), simulated=False), tenants, False, None)


def shares(*looks: tuple[float, Node]) -> list[tuple[float | None, ShareSource | None]]:
    """Return the shares of the tenants at the last look."""
    watch = Shares()
    seen = [watch.complete(one, now) for now, one in looks]
    return [(on.busy_ratio, on.busy_source) for one in seen[-1].tenants for on in one.cards]


def test_a_metered_share_is_what_was_charged_between_two_looks() -> None:
    before, after = node(tenant("a", WINDOWED, 10.0)), node(tenant("a", CLOSED, 10.25))

    assert shares((5.0, before)) == [(None, None)]
    assert shares((5.0, before), (6.0, after)) == [(0.25, METERED)]


def test_a_share_is_taken_over_half_a_second_where_that_can_be() -> None:
    looks = [
        (at, node(tenant("a", WINDOWED, charged))) for at, charged in ((0, 0.0), (0.5, 0.5), (1.0, 0.5), (1.1, 0.6))
    ]

    assert shares(*looks[:2]) == [(1.0, METERED)]
    assert shares(*looks[:3]) == [(0.0, METERED)]
    ((ratio, _),) = shares(*looks)
    assert ratio is not None
    assert abs(ratio - 0.1 / 0.6) < 1e-9  # since 0.5: the look at 1.0 is too young


def test_charges_that_come_in_lumps_are_no_more_than_all() -> None:
    assert shares((0, node(tenant("a", WINDOWED))), (1, node(tenant("a", CLOSED, 1.5)))) == [(1.0, METERED)]


def test_while_the_gate_is_free_it_is_the_cards_utilization() -> None:
    one = node(tenant("a", FREE), busy=0.75)

    assert shares((0, one)) == [(0.75, SAMPLED)]
    assert shares((0, one), (1, one)) == [(0.75, SAMPLED)]
    assert shares((0, node(tenant("a", FREE), busy=None))) == [(None, None)]


def test_of_a_time_with_both_each_counts_for_its_part() -> None:
    before = node(tenant("a", WINDOWED, 10.0))
    after = node(tenant("a", FREE, 10.25), busy=0.5)

    assert shares((0, before), (1, after)) == [(0.25 + 0.5 * 0.75, SAMPLED)]


def test_what_a_neighbour_was_charged_for_is_not_shared_out_again() -> None:
    before = node(tenant("a", FREE), tenant("b", CLOSED))
    after = node(tenant("a", CLOSED, 0.25, 90.0), tenant("b", WINDOWED, 0.5), busy=1.0)

    assert shares((0, before), (1, after)) == [(0.5, SAMPLED), (0.5, METERED)]
    assert shares((0, before)) == [(None, None), (None, None)]


def test_nobody_knows_whose_the_utilization_is() -> None:
    for looks in (
        ((0, node(tenant("a", FREE), foreign=True)),),
        ((0, node(tenant("a", FREE), foreign=True)), (1, node(tenant("a", FREE), foreign=True))),
    ):
        assert shares(*looks) == [(None, None)]
    two = node(tenant("a", FREE), tenant("b", FREE, pid=8))
    assert shares((0, two)) == shares((0, two), (1, two)) == [(None, None)] * 2
    alone = node(tenant("a", FREE))
    assert alone.driver is not None
    hidden = replace(alone, driver=replace(alone.driver, cards=(replace(alone.driver.cards[0], processes=()),)))
    assert shares((0, hidden)) == [(None, None)]


def test_another_tenants_page_is_not_believed_for_ours() -> None:
    looks = [(at, node(tenant("a", FREE), tenant("b", gate, at * 0.9, pid=pid, supervised=False), busy=0.5))
             for gate in (FREE, WINDOWED) for pid in (None, 8) for at in (0, 1)]  # fmt: skip

    for at, (before, after) in enumerate(zip(looks[::2], looks[1::2], strict=True)):
        expected = (None, None) if at % 2 else (0.5, SAMPLED)
        assert shares(before, after)[0] == expected


def test_an_idle_neighbour_whose_gate_is_closed_does_not_matter() -> None:
    one = node(tenant("a", FREE), tenant("b", CLOSED, pid=8))

    assert shares((0, one), (1, one)) == [(0.5, SAMPLED), (0.0, METERED)]


def test_a_tenant_without_a_process_has_no_share() -> None:
    assert shares((0, node(tenant("a", FREE, pid=None), foreign=True))) == [(0.0, METERED)]


def test_a_process_without_the_shim_makes_it_unknown() -> None:
    bare = CardProcess(8, None, Standing.UNSHIMMED, "a")
    one = tenant("a", WINDOWED)
    one = replace(one, cards=(replace(one.cards[0], unshimmed=(bare,)),))

    assert shares((0, node(one)), (1, node(one))) == [(None, None)]


def test_pages_that_cannot_be_read_leave_it_unknown() -> None:
    one = replace(tenant("a", FREE), cards=(ON,))

    assert shares((0, node(one)), (1, node(one))) == [(None, None)]


def test_a_counter_that_fell_takes_nothing_away() -> None:
    assert shares((0, node(tenant("a", WINDOWED, 5.0))), (1, node(tenant("a", WINDOWED, 1.0)))) == [(0.0, METERED)]


def waited(counts: dict[int, int]) -> Node:
    one = tenant("a", WINDOWED)
    waits = tuple(counts.get(bucket, 0) for bucket in range(24))
    metering = replace(one.cards[0].metering or Metering(WINDOWED), waits=waits)
    return node(replace(one, cards=(replace(one.cards[0], metering=metering),)))


def longest(*looks: tuple[float, Node]) -> float | None:
    """Return the 99th percentile of the waits at the last look."""
    watch = Shares()
    seen = [watch.complete(one, now) for now, one in looks][-1].tenants[0].cards[0].metering
    assert seen is not None
    return seen.wait_p99_seconds


def test_waits_are_those_of_the_last_minute_once_it_was_watched() -> None:
    slow, quick = waited({20: 1000}), waited({20: 1000, 3: 10})

    assert longest((0, slow)) == 1.048576
    assert longest((0, slow), (59, quick)) == 1.048576
    assert longest((0, slow), (60, quick)) == 8e-6
    assert longest((0, slow), (60, quick), (121, quick)) is None
    assert longest((0, quick), (60, slow)) is None  # that bucket fell: what it counts is new, and it counts none


def test_a_minute_of_waits_does_not_need_every_look() -> None:
    watch = Shares()
    for second in range(600):
        seen = watch.complete(waited({3: second, 20: 1000 if second > 500 else 0}), second).tenants[0].cards[0].metering

    assert seen is not None
    assert (seen.wait_p50_seconds, seen.wait_p99_seconds) == (8e-6, 8e-6)
    assert len(watch._past["a", "GPU-aa"]._waits._kept) < 15


def test_a_tenant_that_went_is_forgotten() -> None:
    watch = Shares()
    watch.complete(node(tenant("a", WINDOWED)), 0)
    watch.complete(node(), 1)

    assert watch._past == {}


looks = st.tuples(st.sampled_from(GateState), st.floats(0, 1e9), st.floats(0, 1e9), st.sampled_from([None, 7]))


@given(st.lists(st.tuples(st.floats(0, 10), looks, looks, st.none() | st.floats(0, 1), st.booleans()), max_size=6))
def test_no_page_makes_a_share_that_is_none(
    seen: list[tuple[float, tuple[GateState, float, float, int | None], tuple[GateState, float, float, int | None],
                     float | None, bool]],
) -> None:  # fmt: skip
    watch, now = Shares(), 0.0
    for gap, one, other, busy, foreign in seen:
        now += gap
        found = watch.complete(node(tenant("a", *one), tenant("b", *other), busy=busy, foreign=foreign), now)
        for on in (on for tenant in found.tenants for on in tenant.cards):
            assert (on.busy_ratio is None) == (on.busy_source is None)
            assert on.busy_ratio is None or 0.0 <= on.busy_ratio <= 1.0
