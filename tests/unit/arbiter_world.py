"""Tenants and their cards in virtual time, around the real arbiter of shim/arbiter.c.

A process behaves towards its usage page as shim/gate.c, window.c and reaper.c do, and takes 20 to 100 us for all that
it does. A card runs the kernels of one process; of several at a time each gets an even part, as the driver has it.
Nothing happens between two events, so that an hour of slots takes seconds.
"""

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from hamirt.region import DEVICES, ffi, lib
from tests.unit.arbiter_process import (
    BATCH as BATCH,
)
from tests.unit.arbiter_process import (
    BEAT_NS,
    ENDLESS,
    HURRY_NS,
    NEVER,
    Action,
)
from tests.unit.arbiter_process import (
    CLOSED as CLOSED,
)
from tests.unit.arbiter_process import (
    FREE as FREE,
)
from tests.unit.arbiter_process import (
    LATENCY as LATENCY,
)
from tests.unit.arbiter_process import (
    LOOK_AGAIN_NS as LOOK_AGAIN_NS,
)
from tests.unit.arbiter_process import (
    MS as MS,
)
from tests.unit.arbiter_process import (
    NORMAL as NORMAL,
)
from tests.unit.arbiter_process import (
    SLOT as SLOT,
)
from tests.unit.arbiter_process import (
    STATES as STATES,
)
from tests.unit.arbiter_process import (
    US as US,
)
from tests.unit.arbiter_process import (
    Load as Load,
)
from tests.unit.arbiter_process import (
    Process as Process,
)
from tests.unit.arbiter_process import (
    S as S,
)


class World:
    """The clock, the cards, the tenants, and the thread that arbitrates them."""

    def __init__(self, seed: int = 0, cards: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 1000 * S
        self.steps = 0
        self.rebuilt = 0
        self.cards = [Card(self) for _ in range(cards)]
        self.tenants: list[Tenant] = []
        self._latencies = itertools.cycle([self.random.randint(20 * US, 100 * US) for _ in range(4099)])
        self._events: list[tuple[int, int, Process | None, Action]] = []
        self._count = itertools.count()
        self._wake_ns = NEVER  # when the arbiter looks next
        self._wake_event = 0
        self._hurries = False
        self._kept: list[Any] = []  # what the arbiter's structures point to

    def latency(self) -> int:
        return next(self._latencies)

    def at(self, when: int, action: Action, process: "Process | None" = None) -> int:
        number = next(self._count)
        heapq.heappush(self._events, (when, number, process, action))
        return number

    def run(self, ns: int) -> None:
        """Let `ns` pass."""
        until, events = self.now + ns, self._events
        most = self.steps + 1000 + ns // (10 * US)
        while events and events[0][0] <= until:
            when, number, process, action = heapq.heappop(events)
            self.now = max(when, self.now)
            assert self.steps < most, "the arbiter does not come to rest"
            if process is None:
                if action != self._step or number == self._wake_event:
                    action()
            elif process.lives:
                if process.stopped:
                    process.held.append(action)
                else:
                    action()
        self.now = until

    def tenant(self, load: Load, **options: Any) -> "Tenant":
        """Let a tenant join; the options are those of Tenant."""
        tenant = Tenant(self, len(self.tenants), **options)
        self.tenants.append(tenant)
        tenant.join(self._kept)
        self.ring()
        for device in range(len(tenant.lanes)):
            for _ in range(tenant.processes_each if device not in tenant.absent else 0):
                tenant.process(load, device)
        return tenant

    def ring(self) -> None:
        """A bell rings: the arbiter looks as soon as it is awake."""
        self._wake(self.now + (HURRY_NS if self._hurries else self.latency()))

    def succeed(self, gap_ns: int = 0) -> None:
        """Let the arbiter forget everything, and another go on from the pages after a while."""
        self.rebuilt += 1
        self._wake_ns, self._wake_event = NEVER, -1
        self.at(self.now + gap_ns, self._take_over)
        if gap_ns:
            self._wake_ns = self.now + gap_ns  # nobody listens to a bell before

    def _take_over(self) -> None:
        for card in self.cards:
            card.forget()
        self._kept.clear()
        for tenant in self.random.sample(self.tenants, len(self.tenants)):
            tenant.join(self._kept)
        self._wake_ns = NEVER
        self._tell()
        self._wake(self.now + HURRY_NS)

    def _wake(self, when: int) -> None:
        if when < self._wake_ns:
            self._wake_ns = when
            self._wake_event = self.at(when, self._step)

    def _step(self) -> None:
        """What hm_arbiter_run does between two sleeps."""
        again, now = NEVER, self.now
        self.steps += 1
        self._wake_ns = NEVER
        self._hurries = False
        for card in self.cards:
            if card.state.count == 0:
                continue
            due = lib.hm_card_step(card.state, now)
            if due < again:
                again = due
            self._hurries |= lib.hm_card_hurries(card.state, now)
        if again == NEVER:
            self._wake(now + BEAT_NS)
        else:
            self._wake(min(again + self.latency() if again > now else now + HURRY_NS, now + BEAT_NS))
        self._tell()

    def _tell(self) -> None:
        changed = []
        for tenant in self.tenants:
            for lane in tenant.lanes:
                word = lane.gate.word
                if word != lane.word:
                    lane.word = word
                    changed.append(lane)
        for card in {lane.card for lane in changed}:
            card.note_gates()
        for lane in changed:
            for process in lane.processes:
                process.gate_changed()


class Card:
    """One GPU: who works on it, and what the gates to it were."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lanes: list[Lane] = []
        self.state: Any = None
        self.forget()
        self.overlap_ns = 0  # two tenants had work on it
        self.most_open = 0  # gates at a time
        self.opened: dict[Lane, list[int]] = {}
        self._active: list[Process] = []
        self._since_ns = world.now
        self._event = -1

    def forget(self) -> None:
        self.state = ffi.new("struct hm_card *")

    def note_gates(self) -> None:
        self.most_open = max(self.most_open, sum(lane.word & STATES != CLOSED for lane in self.lanes))

    def advance(self) -> None:
        """Account for what the card did until now."""
        passed = self.world.now - self._since_ns
        self._since_ns = self.world.now
        if passed == 0:
            return
        active = self._active
        if len(active) == 1:
            active[0].ran_ns += passed
            return
        for process in active:
            process.ran_ns += passed // len(active)
        if len({process.lane for process in active}) > 1:
            self.overlap_ns += passed

    def aim(self, process: "Process", goal_ns: int) -> None:
        """A process has work on the card until it ran `goal_ns`."""
        self.advance()
        process.goal_ns = goal_ns
        if process not in self._active:
            self._active.append(process)
        self._expect()

    def stop(self, process: "Process") -> None:
        self.advance()
        if process in self._active:
            self._active.remove(process)
            self._expect()

    def works_for(self, process: "Process") -> bool:
        return process in self._active

    def _expect(self) -> None:
        self._event = -1
        left = min((process.goal_ns - process.ran_ns for process in self._active), default=ENDLESS)
        if left < ENDLESS // 2:
            event = self.world.at(self.world.now + max(left, 0) * len(self._active), lambda: self._end(event))
            self._event = event

    def _end(self, event: int) -> None:
        if event != self._event:
            return
        self.advance()
        for process in [each for each in self._active if each.goal_ns <= each.ran_ns + len(self._active)]:
            process.ran_ns = process.goal_ns
            self.stop(process)
            process.ended()
        self._expect()


class Lane:
    """A tenant on one card."""

    def __init__(self, tenant: "Tenant", device: int, card: Card) -> None:
        self.tenant, self.device, self.card = tenant, device, card
        self.limit = tenant.limits.device[device]
        self.gate = self.limit.gate
        self.word: int = 0
        self.processes: list[Process] = []
        card.lanes.append(self)

    @property
    def ran_ns(self) -> int:
        """What its programs got done, as time that they need for it alone."""
        self.card.advance()
        return sum(process.ran_ns for process in self.processes)


class Tenant:
    def __init__(
        self,
        world: World,
        number: int,
        percent: int = 0,
        weight: int = 100,
        latency_class: int = NORMAL,
        cards: Sequence[int] = (0,),
        processes: int = 1,
        uuids: Sequence[str] | None = None,
        absent: Sequence[int] = (),  # devices that the node does not have
    ) -> None:
        self.absent = absent
        self.world, self.number, self.processes_each = world, number, processes
        self.limits, self.usage = ffi.new("struct hm_limits *"), ffi.new("struct hm_usage *")
        self.limits.device_count = len(cards)
        self.processes: list[Process] = []
        self.lanes = [Lane(self, device, world.cards[card]) for device, card in enumerate(cards)]
        for lane, card in zip(self.lanes, cards, strict=True):
            lane.limit.uuid = (uuids[card] if uuids else f"GPU-{card:04}").encode()
            lane.limit.time_percent, lane.limit.weight, lane.limit.latency_class = percent, weight, latency_class
        self._by_slot: list[Process] = []
        self._lives = ffi.callback("bool(void *, int)", lambda _, slot: self._by_slot[slot].lives)

    def join(self, kept: list[Any]) -> None:
        """Become known to the arbiter, as hm_arbiter_add does it."""
        parties = ffi.new("struct hm_party[]", DEVICES)
        kept.append(parties)
        for device, lane in enumerate(self.lanes):
            party = parties[device]
            party.gate, party.limit = ffi.addressof(lane.gate), ffi.addressof(lane.limit)
            party.usage, party.device, party.lives = self.usage, device, self._lives
            party.gang = ffi.addressof(parties, (device + 1) % len(self.lanes))
        for device, lane in enumerate(self.lanes):
            if device in self.absent:
                continue
            assert lib.hm_card_add(lane.card.state, ffi.addressof(parties, device), self.world.now)

    def process(self, load: Load, device: int = 0, kind: "type[Process] | None" = None) -> "Process":
        """Start another process."""
        process = (kind or Process)(self.lanes[device], len(self._by_slot), load)
        self._by_slot.append(process)
        self.processes.append(process)
        self.lanes[device].processes.append(process)
        self.usage.high_slot = len(self._by_slot)
        process.later(self.world.latency(), process.ask)
        return process

    @property
    def gate(self) -> Any:
        return self.lanes[0].gate

    @property
    def ran_ns(self) -> int:
        return sum(lane.ran_ns for lane in self.lanes)

    @property
    def waits_ns(self) -> list[int]:
        """How long its requests took."""
        return [took for process in self.processes for took in process.requests_ns]


def shares(world: World, ns: int, *tenants: Tenant) -> list[float]:
    """Return what part of the coming `ns` each tenant has the card, counted in work done."""
    before = [tenant.ran_ns for tenant in tenants]
    world.run(ns)
    return [(tenant.ran_ns - start) / ns for tenant, start in zip(tenants, before, strict=True)]


def each_second(world: World, seconds: int, tenant: Tenant) -> Iterator[float]:
    """Yield a tenant's share of each of the coming seconds."""
    for _ in range(seconds):
        yield shares(world, S, tenant)[0]
