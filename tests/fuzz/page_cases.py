"""Valid pages of a tenant, and what a program that means ill could make of them. Everything follows from a seed."""

import json
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hamirt._region import ffi, lib
from hamirt.region import DEVICES, LIMITS_BYTES, SLOTS, USAGE_BYTES
from hamirt.units import MIB
from tests.fuzz.values import NUMBERS, TEXTS, flip, spoil

SLOTS_AT: int = ffi.offsetof("struct hm_usage", "slot")
_SLOT_BYTES: int = ffi.sizeof("struct hm_slot")
_UNIT = 512
_HEAD_BYTES = 16  # magic, version and size: the same in every page of its kind


@dataclass(frozen=True, slots=True)
class Words:
    """What a liar would write into its page: its neighbours' pids, and PID namespaces."""

    pids: tuple[int, ...]
    namespaces: tuple[int, ...]
    uuids: tuple[bytes, ...]
    neighbour_page: bytes


@dataclass(frozen=True, slots=True)
class Patch:
    """Other bytes at a place in a page."""

    offset: int
    content: bytes

    def __str__(self) -> str:
        more = "..." if len(self.content) > 64 else ""
        return f"{len(self.content)} bytes at {self.offset}: {self.content[:64].hex()}{more}"


@dataclass(frozen=True, slots=True)
class Length:
    """Another length of the file."""

    size: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Something else at the page's path; a page that is held open stays what it is."""

    what: str


Edit = Patch | Length | Swap


def valid_usage(rng: random.Random, page: Any, device_count: int, slot_count: int) -> None:
    """Fill a fresh usage page as the shims of `slot_count` processes do."""
    page.high_slot = slot_count
    for at in range(device_count):
        page.device[at].context_bytes = rng.choice((0, 520 * MIB))
        page.device[at].estimated = rng.randrange(2)
    for index in range(slot_count):
        slot = page.slot[index]
        slot.taken, slot.pid, slot.pid_ns = 1, rng.randrange(2, 1 << 22), 4026531836
        slot.command = rng.choice((b"python", b"train.py", b"sh"))
        for at in range(device_count):
            _valid_use(rng, slot.use[at])


def _valid_use(rng: random.Random, use: Any) -> None:
    if rng.random() < 0.3:
        return
    granted = rng.randrange(1, 1 << 20)
    used = rng.randrange(granted + 1)
    use.grant = granted << 32 | used
    use.overhead_bytes, use.contexts = 520 * MIB, 1
    use.denials, use.throttled_ns = rng.randrange(100), rng.randrange(1 << 40)
    use.kind_bytes[rng.randrange(lib.HM_KINDS)] = used * _UNIT


def usage_edits(rng: random.Random, original: bytes, words: Words) -> tuple[Edit, ...]:
    """Return what is done to a usage page; most of it hits bytes that are in use."""
    high_slot = int.from_bytes(original[ffi.offsetof("struct hm_usage", "high_slot") :][:4], "little")
    kind = rng.random()
    if kind < 0.55:
        return tuple(_usage_field(rng, high_slot, words) for _ in range(rng.choice((1, 1, 2, 3, 8))))
    if kind < 0.80:
        return tuple(_bytes(rng, original, SLOTS_AT + (high_slot + 1) * _SLOT_BYTES) for _ in range(rng.choice((1, 3))))
    if kind < 0.88:
        return (Patch(0, words.neighbour_page[: rng.choice((SLOTS_AT + _SLOT_BYTES, USAGE_BYTES))]),)
    return (_length(rng, USAGE_BYTES),) if kind < 0.94 else (_swap(rng),)


def limits_edits(rng: random.Random, original: bytes, words: Words) -> tuple[Edit, ...]:
    """Return what is done to a limits page."""
    kind = rng.random()
    if kind < 0.55:
        return tuple(_limits_field(rng, words) for _ in range(rng.choice((1, 1, 2, 3))))
    if kind < 0.85:
        return tuple(_bytes(rng, original, LIMITS_BYTES) for _ in range(rng.choice((1, 3))))
    return (_length(rng, LIMITS_BYTES),) if kind < 0.93 else (_swap(rng),)


def note_edits(rng: random.Random, original: bytes, words: Words) -> tuple[Edit, ...]:
    """Return what is done to tenant.json."""
    kind = rng.random()
    if kind < 0.1:
        return (_swap(rng),)
    content = spoil(rng, original)
    if kind < 0.7:
        note = json.loads(original)
        choices = (*NUMBERS, *TEXTS, *words.pids, None, True, -1, 1.5, float("nan"), [], {}, ["x"], {"a": [1]})
        note[rng.choice([*note, "more"])] = rng.choice(choices)
        content = json.dumps(note).encode()
    elif kind < 0.75:
        content = b"[" * rng.choice((1, 1000, 200_000))
    return (Length(0), Patch(0, content))


def _usage_field(rng: random.Random, high_slot: int, words: Words) -> Patch:
    slot = rng.randrange(max(1, min(high_slot + 1, SLOTS)))
    device = rng.choice((0, 0, 1, rng.randrange(DEVICES)))
    places: tuple[tuple[str | int, ...], ...] = (
        ("magic",), ("version",), ("size",), ("high_slot",), ("high_slot",), ("trim",),
        *(("device", device, name) for name in ("context_bytes", "estimated", "near")),
        *(("slot", slot, name) for name in ("taken", "pid", "pid", "pid_ns", "command")),
        *(("slot", slot, "use", device, name) for name in _USE_FIELDS),
        *(("slot", slot, "use", device, "kind_bytes", kind) for kind in range(lib.HM_KINDS)),
    )  # fmt: skip
    place = rng.choice(places)
    if place[-1] == "command":
        command = rng.choice((rng.randbytes(16), rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:16]))
        return Patch(_offset("struct hm_usage", place), command.ljust(16, b"\0"))
    numbers = (rng.choice(NUMBERS), rng.getrandbits(64))
    if place[-1] == "pid":
        numbers = (rng.choice((*words.pids, 0, 1, os.getpid())),) * 2
    elif place[-1] == "pid_ns":
        numbers = (rng.choice(words.namespaces), rng.choice(NUMBERS))
    elif place[-1] == "grant":
        granted = rng.getrandbits(32)
        numbers = (granted << 32 | min(granted + 1, 0xFFFFFFFF), rng.choice(NUMBERS))
    return _number("struct hm_usage", place, rng.choice(numbers))


_USE_FIELDS = (
    "grant", "grant", "grant", "asked_bytes", "answered_bytes", "overhead_bytes", "overhead_bytes", "exported_bytes",
    "imported_bytes", "denials", "throttled_ns", "contexts",
)  # fmt: skip


def _limits_field(rng: random.Random, words: Words) -> Patch:
    device = rng.choice((0, 0, 1, rng.randrange(DEVICES)))
    heads = ("magic", "version", "size", "epoch", "on_error", "device_count", "node_devices", "lease_ns", "tenant")
    entries = ("uuid", "memory_bytes", "card_bytes", "context_bytes", "time_percent", "weight", "latency_class")
    places: tuple[tuple[str | int, ...], ...] = (
        *((name,) for name in heads), *(("device", device, name) for name in entries)
    )  # fmt: skip
    place = rng.choice(places)
    if place[-1] in ("uuid", "tenant"):
        size = lib.HM_UUID_BYTES if place[-1] == "uuid" else lib.HM_TENANT_BYTES
        text = rng.choice((rng.randbytes(size), rng.choice(TEXTS).encode("utf-8", "surrogatepass"), *words.uuids))
        return Patch(_offset("struct hm_limits", place), text[:size].ljust(size, b"\0"))
    return _number("struct hm_limits", place, rng.choice((rng.choice(NUMBERS), rng.getrandbits(32))))


def _offset(kind: str, place: tuple[str | int, ...]) -> int:
    offset: int = ffi.offsetof(kind, *place)
    return offset


def _number(kind: str, place: tuple[str | int, ...], value: int) -> Patch:
    field: Any = ffi.typeof(kind)
    for step in place:
        field = field.item if isinstance(step, int) else dict(field.fields)[step].type
    size = ffi.sizeof(field)
    return Patch(_offset(kind, place), (value % (1 << 8 * size)).to_bytes(size, "little"))


def _bytes(rng: random.Random, original: bytes, used: int) -> Patch:
    offset = rng.randrange(rng.choice((24, 64, min(used, len(original)), len(original))))
    size = rng.choice((1, 4, 8, 64, 4096))
    content = rng.choice((rng.randbytes(size), b"\0" * size, b"\xff" * size, flip(rng, original[offset:][:size])))
    return Patch(offset, content[: len(original) - offset])


def _length(rng: random.Random, size: int) -> Length:
    return Length(rng.choice((0, 1, 23, SLOTS_AT, size - 1, size + 1, 2 * size, rng.randrange(size))))


def _swap(rng: random.Random) -> Swap:
    return Swap(rng.choice(tuple(_SWAPS)))


class PageFile:
    """A file of a tenant that is edited, and afterwards is what it was."""

    def __init__(self, path: Path, target: Path) -> None:
        """Edit the file at `path`; links that take its place lead to `target`."""
        self.path = path
        self.original = path.read_bytes()
        self._target = target
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._kept = path.with_name(path.name + ".kept")
        self._dirty: list[Patch] = []
        self._is_cut = self._is_swapped = False

    def edit(self, edits: tuple[Edit, ...]) -> None:
        """Do all of this to it, in order."""
        for one in edits:
            if isinstance(one, Patch):
                self._dirty.append(one)
                os.pwrite(self._fd, one.content, one.offset)
            elif isinstance(one, Length):
                self._is_cut = True
                os.ftruncate(self._fd, one.size)
            else:
                self._is_swapped = True
                self.path.rename(self._kept)
                _SWAPS[one.what](self.path, self._target)

    @property
    def is_no_page(self) -> bool:
        """Return whether by its length or its head it can't be a page."""
        head = os.pread(self._fd, _HEAD_BYTES, 0)
        return os.fstat(self._fd).st_size != len(self.original) or head != self.original[:_HEAD_BYTES]

    @property
    def has_no_page(self) -> bool:
        """Return whether what lies at the path can't be a page."""
        if not self._is_swapped:
            return self.is_no_page
        return self.path.is_symlink() or not self.path.is_file() or self.path.stat().st_size != len(self.original)

    def restore(self) -> None:
        """Make it what it was."""
        if self._is_swapped:
            _remove(self.path)
            self._kept.rename(self.path)
        if self._is_cut:
            os.ftruncate(self._fd, len(self.original))
            os.pwrite(self._fd, self.original, 0)
        else:
            for patch in self._dirty:
                end = patch.offset + len(patch.content)
                os.pwrite(self._fd, self.original[patch.offset : end], patch.offset)
        self._dirty.clear()
        self._is_cut = self._is_swapped = False

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def _socket(path: Path, _target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")  # however long the path is
        os.close(folder)


_SWAPS: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda path, target: None,
    "fifo": lambda path, target: os.mkfifo(path),
    "folder": lambda path, target: path.mkdir(),
    "socket": _socket,
    "link to a neighbour": lambda path, target: path.symlink_to(target),
    "link to /dev/zero": lambda path, target: path.symlink_to("/dev/zero"),
    "link to itself": lambda path, target: path.symlink_to(path.name),
    "text": lambda path, target: path.write_bytes(b"no page\n"),
    "copy of a neighbour": lambda path, target: path.write_bytes(target.read_bytes()),
}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
