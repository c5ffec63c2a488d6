"""The write side of a tenant's pages: made here, and changed in place while the tenant's programs read them.

The layout is shim/region.h; the limits page has one writer, the daemon or without one `hamirt run`. All that is ever
changed in a page is a number that is naturally aligned, in one pwrite: a reader sees the old one or the new one.
"""

import ctypes
import errno
import mmap
import os
import platform
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from hamirt.errors import HamirtError
from hamirt.model import LatencyClass, Limit, Limits
from hamirt.region import DEVICES, LIMITS_BYTES, USAGE_BYTES, ffi, lib

_CLASSES = {
    LatencyClass.NORMAL: lib.HM_NORMAL,
    LatencyClass.LATENCY: lib.HM_LATENCY,
    LatencyClass.BATCH: lib.HM_BATCH,
}
_MOST_EPOCH = 0xFFFFFFFF
_MEASURE_AT: int = ffi.offsetof("struct hm_limits", "measure")
_LEASE_AT: int = ffi.offsetof("struct hm_limits", "lease_ns")
_TRIM_AT: int = ffi.offsetof("struct hm_usage", "trim")
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAKE = 1
_EVERYBODY = 0x7FFFFFFF
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, *[ctypes.c_void_p] * 3]


def create_limits(path: Path, limits: Limits) -> None:
    """Write a limits page, which must not exist yet.

    Raises HamirtError for what does not fit into a page, OSError where the file can't be written.
    """
    page = ffi.new("struct hm_limits *")
    if len(limits.devices) > DEVICES:
        raise HamirtError(f"a tenant can have {DEVICES} GPUs at most, not {len(limits.devices)}")
    page.magic = lib.HM_LIMITS_MAGIC
    page.version = lib.HM_VERSION
    page.size = LIMITS_BYTES
    page.epoch = limits.epoch
    page.on_error = lib.HM_ALLOW if limits.allow_on_error else lib.HM_DENY
    page.device_count = len(limits.devices)
    page.node_devices = limits.node_devices
    page.lease_ns = limits.lease_ns or 0
    page.tenant = limits.tenant.encode()
    for entry, limit in zip(page.device, limits.devices, strict=False):
        entry.uuid = limit.uuid.encode()
        entry.card_bytes = limit.card_bytes
        entry.context_bytes = limit.context_bytes or 0
        for field, value in _changeable(limit).items():
            setattr(entry, field, value)
    _create(path, 0o644, bytes(ffi.buffer(page)))


def create_usage(path: Path) -> None:
    """Write an empty usage page, with its room on the disk taken so that no program can meet a full disk later.

    Raises OSError where that can't be done.
    """
    page = ffi.new("struct hm_usage *")
    page.magic = lib.HM_USAGE_MAGIC
    page.version = lib.HM_VERSION
    page.size = USAGE_BYTES
    _create(path, 0o666, bytes(ffi.buffer(page)))


def open_for_change(folder: Path, part: str) -> int:
    """Return a descriptor of a tenant's page, `ro/limits` or `rw/usage`, that can be written; no link is followed.

    Raises OSError where there is none, or it is no plain file.
    """
    below, name = part.split("/")
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        inner = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        os.close(at)
        at = inner
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file")
    return fd


def change_limits(fd: int, before: Limits, devices: tuple[Limit, ...]) -> Limits:
    """Change what tenants may use of the cards they have, in place, and return the limits as they are then.

    The epoch is raised also where nothing differs, since an earlier change may have been cut off before its own was.
    Raises OSError where the page can't be written; some fields may have changed then, and the same change again is
    the cure.
    """
    for index, (old, new) in enumerate(zip(before.devices, devices, strict=True)):
        was = _changeable(old)
        for field, value in _changeable(new).items():
            if value != was[field]:
                _put(fd, "struct hm_limits", value, "device", index, field)
    epoch = before.epoch % _MOST_EPOCH + 1
    _put(fd, "struct hm_limits", epoch, "epoch")
    return replace(before, devices=devices, epoch=epoch)


def renew_lease(fd: int, lease_ns: int) -> None:
    """Say until when (CLOCK_MONOTONIC) a daemon answers for these limits; 0: there is none any more.

    Raises OSError where the page can't be written.
    """
    os.pwrite(fd, lease_ns.to_bytes(8, "little"), _LEASE_AT)


def ask_to_trim(usage_fd: int) -> None:
    """Have a tenant's processes give back what their pools hold unused.

    Raises OSError where the page can't be written.
    """
    _raise(usage_fd, _TRIM_AT)
    _wake(usage_fd)


def ask_to_measure(limits_fd: int, usage_fd: int) -> None:
    """Have a tenant's processes look in NVML at what they hold.

    Raises OSError where the page can't be written.
    """
    _raise(limits_fd, _MEASURE_AT)
    _wake(usage_fd)


def _raise(fd: int, offset: int) -> None:
    counted = int.from_bytes(os.pread(fd, 4, offset), "little")
    os.pwrite(fd, ((counted + 1) & 0xFFFFFFFF).to_bytes(4, "little"), offset)


def _wake(usage_fd: int) -> None:
    """Wake who waits on the usage page's `trim`.

    They may truncate that page at any moment, so it is mapped and never touched: the kernel looks the futex up itself,
    and says EFAULT where we would be killed.
    """
    address = _libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, usage_fd, 0)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _libc.syscall(_SYS_FUTEX[platform.machine()], address + _TRIM_AT, _FUTEX_WAKE, _EVERYBODY, None, None, None)
    _libc.munmap(address, mmap.PAGESIZE)


def _changeable(limit: Limit) -> dict[str, int]:
    """Return what can change of a card's limits while the tenant runs, as the page holds it."""
    return {
        "memory_bytes": limit.memory_bytes or 0,
        "time_percent": limit.time_percent or 0,
        "weight": limit.weight,
        "latency_class": _CLASSES[limit.latency_class],
    }


def _put(fd: int, kind: str, value: int, *place: str | int) -> None:
    field: Any = ffi.typeof(kind)
    for step in place:
        field = field.item if isinstance(step, int) else dict(field.fields)[step].type
    os.pwrite(fd, value.to_bytes(ffi.sizeof(field), "little"), ffi.offsetof(kind, *place))


def _create(path: Path, mode: int, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask
        os.posix_fallocate(fd, 0, len(content))
        if os.pwrite(fd, content, 0) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)
