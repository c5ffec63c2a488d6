"""The shared pages: what is written is read back, and no content of a page is more than a sentence."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hamirt import pages, region
from hamirt._region import ffi, lib
from hamirt.errors import HamirtError
from hamirt.model import DeviceUsage, Gate, GateState, KindBytes, LatencyClass, Limit, Limits, Slot, Usage, Use
from hamirt.units import GIB, MIB

LIMITS = Limits(
    tenant="train-1",
    allow_on_error=True,
    node_devices=8,
    devices=(
        Limit("GPU-aa", 8 * GIB, 80 * GIB, 520 * MIB),
        Limit("GPU-bb", None, 80 * GIB, None, 25, 300, LatencyClass.LATENCY),
    ),
    epoch=7,
    lease_ns=123,
)
on_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@contextmanager
def changed_usage(path: Path) -> Iterator[Any]:
    """Yield the page as a struct and write it back, as a tenant's program might."""
    page = ffi.new("struct hm_usage *")
    ffi.buffer(page)[:] = path.read_bytes()
    yield page
    with open(path, "r+b") as file:
        file.write(bytes(ffi.buffer(page)))


@contextmanager
def slot_lock(path: Path, index: int) -> Iterator[None]:
    """Hold a slot's lock as a living process does."""
    with open(path, "r+b") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, lib.HM_LOCK_SLOTS + index, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        yield


@pytest.fixture
def usage_path(tmp_path: Path) -> Path:
    path = tmp_path / "usage"
    pages.create_usage(path)
    return path


@pytest.fixture
def limits_path(tmp_path: Path) -> Path:
    path = tmp_path / "limits"
    pages.create_limits(path, LIMITS)
    return path


def fill_slot(page: Any, index: int) -> None:
    page.high_slot = max(page.high_slot, index + 1)
    slot = page.slot[index]
    slot.taken, slot.pid, slot.pid_ns, slot.command = 1, 42, 4026531836, b"python"
    use = slot.use[1]
    use.grant = (4 * MIB // 512) << 32 | (2 * MIB // 512)
    use.overhead_bytes, use.denials, use.contexts = 520 * MIB, 3, 1
    use.kind_bytes[lib.HM_POOL] = 2 * MIB


NO_WAITS = (0,) * lib.HM_WAITS
FRESH = DeviceUsage(False, None, waits=NO_WAITS)
NOTHING = Use(0, 0, 0, KindBytes(0, 0, 0, 0, 0, 0, 0), 0, 0)
SOMETHING = Use(4 * MIB, 2 * MIB, 520 * MIB, KindBytes(0, 0, 2 * MIB, 0, 0, 0, 0), 3, 1)


def test_limits_come_back_as_written(limits_path: Path) -> None:
    assert region.read_limits(limits_path) == LIMITS
    assert limits_path.stat().st_mode & 0o777 == 0o644


def test_pages_are_open_to_the_tenant_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        pages.create_limits(tmp_path / "limits", LIMITS)
        pages.create_usage(tmp_path / "usage")
    finally:
        os.umask(before)

    assert (tmp_path / "limits").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "usage").stat().st_mode & 0o777 == 0o666


def test_a_fresh_usage_page_is_empty_and_has_its_room(usage_path: Path) -> None:
    assert region.read_usage(usage_path, 2) == Usage((FRESH, FRESH), ())
    assert usage_path.stat().st_blocks * 512 >= region.USAGE_BYTES


def test_only_a_slot_with_its_lock_held_is_alive(usage_path: Path) -> None:
    with changed_usage(usage_path) as page:
        fill_slot(page, 0)
        fill_slot(page, 5)
        page.device[1].context_bytes = 520 * MIB

    with slot_lock(usage_path, 5):
        usage = region.read_usage(usage_path, 2)
        assert region.has_living_slot(usage_path)

    assert usage == Usage(
        (FRESH, DeviceUsage(False, 520 * MIB, waits=NO_WAITS)),
        (Slot(5, 42, 4026531836, "python", (NOTHING, SOMETHING)),),
    )
    assert not region.has_living_slot(usage_path)


def test_too_many_cards_for_a_page(tmp_path: Path) -> None:
    limits = Limits("t", False, 17, (LIMITS.devices[0],) * 17)

    with pytest.raises(HamirtError, match="16 GPUs at most, not 17"):
        pages.create_limits(tmp_path / "limits", limits)


def test_another_version_is_named(limits_path: Path, usage_path: Path) -> None:
    for path, magic in ((limits_path, lib.HM_LIMITS_MAGIC), (usage_path, lib.HM_USAGE_MAGIC)):
        with open(path, "r+b") as file:
            file.write(struct.pack("<QI", magic, lib.HM_VERSION + 1))

    with pytest.raises(HamirtError, match=f"has version {lib.HM_VERSION + 1} and this hamirt knows"):
        region.read_limits(limits_path)
    with pytest.raises(HamirtError, match=f"has version {lib.HM_VERSION + 1} and this hamirt knows"):
        region.read_usage(usage_path, 2)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("grant", 1 << 32 | 2, "uses more than it was granted"),
        ("overhead_bytes", (1 << 64) - 4096, "counts 18446744073709547520"),
        ("denials", 1 << 63, "counts"),
    ],
)
def test_impossible_counts_are_damage(usage_path: Path, field: str, value: int, says: str) -> None:
    with changed_usage(usage_path) as page:
        fill_slot(page, 0)
        setattr(page.slot[0].use[1], field, value)

    with slot_lock(usage_path, 0), pytest.raises(HamirtError, match=says):
        region.read_usage(usage_path, 2)


def test_a_terminal_escape_in_a_name_is_not_passed_on(usage_path: Path) -> None:
    with changed_usage(usage_path) as page:
        fill_slot(page, 0)
        page.slot[0].command = b"a\x1b[31m\xff\nb"

    with slot_lock(usage_path, 0):
        assert region.read_usage(usage_path, 1).slots[0].command == "a?[31m�?b"


def test_what_is_no_page(tmp_path: Path) -> None:
    fifo, folder, link = tmp_path / "fifo", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(fifo)
    folder.mkdir()
    link.symlink_to("/dev/zero")

    for path in (fifo, folder, link, tmp_path / "missing", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(HamirtError):
            region.read_limits(path)
        with pytest.raises(HamirtError):
            region.read_usage(path, 2)
        assert not region.has_living_slot(path)
    with pytest.raises(HamirtError, match="it is no plain file"):
        region.read_usage(fifo, 2)


@on_files
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=16)), max_size=8), st.data())
def test_a_mutated_usage_page_is_a_usage_or_a_sentence(
    usage_path: Path, mutations: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    page = ffi.new("struct hm_usage *")
    page.magic, page.version, page.size = lib.HM_USAGE_MAGIC, lib.HM_VERSION, region.USAGE_BYTES
    fill_slot(page, 0)
    fill_slot(page, 1)
    content = bytearray(ffi.buffer(page))
    for position, patch in mutations:
        start = position % data.draw(st.sampled_from([64, 4096, len(content)]))
        content[start : start + len(patch)] = patch
    cut = data.draw(st.sampled_from([None, None, 0, 23, 4096, len(content) - 1]))
    usage_path.write_bytes(content[:cut])

    with slot_lock(usage_path, 0), slot_lock(usage_path, 1):
        try:
            usage = region.read_usage(usage_path, 2)
        except HamirtError:
            return
    for slot in usage.slots:
        assert all(use.used_bytes <= use.granted_bytes for use in slot.uses)


@on_files
@given(st.lists(st.tuples(st.integers(0, 2047), st.binary(min_size=1, max_size=16)), max_size=8), st.integers(0, 4096))
def test_a_mutated_limits_page_is_limits_or_a_sentence(
    tmp_path: Path, mutations: list[tuple[int, bytes]], cut: int
) -> None:
    path = tmp_path / "limits"
    path.unlink(missing_ok=True)
    pages.create_limits(path, LIMITS)
    content = bytearray(path.read_bytes())
    for start, patch in mutations:
        content[start : start + len(patch)] = patch
    path.write_bytes(content[:cut])

    try:
        limits = region.read_limits(path)
    except HamirtError:
        return
    assert len(limits.devices) <= region.DEVICES


def test_slots_beyond_the_first_few_are_read_too(usage_path: Path) -> None:
    with changed_usage(usage_path) as page:
        for index in (0, 7, 8, region.SLOTS - 1):
            fill_slot(page, index)

    with ExitStack() as locks:
        for index in (0, 8, region.SLOTS - 1):
            locks.enter_context(slot_lock(usage_path, index))
        usage = region.read_usage(usage_path, 2)

    assert usage.slots == tuple(
        Slot(index, 42, 4026531836, "python", (NOTHING, SOMETHING)) for index in (0, 8, region.SLOTS - 1)
    )


def test_kinds_come_back_by_their_names(usage_path: Path) -> None:
    names = ("linear", "managed", "pool", "virtual", "array", "graph", "external")
    with changed_usage(usage_path) as page:
        fill_slot(page, 0)
        for name in names:
            page.slot[0].use[0].kind_bytes[getattr(lib, f"HM_{name.upper()}")] = len(name)
        page.slot[0].use[0].throttled_ns = 5
        page.slot[0].use[0].bus_bytes = 1 << 60  # months of copying
        page.slot[0].use[0].waiting, page.slot[0].use[0].busy = 3, 1

    with slot_lock(usage_path, 0):
        use = region.read_usage(usage_path, 1).slots[0].uses[0]

    assert use.kinds == KindBytes(**{name: len(name) for name in names})
    assert (use.throttled_ns, use.bus_bytes, use.busy, use.waiting) == (5, 1 << 60, True, 3)


def fill_gate(gate: Any, state: int) -> None:
    gate.word = 7 * lib.HM_GATE_SLOT | state
    gate.charged_ns, gate.free_ns, gate.slots, gate.misses, gate.unpreemptible = 5_000_000_000, 11, 8, 2, 1
    gate.credit_ns = gate.virtual_ns = -1


def test_the_leaders_gates_and_the_waits_come_back(usage_path: Path) -> None:
    with changed_usage(usage_path) as page:
        fill_gate(page.device[1].gate, lib.HM_GATE_WINDOWED)
        page.device[0].gate.lease_ns, page.device[1].gate.lease_ns = 99, 5
        page.device[1].ganged = 1
        page.device[1].waits = list(range(lib.HM_WAITS))

    devices = region.read_usage(usage_path, 2).devices

    gate = Gate(GateState.WINDOWED, 5_000_000_000, 11, 8, 2, unpreemptible=True, lease_ns=99)
    waits = tuple(range(lib.HM_WAITS))
    assert devices == (
        DeviceUsage(False, None, Gate(lease_ns=99), NO_WAITS),
        DeviceUsage(False, None, gate, waits, ganged=True),
    )


def test_the_supervisors_gates_come_back_as_they_are_now(limits_path: Path) -> None:
    page = ffi.new("struct hm_limits *")
    ffi.buffer(page)[:] = limits_path.read_bytes()
    before = region.read_gates(limits_path, 2)
    fill_gate(page.device[0].gate, lib.HM_GATE_FREE)
    page.lease_ns = 0
    with open(limits_path, "r+b") as file:
        file.write(bytes(ffi.buffer(page)))

    assert before == (Gate(lease_ns=123), Gate(lease_ns=123))
    assert region.read_gates(limits_path, 2) == (Gate(GateState.FREE, 5_000_000_000, 11, 8, 2, True), Gate())


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("word", 7, "in no state that hamirt knows"),
        ("charged_ns", 1 << 63, "it counts"),
        ("free_ns", (1 << 64) - 1, "it counts"),
    ],
)
def test_an_impossible_gate_is_damage(usage_path: Path, limits_path: Path, field: str, value: int, says: str) -> None:
    with changed_usage(usage_path) as page:
        setattr(page.device[0].gate, field, value)
    limits = ffi.new("struct hm_limits *")
    ffi.buffer(limits)[:] = limits_path.read_bytes()
    setattr(limits.device[1].gate, field, value)
    limits_path.write_bytes(bytes(ffi.buffer(limits)))

    with pytest.raises(HamirtError, match=says):
        region.read_usage(usage_path, 1)
    with pytest.raises(HamirtError, match=says):
        region.read_gates(limits_path, 2)
    assert region.read_limits(limits_path) == LIMITS  # limits hold whatever the gates are


def test_an_impossible_count_of_waits_is_damage(usage_path: Path) -> None:
    with changed_usage(usage_path) as page:
        page.device[0].waits[3] = 1 << 60

    with pytest.raises(HamirtError, match="it counts"):
        region.read_usage(usage_path, 1)


@pytest.mark.parametrize(("field", "value"), [("time_percent", 101), ("weight", 0)])
def test_a_share_of_gpu_time_that_is_none_is_damage(limits_path: Path, field: str, value: int) -> None:
    page = ffi.new("struct hm_limits *")
    ffi.buffer(page)[:] = limits_path.read_bytes()
    setattr(page.device[1], field, value)
    limits_path.write_bytes(bytes(ffi.buffer(page)))

    with pytest.raises(HamirtError, match="a share of GPU time is out of its range"):
        region.read_limits(limits_path)


def test_a_held_page_is_read_whatever_lies_at_its_path(usage_path: Path, limits_path: Path) -> None:
    with region.open_page(usage_path, "usage") as usage, region.open_page(limits_path, "limits") as limits:
        for path in (usage_path, limits_path):
            path.unlink()
            os.mkfifo(path)

        assert region.read_usage(usage_path, 2, usage) == Usage((FRESH, FRESH), ())
        assert region.read_limits(limits_path, limits) == LIMITS


def test_a_held_page_that_is_cut_is_a_sentence(usage_path: Path) -> None:
    with region.open_page(usage_path, "usage") as fd:
        os.truncate(usage_path, region.USAGE_BYTES - 1)

        with pytest.raises(HamirtError, match="is damaged"):
            region.read_usage(usage_path, 2, fd)


def test_a_page_torn_for_an_instant_is_read_again(usage_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with changed_usage(usage_path) as page:
        fill_slot(page, 0)
    whole = usage_path.read_bytes()
    torn = bytearray(whole)
    grant = ffi.offsetof("struct hm_usage", "slot") + ffi.offsetof("struct hm_slot", "use")
    torn[grant : grant + 8] = struct.pack("<Q", 9)
    answers = iter([bytes(torn), whole])
    monkeypatch.setattr(os, "pread", lambda _fd, size, at: next(answers)[at : at + size])

    with slot_lock(usage_path, 0):
        usage = region.read_usage(usage_path, 2)

    assert usage.slots[0].uses == (NOTHING, SOMETHING)
