"""A tenant's gates, held by a test in the place of a supervisor."""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import Any

from hamirt.region import ffi, lib
from tests.shim.conftest import Tenant

FAR_FUTURE_NS = 1 << 62
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]
FUTEX_WAKE = 1
EVERYBODY = 0x7FFFFFFF

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, *[ctypes.c_void_p] * 3]


class Gates:
    """The gates of a tenant's devices, all free at first, with a lease that does not end."""

    def __init__(self, tenant: Tenant) -> None:
        self.limits = _map(tenant.limits_page, "struct hm_limits *")
        self.usage = _map(tenant.usage_page, "struct hm_usage *")
        for device in range(self.limits.device_count):
            self.open(device)
        self.limits.lease_ns = FAR_FUTURE_NS

    def close(self, device: int = 0) -> None:
        """Let nothing more through; the slot goes on."""
        slot = self.limits.device[device].gate.word // lib.HM_GATE_SLOT
        self._turn(device, slot, lib.HM_GATE_CLOSED)

    def open(self, device: int = 0, window_ns: int | None = None) -> None:
        """Begin another slot, free or with so much work in flight at most."""
        gate = self.limits.device[device].gate
        gate.window_ns = window_ns or 0
        slot = gate.word // lib.HM_GATE_SLOT + 1
        self._turn(device, slot, lib.HM_GATE_FREE if window_ns is None else lib.HM_GATE_WINDOWED)

    def use(self, pid: int, device: int = 0) -> Any:
        """Return a process's struct hm_use."""
        slots = [slot for slot in self.usage.slot[0 : self.usage.high_slot] if slot.taken and slot.pid == pid]
        assert len(slots) == 1, f"{len(slots)} slots of {pid}"
        return slots[0].use[device]

    def _turn(self, device: int, slot: int, state: int) -> None:
        gate = self.limits.device[device].gate
        gate.word = slot * lib.HM_GATE_SLOT | state
        address = int(ffi.cast("uintptr_t", ffi.addressof(gate, "word")))
        libc.syscall(SYS_FUTEX, address, FUTEX_WAKE, EVERYBODY, None, None, None)


def _map(page: Any, kind: str) -> Any:
    with open(page, "r+b") as file:
        return ffi.from_buffer(kind, mmap.mmap(file.fileno(), 0))  # which keeps the mapping
