"""How big is my GPU: the figures of CUDA and NVML in a tenant, which must all agree, and nobody else's processes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from hamirt import region
from tests.shim.conftest import CARD_BYTES, MIB, PROGRAMS, TIMEOUT_S, Build, Node, Tenant, card_uuid
from tests.shim.view import Shell, working
from tests.support import need

CAP = 8192 * MIB
RESERVE = region.RESERVE_BYTES
SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_FOUND, INSUFFICIENT_SIZE, MISMATCH = 0, 1, 2, 6, 7, 25
INVALID_CONTEXT = 201

Open = Callable[..., Shell]


@pytest.fixture
def open_shell(node: Node) -> Iterator[Open]:
    """Start a shell, in a tenant or as its neighbour, that ends with the test."""
    with ExitStack() as stack:

        def start(tenant: Tenant | None = None, *, nvml: bool = True, **extra: str) -> Shell:
            process = node.start(
                [sys.executable, PROGRAMS / "view_shell.py"], tenant, shim=tenant is not None, extra=extra
            )
            shell = stack.enter_context(Shell(process))
            if nvml:
                assert shell("pynvml.nvmlInit()") is None
            return shell

        yield start


def agreed(shell: Shell, index: int = 0) -> dict[str, Any]:
    """Return the figures of a device, after a check that they agree."""
    (total, used_1, free), (total_2, used, free_2, reserved) = shell(f"memory({index})")
    code, count, listed = shell(f"processes(index={index})")

    assert (total, free) == (total_2, free_2)
    assert used_1 == total - free == used + reserved
    assert (code, count) == (SUCCESS, len(listed))
    assert used == sum(size for _, size in listed)
    return {"total": total, "free": free, "used": used, "reserved": reserved, "pids": {pid for pid, _ in listed}}


def test_all_figures_agree_in_every_process_of_the_tenant(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    working(open_shell(), 4096)
    one, two = (working(open_shell(tenant), mib, tenant=tenant) for mib in (1024, 512))
    watcher = open_shell(tenant)

    seen = [agreed(shell) for shell in (one, two, watcher)]

    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["total"] == CAP
    assert seen[0]["pids"] == {one.pid, two.pid}
    assert seen[0]["used"] > 1536 * MIB
    assert seen[0]["reserved"] == RESERVE
    assert seen[0]["free"] == CAP - RESERVE - seen[0]["used"]
    for shell in (one, two):
        assert shell("total()") == CAP
        assert shell("info()") == [0, seen[0]["free"], CAP]


def test_the_slots_are_what_the_process_list_shows(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    one = working(open_shell(tenant), 1024, tenant=tenant)
    two = working(open_shell(tenant), 512, tenant=tenant)

    listed = one("processes()")[2]

    uses = {slot.pid: slot.uses[0] for slot in tenant.usage().slots}
    assert dict(listed) == {pid: use.used_bytes + use.overhead_bytes for pid, use in uses.items()}
    assert set(uses) == {one.pid, two.pid}


def test_what_is_free_can_be_allocated(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    shell = working(open_shell(tenant), 100, tenant=tenant)

    free = shell("info()")[1]

    assert shell(f"alloc({free // MIB // 2 * 2})") == 0
    assert shell("info()")[1] < 2 * MIB
    assert shell("alloc(4)") != 0
    assert agreed(shell)["free"] < 2 * MIB


def test_the_dead_do_not_count(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    one = working(open_shell(tenant), 1024, tenant=tenant)
    before = one("info()")[1]
    two = working(open_shell(tenant), 2048, tenant=tenant)
    between = one("info()")[1]

    two.process.kill()
    two.process.wait(TIMEOUT_S)

    assert between < before - 2048 * MIB
    assert one("info()")[1] == before
    assert agreed(one)["pids"] == {one.pid}
    assert agreed(open_shell(tenant))["free"] == before


def test_a_full_card_leaves_less_free_than_the_cap(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    shell = working(open_shell(tenant), 100, tenant=tenant)
    neighbour = open_shell()

    assert neighbour("context()") == 0
    room = neighbour("info()")[1] // MIB - 1000
    assert neighbour(f"alloc({room})") == 0
    seen = agreed(shell)

    assert seen["free"] == neighbour("info()")[1] == shell("info()")[1]
    assert seen["total"] == CAP


def test_an_uncapped_card_is_shown_as_it_is_with_the_tenants_processes(node: Node, open_shell: Open) -> None:
    neighbour = working(open_shell(), 4096)
    tenant = node.tenant(None)
    shell = working(open_shell(tenant), 100, tenant=tenant)

    assert shell("memory()") == neighbour("memory()")
    assert shell("[total(), *info()]") == neighbour("[total(), *info()]")
    assert [pid for pid, _ in shell("processes()")[2]] == [shell.pid]
    assert {pid for pid, _ in neighbour("processes()")[2]} == {shell.pid, neighbour.pid}


def test_several_cards_have_each_its_own_figures(node: Node, open_shell: Open) -> None:
    node.cards = 3
    tenant = node.tenant(CAP, devices=(0, 2))
    one = working(open_shell(tenant), 1024, ordinal=0, tenant=tenant)
    two = working(open_shell(tenant), 512, ordinal=1, tenant=tenant)

    first, second = agreed(one, 0), agreed(one, 1)

    assert (first["pids"], second["pids"]) == ({one.pid}, {two.pid})
    assert first["used"] - second["used"] == 512 * MIB
    assert one("[total(0), total(1)]") == [CAP, CAP]


@pytest.mark.parametrize(("cap", "shown"), [(2048 * MIB, 2048 * MIB), (CAP, None)])
def test_the_32_bit_call_shows_what_fits(node: Node, open_shell: Open, cap: int, shown: int | None) -> None:
    shell, native = open_shell(node.tenant(cap)), open_shell()
    shell("cuda.cuInit(0)")
    native("cuda.cuInit(0)")

    assert shell("total_32()") == (native("total_32()") if shown is None else shown)


def test_calls_that_the_driver_refuses_or_half_answers(node: Node, open_shell: Open) -> None:
    shell, native = open_shell(node.tenant(CAP)), open_shell()
    shell("cuda.cuInit(0)")
    native("cuda.cuInit(0)")

    assert shell("info()") == native("info()") == [INVALID_CONTEXT, 0, 0]
    shell("context()")
    native("context()")
    code, free, total = shell("info()")

    assert code == 0
    for half, shown in (("True, False", [free, 0]), ("False, True", [0, total]), ("False, False", [0, 0])):
        refused = native(f"info({half})")[0]
        assert shell(f"info({half})") == ([refused, 0, 0] if refused else [0, *shown])


# Expressions about a process list; with the same processes on the card, NVML answers them in the same way.
PROTOCOL = [
    *(f"processes('{kind}', '{v}', room={room}, buffer={buffer})[:2]"
      for kind in ("Compute", "Graphics", "MPSCompute")
      for v in ("", "_v2", "_v3")
      for room, buffer in ((0, False), (0, True), (1, True), (1, False), (2, True), (64, True))),
    *(f"details(room={room}, buffer={buffer})[:2]"
      for room, buffer in ((0, False), (0, True), (1, True), (2, True), (64, True))),
    "details(mode=1)",
    "details(mode=2)",
    "details(mode=9)[0]",
    "details(version=1)[0]",
    *(f"nvml.nvmlDeviceGet{kind}RunningProcesses_v3(handle(), None, None)" for kind in ("Compute", "Graphics")),
    "nvml.nvmlDeviceGetRunningProcessDetailList(handle(), None)",
    "nvml.nvmlDeviceGetProcessUtilization(handle(), None, None, ctypes.c_uint64(0))",
    "nv('nvmlDeviceGetAccountingPids', handle())",
    "nv('nvmlDeviceGetEncoderSessions', handle())",
    "nv('nvmlDeviceGetFBCSessions', handle())",
    "nvml.nvmlDeviceGetMemoryInfo(handle(), None)",
    "nvml.nvmlDeviceGetMemoryInfo_v2(handle(), None)",
    "nv('nvmlDeviceGetMemoryInfo', handle(), 77)",
    "nvml.nvmlDeviceGetCount_v2(None)",
    "nvml.nvmlDeviceGetHandleByIndex_v2(0, None)",
    "nvml.nvmlDeviceGetHandleByUUID(b'GPU-1', None)",
    "nvml.nvmlDeviceGetIndex(handle(), None)",
]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_the_protocol_is_nvmls_own(node: Node, open_shell: Open, workers: int) -> None:
    tenant = node.tenant(CAP)
    for _ in range(workers):
        working(open_shell(tenant, nvml=False), 100, tenant=tenant)
    ours, native = open_shell(tenant), open_shell()

    asked = {question: (ours(question), native(question)) for question in PROTOCOL}

    assert {question: answers for question, answers in asked.items() if answers[0] != answers[1]} == {}
    assert asked["processes('Compute', '_v3', room=0, buffer=False)[:2]"][0] == [
        INSUFFICIENT_SIZE * bool(workers),
        workers,
    ]


def test_room_without_an_array_is_an_error(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    shell = open_shell(tenant)
    questions = [f"processes('Compute', '{version}', room=64, buffer=False)[:2]" for version in ("", "_v2", "_v3")]
    questions.append("details(room=64, buffer=False)[:2]")

    without = [shell(question) for question in questions]
    working(open_shell(tenant, nvml=False), 100, tenant=tenant)

    assert without == [[SUCCESS, 0]] * 4
    assert [shell(question) for question in questions] == [[INVALID_ARGUMENT, 1]] * 4


def test_every_list_has_the_same_processes(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    working(open_shell(nvml=False), 100)
    pids = sorted(working(open_shell(tenant, nvml=False), 100, tenant=tenant).pid for _ in range(3))
    shell = open_shell(tenant)

    lists = [shell(f"processes(version='{version}')[2]") for version in ("", "_v2", "_v3")]

    assert lists[0] == lists[1] == lists[2] == shell("details()[2]")
    assert sorted(pid for pid, _ in lists[0]) == pids


def test_a_version_of_the_list_that_is_not_known_is_refused(node: Node, open_shell: Open) -> None:
    shell = open_shell(node.tenant(CAP))

    assert shell("details(version=0x2000020)")[0] == MISMATCH


def test_where_nvml_shows_none_of_ours_the_slots_do(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    worker = working(open_shell(tenant, nvml=False), 100, tenant=tenant)
    fault = {f"nvmlDeviceGet{kind}RunningProcesses_v3:*={INSUFFICIENT_SIZE}" for kind in ("Compute", "Graphics")}
    shell = open_shell(tenant, HAMIRT_SIM_FAULT=",".join(fault))

    assert shell("processes()") == [SUCCESS, 1, [[worker.pid, shell("memory()")[1][1]]]]
    assert shell("processes('Graphics')") == [SUCCESS, 0, []]


@pytest.mark.root
def test_processes_of_another_pid_namespace_have_no_pid_here(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    here = working(open_shell(tenant), 100, tenant=tenant)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Shell(node.start([*command, sys.executable, PROGRAMS / "view_shell.py"], tenant)) as there:
        working(there, 512)

        assert [pid for pid, _ in here("processes()")[2]] == [here.pid]
        assert here("info()")[1] < CAP - RESERVE - 612 * MIB


def test_utilization_samples_of_others_are_not_shown(node: Node, open_shell: Open) -> None:
    tenant = node.tenant(CAP)
    native = open_shell()
    ours, other = working(open_shell(tenant), 100, tenant=tenant), working(open_shell(), 100)

    deadline = time.monotonic() + 5
    while native("sampled()")[0] == -NOT_FOUND and time.monotonic() < deadline:
        time.sleep(0.1)

    everybody, seen = native("sampled()"), ours("sampled()")
    for everyone, mine in zip(everybody, seen, strict=True):
        found = [] if isinstance(everyone, int) else [pid for pid in everyone if pid == ours.pid]
        assert mine == (found or (everyone if isinstance(everyone, int) else -NOT_FOUND))
    assert other.pid != ours.pid


def test_a_device_that_was_not_given_does_not_exist(node: Node, open_shell: Open) -> None:
    node.cards = 4
    shell, native = open_shell(node.tenant(devices=(1, 3))), open_shell()
    bus = [native(f"pynvml.nvmlDeviceGetPciInfo(handle({i})).busId") for i in range(4)]
    serial = [native(f"nv('nvmlDeviceGetSerial', handle({i}))") for i in range(4)]

    assert shell("enumerate_nvml()") == [[card_uuid(1), 0], [card_uuid(3), 1]]
    assert shell("nv('nvmlDeviceGetHandleByIndex', 2)") == -INVALID_ARGUMENT
    for card, expected in ((0, -NOT_FOUND), (1, card_uuid(1)), (2, -NOT_FOUND), (3, card_uuid(3))):
        assert shell(f"uuid_of(nv('nvmlDeviceGetHandleByUUID', '{card_uuid(card)}'))") == expected
        assert shell(f"uuid_of(nv('nvmlDeviceGetHandleByPciBusId', '{bus[card]}'))") == expected
        if isinstance(serial[card], str):
            assert shell(f"uuid_of(nv('nvmlDeviceGetHandleBySerial', '{serial[card]}'))") == expected
    assert shell("nv('nvmlDeviceGetHandleByUUID', 'GPU-nonsense')") == -NOT_FOUND
    assert shell("nv('nvmlDeviceGetHandleByPciBusId', 'zz')") == native("nv('nvmlDeviceGetHandleByPciBusId', 'zz')")


# A call, what comes before its count and array, and the cards of a tenant of 1 and 3 that it is to name.
LISTS = [
    (f"'nvmlDeviceGetTopologyNearestGpus', by_uuid('{card_uuid(1)}'), 50", [3]),
    ("'nvmlSystemGetTopologyGpuSet', 0", [1, 3]),
]


@pytest.fixture
def topology(node: Node, build: Build) -> dict[str, str]:
    """Variables for a shell that meets another NVML, which lists devices."""
    node.cards = 4
    library = build("topology_nvml", "-Wl,-soname,libnvidia-ml.so.1", shared=True, driver=False)
    folder = node.root / "nvml"
    folder.mkdir()
    (folder / "libnvidia-ml.so.1").symlink_to(library)
    return {"LD_LIBRARY_PATH": f"{folder}:{node.native.cuda.parent}"}


@pytest.mark.parametrize(("call", "cards"), LISTS)
def test_lists_of_devices_name_the_tenants(
    node: Node, open_shell: Open, topology: dict[str, str], call: str, cards: list[int]
) -> None:
    shell = open_shell(node.tenant(devices=(1, 3)), **topology)
    uuids = [card_uuid(card) for card in cards]

    assert shell(f"neighbours({call}, room=0, buffer=False)") == [SUCCESS, len(cards), []]
    for room in (1, len(cards), 50):
        assert shell(f"neighbours({call}, room={room})") == [SUCCESS, min(room, len(cards)), uuids[:room]]


def test_what_nvml_says_about_a_list_is_passed_on(node: Node, open_shell: Open, topology: dict[str, str]) -> None:
    shell = open_shell(node.tenant(devices=(1, 3)), **topology)
    nearest = f"'nvmlDeviceGetTopologyNearestGpus', by_uuid('{card_uuid(1)}')"

    assert shell(f"neighbours({nearest}, 10, room=4)")[0] == INVALID_ARGUMENT
    assert shell(f"neighbours({nearest}, 50, room=4, buffer=False)")[0] == INVALID_ARGUMENT
    assert shell("neighbours('nvmlSystemGetTopologyGpuSet', 7, room=4)")[0] == INVALID_ARGUMENT


def test_the_devices_of_a_unit(node: Node, open_shell: Open, topology: dict[str, str]) -> None:
    shell = open_shell(node.tenant(devices=(1, 3)), **topology)
    unit = "'nvmlUnitGetDevices', None"

    assert shell(f"neighbours({unit}, room=1)") == [INSUFFICIENT_SIZE, 2, []]
    assert shell(f"neighbours({unit}, room=2)") == [SUCCESS, 2, [card_uuid(1), card_uuid(3)]]


def test_handles_outlive_a_shutdown(node: Node, open_shell: Open) -> None:
    shell = open_shell(node.tenant(CAP))
    shell("handles.update(first=handle())")

    assert shell("pynvml.nvmlDeviceGetMemoryInfo(handles['first']).total") == CAP
    assert shell("nv('nvmlShutdown')") is None
    uninitialized = [f"nv('{call}')" for call in ("nvmlDeviceGetCount",)]
    uninitialized += [f"nv('{call}', handles['first'])" for call in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetIndex")]
    uninitialized += [f"nv('nvmlDeviceGetHandleByIndex', {i})" for i in (0, 5)]
    assert [shell(question) for question in uninitialized] == [-UNINITIALIZED] * len(uninitialized)
    assert shell("nv('nvmlInit')") is None
    assert shell("pynvml.nvmlDeviceGetMemoryInfo(handles['first']).total") == CAP


def test_without_a_tenant_everything_is_nvmls(node: Node, open_shell: Open) -> None:
    neighbour = working(open_shell(), 100)
    process = node.start([sys.executable, PROGRAMS / "view_shell.py"])
    with Shell(process) as shell:
        shell("pynvml.nvmlInit()")

        assert shell("memory()")[0][0] == CARD_BYTES
        assert [pid for pid, _ in shell("processes()")[2]] == [neighbour.pid]


def test_gpustat_and_nvitop_show_the_same(node: Node, open_shell: Open) -> None:
    for name in ("gpustat", "nvitop"):
        need(name, importlib.util.find_spec(name) is not None)  # imported here, they would change our pynvml
    node.cards = 2
    tenant = node.tenant(CAP, devices=(1,))
    working(open_shell(), 2048, ordinal=1)
    one = working(open_shell(tenant), 1024, tenant=tenant)
    used = agreed(one)["used"] // MIB
    nvitop = "d, = nvitop.Device.all(); print(d.memory_total(), d.memory_used() // 2**20, *d.processes())"

    gpustat = json.loads(node.run([sys.executable, "-m", "gpustat", "--json"], tenant).stdout)
    shown = node.run([sys.executable, "-c", f"import nvitop; {nvitop}"], tenant).stdout.split()

    (card,) = gpustat["gpus"]
    assert (card["uuid"], card["memory.total"], card["memory.used"]) == (card_uuid(1), CAP // MIB, used)
    assert [(p["pid"], p["gpu_memory_usage"]) for p in card["processes"]] == [(one.pid, used)]
    assert shown == [str(CAP), str(used), str(one.pid)]
