"""Tenants whose processors don't keep up with the card have it all at once: turns would leave it idle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.arbiter_world import (
    BATCH,
    CLOSED,
    FREE,
    LATENCY,
    MS,
    NORMAL,
    STATES,
    US,
    Load,
    Process,
    S,
    Tenant,
    World,
    shares,
)

SPARSE = Load(kernel_ns=100 * US, kernels=1, pause_ns=250 * US)
"""It holds the card all the time, since a pause of less than 0.3 ms is none, and works at it for a quarter of that."""
SETTLED = 1 * S
TURNS_NS, LOOK_NS, OPEN_NS = 150 * MS, 50 * MS, 5 * S  # of arbiter.c


def settled(*loads: Load, **options: object) -> tuple[World, list[Tenant]]:
    """Return tenants that have taken turns for long enough to know whether they should."""
    world = World(1)
    tenants = [world.tenant(load, **options) for load in loads]
    world.run(SETTLED)
    return world, tenants


def alone(load: Load) -> float:
    world = World(1)
    return shares(world, 2 * S, world.tenant(load))[0]


def run_until(world: World, happened: Callable[[], bool], step_ns: int) -> int:
    """Let time pass until something has happened; return how much."""
    begun = world.now
    while not happened():
        assert world.now - begun < 60 * S
        world.run(step_ns)
    return world.now - begun


def are_open(*tenants: Tenant) -> bool:
    return all(tenant.gate.word & STATES == FREE for tenant in tenants)


@pytest.mark.parametrize("latency_class", [NORMAL, LATENCY, BATCH])
def test_they_do_as_much_as_alone(latency_class: int) -> None:
    world, tenants = settled(SPARSE, SPARSE, latency_class=latency_class)

    assert are_open(*tenants)
    assert min(shares(world, 5 * S, *tenants)) > 0.8 * alone(SPARSE)


def test_one_of_them_is_enough() -> None:
    """The other has the card to itself whenever the first makes a pause."""
    world, tenants = settled(SPARSE, Load(kernel_ns=200 * US, queue=2))

    assert are_open(*tenants)
    assert sum(shares(world, 5 * S, *tenants)) > 0.9


def test_at_first_they_take_turns() -> None:
    world = World(1)
    tenants = [world.tenant(SPARSE) for _ in range(2)]

    assert sum(shares(world, 2 * TURNS_NS, *tenants)) < 1.1 * alone(SPARSE)


@pytest.mark.parametrize("other", [Load(), Load(waits=True), Load(kernels=10, period_ns=20 * MS)])
def test_not_where_each_keeps_the_card_busy_at_its_turn(other: Load) -> None:
    world, tenants = settled(Load(), other)

    assert not are_open(*tenants)
    world.run(10 * S)
    assert world.cards[0].overlap_ns == 0


def test_not_for_one_that_wants_the_card_seldom() -> None:
    """While nobody else waits for it, nobody says what the card does for the other."""
    world, _ = settled(Load(), Load(kernels=1, period_ns=2 * S))
    handover_ns = world.cards[0].state.handover_ns
    world.run(30 * S)

    assert world.cards[0].overlap_ns == 0
    assert world.cards[0].state.handover_ns - handover_ns < 30 * MS


def test_now_and_then_they_take_turns_again() -> None:
    """...for a short look, less and less often."""
    world, tenants = settled(SPARSE, SPARSE)
    run_until(world, lambda: not are_open(*tenants), MS)
    looks, opens = [], []
    for _ in range(3):
        looks.append(run_until(world, lambda: are_open(*tenants), MS))
        opens.append(run_until(world, lambda: not are_open(*tenants), MS))

    assert max(looks) < LOOK_NS + 50 * MS
    assert opens == [pytest.approx(times * OPEN_NS, rel=0.02) for times in (2, 4, 4)]


def test_and_for_good_when_they_have_more_to_do() -> None:
    world, tenants = settled(SPARSE, SPARSE)
    for tenant in tenants:
        tenant.process(Load())
    world.run(OPEN_NS + 300 * MS)

    assert world.cards[0].overlap_ns > 0
    overlapped = world.cards[0].overlap_ns
    world.run(20 * S)
    assert world.cards[0].overlap_ns == overlapped


def test_not_where_nobody_says_how_long_the_card_was_at_work() -> None:
    world = World(1)
    tenants = [world.tenant(SPARSE) for _ in range(2)]
    for tenant in tenants:
        tenant.processes[0].tells = False
    world.run(SETTLED)

    assert not are_open(*tenants)


def test_a_capped_tenant_closes_it_and_is_held_to_its_cap() -> None:
    world, tenants = settled(SPARSE, SPARSE)
    capped = world.tenant(Load(), percent=20)
    world.run(1 * S)

    assert not are_open(*tenants)
    assert shares(world, 5 * S, capped)[0] == pytest.approx(0.2, abs=0.01)


def test_not_with_a_gang() -> None:
    world = World(1)
    tenants = [world.tenant(SPARSE) for _ in range(2)]
    tenants[0].usage.device[0].ganged = 1
    world.run(SETTLED)

    assert not are_open(*tenants)


def test_who_was_open_is_waited_for_when_it_ends() -> None:
    world, tenants = settled(SPARSE, SPARSE)
    busy = [tenant.process(Load(kernel_ns=1 * MS)) for tenant in tenants]
    run_until(world, lambda: not are_open(*tenants), 50 * US)
    assert all(world.cards[0].works_for(process) for process in busy)
    run_until(world, lambda: any(tenant.gate.word & STATES != CLOSED for tenant in tenants), 50 * US)

    closed = next(i for i, tenant in enumerate(tenants) if tenant.gate.word & STATES == CLOSED)
    assert not world.cards[0].works_for(busy[closed])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([SPARSE, Load(), Load(waits=True), Load(kernels=10, period_ns=20 * MS)]),
            st.sampled_from([NORMAL, LATENCY, BATCH]),
            st.sampled_from([0, 0, 0, 30]),
        ),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([Process.kill, Process.stop]),
    st.integers(0, 1 << 32),
)
@example([(SPARSE, NORMAL, 0), (SPARSE, LATENCY, 0), (SPARSE, LATENCY, 30), (SPARSE, BATCH, 0)], Process.kill, 0)
def test_nobody_is_shut_out(mix: list[tuple[Load, int, int]], end: object, seed: int) -> None:
    """...whoever ends or stops while all gates are open, and whoever arbitrates next."""
    world = World(seed)
    tenants = [world.tenant(load, latency_class=each, percent=cap) for load, each, cap in mix]
    world.run(4 * S + seed % 997 * MS)
    assert callable(end)
    end(tenants[0].processes[0])
    world.run(2 * S)
    if seed % 2:
        world.succeed()
        world.run(1 * S)

    for tenant in tenants:
        tenant.processes[0].longest_wait_ns = 0
    assert min(shares(world, 3 * S, *tenants[1:])) > 0.002
    assert max(tenant.processes[0].longest_wait_ns for tenant in tenants[1:]) < 0.6 * S
