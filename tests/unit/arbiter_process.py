"""A program of the arbiter's world in virtual time: what it does, and what its process says in its usage page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hamirt.region import lib

if TYPE_CHECKING:
    from tests.unit.arbiter_world import Lane


US, MS, S = 1_000, 1_000_000, 1_000_000_000
NEVER = (1 << 64) - 1
IDLE_NS = 300 * US  # HM_IDLE_NS of the shim
LONGEST_START_NS = 300 * US  # of mark.c
SHORT_WINDOW_NS = 500 * US  # of window.c: no launch comes ahead of the end of the last
LONGEST_WINDOW_NS = 12 * MS
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
        self.tells = True  # how long the card was at work
        self.waits = False  # at the gate; its page may say something else
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
        elif not self.waits and not self.is_waited_for():
            self.waits, self.use.waiting = True, 1
            self._waits_since_ns = since = self.world.now
            self.world.ring()
            self.later(LOOK_AGAIN_NS, lambda: self._beat(since))
        elif not self.waits:
            self.use.drained = (self.use.entered - 1) & 0xFFFFFFFF
            self._launch()

    def _beat(self, since_ns: int) -> None:
        """It still waits: in case that the arbiter took it for stopped."""
        if self.waits and self._waits_since_ns == since_ns:
            self.use.beats += 1
            self.world.ring()
            self.later(LOOK_AGAIN_NS, lambda: self._beat(since_ns))

    def is_waited_for(self) -> bool:
        return False

    def _woken(self) -> None:
        if self.waits and not self._is_closed:
            self.waits, self.use.waiting = False, 0
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
        kernel, gate = self.load.kernel_ns, self.lane.gate
        window = max(gate.window_ns, min(gate.ends_ns - self.world.now, LONGEST_WINDOW_NS))
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
        if self.waits:
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
        self.card.advance()
        if self.tells:
            use.worked_us = self.ran_ns // US & 0xFFFFFFFF
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
