"""`hamirt status` without a daemon: a share that a process of the tenant meters, and a cap that nobody holds."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hamirt import pages
from hamirt._region import ffi, lib
from hamirt.metering import ALONE, NOBODY
from hamirt.model import Enforcement, Level
from tests.node.conftest import Node
from tests.node.test_status import hold
from tests.node.test_status_supervisor import NODE, TRAIN, drawn

SHARE = 0.3


def write(fd: int, value: int, *place: str | int) -> None:
    """Write a number into a usage page."""
    kind: Any = ffi.typeof("struct hm_usage")
    for step in place:
        kind = kind.item if isinstance(step, int) else dict(kind.fields)[step].type
    os.pwrite(fd, value.to_bytes(ffi.sizeof(kind), "little"), ffi.offsetof("struct hm_usage", *place))


@contextmanager
def leader(folder: Path) -> Iterator[None]:
    """Charge a tenant for a share of the time, as the process of it does that leads."""
    fd, over, began = pages.open_for_change(folder, "rw/usage"), threading.Event(), time.monotonic_ns()
    write(fd, lib.HM_GATE_SLOT | lib.HM_GATE_WINDOWED, "device", 0, "gate", "word")

    def charge() -> None:
        while not over.wait(0.001):
            now = time.monotonic_ns()
            write(fd, now + 10**9, "device", 0, "gate", "lease_ns")
            write(fd, int((now - began) * SHARE), "device", 0, "gate", "charged_ns")

    thread = threading.Thread(target=charge)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.close(fd)


def test_a_capped_tenants_share_takes_two_looks(node: Node, line_of: Any) -> None:
    hold(node, line_of, "train", "0", "0", "100", "0", "520", "0", options=("--gpu", "0", "--sm", "30"))
    (folder,) = node.folders()

    with leader(node.root / "tenants" / folder):
        (tenant,) = node.status()["tenants"]

    (on,) = tenant["cards"]
    assert (on["time_percent"], on["busy_source"], on["metering"]["gate"]) == (30, "metered", "windowed")
    assert SHARE / 2 < on["busy_ratio"] < SHARE * 2
    assert on["metering"]["charged_seconds"] > 0.2 * SHARE
    assert (on["enforcement"]["gpu_time"], on["enforcement"]["gpu_time_reason"]) == ("full", ALONE)


def test_a_cap_that_nobody_holds_is_told(node: Node, line_of: Any) -> None:
    hold(node, line_of, "train", "0", "0", "100", "0", "520", "0", options=("--gpu", "0", "--sm", "30"))
    (folder,) = node.folders()
    fd = pages.open_for_change(node.root / "tenants" / folder, "rw/usage")
    write(fd, 1, "slot", 0, "use", 0, "busy")
    os.close(fd)

    ended = node.hamirt("status", "--sim", "--check")

    says = f"train on GPU 0: its cap on GPU time is not enforced: {NOBODY}\n"
    assert (ended.returncode, ended.stdout) == (1, says)


@pytest.mark.parametrize(
    ("memory", "cap_bytes", "time_level", "shown"),
    [
        (Level.FULL, 1, None, "full"),
        (Level.FULL, 1, Level.FULL, "full"),
        (Level.FULL, 1, Level.NONE, "none"),
        (Level.PARTIAL, 1, Level.FULL, "partial"),
        (Level.NONE, None, Level.FULL, "full"),
        (Level.NONE, None, None, "none"),
    ],
)
def test_enforced_is_as_far_as_all_that_was_asked_for_holds(
    memory: Level, cap_bytes: int | None, time_level: Level | None, shown: str
) -> None:
    held = None if time_level is None else Enforcement(time_level, "somehow" if time_level is Level.NONE else None)
    on = replace(TRAIN, cap_bytes=cap_bytes, enforcement=Enforcement(memory, "uncapped"), time_enforcement=held)

    lines = drawn(replace(NODE, tenants=(replace(NODE.tenants[1], cards=(on,)),)), 80)

    (row,) = (line for line in lines if line.startswith("  web  "))
    assert row.split()[-1] == shown
    assert ("  web: GPU time is not capped: somehow" in lines) == (time_level is Level.NONE)
