"""What bench/soak.py does, in virtual time: tenants that come, change, stop, go on and die beside each other, and
arbiters that follow each other. The card does not stand still while somebody wants it, and nobody is forgotten.
"""

import random
from dataclasses import dataclass

import pytest

from tests.unit.arbiter_world import BATCH, LATENCY, MS, NORMAL, US, Load, Process, S, Tenant, World

LOADS = [
    Load(),
    Load(200 * US),
    Load(5 * MS),
    Load(500 * US, waits=True),
    Load(200 * US, kernels=10, period_ns=20 * MS),
    Load(2500 * US, queue=4),
]
CAPS = (0, 0, 0, 0, 10, 25, 40, 60)
CLASSES = (NORMAL, NORMAL, LATENCY, BATCH)
WEIGHTS = (10, 50, 100, 300)
MOST = 5
TICK_NS = 100 * MS
SETTLE_NS = 1200 * MS  # a miss of half a second, and one that comes back from a stop
LOOK_NS = 1 * S


@dataclass
class Guest:
    """A tenant, and what is known of it."""

    tenant: Tenant
    load: Load
    process: Process
    stopped_until_ns: int = 0
    lives: bool = True

    @property
    def is_there(self) -> bool:
        return self.lives and not self.process.stopped

    @property
    def wants_all(self) -> bool:
        endless = self.load.kernels is None and not self.load.waits
        return self.is_there and endless and self.tenant.lanes[0].limit.time_percent == 0


class Soak:
    """The events, by the luck of a seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.world = World(seed)
        self.guests: list[Guest] = []
        self.log: list[str] = []

    def join(self) -> None:
        if sum(guest.lives for guest in self.guests) < MOST:
            load = self.dice.choice(LOADS)
            tenant = self.world.tenant(load)
            self.guests.append(Guest(tenant, load, tenant.processes[0]))
            self.limit(self.guests[-1])

    def limit(self, guest: Guest) -> None:
        limit = guest.tenant.lanes[0].limit
        limit.time_percent, limit.weight = self.dice.choice(CAPS), self.dice.choice(WEIGHTS)
        limit.latency_class = self.dice.choice(CLASSES)
        self.world.ring()

    def kill(self, guest: Guest) -> None:
        guest.lives = False
        guest.process.kill()

    def stop(self, guest: Guest) -> None:
        guest.process.stop()
        guest.stopped_until_ns = self.world.now + self.dice.randint(500, 3000) * MS

    def act(self) -> None:
        there = [guest for guest in self.guests if guest.is_there]
        action = self.dice.choice(["join", "join", "limit", "limit", "stop", "kill", "succeed"])
        if action != "succeed" and not there:
            action = "join"
        self.log.append(f"{self.world.now / S:.3f} {action}")
        if action in ("join", "succeed"):
            getattr(self, action)()
        else:
            getattr(self, action)(self.dice.choice(there))

    def succeed(self) -> None:
        self.world.succeed(self.dice.choice([0, 5 * MS, 200 * MS]))

    def run(self, ns: int) -> None:
        """Let `ns` pass without an event, but for those that go on."""
        for _ in range(ns // TICK_NS):
            self.world.run(TICK_NS)
            for guest in self.guests:
                if guest.process.stopped and guest.lives and self.world.now > guest.stopped_until_ns:
                    guest.process.go_on()

    def look(self) -> None:
        """Check a second in which nothing happens."""
        there = [guest for guest in self.guests if guest.is_there]
        owes = [guest.tenant.gate.credit_ns < 0 for guest in there]
        wanted = any(guest.wants_all for guest in there)
        before = [guest.tenant.ran_ns for guest in there]
        self.world.run(LOOK_NS)
        done = [guest.tenant.ran_ns - was for guest, was in zip(there, before, strict=True)]
        story = self.log[-12:], [(guest.load, ran / LOOK_NS) for guest, ran in zip(there, done, strict=True)]
        assert all(ran > 0 or owed for ran, owed in zip(done, owes, strict=True)), story
        assert not wanted or sum(done) > 0.85 * LOOK_NS, story


@pytest.mark.parametrize("seed", range(24))
def test_soak(seed: int) -> None:
    soak = Soak(seed)
    for _ in range(60):
        soak.act()
        soak.run(soak.dice.choice([100 * MS, 300 * MS, 1 * S]))
        if soak.dice.random() < 0.4:
            soak.run(SETTLE_NS)
            soak.look()
