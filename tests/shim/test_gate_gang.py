"""Ranks of a tenant that wait for each other on their cards, beside another such tenant, under gates that open and
close at random: they never stop each other.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.shim.conftest import TIMEOUT_S, Build, Node
from tests.shim.gates import WINDOW_NS, Gates
from tests.support import wait_for

pytestmark = pytest.mark.realtime

RANKS = 2
SLOTS = 5000  # in each of the two tests
GIVE_UP_S = 5.0
END, ROUNDS = 8, 16  # offsets in the file of gang_rank.c


class Gang:
    """A tenant with a process for each of its devices."""

    def __init__(self, node: Node, program: Path, number: int) -> None:
        tenant = node.tenant(devices=range(RANKS))
        self.gates = Gates(tenant)
        for device in range(RANKS):
            self.gates.close(device)
        path = node.root / f"gang{number}"
        path.write_bytes(bytes(8) + struct.pack("Q", 1 << 62) + bytes(4096 - 16))
        with open(path, "r+b") as file:
            self.file = mmap.mmap(file.fileno(), 4096)
        self.ranks = [node.start([program, path, str(rank), str(RANKS)], tenant) for rank in range(RANKS)]
        wait_for(lambda: all(self.waits(device) for device in range(RANKS)), "the ranks at their gates")

    def use(self, device: int):  # type: ignore[no-untyped-def]
        return self.gates.use(self.ranks[device].pid, device)

    def waits(self, device: int) -> bool:
        slots = self.gates.usage.slot[0 : self.gates.usage.high_slot]
        return any(slot.taken and slot.use[device].waiting for slot in slots)

    def is_drained(self, device: int) -> bool:
        use = self.use(device)
        return bool(use.drained == use.entered)

    def rounds(self) -> list[int]:
        return list(struct.unpack_from(f"{RANKS}Q", self.file, ROUNDS))

    def end(self) -> list[int]:
        """Have all ranks end after the same round, with their gates open."""
        for device in range(RANKS):
            self.gates.open(device)
        struct.pack_into("Q", self.file, END, max(self.rounds()) + 100)
        return [rank.wait(TIMEOUT_S) for rank in self.ranks]


def hand_out(gangs: list[Gang], devices: list[int], slots: int, seed: object) -> int:
    """Open the gates of one gang at a time to these devices; return how many slots were not drained in time."""
    dice, misses = random.Random(str(seed)), 0
    for _ in range(slots):
        gang = dice.choice(gangs)
        for device in dice.sample(devices, len(devices)):
            gang.gates.open(device, dice.choice([WINDOW_NS // 5, WINDOW_NS]))
            pause(dice.choice([0, 0, 0.0003]))
        pause(dice.uniform(0, 0.002))
        for device in dice.sample(devices, len(devices)):
            gang.gates.close(device)
            pause(dice.choice([0, 0, 0.0003]))
        deadline = time.monotonic() + GIVE_UP_S
        while not all(gang.is_drained(device) for device in devices):
            if time.monotonic() > deadline:
                misses += 1
                break
            pause(0.0001)
    return misses


def pause(seconds: float) -> None:
    """The length of a slot, or between two looks."""
    time.sleep(seconds)


@pytest.fixture
def gangs(node: Node, build: Build) -> list[Gang]:
    node.cards = RANKS
    program = build("gang_rank")
    return [Gang(node, program, number) for number in range(2)]


def test_gangs_get_all_their_cards_in_one_slot(gangs: list[Gang]) -> None:
    seed = os.environ.get("HAMIRT_SEED", "gang")

    misses = hand_out(gangs, list(range(RANKS)), SLOTS // RANKS, seed)
    done = [min(gang.rounds()) for gang in gangs]

    assert misses == 0
    assert min(done) > 100
    assert [gang.end() for gang in gangs] == [[0] * RANKS] * 2


def test_a_rank_that_is_waited_for_catches_up_at_a_closed_gate(gangs: list[Gang]) -> None:
    """Each card goes its own way: a rank may have to wait for one whose turn is not now."""
    seed, misses = os.environ.get("HAMIRT_SEED", "rank"), []
    threads = [
        threading.Thread(target=lambda d=d: misses.append(hand_out(gangs, [d], SLOTS // RANKS, f"{seed}{d}")))
        for d in range(RANKS)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [min(gang.rounds()) for gang in gangs]

    assert misses == [0] * RANKS
    assert min(done) > 100
    assert [gang.end() for gang in gangs] == [[0] * RANKS] * 2
