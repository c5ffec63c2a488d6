"""Tenants whose processes wait for each other on several cards: they get all of them at the same time."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.arbiter_world import CLOSED, LOOK_AGAIN_NS, MS, STATES, US, Load, Process, S, Tenant, World, shares

COLLECTIVE = Load(2 * MS, waits=True, kernels=1)
UUIDS = ("GPU-0a", "GPU-0b", "GPU-0c")


class Rank(Process):
    """A process whose every kernel ends with those of all other ranks: until then it keeps its card busy."""

    def is_waited_for(self) -> bool:
        ours = self.use.collectives
        return ours != 0 and any(
            each.use.collectives > ours and each.use.drained != each.use.entered for each in self._ranks
        )

    def begin(self) -> None:
        use = self.lane.tenant.usage.device[self.lane.device]
        self.use.collectives += 1
        use.ganged = 1
        self.card.aim(self, 1 << 62)
        if len({each.use.collectives for each in self._ranks}) == 1:
            self.world.at(self.world.now + self.load.kernel_ns, self._end_together)

    def _try(self) -> None:
        super()._try()
        if self.waits:
            self.later(LOOK_AGAIN_NS, self._look_again)

    def _look_again(self) -> None:
        if self.waits and self._is_closed and self.is_waited_for():
            self.waits, self.use.waiting = False, 0
            self._try()
        elif self.waits:
            self.later(LOOK_AGAIN_NS, self._look_again)

    def _bound(self) -> None:
        self._bounded = True  # the one that runs has to end

    @property
    def _ranks(self) -> list[Process]:
        return self.lane.tenant.processes

    def _end_together(self) -> None:
        for each in self._ranks:
            each.card.stop(each)
            each.ran_ns = each.goal_ns = each.end_ns
            each.ended()


def gang(world: World, **options: Any) -> Tenant:
    """A tenant with a rank on each of its cards."""
    tenant = world.tenant(COLLECTIVE, processes=0, **options)
    for device in range(len(tenant.lanes)):
        tenant.process(COLLECTIVE, device, Rank)
    return tenant


def missed(tenants: Sequence[Tenant]) -> int:
    return sum(int(lane.gate.misses) for each in tenants for lane in each.lanes)


def collectives(tenant: Tenant) -> int:
    return min(int(process.use.collectives) for process in tenant.processes)


@pytest.mark.parametrize("seed", range(4))
def test_two_gangs_in_any_order_take_turns_on_both_cards(seed: int) -> None:
    order = random.Random(seed)
    world = World(seed, cards=2)
    uuids = order.sample(UUIDS, 2)
    gangs = [gang(world, cards=order.sample(range(2), 2), uuids=uuids) for _ in range(2)]

    world.run(1 * S)  # until they are known to be gangs, each may get one card and wait for the other
    start, overlaps = world.now, [card.overlap_ns for card in world.cards]
    misses = missed(gangs)
    while min(each.gate.slots for each in gangs) < 5_000:
        before = [collectives(each) for each in gangs]
        world.run(1 * S)
        assert all(collectives(each) > was + 150 for each, was in zip(gangs, before, strict=True))

    seconds = (world.now - start) / S
    assert seconds < 5_000 * 2 * 0.025
    assert [card.most_open for card in world.cards] == [1, 1]
    assert [card.overlap_ns for card in world.cards] == overlaps
    assert missed(gangs) == misses


def test_a_gang_has_all_its_cards_or_none() -> None:
    world = World(1, cards=2)
    one, two = (gang(world, cards=(0, 1)) for _ in range(2))
    world.run(1 * S)

    apart = together = 0
    for _ in range(20_000):
        world.run(97 * US)
        open_ = [[lane.word & STATES != CLOSED for lane in each.lanes] for each in (one, two)]
        apart += sum(len(set(lanes)) > 1 for lanes in open_)
        together += sum(all(lanes) for lanes in open_)

    assert apart == 0
    assert together > 17_000


@pytest.mark.parametrize("cards", [(0, 1), (1, 0)])
def test_a_gang_beside_others_on_each_card(cards: tuple[int, int]) -> None:
    world = World(2, cards=2)
    tenant = gang(world, cards=cards)
    others = [world.tenant(Load(), cards=(card,)) for card in range(2)]
    world.run(2 * S)

    got = shares(world, 20 * S, *others)

    assert collectives(tenant) > 22 * 150
    assert all(share > 0.4 for share in got)
    assert [card.most_open for card in world.cards] == [1, 1]


@pytest.mark.parametrize("cards", [(0, 1), (1, 0)])
@pytest.mark.parametrize("busy", [0, 1])
def test_a_gang_beside_another_on_one_of_its_cards(cards: tuple[int, int], busy: int) -> None:
    world = World(2, cards=2)
    tenant = gang(world, cards=cards)
    other = world.tenant(Load(), cards=(busy,))
    world.run(2 * S)

    before = collectives(tenant)
    [got] = shares(world, 20 * S, other)

    assert collectives(tenant) - before > 20 * 180
    assert got > 0.4


def test_three_gangs_in_a_circle_over_three_cards() -> None:
    world = World(5, cards=3)
    gangs = [gang(world, cards=cards, uuids=UUIDS) for cards in ((0, 1), (1, 2), (2, 0))]
    world.run(2 * S)

    before = [collectives(each) for each in gangs]
    met = [card.overlap_ns for card in world.cards]  # each was no gang before its first collective
    world.run(20 * S)

    got = [(collectives(each) - was) / 20 for each, was in zip(gangs, before, strict=True)]
    assert min(got) > 100
    assert [card.overlap_ns for card in world.cards] == met


def test_a_tenant_that_becomes_a_gang_while_it_holds_one_of_its_cards() -> None:
    world = World(6, cards=2)
    tenant = world.tenant(Load(), cards=(0, 1))
    other = world.tenant(Load(), cards=(0,))
    world.run(2 * S)
    for device in range(2):
        tenant.processes[device].kill()
        tenant.process(COLLECTIVE, device, Rank)
    del tenant.processes[:2]

    [got] = shares(world, 10 * S, other)

    assert collectives(tenant) > 10 * 180
    assert got > 0.4


def test_a_gang_that_is_stopped_gives_all_its_cards_up() -> None:
    world = World(7, cards=2)
    tenant = gang(world, cards=(0, 1))
    other = world.tenant(Load(), cards=(0,))
    world.run(2 * S)
    for process in tenant.processes:
        process.stop()
    world.run(600 * MS)

    [got] = shares(world, 5 * S, other)

    assert got > 0.99


def test_a_gang_of_which_a_card_is_not_there() -> None:
    world = World(8)
    tenant = world.tenant(Load(), cards=(0, 0), absent=(1,))
    other = world.tenant(Load())
    tenant.usage.device[0].ganged = 1

    got = shares(world, 10 * S, tenant, other)

    assert got == pytest.approx([0.5, 0.5], abs=0.01)
