"""What work is thought to take, by its marks: right in the end, whatever is launched in whatever order."""

from __future__ import annotations

import ctypes
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.shim.conftest import TOP, Build

US = 1_000
MARK_NS = 250 * US  # HM_MARK_NS
UNKNOWN_NS = 250 * US
FULL = 0xFFFF  # HM_NO_KIND
KINDS = 40
LAUNCHES = 350  # of a step


@dataclass
class Card:
    """A program's launches on a card that works on them in order, with marks as the window makes them."""

    library: ctypes.CDLL
    pace_ns: int = 0
    """Between two launches of the program."""
    launched_ns: int = 0
    free_ns: int = 0
    """When the card has done what was launched."""
    seen_ns: int = 0
    """When the last mark was seen to have ended."""
    begun_ns: int = 0
    kinds: list[int] = field(default_factory=list)
    predicted_ns: int = 0
    marks: int = 0

    def predict(self, work: int) -> int:
        return self._predict(work)[0]

    def launch(self, work: int, takes_ns: int) -> None:
        cost, kind, known = self._predict(work)
        if self.kinds and cost >= MARK_NS:
            self.mark()
        if not self.kinds:
            self.begun_ns = self.launched_ns
        self.kinds.append(kind)
        self.predicted_ns += cost
        self.free_ns = max(self.free_ns, self.launched_ns) + takes_ns
        self.launched_ns += self.pace_ns
        if self.predicted_ns >= MARK_NS or not known:
            self.mark()

    def mark(self) -> None:
        begun = max(self.begun_ns, self.seen_ns)
        kinds = (ctypes.c_uint16 * len(self.kinds))(*self.kinds)
        elapsed = ctypes.c_uint64(max(1, self.free_ns - begun))
        predicted = ctypes.c_uint64(self.predicted_ns)
        self.library.harness_learn(kinds, len(self.kinds), predicted, elapsed, begun > self.begun_ns)
        self.seen_ns = self.free_ns
        self.launched_ns = max(self.launched_ns, self.free_ns - MARK_NS)  # it waits for room
        self.kinds, self.predicted_ns = [], 0
        self.marks += 1

    def _predict(self, work: int) -> tuple[int, int, bool]:
        kind, known = ctypes.c_uint16(), ctypes.c_bool()
        cost = self.library.harness_predict(ctypes.c_uint64(work), ctypes.byref(kind), ctypes.byref(known))
        return cost, kind.value, known.value


@pytest.fixture
def card(build: Build, tmp_path: Path) -> Callable[..., Card]:
    """cost.c as a library that knows nothing yet: a copy, since the same file is loaded only once."""
    built = build("cost_harness", str(TOP / "shim" / "cost.c"), shared=True, driver=False)
    library = ctypes.CDLL(str(shutil.copy(built, tmp_path / "cost.so")))
    library.harness_predict.restype = ctypes.c_uint64
    return lambda **options: Card(library, **options)


def run_steps(card: Card, takes_ns: Sequence[int], steps: int) -> list[int]:
    """Launch steps of a program of many kinds, always in the same order; return each kind's number in a step."""
    order = random.Random("order").choices(range(len(takes_ns)), k=LAUNCHES)
    for _ in range(steps):
        for work in order:
            card.launch(work, takes_ns[work])
    return order


@pytest.mark.parametrize("first_ns", [0, 100 * US, 5_000 * US], ids=["", "slow first", "very slow first"])
def test_a_slow_first_launch_is_forgotten(first_ns: int, card: Callable[..., Card]) -> None:
    """...by kinds that are never alone before a mark: an engine without graphs, whose first launches load code."""
    program = card()
    takes = [(3 + kind % 7) * US for kind in range(KINDS)]
    for work, ns in enumerate(takes):
        program.launch(work, first_ns + ns)

    order = run_steps(program, takes, 100)

    predicted = sum(program.predict(work) for work in order)
    assert predicted == pytest.approx(sum(takes[work] for work in order), rel=0.1)


def test_what_is_launched_slowly_does_not_seem_long(card: Callable[..., Card]) -> None:
    """...also where all between two marks is of one kind."""
    program = card(pace_ns=60 * US)
    for _ in range(LAUNCHES):
        for _ in range(3):
            program.launch(0, 10 * US)
        program.mark()  # by the reaper: nothing came behind them for a while

    assert program.predict(0) == pytest.approx(10 * US, rel=0.2)


def test_a_program_slower_than_the_card_is_not_held_back(card: Callable[..., Card]) -> None:
    """It launches every 20 us what takes 4: the marks it has are those of the time that passes, not one a launch."""
    program = card(pace_ns=20 * US)
    takes = [4 * US] * KINDS
    for work in range(KINDS):
        program.launch(work, 2_000 * US)
    run_steps(program, takes, 40)
    before = program.marks

    run_steps(program, takes, 10)

    assert program.marks - before <= 1.5 * 10 * LAUNCHES * 20 * US / MARK_NS
    assert min(map(program.predict, range(KINDS))) >= 4 * US * 0.8


def test_one_kind_is_the_mean_of_what_it_took(card: Callable[..., Card]) -> None:
    program = card()
    dice = random.Random("kernel")

    for _ in range(400):
        program.launch(1, dice.choice([300 * US, 500 * US]))

    assert program.predict(1) == pytest.approx(400 * US, rel=0.1)


def test_work_of_no_known_kind_is_marked_by_itself(card: Callable[..., Card]) -> None:
    program = card()
    for work in range(8192):
        program.predict(work)
    unknown = next(work for work in range(8192, 1 << 20) if program._predict(work)[1] == FULL)

    program.launch(unknown, 3 * US)
    program.launch(unknown, 3 * US)

    assert (program.marks, program.predict(unknown)) == (2, UNKNOWN_NS)
