"""Loads that count their own work, in tenants of `hamirt run` (bench/probes/load.c), and a look at their gates."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.share_load import Job, LoadFile, Series, rate
from hamirt import _build
from hamirt.region import ffi, lib
from tests.node.conftest import Node
from tests.support import TOP, wait_for

Compile = Callable[[str], Path]
MEMORY = ("--mem", "8GiB")  # so that several tenants fit the card


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return a C program of these folders, compiled once."""
    folder = tmp_path_factory.mktemp("programs")

    def compile_program(source: str) -> Path:
        program = folder / Path(source).stem
        if not program.exists():
            found = [f"-I{_build.header_dir()}", f"-I{TOP / 'bench/probes'}"]
            linked = [] if source.startswith("bench") else [str(TOP / "hamirt/_native/sim/libcuda.so.1")]
            argv = ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", *found, "-o", str(program), str(TOP / source), *linked]
            subprocess.run([*argv, "-ldl", "-pthread", "-lm"], check=True, timeout=60)
        return program

    return compile_program


class Load:
    """A tenant with processes that work off jobs and note what they got done."""

    def __init__(self, node: Node, compiled: Compile, name: str, *options: str, processes: int = 1) -> None:
        self.node, self.name = node, name
        self._pages: dict[str, Any] = {}
        path = node.root.parent / f"{name}.load"
        ends = [f".{number}" for number in range(processes)] if processes > 1 else [""]
        self.files = [LoadFile(path.with_name(path.name + end)) for end in ends]
        program = [str(compiled("bench/probes/load.c")), str(path), str(processes), "0"]
        self.process = node.start("--name", name, *MEMORY, *options, "--", *program, stdin=subprocess.DEVNULL)
        wait_for(lambda: all(file.ready() for file in self.files), f"{name} to take jobs")

    def work(self, job: Job, seconds: float) -> None:
        """Give all processes a job, and wait until each has got something done."""
        now = time.monotonic_ns()
        for file in self.files:
            file.give(job, now, now + int(seconds * 1e9))
        wait_for(lambda: all(file.series(now).work_ns[-1:] > (0,) for file in self.files), f"{self.name} at work")

    @property
    def pids(self) -> list[int]:
        return [file.word(0) for file in self.files]

    def send(self, number: int) -> None:
        """Send the (only) process a signal."""
        os.kill(self.pids[0], number)

    def stop(self) -> None:
        self.send(signal.SIGSTOP)

    def parts(self) -> list[Series]:
        return [file.series(0) for file in self.files]

    def share(self, start_ns: int, end_ns: int) -> float:
        """Return what part of the card's time its work took, between two moments that are over."""
        wait_until(end_ns)
        return rate(self.parts(), start_ns, end_ns)

    def longest_pause(self, start_ns: int, end_ns: int) -> float:
        """Return the longest time in seconds in which one of its processes got nothing done."""
        wait_until(end_ns)
        return max(part.longest_pause_s(start_ns, end_ns) for part in self.parts())

    def page(self, which: str, kind: str) -> Any:
        """Return a page of the tenant, mapped once: what one takes out of it does not keep the mapping."""
        if which not in self._pages:
            self._pages[which] = page_of(self.node, self.name, which, kind)
        return self._pages[which]

    def gate(self) -> Any:
        """Return the supervisor's gate to the first device."""
        return self.page("ro/limits", "struct hm_limits *").device[0].gate

    def usage(self) -> Any:
        return self.page("rw/usage", "struct hm_usage *")

    def wait_for_slot(self) -> None:
        """Wait until it works in a slot of its own."""
        gate, usage = self.gate(), self.usage()
        wait_for(
            lambda: (
                gate.word & lib.HM_GATE_STATES != lib.HM_GATE_CLOSED
                and usage.slot[0].use[0].entered == gate.word // lib.HM_GATE_SLOT
            ),
            f"a slot of {self.name}",
        )


def page_of(node: Node, name: str, which: str, kind: str) -> Any:
    """Map a page of the tenant with this name."""
    (folder,) = [path for path in (node.root / "tenants").iterdir() if path.name.startswith(f"{name}-")]
    with open(folder / which, "rb") as file:
        return ffi.from_buffer(kind, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def wait_until(moment_ns: int) -> None:
    """Wait for a moment of CLOCK_MONOTONIC: what is measured takes its time."""
    wait_for(lambda: time.monotonic_ns() > moment_ns, "time to pass")


def after(seconds: float, moment_ns: int | None = None) -> int:
    """Return a moment after another one, or after now."""
    return (time.monotonic_ns() if moment_ns is None else moment_ns) + int(seconds * 1e9)
