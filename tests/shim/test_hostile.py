"""Damaged pages: a process that attaches to one is refused in a sentence or goes on, and nobody else is harmed.

Every process of a tenant may write its usage page; the limits page comes from whoever set the tenant up.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hamirt import region
from hamirt.errors import HamirtError
from hamirt.region import ffi, lib
from tests.shim.conftest import MIB, SANITIZER, TIMEOUT_S, Build, Node, Tenant

NOT_READY = 802  # CUDA_ERROR_SYSTEM_NOT_READY
REFUSED = f"init {NOT_READY} context 999 alloc 999 total 0"
GRANT = ffi.offsetof("struct hm_use", "grant")
SLOT = ffi.offsetof("struct hm_usage", "slot")
SLOT_BYTES = ffi.sizeof("struct hm_slot")
USE = ffi.offsetof("struct hm_slot", "use")
USE_BYTES = ffi.sizeof("struct hm_use")

Damage = Callable[[Path], None]


def put(kind: str, name: str, value: int) -> Damage:
    """Return what overwrites a field at the top of a page."""
    struct_name = f"struct hm_{kind}"
    offset = ffi.offsetof(struct_name, name)
    width = {field: ffi.sizeof(info.type) for field, info in ffi.typeof(struct_name).fields}[name]

    def damage(page: Path) -> None:
        with page.open("r+b") as file:
            file.seek(offset)
            file.write((value & ((1 << 8 * width) - 1)).to_bytes(width, "little"))

    return damage


def cut(length: int) -> Damage:
    return lambda page: os.truncate(page, length)


def replaced(make: Callable[[Path], None]) -> Damage:
    def damage(page: Path) -> None:
        page.unlink()
        make(page)

    return damage


def ones(page: Path) -> None:
    """Every slot taken, with all that a word can hold granted and used."""
    with page.open("r+b") as file:
        for slot in range(region.SLOTS):
            file.seek(SLOT + slot * SLOT_BYTES)
            file.write(struct.pack("<II", 1, 1 + slot))
            for device in range(region.DEVICES):
                file.seek(SLOT + slot * SLOT_BYTES + USE + device * USE_BYTES + GRANT)
                file.write(b"\xff" * USE_BYTES)
    put("usage", "high_slot", region.SLOTS)(page)


STRUCTURE: dict[str, Damage] = {
    "magic": put("usage", "magic", 0x1234),
    "magic zero": put("usage", "magic", 0),
    "version older": put("usage", "version", lib.HM_VERSION - 1),
    "version newer": put("usage", "version", lib.HM_VERSION + 1),
    "size zero": put("usage", "size", 0),
    "size huge": put("usage", "size", 0xFFFFFFFF),
    "empty": cut(0),
    "one byte short": cut(region.USAGE_BYTES - 1),
    "header only": cut(24),
    "missing": Path.unlink,
    "folder": replaced(Path.mkdir),
    "link": replaced(lambda page: page.symlink_to("/dev/zero")),
    "link to itself": replaced(lambda page: page.symlink_to(page)),
    "pipe": replaced(lambda page: os.mkfifo(page)),
}
LIMITS_STRUCTURE: dict[str, Damage] = {
    "magic": put("limits", "magic", 0x1234),
    "version newer": put("limits", "version", lib.HM_VERSION + 1),
    "size huge": put("limits", "size", 0xFFFFFFFF),
    "empty": cut(0),
    "one byte short": cut(region.LIMITS_BYTES - 1),
    "missing": Path.unlink,
    "folder": replaced(Path.mkdir),
    "pipe": replaced(lambda page: os.mkfifo(page)),
}
CONTENT: dict[str, Damage] = {
    "grants of ones": ones,
    "high_slot huge": put("usage", "high_slot", 0xFFFFFFFF),
    "trim huge": put("usage", "trim", 0xFFFFFFFF),
    "longer": cut(region.USAGE_BYTES * 3),
}


@pytest.fixture
def attach(build: Build) -> Path:
    return build("hostile_attach")


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a refusal says on stderr."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("hamirt: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_sound_page_is_used(attach: Path, node: Node) -> None:
    done = node.run([attach], node.tenant(mem=2048 * MIB))

    assert done.stdout.strip() == "init 0 context 0 alloc 0 total 2048"


@pytest.mark.parametrize("damage", STRUCTURE)
def test_a_usage_page_that_is_none_is_refused(damage: str, attach: Path, node: Node) -> None:
    tenant = node.tenant()
    STRUCTURE[damage](tenant.usage_page)

    done = node.run([attach], tenant, timeout=10)

    assert done.stdout.strip() == REFUSED
    assert str(tenant.usage_page) in sentence(done)


@pytest.mark.parametrize("damage", LIMITS_STRUCTURE)
def test_a_limits_page_that_is_none_is_refused(damage: str, attach: Path, node: Node) -> None:
    tenant = node.tenant(allow_on_error=True)  # which cannot be believed either
    LIMITS_STRUCTURE[damage](tenant.limits_page)

    done = node.run([attach], tenant, timeout=10)

    assert done.stdout.strip() == REFUSED
    assert str(tenant.limits_page) in sentence(done)


@pytest.mark.parametrize("count", [region.DEVICES + 1, 0xFFFFFFFF])
def test_a_limits_page_with_more_devices_than_it_has_room_for_is_refused(count: int, attach: Path, node: Node) -> None:
    tenant = node.tenant()
    put("limits", "device_count", count)(tenant.limits_page)

    done = node.run([attach], tenant)

    assert done.stdout.strip() == REFUSED
    assert f"{count} devices" in sentence(done)


@pytest.mark.parametrize("damage", ["magic", "empty", "missing"])
def test_where_errors_are_allowed_the_program_runs_and_is_told(damage: str, attach: Path, node: Node) -> None:
    tenant = node.tenant(allow_on_error=True)
    STRUCTURE[damage](tenant.usage_page)

    done = node.run([attach], tenant)

    assert done.stdout.startswith("init 0 context 0 alloc 0 ")
    assert "NOT limited" in sentence(done)


@pytest.mark.parametrize("damage", CONTENT)
def test_a_page_that_lies_harms_nobody(damage: str, attach: Path, node: Node) -> None:
    tenant = node.tenant(mem=2048 * MIB)
    CONTENT[damage](tenant.usage_page)

    done = node.run([attach], tenant)

    assert done.stdout.strip() == "init 0 context 0 alloc 0 total 2048", "the slots of the dead count for nothing"


def test_a_living_neighbour_that_lies_about_itself_costs_its_tenant_only(attach: Path, node: Node) -> None:
    tenant, other = node.tenant(mem=2048 * MIB), node.tenant(mem=2048 * MIB)
    neighbour = started(node, attach, tenant)
    ones(tenant.usage_page)

    refused = node.run([attach], tenant)
    fine = node.run([attach], other)

    assert refused.stdout.split()[:2] == ["init", "0"]
    assert "alloc 0" not in refused.stdout, "with such a page nothing fits"
    assert fine.stdout.strip() == "init 0 context 0 alloc 0 total 2048"
    ended(neighbour)


def test_all_slots_held_by_somebody(attach: Path, node: Node) -> None:
    tenant = node.tenant()
    with tenant.usage_page.open("r+b") as file:
        for slot in range(region.SLOTS):
            lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, lib.HM_LOCK_SLOTS + slot, 1, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)

        done = node.run([attach], tenant)

    assert " alloc 0 " not in done.stdout
    assert f"{region.SLOTS} processes" in done.stderr


def cards_apart(node: Node) -> dict[str, str]:
    """Return what gives a program cards of its own: a stopped neighbour may hold the simulator's lock, no driver's."""
    return {"HAMIRT_SIM_STATE": str(node.root / "sim-apart")}


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_before_the_start(seed: int, attach: Path, node: Node) -> None:
    tenant = node.tenant(mem=2048 * MIB)
    neighbour = started(node, attach, tenant, "hold")  # so that the page is no empty one
    os.kill(neighbour.pid, signal.SIGSTOP)  # and does not touch it while it is short
    sound = tenant.usage_page.read_bytes()
    choose = random.Random(seed)

    for _ in range(8):
        mutate(tenant.usage_page, sound, choose)
        done = node.run([attach], tenant, timeout=10, check=False, extra=cards_apart(node))
        assert done.returncode == 0, f"seed {seed}: {done.returncode} {done.stderr}"
        assert done.stdout.split()[1] in ("0", str(NOT_READY))
    overwrite(tenant.usage_page, sound)
    os.kill(neighbour.pid, signal.SIGCONT)
    assert ended(neighbour) == {"free": 0}


def mutate(page: Path, sound: bytes, choose: random.Random) -> None:
    """Overwrite some ranges of a page with noise, extremes, or what lay elsewhere; or cut it, in one of ten."""
    content = bytearray(sound)
    busy = len(content) if choose.random() < 0.3 else SLOT + 4 * SLOT_BYTES
    for _ in range(choose.randint(1, 6)):
        at, length = choose.randrange(busy), choose.choice([1, 4, 8, 64, 1024, SLOT_BYTES])
        length = min(length, len(content) - at)
        source = choose.randrange(len(content) - length)
        content[at : at + length] = choose.choice(
            [choose.randbytes(length), b"\xff" * length, b"\0" * length, sound[source : source + length]]
        )
    if choose.random() < 0.1:
        del content[choose.randrange(len(content)) :]
    overwrite(page, content)


def overwrite(page: Path, content: bytes | bytearray) -> None:
    """Change a page in place: it is never shorter than before and after."""
    with page.open("r+b") as file:
        file.write(content)
        file.truncate(len(content))


def started(node: Node, program: Path, tenant: Tenant, how: str = "loop") -> subprocess.Popen[str]:
    process = node.start([program, how], tenant)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> dict[str, int]:
    """Let a loop end, and return how often it was answered what."""
    output, _ = process.communicate("\n", timeout=TIMEOUT_S)
    words = output.split()
    assert process.returncode == 0, f"ended with {process.returncode}: {output}"
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_under_running_programs(seed: int, attach: Path, node: Node) -> None:
    tenant, other = node.tenant(mem=2048 * MIB), node.tenant(mem=2048 * MIB)
    victims = [started(node, attach, tenant) for _ in range(2)]
    bystander = started(node, attach, other)
    sound = tenant.usage_page.read_bytes()
    choose = random.Random(100 + seed)

    for _ in range(60):
        content = bytearray(sound)
        for _ in range(4):
            at, length = choose.randrange(SLOT + 4 * SLOT_BYTES), choose.choice([1, 8, 64, 4096])
            content[at : at + length] = choose.choice([choose.randbytes(length), b"\xff" * length, b"\0" * length])
        overwrite(tenant.usage_page, content[: len(sound)])
        time.sleep(0.005)

    for victim in victims:
        answers = ended(victim)
        assert answers["other"] == 0
        assert answers["free"] == 0
    answers = ended(bystander)
    assert answers["done"] > 100
    assert (answers["refused"], answers["other"], answers["free"]) == (0, 0, 0)


def test_a_page_cut_under_running_programs_ends_those_of_its_tenant_only(attach: Path, node: Node) -> None:
    tenant, other = node.tenant(mem=2048 * MIB), node.tenant(mem=2048 * MIB)
    victim, bystander = started(node, attach, tenant), started(node, attach, other)

    os.truncate(tenant.usage_page, 0)
    time.sleep(0.2)
    late = node.run([attach], tenant)

    assert late.stdout.strip() == REFUSED
    if victim.poll() is None:
        ended(victim)
    else:
        assert victim.returncode == (77 if SANITIZER else -signal.SIGBUS)  # a sanitizer reports it
    answers = ended(bystander)
    assert (answers["refused"], answers["other"], answers["free"]) == (0, 0, 0)
    assert node.run([attach], other).stdout.strip() == "init 0 context 0 alloc 0 total 2048"


def test_a_stopped_neighbour_does_not_hold_others_up(attach: Path, node: Node) -> None:
    tenant, other = node.tenant(mem=2048 * MIB), node.tenant(mem=2048 * MIB)
    neighbour = started(node, attach, tenant)
    apart = cards_apart(node)

    for _ in range(5):
        os.kill(neighbour.pid, signal.SIGSTOP)
        done = node.run([attach], other, extra=apart)
        os.kill(neighbour.pid, signal.SIGCONT)
        time.sleep(0.01)
        assert done.stdout.strip() == "init 0 context 0 alloc 0 total 2048"

    ended(neighbour)


def test_one_that_is_stopped_with_the_ledger_costs_its_tenant_memory_but_no_hang(attach: Path, node: Node) -> None:
    tenant = node.tenant(mem=2048 * MIB)
    with tenant.usage_page.open("r+b") as page:
        fcntl.fcntl(page, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, lib.HM_LOCK_LEDGER, 1, 0))

        done = node.run([attach], tenant, check=False)

    assert done.stdout.strip().startswith("init 0 context 2 ")
    assert "holds the ledger" in sentence(done)


ALL_DAMAGE = {**STRUCTURE, **CONTENT}


@pytest.mark.parametrize("damage", ALL_DAMAGE)
def test_the_reader_says_what_is_wrong_or_reads(damage: str, node: Node) -> None:
    tenant = node.tenant()
    ALL_DAMAGE[damage](tenant.usage_page)

    try:
        usage = tenant.usage()
    except HamirtError as error:
        assert str(tenant.usage_page) in str(error)
    else:
        assert usage.slots == ()


def test_status_shows_the_others_beside_damaged_tenants(attach: Path, node: Node) -> None:
    sound = node.tenant(mem=2048 * MIB)
    process = started(node, attach, sound)
    kept = [alive(sound)]
    for damage in ALL_DAMAGE.values():
        tenant = node.tenant()
        damage(tenant.usage_page)
        kept.append(alive(tenant))
    for damage in LIMITS_STRUCTURE.values():
        tenant = node.tenant()
        damage(tenant.limits_page)
        kept.append(alive(tenant))

    done = node.run([sys.executable, "-m", "hamirt", "status", "--sim", "--json"], shim=False, check=False)
    shown = {tenant["id"]: tenant for tenant in json.loads(done.stdout)["tenants"]}

    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(shown) == len(kept)
    assert shown[sound.folder.name]["problem"] is None
    assert shown[sound.folder.name]["cards"][0]["allocation_bytes"] >= 32 * MIB
    ended(process)
    for fd in kept:
        os.close(fd)


def alive(tenant: Tenant) -> int:
    """Keep a tenant from being swept away, as its `hamirt run` does."""
    fd = os.open(tenant.folder / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd
