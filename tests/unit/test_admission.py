"""Room on a card: whatever is admitted fits, and whatever fits is admitted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt.daemon.admission import Promise, admit, grows, room
from hamirt.errors import HamirtError
from hamirt.model import Card, CardProcess, Limit, Standing
from hamirt.units import GIB, MIB

TOTAL = 80 * GIB
CARDS = ("GPU-a", "GPU-b")


def card(uuid: str = "GPU-a", foreign: tuple[int | None, ...] = ()) -> Card:
    processes = [CardProcess(100 + at, held, Standing.FOREIGN) for at, held in enumerate(foreign)]
    ours = [CardProcess(1, 70 * GIB, Standing.REGISTERED, "x"), CardProcess(2, 70 * GIB, Standing.UNSHIMMED, "x")]
    return Card(CARDS.index(uuid), uuid, "H100", TOTAL, TOTAL, None, False, (*processes, *ours))


def limit(memory: int | None, uuid: str = "GPU-a") -> Limit:
    return Limit(uuid, memory, TOTAL, None)


sizes = st.one_of(st.none(), st.integers(1, TOTAL))


@given(
    st.lists(sizes, max_size=6),
    st.lists(st.one_of(st.none(), st.integers(0, TOTAL)), max_size=4),
    sizes,
    st.sampled_from([1.0, 1.25, 1.5, 2.0]),
)
def test_what_is_admitted_is_what_fits(
    caps: list[int | None], foreign: list[int | None], wished: int | None, ratio: float
) -> None:
    promises = {"GPU-a": [Promise(f"t{at}", cap) for at, cap in enumerate(caps)]}
    there = max(0, TOTAL - sum(held or 0 for held in foreign)) * ratio
    wanted = sum(TOTAL if cap is None else cap for cap in [*caps, wished])

    left = room(card(foreign=tuple(foreign)), promises["GPU-a"], ratio)
    try:
        admit([limit(wished)], promises, {"GPU-a": card(foreign=tuple(foreign))}, ratio)
    except HamirtError:
        assert wanted > int(there)
    else:
        assert wanted <= int(there)
    assert left == int(there) - wanted + (TOTAL if wished is None else wished)


def test_only_promises_on_the_same_card_count() -> None:
    promises = {"GPU-b": [Promise("web", None)]}
    cards = {uuid: card(uuid) for uuid in CARDS}

    admit([limit(None)], promises, cards, 1.0)
    with pytest.raises(HamirtError, match="GPU 1 has 80GiB: web has all of it"):
        admit([limit(None), limit(1, "GPU-b")], promises, cards, 1.0)


@pytest.mark.parametrize(
    ("caps", "foreign", "wished", "ratio", "says"),
    [
        ([], (GIB,), None, 1.0,
         ": processes outside hamirt hold 1GiB (pid 100); 79GiB are left, and this asks for the whole card: "),
        ([50 * GIB, 20 * GIB], (GIB, None, 2 * GIB), 8 * GIB, 1.0,
         ": t0 has 50GiB, t1 has 20GiB, processes outside hamirt hold 3GiB (pid 100, 102); "
         "7GiB are left, and this asks for 8GiB: "),
        ([None, None], (), MIB, 2.0,
         " (overcommit_ratio is 2): t0 has all of it (no cap), t1 has all of it (no cap); "
         "0 bytes are left, and this asks for 1MiB: "),
        ([8 * GIB] * 10, (), 8 * GIB, 1.0,
         ": " + "".join(f"t{at} has 8GiB, " for at in range(8)) + "2 more tenants have theirs; "
         "0 bytes are left, and this asks for 8GiB: "),
        ([90 * GIB], (100 * GIB,), 1, 1.0,
         ": t0 has 90GiB, processes outside hamirt hold 100GiB (pid 100); "
         "0 bytes are left, and this asks for 1 bytes: "),
    ],
)  # fmt: skip
def test_the_sentence_says_who_has_what(
    caps: list[int | None], foreign: tuple[int | None, ...], wished: int | None, ratio: float, says: str
) -> None:
    promises = {"GPU-a": [Promise(f"t{at}", cap) for at, cap in enumerate(caps)]}

    with pytest.raises(HamirtError) as refusal:
        admit([limit(wished)], promises, {"GPU-a": card(foreign=foreign)}, ratio)

    assert str(refusal.value) == f"GPU 0 has 80GiB{says}" + (
        "ask for less with --mem, end or shrink another tenant, or raise overcommit_ratio in the daemon's settings"
    )


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [(1, 2, True), (2, 1, False), (1, 1, False), (1, None, True), (None, 1, False), (None, None, False)],
)
def test_what_grows(before: int | None, after: int | None, answer: bool) -> None:
    assert grows(limit(before), limit(after)) is answer
