"""Several processes on one card: sums, process lists, and what death leaves behind."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_size_t, c_ubyte, c_uint64

import pytest

from tests.sim.conftest import Side, Sim, wait_for
from tests.sim.driver import CONTEXT_MIB, INVALID_HANDLE, MIB, NOT_INITIALIZED, OUT_OF_MEMORY, SUCCESS, IpcHandle

CLONE_NEWPID = 0x20000000


def hold(side: Side) -> None:
    """Hold 1 GiB until told otherwise."""
    side.cuda.context()
    side.cuda.alloc(1024 * MIB)
    side.send(os.getpid())
    side.receive()


def look(side: Side) -> tuple[int, dict[int, int]]:
    device = side.nvml.device()
    return side.nvml.memory(device).used // MIB - 551, side.nvml.processes(device)


def test_two_processes_share_a_card(sim: Sim) -> None:
    one, two = sim.start(hold), sim.start(hold)

    pids = [one.receive(), two.receive()]
    used, listed = sim.run(look)

    assert used == 2 * (CONTEXT_MIB + 1024)
    assert listed == dict.fromkeys(pids, CONTEXT_MIB + 1024)


@pytest.mark.root
def test_a_process_of_another_pid_namespace_is_named_as_here(sim: Sim) -> None:
    """As NVML does it: on a node the processes of containers, in a container none of the node's."""

    def contained(side: Side) -> None:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID) == 0
        pid = os.fork()
        if pid == 0:
            side.cuda.context()
            side.send((os.getpid(), look(side)[1]))
            side.receive()
            os._exit(0)
        side.send(pid)
        os.waitpid(pid, 0)

    outside = sim.start(hold)
    inside = sim.start(contained)
    holder = outside.receive()
    told = [inside.receive(), inside.receive()]  # the parent's word and the child's, in any order
    (pid,) = (one for one in told if isinstance(one, int))
    ((inner, seen_inside),) = (one for one in told if isinstance(one, tuple))
    seen_outside = sim.run(look)[1]
    inside.send()

    assert (inner, seen_inside) == (1, {1: CONTEXT_MIB})
    assert seen_outside == {holder: CONTEXT_MIB + 1024, pid: CONTEXT_MIB}


def test_death_frees(sim: Sim) -> None:
    killed, living = sim.start(hold), sim.start(hold)
    killed.receive()
    pid = living.receive()

    killed.kill()

    assert sim.run(look) == (CONTEXT_MIB + 1024, {pid: CONTEXT_MIB + 1024})


def test_dead_memory_can_be_taken(sim: Sim) -> None:
    def fill(side: Side) -> None:
        side.cuda.context()
        side.cuda.alloc(side.cuda.info()[0])
        side.send()
        side.receive()

    first = sim.start(fill)
    first.receive()

    def refused(side: Side) -> int:
        side.cuda("cuInit", 0)
        return side.cuda.code("cuDevicePrimaryCtxRetain", byref(c_uint64()), 0)

    assert sim.run(refused) == OUT_OF_MEMORY
    first.kill()
    assert sim.run(refused) == SUCCESS


def test_kill_at_any_moment(sim: Sim) -> None:
    """Whatever a process was doing when it was killed, the next finds an empty card."""

    def churn(side: Side) -> None:
        side.cuda.context()
        side.send()
        while True:
            small, large = side.cuda.alloc(4096), side.cuda.alloc(64 * MIB)
            side.cuda("cuMemAllocAsync", byref(c_uint64()), c_size_t(MIB), None)
            side.cuda.free(small)
            side.cuda.free(large)
            side.cuda.info()

    for _ in range(8):
        workers = [sim.start(churn) for _ in range(2)]
        for worker in workers:
            worker.receive()
        for worker in workers:
            worker.kill()
        assert sim.run(look) == (0, {})


def test_fork_child_is_not_initialized(sim: Sim) -> None:
    def parent(side: Side) -> list[int]:
        side.cuda.context()
        side.cuda.alloc(10 * MIB)
        pid = os.fork()
        if pid == 0:
            codes = [side.cuda.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(1)), side.cuda.code("cuInit", 0)]
            os._exit(0 if codes == [NOT_INITIALIZED] * 2 else 1)
        _, status = os.waitpid(pid, 0)
        return [status, side.cuda.used_mib()]

    assert sim.run(parent) == [0, CONTEXT_MIB + 10]


def test_exec_ends_a_process_on_the_card(sim: Sim) -> None:
    def replaced(side: Side) -> None:
        side.cuda.context()
        side.send()
        side.receive()
        os.execvp("sleep", ["sleep", "60"])

    process = sim.start(replaced)
    process.receive()
    assert sim.run(look)[0] == CONTEXT_MIB

    process.send()

    wait_for(lambda: sim.run(look) == (0, {}), "the card to be empty")


def test_state_can_be_removed_between_uses(sim: Sim) -> None:
    sim.run(look, HAMIRT_SIM="2")

    sim.state.unlink()

    assert sim.run(look) == (0, {})
    assert sorted(path.name for path in sim.root.iterdir()) == ["sim"]


def test_first_processes_race(sim: Sim) -> None:
    processes = [sim.start(hold) for _ in range(6)]

    pids = [process.receive() for process in processes]

    assert sim.run(look) == (6 * (CONTEXT_MIB + 1024), dict.fromkeys(pids, CONTEXT_MIB + 1024))
    assert sorted(path.name for path in sim.root.iterdir()) == ["sim"]


def test_ipc_memory_is_the_owners(sim: Sim) -> None:
    def owner(side: Side) -> None:
        side.cuda.context()
        handle = (c_uint64 * 8)()
        memory = side.cuda.alloc(64 * MIB)
        side.cuda("cuMemsetD8_v2", memory, c_ubyte(3), c_size_t(2))
        side.cuda("cuIpcGetMemHandle", handle, memory)
        side.send(bytes(handle))
        side.receive()
        side.send(side.cuda.read(memory, 2))
        side.receive()

    def opener(side: Side) -> list[object]:
        side.cuda.context()
        handle, pointer = IpcHandle.from_buffer_copy(side.receive()), c_uint64()
        before = side.cuda.used_mib()
        code = side.cuda.code("cuIpcOpenMemHandle_v2", byref(pointer), handle, 1)
        if code != SUCCESS:
            return [code]
        data = side.cuda.read(pointer, 2)
        side.cuda("cuMemsetD8_v2", pointer, c_ubyte(4), c_size_t(1))
        return [code, data, side.cuda.used_mib() - before]

    first = sim.start(owner)
    handle = first.receive()
    second = sim.start(opener)
    second.send(handle)
    assert second.receive() == [SUCCESS, b"\x03\x03", 0]
    first.send()
    assert first.receive() == b"\x04\x03"

    first.kill()
    third = sim.start(opener)
    third.send(handle)
    assert third.receive() == [INVALID_HANDLE]
