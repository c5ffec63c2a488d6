"""The two shared pages of a tenant: creates, reads and checks them. The only user of cffi.

The layout is shim/region.h. The limits page has one writer, `hamirt run` here; the usage page is written by the
tenant's programs, so that nothing in it is believed: it is read with pread and checked, and a damaged page is a
HamirtError, never another exception.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hamirt.errors import HamirtError
from hamirt.model import DeviceUsage, KindBytes, LatencyClass, Limit, Limits, Slot, Usage, Use

try:
    from hamirt._region import ffi as ffi
    from hamirt._region import lib as lib
except ImportError as _error:  # an unbuilt tree
    raise HamirtError(f"hamirt is not built ({_error}): run make build, or pip install it") from None

# A layout error shows on the first use of a struct: let it show at import.
LIMITS_BYTES: int = ffi.sizeof("struct hm_limits")
USAGE_BYTES: int = ffi.sizeof("struct hm_usage")

DEVICES: int = lib.HM_DEVICES
SLOTS: int = lib.HM_SLOTS
NAME_BYTES: int = lib.HM_TENANT_BYTES - 1
RESERVE_BYTES: int = lib.HM_RESERVE_BYTES
BLOCK_BYTES: int = lib.HM_BLOCK_BYTES
CONTEXT_BYTES: int = lib.HM_CONTEXT_BYTES

_CLASSES = (LatencyClass.NORMAL, LatencyClass.LATENCY, LatencyClass.BATCH)  # in the order of region.h's enum hm_class
_TORN_READS = 3  # a page that is being written may contradict itself for an instant
_MOST_BYTES = 1 << 48  # more than any card has, and than any count can honestly be
_MOST_NS = 1 << 62


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
        entry.memory_bytes = limit.memory_bytes or 0
        entry.card_bytes = limit.card_bytes
        entry.context_bytes = limit.context_bytes or 0
        entry.time_percent = limit.time_percent or 0
        entry.weight = limit.weight
        entry.latency_class = _CLASSES.index(limit.latency_class)
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


def read_limits(path: Path) -> Limits:
    """Read and check a limits page.

    Raises HamirtError for a page that is missing, damaged or of another version.
    """
    page = ffi.new("struct hm_limits *")
    with _open(path, "limits") as fd:
        _read(fd, path, ffi.buffer(page))
    _check_head(path, page, lib.HM_LIMITS_MAGIC, LIMITS_BYTES)
    if page.device_count > DEVICES or page.on_error not in (lib.HM_DENY, lib.HM_ALLOW):
        raise _damaged(path, "a count or a choice is out of its range")
    if any(entry.latency_class >= len(_CLASSES) for entry in page.device[0 : page.device_count]):
        raise _damaged(path, "a class is none that hamirt knows")
    return Limits(
        tenant=_text(page.tenant),
        allow_on_error=page.on_error == lib.HM_ALLOW,
        node_devices=page.node_devices,
        devices=tuple(
            Limit(
                uuid=_text(entry.uuid),
                memory_bytes=entry.memory_bytes or None,
                card_bytes=entry.card_bytes,
                context_bytes=entry.context_bytes or None,
                time_percent=entry.time_percent or None,
                weight=entry.weight,
                latency_class=_CLASSES[entry.latency_class],
            )
            for entry in page.device[0 : page.device_count]
        ),
        epoch=page.epoch,
        lease_ns=page.lease_ns or None,
    )


def read_usage(path: Path, device_count: int) -> Usage:
    """Read and check a usage page: its devices and the slots of living processes.

    Raises HamirtError for a page that is missing, damaged or of another version.
    """
    page = ffi.new("struct hm_usage *")
    with _open(path, "usage") as fd:
        for attempt in range(_TORN_READS):
            _read(fd, path, ffi.buffer(page))
            try:
                return _usage(path, page, device_count, fd)
            except HamirtError:
                if attempt == _TORN_READS - 1:
                    raise
    raise AssertionError("unreachable")


def has_living_slot(path: Path) -> bool:
    """Return whether a process holds a slot, whatever the page says: all that counts are the kernel's locks."""
    try:
        with _open(path, "usage") as fd:
            return any(_is_locked(fd, path, index) for index in range(SLOTS))
    except HamirtError:
        return False


def _usage(path: Path, page: Any, device_count: int, fd: int) -> Usage:
    _check_head(path, page, lib.HM_USAGE_MAGIC, USAGE_BYTES)
    if page.high_slot > SLOTS:
        raise _damaged(path, f"it counts {page.high_slot} slots of {SLOTS}")
    return Usage(
        devices=tuple(
            DeviceUsage(bool(entry.estimated), _count(path, entry.context_bytes) or None)
            for entry in page.device[0:device_count]
        ),
        slots=tuple(
            _slot(path, index, page.slot[index], device_count)
            for index in range(page.high_slot)
            if page.slot[index].taken and _is_locked(fd, path, index)
        ),
    )


def _slot(path: Path, index: int, slot: Any, device_count: int) -> Slot:
    return Slot(
        index=index,
        pid=slot.pid,
        pid_ns=slot.pid_ns,
        command=_text(slot.command),
        uses=tuple(_use(path, use) for use in slot.use[0:device_count]),
    )


def _use(path: Path, use: Any) -> Use:
    granted, used = use.grant >> 32, use.grant & 0xFFFFFFFF
    if used > granted:
        raise _damaged(path, "a process uses more than it was granted")
    return Use(
        granted_bytes=granted * lib.HM_UNIT_BYTES,
        used_bytes=used * lib.HM_UNIT_BYTES,
        overhead_bytes=_count(path, use.overhead_bytes),
        kinds=KindBytes(
            linear=_count(path, use.kind_bytes[lib.HM_LINEAR]),
            managed=_count(path, use.kind_bytes[lib.HM_MANAGED]),
            pool=_count(path, use.kind_bytes[lib.HM_POOL]),
            virtual=_count(path, use.kind_bytes[lib.HM_VIRTUAL]),
            array=_count(path, use.kind_bytes[lib.HM_ARRAY]),
            graph=_count(path, use.kind_bytes[lib.HM_GRAPH]),
            external=_count(path, use.kind_bytes[lib.HM_EXTERNAL]),
        ),
        denials=_count(path, use.denials),
        contexts=use.contexts,
        throttled_ns=_count(path, use.throttled_ns, _MOST_NS),
    )


def _count(path: Path, value: int, most: int = _MOST_BYTES) -> int:
    if value > most:
        raise _damaged(path, f"it counts {value}")
    return value


def _check_head(path: Path, page: Any, magic: int, size: int) -> None:
    if page.magic != magic:
        raise _damaged(path, "it does not begin as such a page does")
    if page.version != lib.HM_VERSION:
        raise HamirtError(
            f"{path} has version {page.version} and this hamirt knows version {lib.HM_VERSION}: "
            "use the hamirt that made it, or end that tenant"
        )
    if page.size != size:
        raise _damaged(path, f"it says that it is {page.size} bytes long, not {size}")


def _is_locked(fd: int, path: Path, index: int) -> bool:
    held: int = lib.hm_lock_held(fd, lib.HM_LOCK_SLOTS + index)
    if held < 0:
        raise HamirtError(f"the locks of {path} can't be asked for: {os.strerror(-held)}")
    return held == 1


def _damaged(path: Path, why: str) -> HamirtError:
    return HamirtError(f"the page {path} is damaged ({why}): end that tenant's programs")


def _text(field: Any) -> str:
    """Return a zero-padded field as printable text; it may come from a program that means ill."""
    text: str = bytes(ffi.buffer(field)).split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)


@contextmanager
def _open(path: Path, what: str) -> Iterator[int]:
    # O_NONBLOCK and O_NOFOLLOW: the folder's owner could have put a FIFO or a link there
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise HamirtError(f"the {what} page {path} can't be opened: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, path: Path, buffer: Any) -> None:
    try:
        content = os.pread(fd, len(buffer) + 1, 0)
    except OSError as error:
        raise HamirtError(f"the page {path} can't be read: {error.strerror}") from None
    if len(content) != len(buffer):
        raise _damaged(path, f"it is not {len(buffer)} bytes long")
    buffer[:] = content


def _create(path: Path, mode: int, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask
        os.posix_fallocate(fd, 0, len(content))
        if os.pwrite(fd, content, 0) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)
