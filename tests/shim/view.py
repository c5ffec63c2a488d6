"""A conversation with programs/view_shell.py."""

from __future__ import annotations

import json
import subprocess
from types import TracebackType
from typing import Any

from tests.shim.conftest import TIMEOUT_S


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
