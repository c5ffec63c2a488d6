"""The two shared pages of a tenant: creates, reads and checks them. The only user of cffi.

The layout is shim/region.h. The limits page has one writer, `hamirt run` here; the usage page is written by the
tenant's programs, so that nothing in it is believed: it is read with pread and checked, and a damaged page is a
HamirtError, never another exception.
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hamirt.errors import HamirtError
from hamirt.model import DeviceUsage, Gate, GateState, KindBytes, LatencyClass, Limit, Limits, Slot, Usage, Use

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
CONTEXT_BYTES: int = lib.HM_CONTEXT_BYTES

_CLASSES = (LatencyClass.NORMAL, LatencyClass.LATENCY, LatencyClass.BATCH)  # in the order of region.h's enum hm_class
_GATE_STATES = (GateState.CLOSED, GateState.WINDOWED, GateState.FREE)  # of its enum hm_gate_state
_TORN_READS = 3  # a page that is being written may contradict itself for an instant
_MOST_BYTES = 1 << 48  # more than any card has, and than any count can honestly be
_MOST_EVER = 1 << 62  # of nanoseconds, and of what is counted in bytes over months
_FIRST_SLOTS = 8  # read together with the head; seldom is there a slot beyond


def _fields(name: str, *fields: str) -> struct.Struct:
    """Return what unpacks these fields of a struct in region.h, as cffi lays it out: one call where cffi needs many."""
    layout, form, end = dict(ffi.typeof(name).fields), "<", 0
    for field in fields:  # in the struct's order: a gap below 0 is no format
        offset, kind = layout[field].offset, layout[field].type
        count, item = (kind.length, kind.item) if kind.kind == "array" else (1, kind)
        form += f"{offset - end}x{count}{'s' if item.cname == 'char' else 'Q' if ffi.sizeof(item) == 8 else 'I'}"
        end = offset + ffi.sizeof(kind)
    return struct.Struct(form)


_HEAD = _fields("struct hm_usage", "magic", "version", "size", "high_slot")
_DEVICE = _fields("struct hm_usage_device", "context_bytes", "estimated", "ganged", "waits")
_GATE = _fields("struct hm_gate", "word", "charged_ns", "free_ns", "slots", "misses", "unpreemptible")
_GATE_LEASE = _fields("struct hm_gate", "lease_ns")
_SLOT = _fields("struct hm_slot", "taken", "pid", "pid_ns", "command")
_USE = _fields(
    "struct hm_use", "grant", "overhead_bytes", "ahead_bytes", "kind_bytes", "denials", "throttled_ns", "bus_bytes",
    "busy", "waiting", "contexts",
)  # fmt: skip
_DEVICES_AT: int = ffi.offsetof("struct hm_usage", "device")
_DEVICE_BYTES: int = ffi.sizeof("struct hm_usage_device")
_DEVICE_GATE_AT: int = ffi.offsetof("struct hm_usage_device", "gate")
_SLOTS_AT: int = ffi.offsetof("struct hm_usage", "slot")
_SLOT_BYTES: int = ffi.sizeof("struct hm_slot")
_USES_AT: int = ffi.offsetof("struct hm_slot", "use")
_USE_BYTES: int = ffi.sizeof("struct hm_use")
_LEASE = _fields("struct hm_limits", "lease_ns")
_LIMITS_AT: int = ffi.offsetof("struct hm_limits", "device")
_LIMIT_BYTES: int = ffi.sizeof("struct hm_limit")
_LIMIT_GATE_AT: int = ffi.offsetof("struct hm_limit", "gate")
_UNUSED = bytes(_USE_BYTES)
_NOTHING = Use(0, 0, 0, KindBytes(0, 0, 0, 0, 0, 0, 0), 0, 0)


def read_limits(path: Path, fd: int | None = None) -> Limits:
    """Read and check a limits page, through `fd` if one is held; `path` then only names it.

    Raises HamirtError for a page that is missing, damaged or of another version.
    """
    page = ffi.new("struct hm_limits *")
    with open_page(path, "limits") if fd is None else nullcontext(fd) as opened:
        content = _read(opened, path, LIMITS_BYTES, LIMITS_BYTES, 0)
    ffi.buffer(page)[:] = content
    _check_head(path, (page.magic, page.version, page.size), lib.HM_LIMITS_MAGIC, LIMITS_BYTES)
    if page.device_count > DEVICES or page.on_error not in (lib.HM_DENY, lib.HM_ALLOW):
        raise _damaged(path, "a count or a choice is out of its range")
    for entry in page.device[0 : page.device_count]:
        if entry.latency_class >= len(_CLASSES):
            raise _damaged(path, "a class is none that hamirt knows")
        if entry.time_percent > 100 or entry.weight == 0:
            raise _damaged(path, "a share of GPU time is out of its range")
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
                time_percent=entry.time_percent if 0 < entry.time_percent < 100 else None,
                weight=entry.weight,
                latency_class=_CLASSES[entry.latency_class],
            )
            for entry in page.device[0 : page.device_count]
        ),
        epoch=page.epoch,
        lease_ns=page.lease_ns or None,
    )


def read_gates(path: Path, device_count: int, fd: int | None = None) -> tuple[Gate, ...]:
    """Read the supervisor's gates in a limits page, with its lease, as they are now.

    Raises HamirtError for a page that is missing or damaged.
    """
    with open_page(path, "limits") if fd is None else nullcontext(fd) as opened:
        page = _read(opened, path, LIMITS_BYTES, _LIMITS_AT + device_count * _LIMIT_BYTES, 0)
    (lease_ns,) = _LEASE.unpack_from(page)
    starts = (_LIMITS_AT + at * _LIMIT_BYTES + _LIMIT_GATE_AT for at in range(device_count))
    return tuple(_gate(path, page, start, lease_ns) for start in starts)


def read_usage(path: Path, device_count: int, fd: int | None = None) -> Usage:
    """Read and check a usage page, through `fd` if one is held: its devices and the slots of living processes.

    Of the page's million bytes only the head and the slots that were ever taken are read. Raises HamirtError for a
    page that is missing, damaged or of another version.
    """
    with open_page(path, "usage") if fd is None else nullcontext(fd) as opened:
        for attempt in range(_TORN_READS):
            try:
                return _usage(path, opened, device_count)
            except HamirtError:
                if attempt == _TORN_READS - 1:
                    raise
    raise AssertionError("unreachable")


def has_living_slot(path: Path) -> bool:
    """Return whether a process holds a slot, whatever the page says: all that counts are the kernel's locks."""
    try:
        with open_page(path, "usage") as fd:
            return any(_is_locked(fd, path, index) for index in range(SLOTS))
    except HamirtError:
        return False


def _usage(path: Path, fd: int, device_count: int) -> Usage:
    page = _read(fd, path, USAGE_BYTES, _SLOTS_AT + _FIRST_SLOTS * _SLOT_BYTES, 0)
    magic, version, size, count = _HEAD.unpack_from(page)
    _check_head(path, (magic, version, size), lib.HM_USAGE_MAGIC, USAGE_BYTES)
    if count > SLOTS:
        raise _damaged(path, f"it counts {count} slots of {SLOTS}")
    if count > _FIRST_SLOTS:
        page += _read(fd, path, USAGE_BYTES, (count - _FIRST_SLOTS) * _SLOT_BYTES, len(page))
    (lease_ns,) = _GATE_LEASE.unpack_from(page, _DEVICES_AT + _DEVICE_GATE_AT)  # the first device's is for all
    devices = (_device(path, page, _DEVICES_AT + at * _DEVICE_BYTES, lease_ns) for at in range(device_count))
    slots = (_slot(path, page, index, device_count, fd) for index in range(count))
    return Usage(tuple(devices), tuple(slot for slot in slots if slot is not None))


def _device(path: Path, page: bytes, start: int, lease_ns: int) -> DeviceUsage:
    context_bytes, estimated, ganged, *waits = _DEVICE.unpack_from(page, start)
    _count(path, max(context_bytes, *waits))
    gate = _gate(path, page, start + _DEVICE_GATE_AT, lease_ns)
    return DeviceUsage(bool(estimated), context_bytes or None, gate, tuple(waits), bool(ganged))


def _gate(path: Path, page: bytes, start: int, lease_ns: int) -> Gate:
    word, charged_ns, free_ns, slots, misses, unpreemptible = _GATE.unpack_from(page, start)
    state = word & lib.HM_GATE_STATES
    if state >= len(_GATE_STATES):
        raise _damaged(path, "a gate is in no state that hamirt knows")
    _count(path, max(charged_ns, free_ns), _MOST_EVER)
    return Gate(_GATE_STATES[state], charged_ns, free_ns, slots, misses, bool(unpreemptible), lease_ns or None)


def _slot(path: Path, page: bytes, index: int, device_count: int, fd: int) -> Slot | None:
    """Return a slot, None where no living process holds it."""
    start = _SLOTS_AT + index * _SLOT_BYTES
    taken, pid, pid_ns, command = _SLOT.unpack_from(page, start)
    if not taken or not _is_locked(fd, path, index):
        return None
    first = start + _USES_AT
    uses = (_use(path, page, first + position * _USE_BYTES) for position in range(device_count))
    return Slot(index, pid, pid_ns, printable(command), tuple(uses))


def _use(path: Path, page: bytes, start: int) -> Use:
    if page[start : start + _USE_BYTES] == _UNUSED:
        return _NOTHING
    grant, overhead_bytes, ahead_bytes, *counts = _USE.unpack_from(page, start)
    *kinds, denials, throttled_ns, bus_bytes, busy, waiting, contexts = counts
    granted, used = grant >> 32, grant & 0xFFFFFFFF
    if used > granted:
        raise _damaged(path, "a process uses more than it was granted")
    _count(path, max(overhead_bytes, ahead_bytes, denials, *kinds))
    _count(path, max(throttled_ns, bus_bytes), _MOST_EVER)
    return Use(
        granted_bytes=granted * lib.HM_UNIT_BYTES,
        used_bytes=used * lib.HM_UNIT_BYTES,
        overhead_bytes=overhead_bytes,
        ahead_bytes=min(ahead_bytes, overhead_bytes),
        kinds=KindBytes(*kinds),  # in the order of enum hm_kind
        denials=denials,
        contexts=contexts,
        throttled_ns=throttled_ns,
        bus_bytes=bus_bytes,
        busy=bool(busy),
        waiting=waiting,
    )


def _count(path: Path, value: int, most: int = _MOST_BYTES) -> int:
    if value > most:
        raise _damaged(path, f"it counts {value}")
    return value


def _check_head(path: Path, head: tuple[int, int, int], magic: int, size: int) -> None:
    if head[0] != magic:
        raise _damaged(path, "it does not begin as such a page does")
    if head[1] != lib.HM_VERSION:
        raise HamirtError(
            f"{path} has version {head[1]} and this hamirt knows version {lib.HM_VERSION}: "
            "use the hamirt that made it, or end that tenant"
        )
    if head[2] != size:
        raise _damaged(path, f"it says that it is {head[2]} bytes long, not {size}")


def _is_locked(fd: int, path: Path, index: int) -> bool:
    held: int = lib.hm_lock_held(fd, lib.HM_LOCK_SLOTS + index)
    if held < 0:
        raise HamirtError(f"the locks of {path} can't be asked for: {os.strerror(-held)}")
    return held == 1


def _damaged(path: Path, why: str) -> HamirtError:
    return HamirtError(f"the page {path} is damaged ({why}): end that tenant's programs")


def printable(field: bytes) -> str:
    """Return a zero-padded field as printable text; it may come from a program that means ill."""
    text = field.partition(b"\0")[0].decode("utf-8", "replace")
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def _text(field: Any) -> str:
    return printable(bytes(ffi.buffer(field)))


@contextmanager
def open_page(path: Path, what: str) -> Iterator[int]:
    """Open a page for reading; `what` is what a person is told it should be.

    Raises HamirtError where there is none.
    """
    fd = hold_page(path, what)
    try:
        yield fd
    finally:
        os.close(fd)


def hold_page(path: Path, what: str) -> int:
    """Return a descriptor of a page for reading, which the caller closes.

    Raises HamirtError where there is none.
    """
    # O_NONBLOCK and O_NOFOLLOW: the folder's owner could have put a FIFO or a link there
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise HamirtError(f"the {what} page {path} can't be opened: {error.strerror}") from None


def _read(fd: int, path: Path, page_bytes: int, size: int, offset: int) -> bytes:
    """Read `size` bytes of a page that has to be a plain file of `page_bytes`."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(path, "it is no plain file")
        if status.st_size != page_bytes:
            raise _damaged(path, f"it is not {page_bytes} bytes long")
        content = os.pread(fd, size, offset)
    except OSError as error:
        raise HamirtError(f"the page {path} can't be read: {error.strerror}") from None
    if len(content) != size:  # it was truncated in between
        raise _damaged(path, f"it is not {page_bytes} bytes long")
    return content
