"""Reads a tenant's pages again and again as the supervisor does, while they are spoiled, beside a neighbour that lives.

    python -m tests.fuzz.pages --count N --seed N --root FOLDER --out FILE

Whatever the pages say, the answer is a model that makes sense or a HamirtError; the neighbour's figures stay the same,
and nobody is to be ended. The environment is __main__.py's. A page that changes while it is read is changed between two
system calls of its reader, so that the same seed is the same run; within one call a reader can only get a mixture of
bytes, as the other edits make them.
"""

import argparse
import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from hamirt import config, exporter, members, region, tenants, wire
from hamirt._region import ffi, lib
from hamirt.daemon import policy
from hamirt.daemon.sampler import Sampler
from hamirt.daemon.settings import Settings
from hamirt.daemon.tenant import HeldTenant
from hamirt.errors import HamirtError
from hamirt.model import Driver, Health, Limit, Limits, Node, Tenant, TenantPages, TenantRecord, Usage
from hamirt.units import GIB, MIB
from tests.fuzz.outcome import Holdings, Outcome, TooManyFindings, growth
from tests.fuzz.page_cases import Edit, PageFile, Words, limits_edits, note_edits, usage_edits, valid_usage

T = TypeVar("T")
TAKER = Path(__file__).parent.parent / "node" / "programs" / "taker.py"
HEALTH = Health(0.0, True, 1, 0, 0.1, 0.0, {}, {}, {})
RULES = Settings(policy="kill", grace_seconds=0, kill_after_seconds=0)
_KINDS = {"usage": (70, usage_edits), "limits": (22, limits_edits), "tenant.json": (8, note_edits)}
_WARM_UP = 0.2  # of the cases: until then the reader's caches and the allocator's grow
_READ_SECONDS = 5.0  # far more than a reading takes, unless it waits for somebody


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """A tenant whose pages are spoiled; its slots in `locked` are held by living processes."""

    held: HeldTenant
    files: dict[str, PageFile]
    locked: frozenset[int]
    device_count: int
    weight: float
    """How often it is taken: a page with many slots takes long to read."""


@dataclass(frozen=True, slots=True)
class World:
    """The node: a neighbour that runs a program on the first card, and the tenants that are fuzzed."""

    sampler: Sampler
    neighbour: HeldTenant
    fuzzed: tuple[Fuzzed, ...]
    words: Words


class Fuzzer:
    """Runs cases in one world, and looks at what comes of each."""

    def __init__(self, world: World, outcome: Outcome, seed: int) -> None:
        self._world = world
        self._outcome = outcome
        self._seed = seed
        self._case = 0
        self._doing: tuple[str, str, int | None, tuple[Edit, ...]] = ("", "", None, ())
        self._policy = policy.State()
        self._neighbour, self._driver = self._neighbour_in(self._sample(()))

    def run(self, case: int) -> None:
        """Spoil a page, read it in every way, and make it whole again."""
        rng = random.Random(f"{self._seed}/{case}")
        (fuzzed,) = rng.choices(self._world.fuzzed, [one.weight for one in self._world.fuzzed])
        (kind,) = rng.choices(tuple(_KINDS), [weight for weight, _ in _KINDS.values()])
        file = fuzzed.files[kind]
        edits = _KINDS[kind][1](rng, file.original, self._world.words)
        late = rng.randrange(1, 5) if rng.random() < 0.15 else None
        self._case, self._doing = case, (kind, fuzzed.held.name, late, edits)
        began = time.monotonic()
        try:
            if late is None:
                file.edit(edits)
                self._read(fuzzed, kind, file)
            else:
                with _while_read(late, lambda: file.edit(edits), file.restore if rng.random() < 0.5 else None, rng):
                    self._read(fuzzed, kind, None)
        except TooManyFindings:
            raise
        except Exception as error:
            self._outcome.crashed(case, error, self._how())
        finally:
            file.restore()
        if time.monotonic() - began > _READ_SECONDS:
            self._found("reading took long", f"{time.monotonic() - began:.1f} s")

    def _read(self, fuzzed: Fuzzed, kind: str, file: PageFile | None) -> None:
        """Read all that is the supervisor's to read; `file` is what lies there, None if it changes meanwhile."""
        held, folder = fuzzed.held, fuzzed.held.folder
        if kind == "usage":
            path, fd = folder / "rw" / "usage", held._usage_file.fd if held._usage_file else -1
            by_path = self._try(lambda: region.read_usage(path, fuzzed.device_count))
            by_fd = self._try(lambda: region.read_usage(path, fuzzed.device_count, fd))
            for usage in (by_path, by_fd):
                self._check_usage(usage, fuzzed)
            if file is not None:
                self._check_refusal(by_path, file.has_no_page)
                self._check_refusal(by_fd, file.is_no_page)
            region.has_living_slot(path)
            self._check_sample(held, held.read())
            return
        if kind == "limits":
            limits = self._try(lambda: region.read_limits(folder / "ro" / "limits"))
            self._check_limits(limits)
            if file is not None:
                self._check_refusal(limits, file.has_no_page)
        record = tenants.read_record(folder)
        if record is not None and (record.id, type(record.pid), type(record.uid)) != (held.id, int, int):
            self._found("a record that is none was believed", record)
        taken_over = HeldTenant.open(folder)
        read = taken_over.read()
        self._check_limits(read.limits or "none")
        if (read.limits is None or read.record is None) and not read.problem:
            self._found("a part is missing and no reason is given")
        self._check_sample(held, read)
        self._check_sample(held, tenants.read_pages(folder) or read)
        taken_over.close()

    def _try(self, read: Callable[[], T]) -> T | str:
        """Return what was read, or the reason why it was refused."""
        try:
            value = read()
        except HamirtError as error:
            reason = str(error)
            if len(reason) < 20 or len(reason) > 1000 or not reason.isprintable():
                self._found("a reason is no sentence", repr(reason))
            self._outcome.count("refused", _what_of(reason))
            return reason
        self._outcome.count("read", type(value).__name__)
        return value

    def _check_refusal(self, read: object, is_due: bool) -> None:
        if is_due and not isinstance(read, str):
            self._found("what can't be a page was believed", read)

    def _check_usage(self, usage: Usage | str, fuzzed: Fuzzed) -> None:
        if isinstance(usage, str):
            return
        indices = [slot.index for slot in usage.slots]
        if not fuzzed.locked.issuperset(indices) or sorted(set(indices)) != indices:
            self._found("slots live that nobody locked, or twice", (indices, sorted(fuzzed.locked)))
        counts = {len(usage.devices), *(len(slot.uses) for slot in usage.slots)}
        if counts != {fuzzed.device_count}:
            self._found("it got another number of devices", counts)
        if not all(slot.command.isprintable() for slot in usage.slots):
            self._found("a command can't be printed", usage)
        for use in (use for slot in usage.slots for use in slot.uses):
            if not 0 <= use.used_bytes <= use.granted_bytes or max(use.overhead_bytes, use.denials) > 1 << 48:
                self._found("an impossible use was believed", use)

    def _check_limits(self, limits: Limits | str) -> None:
        if isinstance(limits, str):
            return
        texts = (limits.tenant, *(device.uuid for device in limits.devices))
        if len(limits.devices) > region.DEVICES or not all(text.isprintable() for text in texts):
            self._found("impossible limits were believed", limits)

    def _check_sample(self, held: HeldTenant, read: TenantPages) -> None:
        """Take a sample beside the neighbour, decide on it, and make of it what the API and Prometheus are told."""
        if read.usage is None and not read.problem:
            self._found("a page could not be read and no reason is given")
        node = self._sample((read,))
        if self._neighbour_in(node) != (self._neighbour, self._driver):
            self._found("the neighbour has other figures", self._neighbour_in(node))
        (tenant,) = (one for one in node.tenants if one.id == held.id)
        pids = {view.pid for card in tenant.cards for view in card.processes} - {None, os.getpid()}
        if pids or any(card.unshimmed for card in tenant.cards):
            self._found("it got others' processes", tenant)
        verdicts = self._world.sampler.verdicts
        self._policy, actions = policy.judge(self._policy, node, float(self._case), RULES, verdicts)
        if any(isinstance(action, policy.Kill) for action in actions):
            self._found("somebody is to be ended", actions)
        if self._case % 4 == 0:
            text = json.dumps(wire.node_to_json(node), allow_nan=False)
            if wire.node_from_json(json.loads(text)) != node:
                self._found("the node does not come back from its JSON")
        if self._case % 16 == 0:
            exporter.render(node, HEALTH, hami=True).decode()

    def _sample(self, read: tuple[TenantPages, ...]) -> Node:
        return self._world.sampler.sample((*read, self._world.neighbour.read()))

    def _neighbour_in(self, node: Node) -> tuple[Tenant | None, Driver | None]:
        """Return the neighbour's figures, and who is who on the cards."""
        return next((one for one in node.tenants if one.id == self._world.neighbour.id), None), node.driver

    def _found(self, what: str, detail: object = "") -> None:
        self._outcome.found(self._case, what, self._how(), str(detail))

    def _how(self) -> str:
        kind, tenant, late, edits = self._doing
        return f"{kind} of {tenant}{f', before the {late}. pread' if late else ''}: " + "; ".join(map(str, edits))


def _what_of(reason: str) -> str:
    """Return the part of a sentence that is the same for every path and number."""
    for what in (
        "no plain file", "does not begin", "has version", "bytes long", "can't be opened", "can't be read",
        "uses more than it was granted", "slots of", "out of its range", "class is none", "it counts",
    ):  # fmt: skip
        if what in reason:
            return what
    return reason.split("(")[-1]


@contextmanager
def _while_read(
    nth: int, change: Callable[[], None], back: Callable[[], None] | None, rng: random.Random
) -> Iterator[None]:
    """Change the page right before the reader's `nth` pread; with `back`, undo that before the next one.

    Now and then a pread fails altogether, as one from a disk that is dying does.
    """
    pread, count, fails_at = os.pread, 0, rng.choice((0, 0, 0, 2))

    def changing_pread(fd: int, size: int, offset: int) -> bytes:
        nonlocal count
        count += 1
        if count == nth:
            change()
        elif count == nth + 1 and back is not None:
            back()
        if count == fails_at:
            raise OSError(5, "Input/output error")
        return pread(fd, size, offset)

    os.pread = changing_pread
    try:
        yield
    finally:
        os.pread = pread


@contextmanager
def world(root: Path, seed: int) -> Iterator[World]:
    """Set the node up."""
    config.make_root(root)
    with ExitStack() as stack:
        neighbour = stack.enter_context(_neighbour(root))
        sampler = stack.enter_context(Sampler(True, root))
        driver = sampler.sample((neighbour.read(),)).driver
        assert driver is not None
        pids = [process.pid for card in driver.cards for process in card.processes]
        assert len(pids) == 1
        assert neighbour.record is not None
        namespaces = (members.own_namespace() or 0, os.stat(f"/proc/{pids[0]}/ns/pid").st_ino)
        uuids = [card.uuid for card in driver.cards]
        words = Words(
            (*pids, neighbour.record.pid),
            namespaces,
            tuple(uuid.encode() for uuid in (*uuids, uuids[0].lower())),
            (neighbour.folder / "rw" / "usage").read_bytes(),
        )
        rng = random.Random(f"{seed}/world")
        shapes = [(1, 0), (1, 1), (2, 3), (2, 8), (1, 9), (16, 5), (2, 40), (3, region.SLOTS)]
        fuzzed = tuple(
            stack.enter_context(_fuzzed(root, rng, f"fuzzed-{at}", shape, uuids, neighbour))
            for at, shape in enumerate(shapes)
        )
        yield World(sampler, neighbour, fuzzed, words)


@contextmanager
def _neighbour(root: Path) -> Iterator[HeldTenant]:
    """Run a tenant that takes a gigabyte of the first card."""
    command = [sys.executable, "-m", "hamirt", "run", "--sim", "--name", "neighbour", "--gpu", "0", "--mem", "8GiB"]
    with subprocess.Popen(
        [*command, "--", sys.executable, str(TAKER), "1024"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().split()[1:] == ["0"]
        (folder,) = tenants.folders(root)
        held = HeldTenant.open(folder)
        yield held
        held.close()
        process.stdin.close()
        process.wait(10)


@contextmanager
def _fuzzed(
    root: Path, rng: random.Random, name: str, shape: tuple[int, int], uuids: list[str], neighbour: HeldTenant
) -> Iterator[Fuzzed]:
    """Make a tenant with so many devices and slots, and hold the locks of every other slot."""
    device_count, slot_count = shape
    identity = f"{name}-{rng.getrandbits(24):06x}"
    gpus = [*uuids, *(f"GPU-{at}" for at in range(device_count))][:device_count]
    limits = Limits(
        "", False, len(uuids), tuple(Limit(uuid, rng.choice((None, 8 * GIB)), 80 * GIB, 520 * MIB) for uuid in gpus)
    )
    folder = root / "tenants" / identity
    record = TenantRecord(identity, name, os.getpid(), ("train",), True, None, uid=os.geteuid())
    os.close(tenants.make_folder(folder, record, replace(limits, tenant=name)))
    usage = folder / "rw" / "usage"
    page = ffi.new("struct hm_usage *")
    ffi.buffer(page)[:] = usage.read_bytes()
    valid_usage(rng, page, device_count, slot_count)
    usage.write_bytes(bytes(ffi.buffer(page)))
    locked = frozenset(range(0, slot_count, 2))
    with ExitStack() as stack:
        held = HeldTenant.open(folder)
        stack.callback(held.close)
        paths = {"usage": usage, "limits": folder / "ro" / "limits", "tenant.json": folder / "tenant.json"}
        there = {kind: neighbour.folder / path.relative_to(folder) for kind, path in paths.items()}
        files = {kind: PageFile(path, there[kind]) for kind, path in paths.items()}
        for file in files.values():
            stack.callback(file.close)
        locks = stack.enter_context(open(usage, "r+b"))
        for index in locked:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, lib.HM_LOCK_SLOTS + index, 1, 0)
            fcntl.fcntl(locks, fcntl.F_OFD_SETLK, lock)
        yield Fuzzed(held, files, locked, device_count, 1 / (1 + device_count * slot_count / 20))


def main() -> None:
    """Run so many cases, and write what came of them."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--count", type=int, required=True)
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--root", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    chosen = options.parse_args()
    outcome, began, done = Outcome(), time.monotonic(), 0
    with world(chosen.root, chosen.seed) as made:
        fuzzer = Fuzzer(made, outcome, chosen.seed)
        warm = Holdings.of(os.getpid())
        try:
            for done in range(1, chosen.count + 1):
                fuzzer.run(done)
                if done == int(chosen.count * _WARM_UP):
                    warm = Holdings.of(os.getpid())
        except TooManyFindings:
            pass
        grown = growth(warm, Holdings.of(os.getpid()))
    outcome.write(chosen.out, cases=done, seconds=round(time.monotonic() - began, 1), grown=grown)


if __name__ == "__main__":
    main()
