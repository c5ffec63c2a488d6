"""Takes samples of the node: NVML, the tenants' pages, and who is who. Reads the world and changes nothing.

`hamirt status` takes a single sample the same way where no supervisor answers.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hamirt import config, members, nvml, region, survey
from hamirt.daemon.shares import Shares
from hamirt.errors import HamirtError
from hamirt.members import Anchor, Inode, Look, Process, Verdict
from hamirt.model import Driver, Gate, Node, Standing, TenantPages, Usage
from hamirt.survey import Claim, Gates, Totals
from hamirt.topology import Topology

_RECHECK_SECONDS = 3.0  # how long a good answer is believed, and up to twice as long
_SCAN_SECONDS = 2.0  # between two looks at all processes for those of other PID namespaces
_COST_FACTOR = 50  # a process that took long to look at is left alone for so many times as long,
_MOST_PATIENCE_SECONDS = 6.0  # and no longer than this
_MOST_TOTAL = 1 << 62


class Sampler:
    """Keeps NVML open, and what it found out of processes, from one sample to the next. For one thread at a time."""

    def __init__(self, sim: bool, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        if sim:
            os.environ.setdefault(config.SIM_STATE_VARIABLE, str(config.sim_state_path(root)))
        self.anchors: tuple[Anchor, ...] = ()
        """What ties processes to the tenants of the last sample."""
        self.verdicts: Mapping[int, Verdict] = {}
        """On the processes on the cards in the last sample, by pid."""
        self._session = nvml.Session(config.sim_dir() if sim else None)
        self._census = Census(clock)
        self._tallies: dict[str, _Tally] = {}
        self._shares = Shares()
        self._clock = clock

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of NVML."""
        self._session.close()

    def topology(self) -> Topology:
        """Return how close the cards of the last sample are to each other, as far as NVML says."""
        return self._session.topology()

    def sample(self, pages: Sequence[TenantPages], *, inside: bool = False) -> Node:
        """Return the node with these tenants, as their pages were read.

        Never raises for what tenants or the driver do: a problem is in the node. Denials and throttled time are counted
        since a tenant was first seen; shares of GPU time are those since the sample before.
        """
        driver, problem = self._read_driver()
        on_cards = {process.pid for card in driver.cards for process in card.processes} if driver else set()
        self.anchors = tuple(map(_anchor, pages))
        self.verdicts, pids = self._census.look(self.anchors, on_cards, survey.claims_of(pages))
        shown = None if driver is None else survey.judged(driver, self.verdicts)
        now = self._clock()
        gates = Gates(dict(_read_gates(pages)), int(now * 1e9))
        node = survey.survey(shown, problem, pages, pids, inside=inside, totals=self._totals(pages), gates=gates)
        return self._shares.complete(node, now)

    def _read_driver(self) -> tuple[Driver | None, str | None]:
        try:
            return self._session.read(), "\n".join(self._session.lost) or None
        except HamirtError as error:
            return None, str(error)

    def _totals(self, pages: Sequence[TenantPages]) -> dict[tuple[str, int], Totals]:
        self._tallies = {tenant.id: self._tallies.get(tenant.id, _Tally()) for tenant in pages}
        found: dict[tuple[str, int], Totals] = {}
        for tenant in pages:
            tally = self._tallies[tenant.id]
            if tenant.usage is not None:
                tally.add(tenant.usage)
            found |= {(tenant.id, position): totals for position, totals in tally.totals.items()}
        return found


def _read_gates(pages: Sequence[TenantPages]) -> Iterator[tuple[str, tuple[Gate, ...]]]:
    """Yield the supervisor's gates of each tenant whose limits page can be read."""
    for tenant in pages:
        if tenant.limits is not None:
            with suppress(HamirtError):
                yield tenant.id, region.read_gates(tenant.folder / "ro" / "limits", len(tenant.limits.devices))


def _anchor(pages: TenantPages) -> Anchor:
    return Anchor(
        tenant=pages.id,
        usage=_inode(f"{pages.folder}/rw/usage"),
        alive=_inode(f"{pages.folder}/alive"),
        pid=pages.record.pid if pages.record else None,
        cgroup=pages.record.cgroup if pages.record else None,
        start=pages.record.start if pages.record else None,
    )


def _inode(path: str) -> Inode | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclass(slots=True)
class _Tally:
    """Counts on where slots end and begin anew, so that what it counts never falls."""

    totals: dict[int, Totals] = field(default_factory=dict)
    _last: dict[tuple[int, int, int], tuple[Totals, ...]] = field(default_factory=dict)

    def add(self, usage: Usage) -> None:
        """Count what is new in a page since the last one."""
        seen = {}
        for slot in usage.slots:
            key = (slot.index, slot.pid, slot.pid_ns)
            seen[key] = now = tuple(Totals(use.denials, use.throttled_ns, use.bus_bytes) for use in slot.uses)
            before = self._last.get(key, ())
            for position, count in enumerate(now):
                last = before[position] if position < len(before) else Totals(0, 0, 0)
                if count != last:
                    self._count(position, count, last)
        self._last = seen

    def _count(self, position: int, count: Totals, last: Totals) -> None:
        total = self.totals.get(position, Totals(0, 0, 0))
        self.totals[position] = Totals(
            _advance(total.denials, count.denials, last.denials),
            _advance(total.throttled_ns, count.throttled_ns, last.throttled_ns),
            _advance(total.bus_bytes, count.bus_bytes, last.bus_bytes),
        )


def _advance(total: int, count: int, last: int) -> int:
    """Return the total after a counter went from `last` to `count`; a counter that fell began anew."""
    return min(total + (count - last if count >= last else count), _MOST_TOTAL)


@dataclass(slots=True)
class _Known:
    verdict: Verdict
    until: float


class Census:
    """Judges processes, and remembers for a second or two what it found."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[int, _Known] = {}
        self._roots: dict[str, tuple[int, int]] = {}
        self._outside: dict[tuple[int, int], Process] = {}
        self._scan_at = 0.0
        self._own_namespace = members.own_namespace()

    def look(
        self, anchors: Sequence[Anchor], on_cards: Iterable[int], claims: Iterable[Claim]
    ) -> tuple[dict[int, Verdict], dict[Claim, int]]:
        """Judge the processes on the cards, and find those that slots claim to be held by.

        A claim holds only for a process that is the tenant's by the kernel's word. What can't be found is missing.
        """
        look = Look(anchors, self._roots)
        verdicts = {}
        for pid in on_cards:
            if (verdict := self._judge(look, pid, 0.0)) is not None:
                verdicts[pid] = verdict
        judged = dict(verdicts)
        found = {}
        for claim, pid in self._candidates(look, set(claims)):
            if pid not in judged and (verdict := self._judge(look, pid, _RECHECK_SECONDS)) is not None:
                judged[pid] = verdict
            if pid in judged and judged[pid].tenant == claim.tenant:
                found[claim] = pid
        self._known = {pid: known for pid, known in self._known.items() if pid in look.asked}
        self._roots = {tenant: root for tenant, root in self._roots.items() if tenant in look.tenants}
        return verdicts, found

    def _judge(self, look: Look, pid: int, patience: float) -> Verdict | None:
        """Return the verdict on a living process; `patience` is how long at least a bad one is believed."""
        look.asked.add(pid)
        process = look.process(pid)
        if process is None:
            return None
        now = self._clock()
        known = self._known.get(pid)
        if (
            known is not None
            and now < known.until
            and known.verdict.process == process
            and (known.verdict.tenant is None or known.verdict.tenant in look.tenants)
        ):
            return known.verdict
        began = time.perf_counter()
        verdict = look.judge(process)
        cost = time.perf_counter() - began
        if verdict.standing is Standing.REGISTERED:
            patience = _RECHECK_SECONDS * (1 + pid % 16 / 16)  # not all at once
        self._known[pid] = _Known(verdict, now + min(max(patience, _COST_FACTOR * cost), _MOST_PATIENCE_SECONDS))
        return verdict

    def _candidates(self, look: Look, claims: set[Claim]) -> Iterator[tuple[Claim, int]]:
        """Yield the processes that could be meant."""
        elsewhere = [claim for claim in claims if claim.pid_ns != self._own_namespace]
        yield from ((claim, claim.pid) for claim in claims if claim.pid_ns == self._own_namespace)
        wanted = {(claim.pid_ns, claim.pid) for claim in elsewhere}
        self._outside = {
            key: process
            for key, process in self._outside.items()
            if key in wanted and _is_same(look.process(process.pid), process)
        }
        missing = wanted - self._outside.keys()
        if missing and self._clock() >= self._scan_at:
            for key, pid in members.outside_pids(missing).items():
                process = look.process(pid)
                if process is not None:
                    self._outside[key] = process
            self._scan_at = self._clock() + _SCAN_SECONDS
        for claim in elsewhere:
            if (process := self._outside.get((claim.pid_ns, claim.pid))) is not None:
                yield claim, process.pid


def _is_same(one: Process | None, other: Process) -> bool:
    """Return whether it is still that process; its PID namespace, and its pid in there, never change."""
    return one is not None and (one.pid, one.start) == (other.pid, other.start)
