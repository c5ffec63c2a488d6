"""Which cards a tenant gets: those that it may have and that have room, close together. Decides, and touches nothing.

Several cards are chosen for the worst link among them first, then for all their links; between cards that are as close
the policy decides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from hamirt.errors import HamirtError
from hamirt.topology import Topology
from hamirt.units import Cap, format_size

GPU = "hamirt.io/gpu"
MEMORY = "hamirt.io/memory"
USE_TYPE, NO_TYPE = "nvidia.com/use-gputype", "nvidia.com/nouse-gputype"
USE_UUID, NO_UUID = "nvidia.com/use-gpuuuid", "nvidia.com/nouse-gpuuuid"
_MOST_CHARS = 200  # of a list in a sentence
_MOST_CARDS = 16  # among which every choice is looked at: 0.1 s at worst


class Policy(Enum):
    """Which of the cards that would do."""

    BINPACK = "binpack"
    """The fullest, so that others stay free."""
    SPREAD = "spread"
    """The emptiest, so that few share a card."""


@dataclass(frozen=True, slots=True)
class Filters:
    """HAMi's filters: parts of model names, and UUIDs, one of which has to match or none may; in any case of letters.

    Where `use_...` is empty, all match.
    """

    use_types: tuple[str, ...] = ()
    no_types: tuple[str, ...] = ()
    use_uuids: tuple[str, ...] = ()
    no_uuids: tuple[str, ...] = ()

    def objection(self, uuid: str, model: str) -> str | None:
        """Return why a card is not wanted, None if it is."""
        if self.use_types and not _is_among(model, self.use_types):
            return f"is none of {USE_TYPE} {','.join(self.use_types)[:_MOST_CHARS]}"
        if _is_among(model, self.no_types):
            return f"is one of {NO_TYPE} {','.join(self.no_types)[:_MOST_CHARS]}"
        if self.use_uuids and not _is_among(uuid, self.use_uuids, whole=True):
            return f"is not in {USE_UUID}"
        return f"is in {NO_UUID}" if _is_among(uuid, self.no_uuids, whole=True) else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What cards a tenant asks for: `count` of them, or those `named` by index or UUID, with a cap on each or none."""

    count: int = 1
    named: tuple[str, ...] = ()
    memory: Cap | None = None
    filters: Filters = Filters()
    policy: Policy = Policy.SPREAD


@dataclass(frozen=True, slots=True)
class Candidate:
    """A card of the node. Its room is what admission has left for caps; a cap is to be more than `least_bytes`."""

    index: int
    uuid: str
    model: str
    total_bytes: int
    free_bytes: int
    least_bytes: int = 0
    tenants: int = 0
    mig: bool = False


class NoPlaceError(HamirtError):
    """No choice of cards will do. `lasting`: not on this node, whoever leaves it."""

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class _Objection:
    text: str
    lasting: bool


def choose(wanted: Wanted, cards: Sequence[Candidate], topology: Topology) -> tuple[str, ...]:
    """Return the UUIDs of the cards that the tenant gets, in the order of their indexes.

    Raises NoPlaceError with why each of the cards will not do.
    """
    asked = _find_named(wanted.named, cards) if wanted.named else tuple(cards)
    count = len(asked) if wanted.named else wanted.count
    objections = {card.index: objection for card in asked if (objection := _objection(wanted, card)) is not None}
    good = [card for card in asked if card.index not in objections]
    if len(good) < count:
        lasting = len(asked) - sum(objection.lasting for objection in objections.values()) < count
        raise NoPlaceError(_sentence(wanted, count, asked, objections, lasting), lasting=lasting)
    best = sorted(good, key=lambda card: _liking((card,), wanted.policy))[:_MOST_CARDS]
    chosen = min(_closest(sorted(best, key=_index), count, topology), key=lambda some: _liking(some, wanted.policy))
    return tuple(card.uuid for card in chosen)


def _find_named(names: Sequence[str], cards: Sequence[Candidate]) -> tuple[Candidate, ...]:
    found: dict[int, Candidate] = {}
    for name in names:
        card = next((card for card in cards if name.lower() in (str(card.index), card.uuid.lower())), None)
        if card is None:
            there = ", ".join(f"{card.index} ({card.uuid})" for card in cards) or "none at all"
            raise NoPlaceError(f"{GPU}: there is no GPU {name!r} on this node: there is {there}", lasting=True)
        if card.index in found:
            raise NoPlaceError(f"{GPU} names GPU {card.index} ({card.uuid}) twice: name each GPU once", lasting=True)
        found[card.index] = card
    return tuple(found[index] for index in sorted(found))


def _objection(wanted: Wanted, card: Candidate) -> _Objection | None:
    unwanted = wanted.filters.objection(card.uuid, card.model)
    if unwanted is not None:
        return _Objection(unwanted, True)
    if card.mig:
        return _Objection("is in MIG mode, which hamirt can't divide further for now", True)
    bytes_asked = card.total_bytes if wanted.memory is None else wanted.memory.resolve(card.total_bytes)
    if bytes_asked > card.total_bytes:
        return _Objection(f"has {format_size(card.total_bytes)} in all", True)
    if wanted.memory is not None and bytes_asked <= card.least_bytes:
        return _Objection(f"needs a cap of more than {format_size(card.least_bytes)} for a CUDA context", True)
    if bytes_asked > card.free_bytes:
        return _Objection(f"has {format_size(card.free_bytes)} left of {format_size(card.total_bytes)}", False)
    return None


def _sentence(
    wanted: Wanted, count: int, asked: Sequence[Candidate], objections: dict[int, _Objection], lasting: bool
) -> str:
    what = f"{GPU} {','.join(wanted.named)}" if wanted.named else "a GPU" if count == 1 else f"{count} GPUs"
    cap = "all of its memory, since there is no" if wanted.memory is None else wanted.memory.text
    told = "; ".join(
        f"GPU {card.index} ({card.model}) {objections[card.index].text if card.index in objections else 'would do'}"
        for card in asked
    )
    advice = "ask for what this node has" if lasting else "ask for less, or end or shrink another tenant"
    order = f"{cap} {MEMORY}" if wanted.memory is None else f"{MEMORY} {cap}"
    return f"no place for {what} with {order}: {told or 'there is no GPU on this node'}: {advice}"


def _closest(cards: Sequence[Candidate], count: int, topology: Topology) -> list[tuple[Candidate, ...]]:
    """Return the choices of so many cards that are closest together."""
    links = {
        (one.index, other.index): int(topology.link(one.uuid, other.uuid)) for one, other in combinations(cards, 2)
    }
    choices = list(combinations(cards, count))
    distances = [_distance([links[pair] for pair in combinations(map(_index, some), 2)]) for some in choices]
    least = min(distances)
    return [some for some, distance in zip(choices, distances, strict=True) if distance == least]


def _distance(links: Sequence[int]) -> tuple[int, int]:
    return max(links, default=0), sum(links)


def _liking(some: Sequence[Candidate], policy: Policy) -> tuple[float, int, list[int]]:
    """Return how well the policy likes these cards, less is better; where it likes others as well, the first ones."""
    sign = 1 if policy is Policy.SPREAD else -1
    used = sum(1 - card.free_bytes / card.total_bytes if card.total_bytes else 0.0 for card in some)
    return sign * used, sign * sum(card.tenants for card in some), [card.index for card in some]


def _index(card: Candidate) -> int:
    return card.index


def _is_among(text: str, words: Iterable[str], *, whole: bool = False) -> bool:
    return any(word.lower() == text.lower() if whole else word.lower() in text.lower() for word in words)
