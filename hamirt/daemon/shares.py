"""Which share of GPU time each tenant had between two samples, and how long its launches waited. Touches nothing.

What was metered is known. While a gate is free nothing is metered: then its tenant has the card to itself, and gets of
the time that nobody was charged for as much as the card was busy, which NVML samples. Nothing of that rests on what
another tenant's usage page says: who is on the card is the kernel's word, what they were charged the supervisor's.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from hamirt.metering import wait_at_most
from hamirt.model import Card, GateState, Metering, Node, ShareSource, Standing, TenantCard

_LEAST_SECONDS = 0.5  # a share is taken over at least this, if there was a sample so long ago: slots come in lumps
_WAITS_SECONDS, _WAITS_STEP_SECONDS = 60.0, 5.0
_SOME = 0.01  # a part of the time below this is none

T = TypeVar("T")
_Key = tuple[str, str]
"""A tenant's id and a card's UUID."""


class Shares:
    """Remembers samples, for the next ones to be compared with."""

    def __init__(self) -> None:
        self._past: dict[_Key, _Past] = {}

    def complete(self, node: Node, now: float) -> Node:
        """Return the node of `now` (in seconds) with shares and waits, and remember it."""
        seen = {(tenant.id, on.uuid): on for tenant in node.tenants for on in tenant.cards}
        self._past = {key: self._past.get(key) or _Past() for key in seen}
        parts = {key: self._past[key].part(on, now) for key, on in seen.items()}
        done = {key: self._past[key].with_waits(_with_share(key, on, parts, node), now) for key, on in seen.items()}
        for key, on in seen.items():
            self._past[key].remember(on, now)
        return replace(
            node,
            tenants=tuple(
                replace(tenant, cards=tuple(done[tenant.id, on.uuid] for on in tenant.cards)) for tenant in node.tenants
            ),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """What is known of a tenant's share: what was metered, and whether all of it was; and for others to go by."""

    metered: float
    free: bool
    supervised: float | None
    """What the supervisor charged, None unless it metered all of it."""


class _Looks(Generic[T]):
    """What was seen, and when: the newest look that is `seconds` old, and those after it that were a `step` apart."""

    def __init__(self, seconds: float, step: float = 0.0) -> None:
        self._seconds, self._step = seconds, step
        self._kept: deque[tuple[float, T]] = deque()

    def base(self, now: float) -> tuple[float, T] | None:
        """Return what to compare with: the newest look that is old enough, else the oldest."""
        while len(self._kept) > 1 and now - self._kept[1][0] >= self._seconds:
            self._kept.popleft()
        return self._kept[0] if self._kept else None

    def add(self, now: float, look: T) -> None:
        if not self._kept or now - self._kept[-1][0] >= self._step:
            self._kept.append((now, look))


class _Past:
    """What was seen of a tenant on one of its cards."""

    def __init__(self) -> None:
        self._meterings: _Looks[Metering] = _Looks(_LEAST_SECONDS)
        self._waits: _Looks[tuple[int, ...]] = _Looks(_WAITS_SECONDS, _WAITS_STEP_SECONDS)

    def part(self, on: TenantCard, now: float) -> _Part | None:
        """Return what is known of the share, None if that is nothing."""
        seen, base = on.metering, self._meterings.base(now)
        if seen is None or on.unshimmed:
            return None
        is_free = seen.gate is GateState.FREE
        if base is None or now <= base[0]:
            if on.processes and not is_free:
                return None
            return _Part(0.0, bool(on.processes), None)
        seconds, before = now - base[0], base[1]
        is_free |= before.gate is GateState.FREE or seen.free_seconds > before.free_seconds
        metered, supervised = (
            min(max(0.0, after - then) / seconds, 1.0)
            for after, then in (
                (seen.charged_seconds, before.charged_seconds),
                (seen.supervised_seconds, before.supervised_seconds),
            )
        )
        known = seen.supervised and before.supervised and not is_free
        return _Part(metered, is_free and bool(on.processes), supervised if known else None)

    def with_waits(self, on: TenantCard, now: float) -> TenantCard:
        """Return the card with the percentiles of its waits."""
        if on.metering is None:
            return on
        waits, base = on.metering.waits, self._waits.base(now)
        if base is not None and now - base[0] >= _WAITS_SECONDS:
            pairs = zip(waits, base[1], strict=True)
            waits = tuple(count - before if count >= before else count for count, before in pairs)
        p50, p99 = wait_at_most(waits, 0.5), wait_at_most(waits, 0.99)
        return replace(on, metering=replace(on.metering, wait_p50_seconds=p50, wait_p99_seconds=p99))

    def remember(self, on: TenantCard, now: float) -> None:
        """Keep what was seen for the next time."""
        if on.metering is not None:
            self._meterings.add(now, on.metering)
            self._waits.add(now, on.metering.waits)


def _with_share(key: _Key, on: TenantCard, parts: dict[_Key, _Part | None], node: Node) -> TenantCard:
    part = parts[key]
    if part is None:
        return on
    if not part.free or part.metered > 1.0 - _SOME:
        return replace(on, busy_ratio=part.metered, busy_source=ShareSource.METERED)
    for card in node.driver.cards if node.driver else ():
        taken = _taken(card, key, parts) if card.index == on.index else None
        if taken is not None and card.busy_ratio is not None:
            left = max(0.0, 1.0 - part.metered - taken)
            ratio = min(1.0, part.metered + card.busy_ratio * left)
            return replace(on, busy_ratio=ratio, busy_source=ShareSource.SAMPLED)
    return on


def _taken(card: Card, key: _Key, parts: dict[_Key, _Part | None]) -> float | None:
    """Return what the others on a card were charged for, None where something on it was not metered by the supervisor.

    That this tenant's own processes are among those that NVML shows tells that it shows any.
    """
    own, taken = False, {}
    for process in card.processes:
        if process.tenant == key[0] and process.standing is Standing.REGISTERED:
            own = True
            continue
        part = parts.get((process.tenant or "", key[1]))
        if part is None or part.supervised is None or process.standing is not Standing.REGISTERED:
            return None
        taken[process.tenant] = part.supervised
    return sum(taken.values()) if own else None
