"""The traps of the gate that are about threads and processes: nobody launches in his neighbour's slot, whatever threads
do, and no end of a process hangs, crashes or changes its exit code.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.shim.conftest import TIMEOUT_S, Build, Node
from tests.shim.gates import WINDOW_NS, Trap, gated_trap
from tests.support import wait_for

MODES = pytest.mark.parametrize("window_ns", [None, WINDOW_NS], ids=["free", "windowed"])
EXIT_CODE = 7
STEPS = 15  # of trap_pattern


@pytest.fixture
def trap(node: Node, build: Build) -> Callable[..., Trap]:
    """Start a scenario of programs/trap_*.c in a tenant whose gates the test holds."""
    return lambda *arguments, **options: gated_trap(node, build, *arguments, **options)


Start = Callable[..., Trap]


@MODES
def test_a_thread_that_is_preempted_in_its_launch_is_waited_for(trap: Start, window_ns: int | None) -> None:
    program = trap(
        "trap_thread", "late", window_ns=window_ns, extra={"HAMIRT_SIM_FAULT": "cuLaunchKernel:delay=200000"}
    )
    program.hear("ready")
    gates, use = program.gates, program.use()

    for _ in range(10):  # a launch may be so late that it waits at the gate
        gates.open(window_ns=window_ns)
        program.say()
        program.hear("launching")
        if window_ns is not None:
            wait_for(lambda: use.entered == gates.slot() or use.waiting, "the launch in this slot")
        gates.close()
        wait_for(lambda: use.drained == gates.slot() or use.waiting, "the end of the launch's work")
        drained_ns = program.now_ns()
        if not use.waiting:
            break
        gates.open(window_ns=window_ns)
        program.hear("launched")

    assert drained_ns >= program.hear("launched")


@MODES
def test_a_per_thread_stream_handle_names_the_calling_threads_stream(trap: Start, window_ns: int | None) -> None:
    program = trap("trap_thread", "per_thread", window_ns=window_ns)

    program.say()
    ends_ns = program.hear("launched")

    assert program.drain() >= ends_ns


@MODES
def test_a_thread_that_ends_leaves_its_tail_to_be_waited_for(trap: Start, window_ns: int | None) -> None:
    program = trap("trap_thread", "thread_ends", window_ns=window_ns)

    program.say()
    ends_ns = program.hear("launched")

    assert program.drain() >= ends_ns


@MODES
def test_64_threads_launch_nothing_while_the_tenant_is_drained(trap: Start, window_ns: int | None) -> None:
    program = trap("trap_thread", "many_threads", window_ns=window_ns)
    program.hear("ready")
    dice, seen = random.Random(4), []

    for _ in range(30):
        program.gates.open(window_ns=window_ns)
        for _ in range(dice.randrange(3)):
            program.say("how many?")
            program.hear("busy")
        program.drain()
        program.say("how many?")
        seen.append(program.hear("busy"))
    counted = program.use().launches
    program.gates.open()
    program.say("quit")
    program.hear("over")

    assert seen == [0] * 30
    assert (counted > 0) == (window_ns is not None)


@pytest.mark.parametrize("when", ["outstanding", "waiting"])
@pytest.mark.parametrize("how", ["exit", "thread", "exec"])
def test_the_end_of_a_process_is_its_own(trap: Start, how: str, when: str) -> None:
    program = trap("trap_end", "ends", f"{how} {when}", window_ns=WINDOW_NS)
    program.hear("ready")

    if when == "waiting":
        program.gates.close()
    program.say()
    program.hear("launched")
    wait_for(lambda: program.use().waiting == int(when == "waiting"), "its threads to be there")
    program.gates.close()
    program.say()

    assert program.process.wait(TIMEOUT_S) == EXIT_CODE


def test_a_fork_is_not_the_parents_end(trap: Start) -> None:
    program = trap("trap_end", "forked", window_ns=WINDOW_NS)

    program.say()
    ends_ns = program.hear("launched")

    assert [program.hear(how) for how in ("exit", "exit of a thread", "exec")] == [EXIT_CODE] * 3
    assert program.drain() >= ends_ns


def test_results_are_what_they_are_without_a_gate(node: Node, build: Build, trap: Start) -> None:
    bare = Trap(node, build, "trap_pattern")
    bare.hear("ready")
    bare.say("\n" * STEPS)
    expected = [bare.hear("sum") for _ in range(4)]
    dice = random.Random(os.environ.get("HAMIRT_SEED", "gates"))
    program = trap("trap_pattern", window_ns=WINDOW_NS)

    program.hear("ready")
    program.say()
    slots = 0
    while program.lines.empty():
        program.gates.close()
        if slots < STEPS:
            program.say()
        if dice.random() < 0.5:
            program.drain()
        program.gates.open(window_ns=dice.choice([None, 1, WINDOW_NS // 5, WINDOW_NS]))
        slots += 1

    assert [program.hear("sum") for _ in range(4)] == expected
    assert slots >= STEPS
