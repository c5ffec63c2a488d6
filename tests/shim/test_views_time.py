"""How busy is my GPU: NVML's utilization in a tenant is its own share of GPU time, as far as that is metered."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hamirt import pages
from hamirt._region import ffi, lib
from tests.shim.conftest import PROGRAMS, Node, Tenant
from tests.shim.view import Shell
from tests.support import wait_for

RATES = "(lambda rates: [rates.gpu, rates.memory])(pynvml.nvmlDeviceGetUtilizationRates(handle({})))"
FAR_NS = 1 << 61


@dataclass
class Arbiter:
    """Writes a tenant's gates as the supervisor, or with `own` as a process of the tenant's."""

    tenant: Tenant
    own: bool = False

    def put(self, value: int, field: str, device: int = 0) -> None:
        """Write a field of a gate."""
        kind, page = ("hm_usage", "rw/usage") if self.own else ("hm_limits", "ro/limits")
        offset = ffi.offsetof(f"struct {kind}", "device", device, "gate", field)
        size = ffi.sizeof(dict(ffi.typeof("struct hm_gate").fields)[field].type)
        fd = pages.open_for_change(self.tenant.folder, page)
        os.pwrite(fd, value.to_bytes(size, "little"), offset)
        os.close(fd)

    def lease(self, until_ns: int) -> None:
        """Answer for the limits page until then."""
        fd = pages.open_for_change(self.tenant.folder, "ro/limits")
        pages.renew_lease(fd, until_ns)
        os.close(fd)


@contextmanager
def shell_in(node: Node, tenant: Tenant | None) -> Iterator[Shell]:
    command: list[str | Path] = [sys.executable, PROGRAMS / "view_shell.py"]
    with Shell(node.start(command, tenant, shim=tenant is not None)) as shell:
        assert shell("pynvml.nvmlInit()") is None
        yield shell


def busy(shell: Shell, index: int = 0) -> int:
    percent: int = shell(RATES.format(index))[0]
    return percent


@pytest.fixture
def tenant(node: Node) -> Tenant:
    """A tenant of two cards that a supervisor answers for; the gates are open and metered."""
    node.cards = 2
    made = node.tenant(devices=(0, 1))
    arbiter = Arbiter(made)
    arbiter.lease(FAR_NS)
    for device in (0, 1):
        arbiter.put(lib.HM_GATE_SLOT | lib.HM_GATE_WINDOWED, "word", device)
    return made


@pytest.mark.parametrize("own", [False, True], ids=["supervisor", "leader"])
def test_utilization_is_the_tenants_share_of_gpu_time(node: Node, tenant: Tenant, own: bool) -> None:
    arbiter, began = Arbiter(tenant, own), time.monotonic_ns()

    def share(percent: int, device: int) -> int:
        """Charge so much of the time since the beginning, and ask."""
        arbiter.put((time.monotonic_ns() - began) * percent // 100, "charged_ns", device)
        return busy(shell, device)

    with shell_in(node, tenant) as shell:
        assert [busy(shell, device) for device in (0, 1)] == [0, 0]
        wait_for(lambda: 36 <= share(40, 0) <= 44, "40 % of the first card")
        wait_for(lambda: 66 <= share(70, 1) <= 74, "70 % of the second card")
        wait_for(lambda: share(0, 0) == 0, "a charge that fell to be no share")
        wait_for(lambda: share(1000, 1) == 100, "a charge beyond all time to be all")


def test_the_first_answer_is_over_a_tenth_of_a_second_and_for_all_cards(node: Node, tenant: Tenant) -> None:
    with shell_in(node, tenant) as shell:
        shell("[handle(0), handle(1)] and 0")
        began = time.monotonic()
        shell(f"[{RATES.format(0)}, {RATES.format(1)}]")
        first = time.monotonic() - began

        assert first > 0.1
        began = time.monotonic()
        answers = [busy(shell) for _ in range(20)]
        assert time.monotonic() - began < 20 * 0.1
    assert answers == [0] * 20


def test_what_nobody_meters_is_the_cards(node: Node, tenant: Tenant) -> None:
    arbiter = Arbiter(tenant)
    with shell_in(node, tenant) as shell, shell_in(node, None) as native:
        arbiter.put(lib.HM_GATE_SLOT | lib.HM_GATE_FREE, "word", 0)
        assert shell(RATES.format(0)) == native(RATES.format(0))
        arbiter.lease(0)
        assert [shell(RATES.format(device)) for device in (0, 1)] == [native(RATES.format(device)) for device in (0, 1)]


def test_of_the_cards_memory_it_says_what_nvml_says(node: Node, tenant: Tenant) -> None:
    with shell_in(node, tenant) as shell, shell_in(node, None) as native:
        assert shell(RATES.format(0))[1] == native(RATES.format(0))[1]


def test_the_errors_are_nvmls(node: Node, tenant: Tenant) -> None:
    with shell_in(node, tenant) as shell, shell_in(node, None) as native:
        for call in ("nvml.nvmlDeviceGetUtilizationRates(handle(), None)", "nv('nvmlDeviceGetUtilizationRates', 77)"):
            assert shell(call) == native(call)
