"""Processes that end, stop or lie, and arbiters that follow each other: nobody else loses the card by it."""

import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hamirt.region import ffi
from tests.unit.arbiter_world import (
    BATCH,
    FREE,
    LATENCY,
    MS,
    NORMAL,
    SLOT,
    STATES,
    US,
    Lane,
    Load,
    Process,
    S,
    Tenant,
    World,
    shares,
)

DRAIN_NS = 50 * MS
STEP_SECONDS = 0.05  # a step reads 512 slots of a page and sleeps nowhere


@pytest.mark.parametrize("moment", [0, 7, 13, 29])
@pytest.mark.parametrize("end", [Process.kill, Process.stop])
def test_one_that_does_not_answer_holds_the_card_up_once(moment: int, end: object) -> None:
    world = World(moment)
    gone, other = world.tenant(Load()), world.tenant(Load())
    world.run(1 * S + moment * MS)
    assert callable(end)
    end(gone.processes[0])

    [held_up, later] = [shares(world, 1 * S, other)[0] for _ in range(2)]

    assert held_up > 1 - 0.01 - (DRAIN_NS + 60 * MS) / S
    assert later > 0.99
    assert other.processes[0].longest_wait_ns < DRAIN_NS + 60 * MS


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([Process.kill, Process.stop]),
    st.lists(st.tuples(st.integers(10, 500), st.sampled_from([NORMAL, LATENCY, BATCH])), min_size=2, max_size=4),
    st.integers(0, 1 << 32),
)
@example(Process.kill, [(10, NORMAL), (10, NORMAL), (79, BATCH)], 1)  # batch's weight shortened the others' slots
def test_whoever_does_not_answer_is_soon_left_out(end: Any, tenants: list[tuple[int, int]], seed: int) -> None:
    world = World(seed)
    gone, *others = [world.tenant(Load(), weight=weight, latency_class=each) for weight, each in tenants]
    world.run(1 * S + seed % 997 * MS)
    end(gone.processes[0])
    world.run(1 * S)

    assert sum(shares(world, 2 * S, *others)) > 0.95


def test_one_that_goes_on_after_a_stop_has_its_part_again() -> None:
    world = World(1)
    one, other = world.tenant(Load()), world.tenant(Load())
    world.run(1 * S)
    one.processes[0].stop()
    world.run(5 * S)
    one.processes[0].go_on()
    world.run(1200 * MS)  # no bell rings for it

    assert shares(world, 2 * S, one, other) == pytest.approx([0.495, 0.495], abs=0.015)


def test_one_process_that_stops_does_not_stop_its_tenant() -> None:
    world = World(2)
    tenant, other = world.tenant(Load(), processes=3), world.tenant(Load())
    world.run(1 * S)
    tenant.processes[0].stop()
    tenant.processes[1].kill()
    world.run(1 * S)

    assert shares(world, 5 * S, tenant, other) == pytest.approx([0.495, 0.495], abs=0.015)


def test_three_misses_in_ten_seconds_are_unpreemptible_until_they_are_over() -> None:
    world = World(3)
    tenant, other = world.tenant(Load(800 * MS)), world.tenant(Load())
    world.run(9 * S)
    assert tenant.gate.unpreemptible == 1
    assert tenant.gate.misses >= 3
    assert other.gate.unpreemptible == other.gate.misses == 0

    tenant.processes[0].kill()
    tenant.process(Load())
    world.run(12 * S)

    assert tenant.gate.unpreemptible == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([0, 5 * MS, 100 * MS]), st.booleans())
def test_arbiters_that_follow_each_other(seed: int, gap: int, capped: bool) -> None:
    order = random.Random(seed)
    world = World(seed)
    tenants = [
        world.tenant(Load(kernel), percent=percent if capped else 0)
        for kernel, percent in ((100 * US, 20), (500 * US, 40), (2 * MS, 30))
    ]
    world.run(1 * S)

    before = [tenant.ran_ns for tenant in tenants]
    for _ in range(60):
        world.run(order.randint(1 * MS, 600 * MS))
        world.succeed(gap)
    world.run(2 * S)

    done = [tenant.ran_ns - was for tenant, was in zip(tenants, before, strict=True)]
    expected = [0.2, 0.4, 0.3] if capped else [1 / 3] * 3
    parts = [each / sum(done) for each in done]
    off = 0.02 if gap < 50 * MS else 0.1  # whoever has the card keeps it over a long gap
    assert parts == pytest.approx([each / sum(expected) for each in expected], abs=off)
    assert world.cards[0].most_open == 1
    assert world.cards[0].overlap_ns <= world.rebuilt * 3 * MS
    assert shares(world, 5 * S, *tenants) == pytest.approx(expected, abs=0.01)


def test_a_free_gate_stays_one_gate_over_a_succession() -> None:
    world = World(5)
    one = world.tenant(Load())
    world.run(2 * S)
    assert one.gate.word & STATES == FREE
    world.succeed()
    world.run(1 * S)
    assert one.gate.word & STATES == FREE

    two = world.tenant(Load())
    world.run(1 * S)

    assert shares(world, 2 * S, one, two) == pytest.approx([0.495, 0.495], abs=0.01)


class Liar(Process):
    """A process that uses the card as others do and writes into its page what pleases it."""

    def __init__(self, lane: Lane, index: int, load: Load) -> None:
        super().__init__(lane, index, load)
        self.lies: dict[str, int] = {}

    def _settle(self) -> None:
        super()._settle()
        self.lie()

    def _enter(self) -> None:
        super()._enter()
        self.lie()

    def _first_ended(self) -> None:
        super()._first_ended()
        self.lie()

    def lie(self) -> None:
        for field, value in self.lies.items():
            setattr(self.use, field, value)


LIES: list[dict[str, int]] = [
    {"idle_since_ns": 0},
    {"idle_since_ns": (1 << 64) - 1},
    {"waiting": 0},
    {"waiting": 1},
    {"longest_ns": (1 << 64) - 1},
    {"drained": 0},
    {"entered": 0},
]


@pytest.mark.parametrize("lies", LIES, ids=str)
def test_a_lie_takes_no_part_of_another(lies: dict[str, int]) -> None:
    world = World(6)
    honest, hostile = world.tenant(Load()), world.tenant(Load(), processes=0)
    liar = hostile.process(Load(), kind=Liar)
    assert isinstance(liar, Liar)
    liar.lies = lies
    world.run(1 * S)

    [got] = shares(world, 10 * S, honest)

    assert got > 0.48


def spoil(tenant: Tenant, offset: int, content: bytes) -> None:
    page = ffi.buffer(tenant.usage)
    page[offset : offset + len(content)] = content


HEAD = ffi.offsetof("struct hm_usage", "slot")
USE = ffi.offsetof("struct hm_slot", "use")
SLOT_BYTES = ffi.sizeof("struct hm_slot")
numbers = st.one_of(st.sampled_from([0, 1, SLOT, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF)).map(
    lambda value: value.to_bytes(4, "little")
)
heads = st.tuples(st.integers(0, HEAD // 4 - 1).map(lambda at: at * 4), numbers)
uses = st.tuples(
    st.tuples(st.sampled_from([0, 1, 2, 511]), st.integers(0, ffi.sizeof("struct hm_use") // 4 - 1)).map(
        lambda at: HEAD + at[0] * SLOT_BYTES + USE + at[1] * 4
    ),
    numbers,
)
anywhere = st.tuples(st.integers(0, ffi.sizeof("struct hm_usage") - 64), st.binary(min_size=1, max_size=64))
spoils = st.lists(st.one_of(heads, uses, anywhere), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(spoils, st.integers(1, 40), st.booleans())
def test_whatever_a_page_says_nobody_else_starves(
    writes: list[tuple[int, bytes]], every_ms: int, all_slots: bool
) -> None:
    world = World(7)
    honest, hostile = world.tenant(Load()), world.tenant(Load())
    world.run(300 * MS)
    if all_slots:
        hostile.usage.high_slot = 0xFFFFFFFF
        for slot in hostile.usage.slot:
            slot.taken = 1
    before, start, steps, wall = honest.ran_ns, world.now, world.steps, time.monotonic()
    for _ in range(4):
        for offset, content in writes:
            spoil(hostile, offset, content)
            world.ring()
            world.run(every_ms * MS)
    world.run(1 * S)

    passed = world.now - start
    took = time.monotonic() - wall
    assert honest.ran_ns - before > passed * 0.02  # more once UNSEEN_LIES are charged
    assert world.steps - steps < 100 + passed // (20 * US)
    assert took < STEP_SECONDS * (world.steps - steps) + 1
