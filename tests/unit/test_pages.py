"""Pages that are changed in place, while somebody reads them and somebody else means ill."""

import ctypes
import dataclasses
import mmap
import os
import platform
import threading
from pathlib import Path

import pytest

from hamirt import pages, region
from hamirt._region import ffi
from hamirt.model import LatencyClass, Limit, Limits
from hamirt.units import GIB, MIB
from tests.support import wait_for

FIRST = Limit("GPU-aa", 8 * GIB, 80 * GIB, 520 * MIB)
SECOND = Limit("GPU-bb", None, 80 * GIB, None)
LIMITS = Limits("web", False, 8, (FIRST, SECOND), epoch=7, lease_ns=5)
TRIM = ffi.offsetof("struct hm_usage", "trim")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tenant's folder with fresh pages."""
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
    pages.create_limits(tmp_path / "ro" / "limits", LIMITS)
    pages.create_usage(tmp_path / "rw" / "usage")
    return tmp_path


def read(folder: Path) -> Limits:
    return region.read_limits(folder / "ro" / "limits")


def test_a_change_is_read_back_and_raises_the_epoch(folder: Path) -> None:
    fd = pages.open_for_change(folder, "ro/limits")
    changed = (
        dataclasses.replace(FIRST, memory_bytes=None, weight=9),
        dataclasses.replace(SECOND, memory_bytes=GIB, time_percent=30, latency_class=LatencyClass.BATCH),
    )

    now = pages.change_limits(fd, LIMITS, changed)

    assert now == dataclasses.replace(LIMITS, devices=changed, epoch=8)
    assert read(folder) == now
    assert pages.change_limits(fd, now, changed).epoch == read(folder).epoch == 9
    os.close(fd)


def test_nothing_but_what_differs_is_written(folder: Path) -> None:
    fd = pages.open_for_change(folder, "ro/limits")
    before = (folder / "ro" / "limits").read_bytes()

    pages.change_limits(fd, LIMITS, (dataclasses.replace(FIRST, weight=101), SECOND))

    after = (folder / "ro" / "limits").read_bytes()
    differing = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    weight = ffi.offsetof("struct hm_limits", "device", 0, "weight")
    assert differing == [ffi.offsetof("struct hm_limits", "epoch"), weight]
    os.close(fd)


def test_the_epoch_begins_anew_at_one(folder: Path) -> None:
    fd = pages.open_for_change(folder, "ro/limits")

    now = pages.change_limits(fd, dataclasses.replace(LIMITS, epoch=0xFFFFFFFF), LIMITS.devices)

    assert now.epoch == 1
    os.close(fd)


def test_a_lease_is_renewed_and_ended(folder: Path) -> None:
    fd = pages.open_for_change(folder, "ro/limits")

    pages.renew_lease(fd, 123456789012345)
    renewed = read(folder).lease_ns
    pages.renew_lease(fd, 0)

    assert (renewed, read(folder)) == (123456789012345, dataclasses.replace(LIMITS, lease_ns=None))
    os.close(fd)


def test_a_page_is_never_reached_through_a_link_or_anything_else(folder: Path, tmp_path: Path) -> None:
    (folder / "ro" / "limits").rename(folder / "ro" / "there")
    (folder / "ro" / "limits").symlink_to("there")
    (folder / "rw").rename(folder / "elsewhere")
    (folder / "rw").symlink_to("elsewhere")
    fifo = tmp_path / "fifo" / "ro"
    fifo.mkdir(parents=True)
    os.mkfifo(fifo / "limits")

    for where, part in ((folder, "ro/limits"), (folder, "rw/usage"), (tmp_path / "fifo", "ro/limits")):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory|plain file|No such device"):
            pages.open_for_change(where, part)


def waiter(page: mmap.mmap) -> threading.Thread:
    """Wait, in a thread, on the page's trim word, as a tenant's helper thread does."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(page)) + TRIM
    libc = ctypes.CDLL(None)
    number = pages._SYS_FUTEX[platform.machine()]
    thread = threading.Thread(
        target=lambda: libc.syscall(number, ctypes.c_void_p(address), 0, 0, None, None, 0), daemon=True
    )
    thread.start()
    return thread


def test_who_waits_on_the_trim_word_is_woken(folder: Path) -> None:
    fd = pages.open_for_change(folder, "rw/usage")
    page = mmap.mmap(fd, mmap.PAGESIZE)
    thread = waiter(page)
    wait_for(lambda: "futex" in Path(f"/proc/self/task/{thread.native_id}/wchan").read_text(), "the waiter", 5)

    pages.ask_to_trim(fd)

    thread.join(5)
    assert not thread.is_alive()
    assert int.from_bytes(page[TRIM : TRIM + 4], "little") == 1
    os.close(fd)


def test_a_measurement_is_asked_for_in_the_limits_page(folder: Path) -> None:
    limits, usage = (pages.open_for_change(folder, part) for part in ("ro/limits", "rw/usage"))

    pages.ask_to_measure(limits, usage)
    pages.ask_to_measure(limits, usage)

    at = ffi.offsetof("struct hm_limits", "measure")
    assert (folder / "ro" / "limits").read_bytes()[at : at + 4] == b"\2\0\0\0"
    assert (folder / "rw" / "usage").read_bytes()[TRIM : TRIM + 4] == bytes(4)
    assert read(folder) == LIMITS
    for fd in (limits, usage):
        os.close(fd)


def test_a_usage_page_that_was_truncated_kills_nobody(folder: Path) -> None:
    fd = pages.open_for_change(folder, "rw/usage")
    os.truncate(folder / "rw" / "usage", 0)

    pages._wake(fd)  # the kernel says EFAULT
    pages.ask_to_trim(fd)

    assert (folder / "rw" / "usage").stat().st_size == TRIM + 4
    os.close(fd)
