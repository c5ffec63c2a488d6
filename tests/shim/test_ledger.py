"""The ledger as a property: whatever processes do, its sums hold and it refuses only what does not fit."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from hamirt import region
from tests.shim.conftest import MIB, TOP, Build, Node

UNIT = 512
RESERVE = region.RESERVE_BYTES
PROCESSES = 4


@pytest.fixture
def ledger(node: Node, build: Build, tmp_path: Path) -> ctypes.CDLL:
    """ledger.c and region.c as a library, on the pages of a tenant."""
    sources = [str(TOP / "shim" / name) for name in ("ledger.c", "region.c", "log.c")]
    built = build("ledger_harness", *sources, shared=True, driver=False)
    library = ctypes.CDLL(str(shutil.copy(built, tmp_path / "ledger.so")))
    for name in ("grant", "charged", "room"):
        getattr(library, f"harness_{name}").restype = ctypes.c_uint64
    for name in ("take", "grow", "overhead"):
        getattr(library, f"harness_{name}").restype = ctypes.c_bool
    library.harness_reset.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.harness_grow.argtypes = [ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64]
    library.harness_share.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64]
    library.harness_overhead.argtypes = [ctypes.c_int, ctypes.c_int64]
    tenant = node.tenant()
    assert library.harness_open(str(tenant.limits_page).encode(), str(tenant.usage_page).encode()) == 0
    return library


@dataclass
class Process:
    """What the model believes of one process, bytes."""

    used: int = 0
    overhead: int = 0
    living: bool = True


@dataclass
class Model:
    cap: int
    processes: list[Process] = field(default_factory=lambda: [Process() for _ in range(PROCESSES)])

    @property
    def charged(self) -> int:
        return sum(process.used + process.overhead for process in self.processes if process.living)

    def fits(self, size: int) -> bool:
        return self.charged + size + RESERVE <= self.cap

    def units(self, ask: str) -> int:
        """Return how many units a request of a kind asks for."""
        rest = max(0, self.cap - RESERVE - self.charged) // UNIT
        return {"the rest": rest, "one more than the rest": rest + 1, "a quarter": rest // 4, "a sliver": 3}[ask]


def machine(library: ctypes.CDLL) -> type[RuleBasedStateMachine]:
    """Return the state machine over a library; hypothesis makes its own instances."""
    process = st.integers(0, PROCESSES - 1)
    ask = st.sampled_from(["the rest", "one more than the rest", "a quarter", "a sliver"])

    class Ledger(RuleBasedStateMachine):
        model: Model
        before = 0  # granted, after the last step

        def granted(self) -> int:
            """What was granted, and the rest that is held against the cap, bytes."""
            grants: int = sum(library.harness_grant(index) >> 32 for index in range(PROCESSES))
            return grants * UNIT + sum(process.overhead for process in self.model.processes) + RESERVE

        @initialize(cap=st.integers(RESERVE, 4096 * MIB))
        def start(self, cap: int) -> None:
            self.model = Model(cap)
            library.harness_reset(PROCESSES, cap)

        @rule(index=process, ask=ask, margin=st.sampled_from([0, 256 * MIB]))
        def reserve(self, index: int, ask: str, margin: int) -> None:
            owner = self.model.processes[index]
            units = self.model.units(ask)
            if not owner.living or units == 0:
                return

            taken = self.granted() <= self.model.cap and library.harness_take(index, units)
            grown = taken or library.harness_grow(index, units, margin)

            if margin == 0:
                assert grown == (taken or self.model.fits(units * UNIT))
            assert not grown or self.model.fits(units * UNIT)
            owner.used += units * UNIT if grown else 0

        @rule(index=process, units=st.integers(1, 64 * MIB // UNIT))
        def happen(self, index: int, units: int) -> None:
            owner = self.model.processes[index]
            if owner.living:
                library.harness_force(index, units)
                self.before = self.granted()
                owner.used += units * UNIT

        @rule(index=process, part=st.floats(0, 1))
        def free(self, index: int, part: float) -> None:
            owner = self.model.processes[index]
            units = int(owner.used // UNIT * part)

            library.harness_give(index, units)
            owner.used -= units * UNIT

        @rule(index=process, size=st.integers(0, 1024 * MIB))
        def context(self, index: int, size: int) -> None:
            owner = self.model.processes[index]
            if not owner.living:
                return

            made = library.harness_overhead(index, size)

            assert made == (size == 0 or self.model.fits(size))
            owner.overhead += size if made else 0

        @rule(index=process)
        def die(self, index: int) -> None:
            library.harness_die(index)
            self.model.processes[index] = Process(living=False)

        @invariant()
        def the_sums_hold(self) -> None:
            if not hasattr(self, "model"):
                return
            grants = [library.harness_grant(index) for index in range(PROCESSES)]
            assert [grant & 0xFFFFFFFF for grant in grants] == [p.used // UNIT for p in self.model.processes]
            assert all(grant >> 32 >= grant & 0xFFFFFFFF for grant in grants)
            assert self.granted() <= max(self.model.cap, self.before), "only what was forced is beyond the cap"
            self.before = self.granted()
            assert library.harness_charged() == self.model.charged
            assert library.harness_room() == max(0, self.model.cap - RESERVE - self.model.charged)

    return Ledger


def test_what_was_forced_is_not_granted_again(ledger: ctypes.CDLL) -> None:
    ledger.harness_reset(1, 64 * MIB + RESERVE)
    assert ledger.harness_grow(0, 64 * MIB // UNIT, 0)

    ledger.harness_force(0, 32 * MIB // UNIT)
    ledger.harness_give(0, 32 * MIB // UNIT)

    assert not ledger.harness_grow(0, 32 * MIB // UNIT, 0)


def test_the_ledger_refuses_only_what_does_not_fit(ledger: ctypes.CDLL) -> None:
    run_state_machine_as_test(
        machine(ledger),
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize(
    ("shares", "dead", "orphans"),
    [
        ([(8, 0), (0, 8)], [], 0),  # its exporter owns it
        ([(8, 0), (0, 8)], [0], 8),  # and when that dies, whoever imported it
        ([(8, 0), (0, 8), (0, 8)], [0], 8),  # which is the same memory for two importers
        ([(8, 4), (4, 8)], [], 0),  # each exports to the other
        ([(8, 4), (4, 8)], [0], 8),
        ([(0, 8)], [], 8),  # imported from outside the tenant
    ],
)
def test_orphans_are_charged_once(
    ledger: ctypes.CDLL, shares: list[tuple[int, int]], dead: list[int], orphans: int
) -> None:
    ledger.harness_reset(len(shares), 4096 * MIB)
    for index, (exported, imported) in enumerate(shares):
        ledger.harness_share(index, exported * MIB, imported * MIB)

    for index in dead:
        ledger.harness_die(index)

    assert ledger.harness_charged() == orphans * MIB
