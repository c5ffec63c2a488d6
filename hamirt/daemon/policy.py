"""What is done about violations: told once when they begin and end, and under the rule `kill` ended. Pure.

**Who can be ended.** Only processes that the kernel says are members of the violating tenant (members.py). What pages
say, ledger numbers among it, is reported and nothing more.

- *Unshimmed*: a member without the shim on a card where its tenant has a cap, or that its tenant was not given. Each
  such process has its own grace.
- *Over*: the footprint of the tenant's members in NVML is above what it was allowed. Its members on the card are ended
  one at a time, the largest first, and only when none of them is unshimmed, for then those are at fault.

**What it was allowed** is its cap, or the highest of its caps since it last kept within one. So a tenant over its cap
because the cap shrank is reported, and spared until it has once been within the new cap or grows above the old one. One
that is over at first sight, after a restart of the supervisor, is spared for as long as it does not grow.

SIGTERM after `grace_seconds` without a break, SIGKILL `kill_after_seconds` later if the process still violates. While
NVML does not answer nothing is concluded, and every grace begins anew.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from hamirt import survey
from hamirt.members import Verdict
from hamirt.model import Card, CardProcess, Node, Standing, TenantCard
from hamirt.units import format_mib


class Rules(Protocol):
    """What of the daemon's settings counts here."""

    @property
    def policy(self) -> str:
        """`report` or `kill`."""

    @property
    def grace_seconds(self) -> float:
        """How long a violation goes on before a process is asked to end."""

    @property
    def kill_after_seconds(self) -> float:
        """How long it then has to end by itself."""


class Kind(Enum):
    """What a tenant does that it should not."""

    UNSHIMMED = "unshimmed"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Violation:
    """A tenant's violation on a card (by UUID), going on since `since` (monotonic seconds)."""

    tenant: str
    uuid: str
    kind: Kind
    since: float
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """A violation began, or ended; to be told."""

    violation: Violation
    ended: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """A member of a tenant is to be ended: with SIGTERM, or with SIGKILL if `force`. `start` is members.Process's."""

    tenant: str
    pid: int
    start: int
    command: str
    kind: Kind
    force: bool


Action = Report | Kill


@dataclass(frozen=True, slots=True)
class _Asked:
    at: float
    forced: bool


_Key = tuple[str, str, Kind]
_Target = tuple[str, str, Kind, int, int]
"""Tenant, card, kind, pid and start time of one process."""


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from one judgement to the next."""

    violations: Mapping[_Key, Violation] = field(default_factory=dict)
    suspects: Mapping[_Target | _Key, float] = field(default_factory=dict)
    """Since when a process, or a tenant that is over, could be ended for."""
    asked: Mapping[_Target, _Asked] = field(default_factory=dict)
    allowed: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Bytes that a tenant's members may hold of a card before they are ended; without an end for the uncapped."""


def judge(
    state: State, node: Node, now_seconds: float, settings: Rules, verdicts: Mapping[int, Verdict]
) -> tuple[State, tuple[Action, ...]]:
    """Return what follows from a sample, and what to remember of it.

    `verdicts` are the sampler's on the processes of this node; nobody is ended who has none there.
    """
    if node.driver is None:
        return State(violations=state.violations, allowed=state.allowed), ()
    cards = [_OnCard(card, node, verdicts) for card in node.driver.cards]
    violations = {key: one for card in cards for key, one in card.violations(state, now_seconds).items()}
    violations |= {key: state.violations[key] for key in state.violations if _is_unseen(key[:2], node)}
    allowed = {key: state.allowed[key] for key in state.allowed if _is_unseen(key, node)}
    for card in cards:
        allowed |= card.allowed(state.allowed)
    actions: list[Action] = [Report(one, False) for key, one in violations.items() if key not in state.violations]
    actions += [Report(one, True) for key, one in state.violations.items() if key not in violations]
    if settings.policy != "kill":
        return State(violations=violations, allowed=allowed), tuple(actions)
    suspects: dict[_Target | _Key, float] = {}
    asked: dict[_Target, _Asked] = {}
    for card in cards:
        since = {suspect: state.suspects.get(suspect, now_seconds) for suspect in card.suspects(allowed)}
        suspects |= since
        due = [suspect for suspect, began in since.items() if now_seconds - began >= settings.grace_seconds]
        for target in card.targets(due, state.asked):
            before = state.asked.get(target)
            force = before is not None and now_seconds - before.at >= settings.kill_after_seconds
            asked[target] = _Asked(before.at if before else now_seconds, force)
            if before is None or (force and not before.forced):
                actions.append(card.kill(target, force))
    return State(violations, suspects, asked, allowed), tuple(actions)


def _is_unseen(key: tuple[str, str], node: Node) -> bool:
    """Return whether a living tenant's card does not answer: what it did there is neither going on nor over."""
    tenant, uuid = key
    seen = node.driver is not None and any(card.uuid == uuid for card in node.driver.cards)
    return not seen and any(one.id == tenant for one in node.tenants)


class _OnCard:
    """The tenants on one card: what NVML and the kernel say of them."""

    def __init__(self, card: Card, node: Node, verdicts: Mapping[int, Verdict]) -> None:
        self.uuid = card.uuid
        self._verdicts = verdicts
        self._given = {tenant.id: on for tenant in node.tenants for on in tenant.cards if on.uuid == card.uuid}
        self._members: dict[str, list[CardProcess]] = {tenant.id: [] for tenant in node.tenants}
        for process in card.processes:
            verdict = verdicts.get(process.pid)
            if verdict is not None and verdict.tenant in self._members and verdict.tenant in verdict.members:
                self._members[verdict.tenant].append(process)

    def violations(self, state: State, now: float) -> dict[_Key, Violation]:
        """Return what tenants do on the card, whether somebody is ended for it or not."""
        texts: dict[_Key, str] = {}
        for tenant in self._members:
            unshimmed = self._unshimmed(tenant)
            if unshimmed:
                texts[tenant, self.uuid, Kind.UNSHIMMED] = "; ".join(map(survey.unshimmed_text, unshimmed))
            on = self._given.get(tenant)
            if on is not None and on.over:
                texts[tenant, self.uuid, Kind.OVER] = f"over its cap by {format_mib(on.over_bytes)} MiB"
        before = state.violations
        return {key: Violation(*key, before[key].since if key in before else now, text) for key, text in texts.items()}

    def allowed(self, before: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        """Return what each tenant's members may hold of the card."""
        return {(tenant, self.uuid): self._allowed(tenant, on, before) for tenant, on in self._given.items()}

    def suspects(self, allowed: Mapping[tuple[str, str], float]) -> Iterator[_Target | _Key]:
        """Yield each process, and each tenant, for which somebody is ended if it goes on."""
        for tenant in self._members:
            unshimmed = self._unshimmed(tenant)
            for process in unshimmed:
                yield self._target(tenant, Kind.UNSHIMMED, process)
            if tenant in self._given and not unshimmed and self._footprint(tenant) > allowed[tenant, self.uuid]:
                yield tenant, self.uuid, Kind.OVER

    def targets(self, due: list[_Target | _Key], asked: Mapping[_Target, _Asked]) -> Iterator[_Target]:
        """Yield the processes to end: of a tenant that is over the one asked already, else its largest."""
        for suspect in due:
            if len(suspect) == 5:
                yield suspect
                continue
            tenant = suspect[0]
            members = sorted(self._members[tenant], key=lambda one: (one.used_bytes or 0, one.pid), reverse=True)
            targets = [self._target(tenant, Kind.OVER, process) for process in members if process.used_bytes]
            yield from [target for target in targets if target in asked][:1] or targets[:1]

    def kill(self, target: _Target, force: bool) -> Kill:
        """Return what is to be done to a target."""
        tenant, _uuid, kind, pid, start = target
        return Kill(tenant, pid, start, self._verdicts[pid].process.command, kind, force)

    def _target(self, tenant: str, kind: Kind, process: CardProcess) -> _Target:
        return tenant, self.uuid, kind, process.pid, self._verdicts[process.pid].process.start

    def _unshimmed(self, tenant: str) -> list[CardProcess]:
        """Return the tenant's members without the shim, unless there is nothing here that they could get around."""
        on = self._given.get(tenant)
        if on is not None and not survey.is_limited(on):
            return []
        return [one for one in self._members[tenant] if self._verdicts[one.pid].standing is Standing.UNSHIMMED]

    def _footprint(self, tenant: str) -> int:
        return sum(process.used_bytes or 0 for process in self._members[tenant])

    def _allowed(self, tenant: str, on: TenantCard, before: Mapping[tuple[str, str], float]) -> float:
        if on.cap_bytes is None:
            return math.inf
        held = self._footprint(tenant)
        if held <= on.cap_bytes:
            return on.cap_bytes
        return max(on.cap_bytes, before.get((tenant, self.uuid), held))
