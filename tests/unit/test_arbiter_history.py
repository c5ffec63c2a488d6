"""GPU time in virtual time: what was before is no claim on what comes, and no debt."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.arbiter_world import BATCH, LATENCY, MS, NORMAL, US, Load, S, World, shares

REQUESTS = Load(200 * US, kernels=10, period_ns=20 * MS)
some = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 1 << 32)
weights = st.integers(20, 500)


def test_who_waits_behind_the_others_gathers_no_claim() -> None:
    world = World(11)
    capped, steady = world.tenant(Load(), percent=25), world.tenant(Load(), weight=50)
    batch = world.tenant(Load(), latency_class=BATCH)
    world.run(20 * S)
    batch.lanes[0].limit.latency_class = NORMAL
    world.run(100 * MS)

    got = shares(world, 1 * S, capped, steady, batch)

    assert got == pytest.approx([0.25, 0.245, 0.49], abs=0.03)


@pytest.mark.parametrize("others", [(BATCH,), (NORMAL, BATCH)])
def test_class_latency_keeps_its_head_start_beside_batch(others: Sequence[int]) -> None:
    world = World(12)
    first = world.tenant(REQUESTS, latency_class=LATENCY)
    for each in others:
        world.tenant(Load(), latency_class=each)
    world.run(5 * S)
    del first.processes[0].requests_ns[:]

    world.run(20 * S)

    assert (
        sorted(first.waits_ns)[len(first.waits_ns) * 99 // 100] < 6 * MS
    )  # 2 ms alone, and as long for one that starves


@some
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([NORMAL, LATENCY, BATCH]), weights), max_size=6), seeds)
def test_what_was_before_does_not_matter(past: list[tuple[int, int, int]], seed: int) -> None:
    world = World(seed)
    all_ = [world.tenant(load) for load in (Load(), Load(), Load(waits=True), Load(5 * MS))]
    for who, latency_class, weight in past:
        limit = all_[who].lanes[0].limit
        limit.latency_class, limit.weight = latency_class, weight
        world.run(2 * S)
        if seed % 2:
            world.succeed(gap_ns=seed % 3 * 50 * MS)
    for tenant in all_:
        tenant.lanes[0].limit.latency_class, tenant.lanes[0].limit.weight = NORMAL, 100
    world.run(2 * S)

    got = shares(world, 4 * S, *all_)

    assert got == pytest.approx([sum(got) / 4] * 4, abs=0.015)


@pytest.mark.parametrize("percent", [10, 60])
def test_a_cap_that_comes_later_is_no_debt(percent: int) -> None:
    world = World(13)
    tenant = world.tenant(Load())
    world.run(400 * MS)
    tenant.lanes[0].limit.time_percent = percent
    world.ring()
    world.run(50 * MS)

    assert shares(world, 500 * MS, tenant) == pytest.approx([percent / 100], abs=0.03)


def test_a_cap_that_is_not_used_up_waits_for_no_credit() -> None:
    world = World(23)
    world.tenant(Load(100 * US, kernels=1, pause_ns=10 * MS))
    capped = world.tenant(Load(100 * US, kernels=1, pause_ns=600 * S), percent=10)
    world.run(1 * S)

    capped.processes[0].load = Load(2 * MS, kernels=1, pause_ns=1 * MS)
    capped.processes[0].ask()
    world.run(25 * MS)

    assert capped.ran_ns > 12 * MS  # of the 20 ms that it had not taken
    world.run(35 * MS)
    assert capped.ran_ns < 27 * MS


def test_a_new_cap_holds_in_each_50_ms() -> None:
    world = World(24)
    capped = world.tenant(Load(500 * US), percent=60)
    world.run(5 * S)
    capped.lanes[0].limit.time_percent = 20
    world.ring()
    world.run(150 * MS)

    windows = [shares(world, 50 * MS, capped)[0] for _ in range(20)]

    assert windows == pytest.approx([0.2] * 20, abs=0.05)
