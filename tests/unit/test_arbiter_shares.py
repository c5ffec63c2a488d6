"""GPU time in virtual time: shares by caps, weights and classes, counted in work done."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
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
    S,
    Tenant,
    World,
    each_second,
    shares,
)

LOADS = [Load(50 * US), Load(500 * US), Load(5 * MS), Load(500 * US, waits=True), Load(2 * MS, waits=True)]
REQUESTS = Load(200 * US, kernels=10, period_ns=20 * MS)
STARVED_NS = 400 * MS
some = settings(max_examples=25, deadline=None)
loads = st.sampled_from(LOADS)
seeds = st.integers(0, 1 << 32)
weights = st.integers(20, 500)


def alone(load: Load) -> float:
    """The part of the time that a load has the card when nobody limits it."""
    world = World(99)
    tenant = world.tenant(load)
    world.run(1 * S)
    return shares(world, 5 * S, tenant)[0]


def is_fair(world: World) -> bool:
    return all(card.most_open <= 1 and card.overlap_ns == 0 for card in world.cards)


@pytest.mark.parametrize("percent", [10, 25, 50, 75, 90])
@pytest.mark.parametrize("load", LOADS)
def test_a_cap_holds_over_five_seconds_and_in_each(percent: int, load: Load) -> None:
    world = World(percent)
    tenant = world.tenant(load, percent=percent)
    world.run(1 * S)

    seconds = list(each_second(world, 20, tenant))

    assert all(sum(seconds[at : at + 5]) / 5 == pytest.approx(percent / 100, abs=0.01) for at in range(16))
    assert seconds == pytest.approx([percent / 100] * 20, abs=0.03)


@pytest.mark.parametrize("percent", [20, 40, 90])
@pytest.mark.parametrize("pause", [2 * MS, 5 * MS, 50 * MS])
def test_a_cap_on_a_load_that_pauses(percent: int, pause: int) -> None:
    load = Load(500 * US, kernels=10, pause_ns=pause)
    world = World(3)
    tenant = world.tenant(load, percent=percent)
    world.run(1 * S)

    [got] = shares(world, 20 * S, tenant)

    busy = alone(load)
    assert got / busy == pytest.approx(min(1, percent / 100 / busy), abs=0.01 / busy)


@some
@given(st.lists(st.tuples(st.integers(5, 30), loads), min_size=2, max_size=3), seeds)
def test_caps_beside_each_other(tenants: list[tuple[int, Load]], seed: int) -> None:
    world = World(seed)
    all_ = [world.tenant(load, percent=percent) for percent, load in tenants]
    world.run(1 * S)

    got = shares(world, 10 * S, *all_)

    assert got == pytest.approx([percent / 100 for percent, _ in tenants], abs=0.01)
    assert is_fair(world)


@some
@given(st.lists(st.tuples(st.integers(50, 400), loads), min_size=2, max_size=4), seeds)
def test_weights(tenants: list[tuple[int, Load]], seed: int) -> None:
    world = World(seed)
    all_ = [world.tenant(load, weight=weight) for weight, load in tenants]
    world.run(1 * S)

    got = shares(world, 20 * S, *all_)

    total, weights = sum(got), sum(weight for weight, _ in tenants)
    assert total > 0.9
    assert [each / total for each in got] == pytest.approx([weight / weights for weight, _ in tenants], abs=0.01)
    assert is_fair(world)


def test_an_hour_of_two() -> None:
    world = World(1)
    one, two = world.tenant(Load()), world.tenant(Load(waits=True))

    got = shares(world, 3600 * S, one, two)

    assert got == pytest.approx([sum(got) / 2] * 2, abs=0.001)
    assert sum(got) > 0.98
    assert world.steps < 3600 * 300
    assert is_fair(world)


def test_a_cap_beside_weights() -> None:
    world = World(2)
    tenants = [world.tenant(Load(), percent=20), world.tenant(Load()), world.tenant(Load(), weight=300)]
    world.run(1 * S)

    got = shares(world, 20 * S, *tenants)

    assert got[0] == pytest.approx(0.2, abs=0.01)
    assert got[2] / (got[1] + got[2]) == pytest.approx(0.75, abs=0.01)
    assert sum(got) > 0.96


def test_a_cap_beside_one_that_never_pauses() -> None:
    world = World(2)
    tenants = [world.tenant(Load(), percent=35), world.tenant(Load())]
    world.run(1 * S)

    got = shares(world, 20 * S, *tenants)

    assert got == pytest.approx([0.35, 0.64], abs=0.01)


def test_processes_of_one_tenant_share_its_cap() -> None:
    world = World(4)
    tenant = world.tenant(Load(), percent=30, processes=8)
    world.run(1 * S)

    assert shares(world, 10 * S, tenant) == pytest.approx([0.3], abs=0.01)


@some
@given(st.integers(5, 90), loads, st.integers(0, 100), seeds)
def test_a_cap_is_a_ceiling_also_after_pauses(percent: int, load: Load, pause_ms: int, seed: int) -> None:
    world = World(seed)
    burst = Load(load.kernel_ns, load.waits, kernels=50, pause_ns=pause_ms * MS)
    tenant = world.tenant(burst, percent=percent)
    world.tenant(load)

    done = [tenant.ran_ns]
    for _ in range(60):
        world.run(250 * MS)
        done.append(tenant.ran_ns)

    most = max(after - before for before, after in zip(done, done[20:], strict=False))
    assert most <= 5 * S * (percent + 1) // 100 + load.kernel_ns


@some
@given(
    st.lists(st.tuples(loads, st.sampled_from([NORMAL, LATENCY, BATCH]), st.integers(20, 500)), min_size=2, max_size=5),
    seeds,
)
def test_nobody_starves(tenants: list[tuple[Load, int, int]], seed: int) -> None:
    world = World(seed)
    all_ = [world.tenant(load, latency_class=each, weight=weight) for load, each, weight in tenants]
    world.run(1 * S)

    got = shares(world, 10 * S, *all_)

    turns = 35 * MS * len(tenants)  # of others that have waited as long
    assert max(each.longest_wait_ns for tenant in all_ for each in tenant.processes) < STARVED_NS + turns
    assert min(got) > 0.004  # the shortest slot each STARVED_NS
    assert is_fair(world)


@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize(("kernel", "bar"), [(500 * US, 1.35), (100 * US, 1.2)])
def test_class_latency_is_first_and_batch_gets_the_rest(others: int, kernel: int, bar: float) -> None:
    world, quiet = World(5), World(5)
    first = world.tenant(REQUESTS, latency_class=LATENCY)
    reference = quiet.tenant(REQUESTS)
    batch = [world.tenant(Load(kernel), latency_class=BATCH) for _ in range(others)]
    world.run(2 * S)
    quiet.run(30 * S)
    del first.processes[0].requests_ns[:]

    got = shares(world, 30 * S, first, *batch)

    p99 = sorted(first.waits_ns)[len(first.waits_ns) * 99 // 100]
    assert p99 < bar * max(reference.waits_ns)
    assert got[0] == pytest.approx(0.1, abs=0.005)
    assert sum(got[1:]) > 0.85 * 0.9


def test_batch_keeps_a_few_percent_beside_those_that_never_pause() -> None:
    world = World(6)
    tenants = [world.tenant(Load(), latency_class=each) for each in (NORMAL, NORMAL, BATCH)]
    world.run(1 * S)

    got = shares(world, 20 * S, *tenants)

    assert 0.02 < got[2] < 0.1
    assert got[0] == pytest.approx(got[1], abs=0.01)


def test_who_is_idle_in_its_slot_gives_it_up() -> None:
    world = World(7)
    pausing = world.tenant(Load(2 * MS, kernels=1, pause_ns=5 * MS))
    steady = world.tenant(Load())
    world.run(1 * S)

    got = shares(world, 10 * S, pausing, steady)

    assert sum(got) > 0.93  # a pause of 5 ms costs 0.3 ms and the hand-over
    assert steady.processes[0].longest_wait_ns < 5 * MS


def test_the_gate_is_free_again_half_a_second_after_the_last_contention() -> None:
    world = World(8)
    steady = world.tenant(Load())
    visitor = world.tenant(Load(kernels=10, pause_ns=60 * S))
    world.run(100 * MS)
    assert len(visitor.waits_ns) == 1

    states = []
    for _ in range(60):
        world.run(10 * MS)
        states.append(steady.gate.word & STATES)

    assert states.index(FREE) == pytest.approx(42, abs=5)
    assert all(after == FREE for before, after in pairwise(states) if before == FREE)


@pytest.mark.parametrize(("other", "shortest", "longest"), [(60 * S, 10 * MS, 17 * MS), (0, 95 * MS, 115 * MS)])
def test_a_caps_period_is_longer_only_beside_one_that_works(other: int, shortest: int, longest: int) -> None:
    world = World(21)
    capped = world.tenant(Load(100 * US), percent=20)
    world.tenant(Load(kernels=1, pause_ns=other), percent=30)
    world.run(1 * S)
    before = capped.gate.slots

    world.run(4 * S)

    assert shortest < 4 * S / (capped.gate.slots - before) < longest


def test_who_was_always_alone_had_its_gate_free_all_along() -> None:
    world = World(22)
    lone = world.tenant(Load())
    world.run(1 * S)

    assert lone.gate.word & STATES == FREE
    assert lone.gate.charged_ns == 0


def test_a_free_gate_closes_when_another_wants() -> None:
    world = World(9)
    steady = world.tenant(Load(queue=4))
    world.run(2 * S)
    assert steady.gate.word & STATES == FREE

    visitor = world.tenant(Load())
    world.run(4 * MS)

    assert steady.gate.word & STATES == CLOSED
    assert visitor.ran_ns > 0


def test_what_was_queued_while_free_is_paid_back() -> None:
    world = World(10)
    one = world.tenant(Load(10 * MS, queue=3))
    world.run(5 * S)
    two = world.tenant(Load())
    before = one.ran_ns

    world.run(3 * S)

    assert one.ran_ns - before == pytest.approx(two.ran_ns, abs=30 * MS)


def test_a_kernel_longer_than_its_slot_is_paid_back() -> None:
    world = World(11)
    long, short = world.tenant(Load(45 * MS)), world.tenant(Load())
    capped = World(11).tenant(Load(100 * MS), percent=25)
    world.run(2 * S)

    got = shares(world, 20 * S, long, short)

    assert got == pytest.approx([0.5, 0.5], abs=0.015)
    assert shares(capped.world, 40 * S, capped) == pytest.approx([0.25], abs=0.01)


def test_hand_over_is_charged_to_nobody() -> None:
    world = World(12)
    tenants = [world.tenant(Load(200 * US)) for _ in range(4)]
    world.run(1 * S)
    before = [tenant.gate.charged_ns for tenant in tenants]

    got = shares(world, 20 * S, *tenants)

    charged = [(tenant.gate.charged_ns - was) / (20 * S) for tenant, was in zip(tenants, before, strict=True)]
    assert charged == pytest.approx(got, abs=0.001)
    assert sum(got) < 0.995


def set_percent(tenant: Tenant, percent: int) -> None:
    tenant.lanes[0].limit.time_percent = percent
    tenant.world.ring()  # as hm_arbiter_changed does


@pytest.mark.parametrize(("before", "after"), [(60, 20), (0, 20), (20, 60), (20, 0)])
@pytest.mark.parametrize("beside", [False, True])
def test_a_changed_cap_holds_after_150_ms(before: int, after: int, beside: bool) -> None:
    world = World(13)
    tenant = world.tenant(Load(), percent=before)
    if beside:
        world.tenant(Load(), percent=35)
    world.run(3 * S)

    set_percent(tenant, after)
    world.run(150 * MS)

    expected = after / 100 if after else 0.65 if beside else 1.0
    assert shares(world, 200 * MS, tenant) == pytest.approx([expected], abs=0.05)


def test_who_joins_gets_its_part_at_once() -> None:
    world = World(14)
    tenants = [world.tenant(Load()) for _ in range(2)]
    world.run(10 * S)
    tenants.append(world.tenant(Load()))

    got = shares(world, 1 * S, *tenants)

    assert got == pytest.approx([0.33] * 3, abs=0.03)


def test_an_idle_node_is_looked_at_once_a_second() -> None:
    world = World(15)
    world.tenant(Load(kernels=1, pause_ns=1000 * S))
    world.run(2 * S)

    before = world.steps
    world.run(100 * S)

    assert world.steps - before <= 101


@pytest.mark.parametrize("kernel_ns", [200 * US, 5 * MS])
def test_the_time_that_is_charged_to_nobody_is_reported(kernel_ns: int) -> None:
    world = World(14)
    all_ = [world.tenant(Load(kernel_ns)), world.tenant(Load(kernel_ns), weight=300)]
    world.run(1 * S)
    card = world.cards[0].state
    handover, charged = card.handover_ns, sum(tenant.gate.charged_ns for tenant in all_)

    world.run(10 * S)

    handover, charged = card.handover_ns - handover, sum(tenant.gate.charged_ns for tenant in all_) - charged
    assert handover + charged == pytest.approx(10 * S, abs=40 * MS)
    assert 0.001 < handover / (10 * S) < 0.03


def test_who_has_the_card_alone_hands_nothing_over() -> None:
    world = World(15)
    world.tenant(Load(), percent=50)

    world.run(10 * S)

    assert world.cards[0].state.handover_ns == 0


@pytest.mark.parametrize(
    ("processes", "other", "told"),
    [(1, NORMAL, True), (2, NORMAL, False), (1, LATENCY, False)],
    ids=["one process", "two processes", "beside class latency"],
)
def test_a_slots_end_is_told_to_who_may_work_ahead_to_it(processes: int, other: int, told: bool) -> None:
    """...a single process, where nobody wants the card at once."""
    world = World(1)
    tenants = [world.tenant(Load(), processes=processes), world.tenant(Load(), latency_class=other)]
    ahead = []
    for _ in range(500):
        world.run(1 * MS)
        if tenants[0].gate.word & STATES != CLOSED:
            ahead.append(tenants[0].gate.ends_ns - world.now)

    assert max(ahead) <= 20 * MS
    assert (max(ahead) > 5 * MS) == told
