"""Slots and ledger of processes that fork, spawn and exec: always exactly the living, each with what it holds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shim.conftest import MIB, TIMEOUT_S, Build, Node, Tenant


class Talk:
    """A program that prints a line where the ledger should be looked at, and goes on when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self, word: str) -> int:
        line = self.stdout.readline().split()
        assert line[:1] == [word], f"heard {line}, status {self.process.poll()}"
        return int(line[1])

    def go_on(self) -> None:
        self.stdin.write("\n")
        self.stdin.flush()

    def end(self) -> int:
        self.stdin.close()
        return self.process.wait(TIMEOUT_S)


Start = Callable[..., Talk]


@pytest.fixture
def tenant(node: Node) -> Tenant:
    return node.tenant(mem=4096 * MIB)


@pytest.fixture
def start(node: Node, tenant: Tenant, build: Build) -> Start:
    program = build("fork_scenarios")
    return lambda *arguments, **options: Talk(node.start([program, *map(str, arguments)], tenant, **options))


def held(tenant: Tenant) -> dict[int, int]:
    """Return the MiB that each living process holds by the ledger."""
    return {slot.pid: slot.uses[0].used_bytes // MIB for slot in tenant.usage().slots}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_a_child_forked_before_the_first_call_has_its_own_slot(start: Start, tenant: Tenant) -> None:
    parent = start("before")

    child = parent.hear("both")
    assert held(tenant) == {parent.pid: 64, child: 128}

    parent.go_on()
    assert parent.hear("parent") == 0
    assert held(tenant) == {parent.pid: 64}


def test_a_child_that_does_not_use_the_gpu_has_no_slot(start: Start, tenant: Tenant) -> None:
    parent = start("after", 0)

    parent.hear("both")
    assert held(tenant) == {parent.pid: 64}

    parent.go_on()
    assert parent.hear("parent") == 0
    assert held(tenant) == {parent.pid: 64}


def test_a_refused_call_in_the_child_charges_nothing(start: Start, tenant: Tenant) -> None:
    parent = start("after", 1)

    child = parent.hear("both")
    assert {pid: mib for pid, mib in held(tenant).items() if mib != 0} == {parent.pid: 64}

    parent.go_on()
    assert parent.hear("parent") == 0
    assert child not in held(tenant)


def test_a_killed_parent_frees_its_slot_though_its_child_lives(start: Start, tenant: Tenant) -> None:
    parent = start("after", 0)
    child = parent.hear("both")

    os.kill(parent.pid, signal.SIGKILL)
    parent.process.wait(TIMEOUT_S)
    left = held(tenant)
    os.kill(child, signal.SIGKILL)

    assert left == {}


def test_grandchildren(start: Start, tenant: Tenant) -> None:
    first = start("grandchild")

    inner = first.hear("three")
    assert sorted(held(tenant).values()) == [32, 64]
    assert held(tenant)[inner] == 32

    first.go_on()
    assert first.hear("last") == 0
    assert held(tenant) == {first.pid: 16}


@pytest.mark.parametrize("how", ["vfork", "spawn"])
def test_a_spawned_program_beside_its_parent(how: str, start: Start, tenant: Tenant) -> None:
    parent = start(how)

    child = parent.hear("child")
    assert held(tenant) == {parent.pid: 64, child: 32}

    assert parent.end() == 0
    assert held(tenant) == {}


def test_an_exec_ends_what_the_old_program_held(start: Start, tenant: Tenant) -> None:
    process = start("exec")

    assert process.hear("child") == process.pid
    assert held(tenant) == {process.pid: 32}


def test_exec_at_any_moment(start: Start, tenant: Tenant) -> None:
    processes = [start("often", 8) for _ in range(6)]

    for process in processes:
        assert process.hear("child") == process.pid

    assert held(tenant) == {process.pid: 32 for process in processes}


def test_forks_while_other_threads_allocate(start: Start, tenant: Tenant) -> None:
    process = start("threads", 200)

    assert process.hear("joined") == 0, "children that hung or crashed"
    assert held(tenant) == {process.pid: 64}


@pytest.mark.parametrize("cards", [1, 2])
def test_forks_during_the_first_call(cards: int, node: Node, build: Build) -> None:
    # with two cards and one of them given, the driver's list of devices is changed for that call
    node.cards = cards
    tenant = node.tenant(mem=4096 * MIB, devices=[cards - 1])
    delays = {"HAMIRT_SIM_FAULT": "cuInit:delay=20000,cuDevicePrimaryCtxRetain:delay=20000"}
    process = Talk(node.start([build("fork_scenarios"), "during", "60"], tenant, extra=delays))

    assert process.hear("begun") == 0, "children that hung or crashed"
    assert held(tenant) == {process.pid: 16}


def test_a_daemon_that_closes_all_descriptors(start: Start, tenant: Tenant) -> None:
    process = start("closes")

    process.hear("closed")
    assert held(tenant) == {process.pid: 64}


def test_kill_at_any_moment(start: Start, tenant: Tenant) -> None:
    for round_number in range(10):
        processes = [start("threads", 500) for _ in range(3)]
        until(lambda: len(held(tenant)) >= 3, "the programs have started")
        time.sleep(0.003 * round_number)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.process.wait(TIMEOUT_S)
        until(lambda: held(tenant) == {}, "a child of the killed holds a slot")

    last = start("child", 32)
    last.hear("child")
    assert held(tenant) == {last.pid: 32}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_pid_namespaces(node: Node, tenant: Tenant, build: Build) -> None:
    program = build("fork_scenarios")
    command: list[str | Path] = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        str(program),
        "child",
        "32",
    ]
    outside = Talk(node.start([program, "child", "16"], tenant))
    inside = [Talk(node.start(command, tenant)) for _ in range(2)]

    outside.hear("child")
    assert [talk.hear("child") for talk in inside] == [1, 1]
    slots = tenant.usage().slots
    assert sorted(slot.uses[0].used_bytes // MIB for slot in slots) == [16, 32, 32]
    assert len({slot.pid_ns for slot in slots}) == 3

    os.kill(inside[0].pid, signal.SIGKILL)
    until(lambda: len(tenant.usage().slots) == 2, "the killed one's slot is free")
    assert inside[1].end() == 0
    assert held(tenant) == {outside.pid: 16}
