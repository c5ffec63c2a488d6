"""Tenants and their cards in virtual time, around the real arbiter of shim/arbiter.c.

A process behaves towards its usage page as shim/gate.c, window.c and reaper.c do, and takes 20 to 100 us for all that
it does. A card runs the kernels of one process; of several at a time each gets an even part, as the driver has it.
Nothing happens between two events, so that an hour of slots takes seconds.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hamirt.region import DEVICES, ffi, lib

US, MS, S = 1_000, 1_000_000, 1_000_000_000
NEVER = (1 << 64) - 1
IDLE_NS = 300 * US  # HM_IDLE_NS of the shim
LONGEST_START_NS = 300 * US  # of reaper.c
SHORT_WINDOW_NS = 500 * US  # of window.c: no launch comes ahead of the end of the last
LOOK_AGAIN_NS = 50 * MS  # of gate.c
BEAT_NS = 1 * S  # of the daemon's thread
GAP_NS = 12 * US  # between two kernels of a program that waits for each
HURRY_NS = 2 * US  # what a thread that spins takes
ENDLESS = 1 << 62
STATES, SLOT = lib.HM_GATE_STATES, lib.HM_GATE_SLOT
CLOSED, WINDOWED, FREE = lib.HM_GATE_CLOSED, lib.HM_GATE_WINDOWED, lib.HM_GATE_FREE
NORMAL, LATENCY, BATCH = lib.HM_NORMAL, lib.HM_LATENCY, lib.HM_BATCH

Action = Callable[[], None]


@dataclass(frozen=True)
class Load:
    """What a program does: requests of some kernels each, one after the other or so often."""

    kernel_ns: int = 500 * US
    waits: bool = False  # for each kernel, before it launches the next
    kernels: int | None = None  # of a request; None: it never ends
    pause_ns: int = 0  # from a request's end to the next one
    period_ns: int = 0  # from a request to the next one, if the program keeps up
    queue: int = 8  # kernels that it has in flight while the gate is free

    @property
    def cycle_ns(self) -> int:
        return self.kernel_ns + GAP_NS if self.waits else self.kernel_ns


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


class Process:
    """A process that uses one card."""

    def __init__(self, lane: Lane, index: int, load: Load) -> None:
        self.world, self.lane, self.card, self.load = lane.tenant.world, lane, lane.card, load
        slot = lane.tenant.usage.slot[index]
        slot.taken, slot.pid = 1, 1000 + index
        self.use = slot.use[lane.device]
        self.lives, self.stopped = True, False
        self.held: list[Action] = []  # what it does once it is not stopped any more
        self.ran_ns = 0  # how far it is
        self.goal_ns = 0  # how far what it launched goes
        self.end_ns = 0  # how far its request goes
        self.asked_ns = 0
        self.requests_ns: list[int] = []  # how long each took
        self.longest_wait_ns = 0
        self._waits_since_ns = 0
        self._bounded = True  # it launches no more
        self._free = False  # how the gate was when it launched last
        self._busy_from_ns = self._last_done_ns = 0

    def later(self, ns: int, action: Action) -> None:
        self.world.at(self.world.now + ns, action, self)

    def kill(self) -> None:
        """It ends at once; nobody clears its slot."""
        self.lives = False
        self.card.stop(self)

    def stop(self) -> None:
        """SIGSTOP: the card goes on with what was launched."""
        self.stopped = True
        self._bound()

    def go_on(self) -> None:
        """SIGCONT."""
        self.stopped = False
        self.use.beats += 1  # its threads look at the gate again
        held, self.held = self.held, []
        for action in held:
            self.later(self.world.latency(), action)
        self.later(self.world.latency(), self._try)

    @property
    def _is_closed(self) -> bool:
        return bool(self.lane.word & STATES == CLOSED)

    def ask(self) -> None:
        """A request begins."""
        load, world = self.load, self.world
        self.asked_ns = world.now
        self.end_ns = ENDLESS if load.kernels is None else self.ran_ns + load.kernels * load.cycle_ns
        self._try()

    def _try(self) -> None:
        """Launch what is to be launched, or wait at the gate."""
        if self.end_ns <= self.goal_ns or not self._bounded:
            return
        if not self._is_closed:
            self._launch()
        elif self.use.waiting == 0 and not self.is_waited_for():
            self.use.waiting = 1
            self._waits_since_ns = self.world.now
            self.world.ring()
        elif self.use.waiting == 0:
            self.use.drained = (self.use.entered - 1) & 0xFFFFFFFF
            self._launch()

    def is_waited_for(self) -> bool:
        return False

    def _woken(self) -> None:
        if self.use.waiting and not self._is_closed:
            self.use.waiting = 0
            self.longest_wait_ns = max(self.longest_wait_ns, self.world.now - self._waits_since_ns)
            self._launch()

    def _launch(self) -> None:
        self._enter()
        self._bounded = False
        self.begin()

    def _enter(self) -> None:
        use, word, now = self.use, self.lane.word, self.world.now
        if word & STATES != CLOSED:
            use.entered = word // SLOT
        self._free = word & STATES == FREE
        if not self._free:
            use.launches += 1
            if use.busy == 0:
                self._busy_from_ns, use.busy_since_ns, use.busy = now, 0, 1
                self.later(self.load.kernel_ns + self.world.latency(), self._first_ended)
                self.world.ring()
        elif use.busy:
            self.later(IDLE_NS + self.world.latency(), self._see_unmetered)

    def begin(self) -> None:
        """The card starts with what was launched, and more comes."""
        self.card.aim(self, self.end_ns)

    def _first_ended(self) -> None:
        self.use.longest_ns = self.load.kernel_ns
        if self.use.busy_since_ns == 0:
            start = self.world.now - self.load.kernel_ns
            self.use.busy_since_ns = max(self._busy_from_ns, min(start, self._busy_from_ns + LONGEST_START_NS))

    def ahead_ns(self) -> int:
        """How much it has in flight besides the kernel that is launched last: as window.c lets it."""
        kernel, window = self.load.kernel_ns, self.lane.gate.window_ns
        if self.load.waits:
            return 0
        if self._free:
            return self.load.queue * kernel
        return int(max(window - kernel, 0 if window < SHORT_WINDOW_NS else window // 4))

    def _bound(self) -> None:
        """It launches no more; what it launched goes on to the end of a kernel."""
        if self._bounded:
            return
        self._bounded = True
        self.card.advance()
        cycle, ahead = self.load.cycle_ns, self.ahead_ns()
        goal = min((self.ran_ns + ahead) // cycle * cycle + cycle, self.end_ns)
        self.card.aim(self, goal)
        if goal < self.end_ns:
            self.later(max(goal - ahead - self.ran_ns, 0) + self.world.latency(), self._try)

    def gate_changed(self) -> None:
        if self.use.waiting:
            if not self._is_closed:
                self.later(self.world.latency(), self._woken)
        elif not self.card.works_for(self):
            if self._is_closed and self.use.entered != self.use.drained:
                self._see_drained()
        elif self._is_closed:
            self._bound()
        elif not self.stopped and not self._bounded:
            self._enter()  # it goes on, in another mode

    def ended(self) -> None:
        """What was launched has ended."""
        world = self.world
        if not self.lives:
            return
        seen = world.latency()
        self._last_done_ns = world.now + seen
        self._bounded = True
        if self.ran_ns == self.end_ns:
            self._answer()
        if self._is_closed or self.lane.word // SLOT != self.use.entered:
            self._see_drained(seen)
        else:
            done = self._last_done_ns
            self.later(seen + IDLE_NS, lambda: self._see_idle(done))

    def _answer(self) -> None:
        load, now = self.load, self.world.now
        self.requests_ns.append(now - self.asked_ns)
        due = max(self.asked_ns + load.period_ns, now) if load.period_ns else now + load.pause_ns
        self.later(due - now + (0 if load.period_ns else GAP_NS), self.ask)

    def _settle(self) -> None:
        use = self.use
        if use.busy_since_ns == 0:
            use.busy_since_ns = self._busy_from_ns
        use.idle_since_ns, use.busy = self._last_done_ns or self.world.now, 0
        self.world.ring()

    def _see_unmetered(self) -> None:
        if self._free and self.use.busy:
            self._last_done_ns = self.world.now - IDLE_NS
            self._settle()

    def _see_drained(self, seen_ns: int | None = None) -> None:
        slot = self.use.entered

        def say() -> None:
            if self.use.entered == slot and not self.card.works_for(self):
                self._settle()
                self.use.drained = slot

        self.later(self.world.latency() if seen_ns is None else seen_ns, say)

    def _see_idle(self, done_ns: int) -> None:
        if self._last_done_ns == done_ns and self.use.busy and not self.card.works_for(self):
            self._settle()


def shares(world: World, ns: int, *tenants: Tenant) -> list[float]:
    """Return what part of the coming `ns` each tenant has the card, counted in work done."""
    before = [tenant.ran_ns for tenant in tenants]
    world.run(ns)
    return [(tenant.ran_ns - start) / ns for tenant, start in zip(tenants, before, strict=True)]


def each_second(world: World, seconds: int, tenant: Tenant) -> Iterator[float]:
    """Yield a tenant's share of each of the coming seconds."""
    for _ in range(seconds):
        yield shares(world, S, tenant)[0]
