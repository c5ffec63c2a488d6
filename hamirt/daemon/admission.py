"""Whether a card has room for a cap: promises may not add up to more than there is. Decides, and touches nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hamirt.errors import HamirtError
from hamirt.model import Card, CardProcess, Limit, Standing
from hamirt.units import format_size

_MOST_NAMES = 8  # in a sentence


@dataclass(frozen=True, slots=True)
class Promise:
    """What a tenant was promised of a card; an uncapped tenant was promised all of it."""

    tenant: str
    memory_bytes: int | None


def admit(
    wishes: Iterable[Limit], promises: Mapping[str, Sequence[Promise]], cards: Mapping[str, Card], overcommit: float
) -> None:
    """Raise HamirtError unless every wish fits beside the promises that others have of the same card (by UUID).

    A card's room is its memory, less what foreign processes hold, times `overcommit`. Each wish is for another card,
    and each card is among `cards`.
    """
    for wish in wishes:
        _admit_on(cards[wish.uuid], wish, promises.get(wish.uuid, ()), Fraction(overcommit))


def room(card: Card, promises: Sequence[Promise], overcommit: float) -> int:
    """Return how many bytes of a card are left to promise; less than none where it was promised too often."""
    return _left(card, promises, _foreign(card), Fraction(overcommit))


def grows(before: Limit, after: Limit) -> bool:
    """Return whether a change promises more of a card than before."""
    return _promised(after.memory_bytes, after.card_bytes) > _promised(before.memory_bytes, before.card_bytes)


def _promised(memory_bytes: int | None, card_bytes: int) -> int:
    return card_bytes if memory_bytes is None else memory_bytes


def _admit_on(card: Card, wish: Limit, promises: Sequence[Promise], overcommit: Fraction) -> None:
    foreign = _foreign(card)
    left = _left(card, promises, foreign, overcommit)
    asked = _promised(wish.memory_bytes, card.total_bytes)
    if asked <= left:
        return
    what = "the whole card" if wish.memory_bytes is None else format_size(asked)
    holders = ", ".join([*_told(promises), *_foreign_told(foreign)])
    ratio = f" (overcommit_ratio is {float(overcommit):g})" if overcommit != 1 else ""
    raise HamirtError(
        f"GPU {card.index} has {format_size(card.total_bytes)}{ratio}{': ' if holders else ''}{holders}; "
        f"{format_size(max(0, left))} are left, and this asks for {what}: "
        "ask for less with --mem, end or shrink another tenant, or raise overcommit_ratio in the daemon's settings"
    )


def _told(promises: Sequence[Promise]) -> list[str]:
    told = [
        f"{one.tenant} has " + ("all of it (no cap)" if one.memory_bytes is None else format_size(one.memory_bytes))
        for one in promises[:_MOST_NAMES]
    ]
    more = len(promises) - _MOST_NAMES
    return [*told, f"{more} more tenants have theirs"] if more > 0 else told


def _foreign(card: Card) -> list[CardProcess]:
    return [process for process in card.processes if process.standing is Standing.FOREIGN and process.used_bytes]


def _taken(foreign: Sequence[CardProcess]) -> int:
    return sum(process.used_bytes or 0 for process in foreign)


def _left(card: Card, promises: Sequence[Promise], foreign: Sequence[CardProcess], overcommit: Fraction) -> int:
    there = int(max(0, card.total_bytes - _taken(foreign)) * overcommit)
    return there - sum(_promised(promise.memory_bytes, card.total_bytes) for promise in promises)


def _foreign_told(foreign: Sequence[CardProcess]) -> list[str]:
    if not foreign:
        return []
    pids = [f"{process.pid}" for process in foreign[:_MOST_NAMES]] + ["..."] * (len(foreign) > _MOST_NAMES)
    return [f"processes outside hamirt hold {format_size(_taken(foreign))} (pid {', '.join(pids)})"]
