"""A tenant's gates, held by a test in the place of a supervisor."""

from __future__ import annotations

import ctypes
import mmap
import platform
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from hamirt.region import ffi, lib
from tests.shim.conftest import TIMEOUT_S, Build, Node, Tenant
from tests.support import wait_for

FAR_FUTURE_NS = 1 << 62
WINDOW_NS = 1_000_000
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

    def slot(self, device: int = 0) -> int:
        """Return the number of the present slot."""
        return int(self.limits.device[device].gate.word // lib.HM_GATE_SLOT)

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


class Trap:
    """A scenario of programs/trap_*.c at work, in a tenant or without the shim."""

    def __init__(
        self,
        node: Node,
        build: Build,
        program: str,
        *arguments: str,
        tenant: Tenant | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self._gates = Gates(tenant) if tenant is not None else None
        self.process = node.start([build(program), *arguments], tenant, shim=tenant is not None, extra=extra)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def gates(self) -> Gates:
        assert self._gates is not None
        return self._gates

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, what: str) -> int:
        """Return the number that the next line says; it must be about `what`."""
        told, _, number = self.lines.get(timeout=TIMEOUT_S).rpartition(" ")
        assert told == what, f"{told or number} instead of {what}: ended with {self.process.poll()}"
        return int(number)

    def use(self, device: int = 0) -> Any:
        """Return its struct hm_use, once it has a slot."""
        wait_for(lambda: any(slot.taken for slot in self.gates.usage.slot[0:1]), "the program's slot")
        return self.gates.use(self.process.pid, device)

    def drain(self) -> int:
        """Close the gate, and return when its work was said to have ended."""
        use = self.use()
        self.gates.close()
        wait_for(lambda: use.drained == use.entered, "the drain")
        return self.now_ns()

    @staticmethod
    def now_ns() -> int:
        """Return CLOCK_MONOTONIC, which the program reads too."""
        return time.monotonic_ns()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put("ended")


def gated_trap(
    node: Node,
    build: Build,
    program: str,
    *arguments: str,
    window_ns: int | None,
    extra: Mapping[str, str] | None = None,
) -> Trap:
    """Start a scenario in a tenant of its own, with its gate open."""
    trap = Trap(node, build, program, *arguments, tenant=node.tenant(), extra=extra)
    trap.gates.open(window_ns=window_ns)
    return trap
