"""What a slot may have in flight, and what may still follow on it: an engine makes its next step ready meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.shim.conftest import Build, Node
from tests.shim.gates import FAR_FUTURE_NS, WINDOW_NS, Trap, gated_trap
from tests.support import wait_for

ROUNDS, FOLLOWERS, FOLLOWER_NS = 20, 30, 300_000  # of trap_step.c
MOST_FOLLOW_NS = 2_000_000
MS = 1_000_000

Start = Callable[..., Trap]


@pytest.fixture
def trap(node: Node, build: Build) -> Start:
    """Start a scenario of programs/trap_step.c in a tenant whose gate the test holds."""

    def start(*arguments: str, window_ns: int = WINDOW_NS, siblings: int = 0) -> Trap:
        program = gated_trap(node, build, "trap_step", *arguments, window_ns=window_ns)
        usage = program.gates.usage
        for slot in usage.slot[1 : 1 + siblings]:
            slot.taken = slot.use[0].busy = 1
        usage.high_slot = 1 + siblings
        program.say()
        return program

    return start


@pytest.mark.parametrize("ends", [True, False], ids=["slot that ends late", "no known end"])
def test_to_the_end_of_its_slot_work_may_come_ahead(ends: bool, trap: Start) -> None:
    program = trap("behind")
    program.hear("ready")

    program.gates.limits.device[0].gate.ends_ns = FAR_FUTURE_NS if ends else 0
    program.say()
    early = program.hear("early")

    assert (early > ROUNDS // 2) == ends  # a busy machine may make some late, and have some costs learned wrong


@pytest.mark.parametrize("siblings", [0, 15])
def test_among_the_processes_of_a_tenant_work_takes_longer_than_it_costs(siblings: int, trap: Start) -> None:
    """...so that each may have as much in flight as it had without them: the driver changes between them less often."""
    program = trap("behind", siblings=siblings)
    program.hear("ready")
    program.say()

    assert (program.hear("early") > ROUNDS // 2) == (siblings > 0)


def start_and_close(trap: Start, what: str, ends_ns: int) -> tuple[Trap, int]:
    """Close a program's gate while something long is in flight; return when that ends at the soonest."""
    program = trap("follow", what)
    program.gates.limits.device[0].gate.ends_ns = ends_ns
    over_ns = program.hear("launched")
    use = program.use()
    wait_for(lambda: use.launches == 9, "the long one's launch")
    program.gates.close()
    program.say()
    return program, over_ns


@pytest.mark.realtime
def test_what_is_short_may_follow_on_a_slot_that_is_over(trap: Start) -> None:
    """...for a part of what that left in flight, and is waited for."""
    program, over_ns = start_and_close(trap, "short", FAR_FUTURE_NS)
    use = program.use()
    wait_for(lambda: use.waiting == 1, "the program to be held back")
    followed = use.launches - 9
    wait_for(lambda: use.drained == use.entered, "the end of the slot's work")

    assert 0 < followed <= MOST_FOLLOW_NS // FOLLOWER_NS + 4  # its cost may have been learned too low
    assert program.now_ns() >= over_ns + followed * FOLLOWER_NS
    program.gates.open()
    assert [program.hear("follower") for _ in range(FOLLOWERS)] == list(range(FOLLOWERS))


@pytest.mark.realtime
def test_what_is_short_may_follow_before_the_slot_is_over(trap: Start) -> None:
    """...where something long will be at work when it is; for as much, and no more after it."""
    program = trap("follow", "short")
    gate = program.gates.limits.device[0].gate
    gate.ends_ns = FAR_FUTURE_NS
    over_ns = program.hear("launched")
    use = program.use()
    wait_for(lambda: use.launches == 9, "the long one's launch")
    gate.ends_ns = over_ns - 50 * MS
    program.say()

    wait_for(lambda: use.launches > 9, "a follower")

    assert program.now_ns() < gate.ends_ns
    followed = 0
    while (launches := use.launches) and program.now_ns() < over_ns:  # later it may go on: the gate stays open
        followed = launches - 9
    assert followed <= MOST_FOLLOW_NS // FOLLOWER_NS + 4


@pytest.mark.parametrize(("what", "ends_ns"), [("long", FAR_FUTURE_NS), ("short", 0)])
def test_nothing_else_follows(what: str, ends_ns: int, trap: Start) -> None:
    program, _ = start_and_close(trap, what, ends_ns)
    use = program.use()
    wait_for(lambda: use.drained == use.entered, "the end of the slot's work")
    wait_for(lambda: use.waiting == 1, "the program to be held back")

    assert use.launches == 9


@pytest.mark.realtime
def test_how_long_the_card_worked_is_told(trap: Start) -> None:
    """...which is not how long the program had it, in pauses too."""
    program = trap("pause")
    use = program.use()
    wait_for(lambda: use.launches == 4, "the first launches")
    before = use.worked_us
    program.say()
    took = program.hear("took")

    assert 0.01 < (use.worked_us - before) / took < 0.6


@pytest.mark.realtime
def test_a_window_of_one_kernel_has_one_in_flight(trap: Start) -> None:
    """...also where the reaper looks, and finds nothing, at the moment of a launch."""
    program = trap("one by one", window_ns=120_000)

    assert program.hear("early") <= 10  # of 4,000: a cost may have been learned too low
