"""A conversation with programs/view_shell.py."""

from __future__ import annotations

import json
import subprocess
import time
from types import TracebackType
from typing import Any

from tests.shim.conftest import MIB, TIMEOUT_S, Tenant

CONTEXT_BYTES = 520 * MIB  # of a simulated card


class Shell:
    """Evaluates expressions in a program that uses CUDA and NVML; the program ends with the block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, expression: str) -> Any:
        self.stdin.write(expression + "\n")
        self.stdin.flush()
        line = self.stdout.readline()
        assert line, f"{expression}: the program ended with {self.process.wait(TIMEOUT_S)}"
        return json.loads(line)

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stdin.close()
        self.process.stdin = None  # or a later communicate() would flush it
        self.process.wait(TIMEOUT_S)


def working(shell: Shell, mib: int, ordinal: int = 0, tenant: Tenant | None = None) -> Shell:
    """Give the shell a context and an allocation; with its tenant, wait in between until the context is measured."""
    assert shell(f"context({ordinal})") == 0
    deadline = time.monotonic() + TIMEOUT_S
    while tenant is not None and CONTEXT_BYTES not in overheads(tenant, shell.pid):
        assert time.monotonic() < deadline, overheads(tenant, shell.pid)
        time.sleep(0.01)
    assert shell(f"alloc({mib})") == 0
    return shell


def overheads(tenant: Tenant, pid: int) -> list[int]:
    """Return a process's overhead on each device."""
    return [use.overhead_bytes for slot in tenant.usage().slots if slot.pid == pid for use in slot.uses]
