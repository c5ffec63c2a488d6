"""What the sampler remembers from one sample to the next."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt import members, nvml
from hamirt.daemon.sampler import Census, Sampler, _Tally
from hamirt.errors import HamirtError
from hamirt.members import Anchor, Process, Verdict
from hamirt.model import Card, CardProcess, DeviceUsage, Driver, KindBytes, Slot, Standing, Usage, Use
from hamirt.survey import Claim, Totals

NOTHING = Use(0, 0, 0, KindBytes(0, 0, 0, 0, 0, 0, 0), 0, 0)
HERE, ELSEWHERE = members.own_namespace() or 0, 77


def page(*slots: tuple[int, int, int, int]) -> Usage:
    """Return a page with slots of (index, pid, denials, throttled ns)."""
    held = (
        Slot(index, pid, 1, "x", (replace(NOTHING, denials=denials, throttled_ns=ns),))
        for index, pid, denials, ns in slots
    )
    return Usage((DeviceUsage(False, None),), tuple(held))


def totals(*pages: Usage) -> list[int]:
    """Return the denials in total after each page."""
    tally, found = _Tally(), []
    for one in pages:
        tally.add(one)
        found.append(tally.totals.get(0, Totals(0, 0, 0)).denials)
    return found


def test_totals_go_on_over_slots_that_end_are_reused_and_begin_anew() -> None:
    looks = (page((0, 7, 3, 0)), page((0, 7, 5, 0), (1, 8, 2, 0)), page((1, 8, 2, 0)), page((0, 9, 4, 0)),
             page((0, 9, 1, 0)))  # fmt: skip

    assert totals(*looks) == [3, 7, 7, 11, 12]


def test_throttled_time_is_counted_alike() -> None:
    tally = _Tally()

    tally.add(page((0, 7, 0, 5)))
    tally.add(page((0, 8, 0, 6)))

    assert tally.totals == {0: Totals(0, 11, 0)}


def test_so_are_bytes_over_the_bus() -> None:
    tally = _Tally()
    for copied in (7, 9, 2):
        use = replace(NOTHING, bus_bytes=copied)
        tally.add(Usage((DeviceUsage(False, None),), (Slot(0, 7, 1, "x", (use,)),)))

    assert tally.totals == {0: Totals(0, 0, 11)}


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(0, 1 << 48), st.just(0)))))
def test_no_page_makes_a_total_fall(looks: list[list[tuple[int, int, int, int]]]) -> None:
    found = totals(*(page(*look) for look in looks))

    assert found == sorted(found)


class Kernel:
    """A made-up /proc: who is there, and what is said of them; counts what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes = {7: Process(7, 100, 1, "python"), 8: Process(8, 200, 1, "python")}
        self.verdicts: dict[int, Standing] = {7: Standing.REGISTERED, 8: Standing.FOREIGN}
        self.asked: list[int] = []
        self.outside = {(ELSEWHERE, 1): 7}
        self.scans = 0
        self.now = 1000.0
        monkeypatch.setattr(members, "read_process", self.processes.get)
        monkeypatch.setattr(members.Look, "judge", lambda _look, process: self.judge(process))
        monkeypatch.setattr(members, "outside_pids", self.scan)

    def judge(self, process: Process) -> Verdict:
        self.asked.append(process.pid)
        standing = self.verdicts[process.pid]
        tenant = None if standing is Standing.FOREIGN else "t"
        return Verdict(process, standing, tenant, ())

    def scan(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
        self.scans += 1
        return {key: pid for key, pid in self.outside.items() if key in wanted}

    def census(self) -> Census:
        return Census(lambda: self.now)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


ANCHORS = (Anchor("t", (1, 2), None, None, None),)


def test_a_good_answer_is_believed_for_a_while(kernel: Kernel) -> None:
    census = kernel.census()

    first, _ = census.look(ANCHORS, [7], ())
    again, _ = census.look(ANCHORS, [7], ())
    kernel.now += 6.0
    census.look(ANCHORS, [7], ())

    assert first == again == {7: Verdict(kernel.processes[7], Standing.REGISTERED, "t", ())}
    assert kernel.asked == [7, 7]


@pytest.mark.parametrize("changed", [{"start": 101}, {"command": "other"}, {"parent": 2}])
def test_a_process_that_changed_is_judged_afresh(kernel: Kernel, changed: dict[str, Any]) -> None:
    census = kernel.census()
    census.look(ANCHORS, [7], ())

    kernel.processes[7] = replace(kernel.processes[7], **changed)
    kernel.verdicts[7] = Standing.UNSHIMMED

    assert census.look(ANCHORS, [7], ())[0][7].standing is Standing.UNSHIMMED


def test_a_bad_answer_on_a_card_is_looked_at_again_soon(kernel: Kernel) -> None:
    census = kernel.census()
    kernel.verdicts[7] = Standing.UNSHIMMED
    census.look(ANCHORS, [7], ())

    kernel.verdicts[7] = Standing.REGISTERED
    kernel.now += 0.2

    assert census.look(ANCHORS, [7], ())[0][7].standing is Standing.REGISTERED


def test_the_verdict_of_a_tenant_that_is_gone_is_forgotten(kernel: Kernel) -> None:
    census = kernel.census()
    census.look(ANCHORS, [7], ())
    kernel.verdicts[7] = Standing.FOREIGN

    assert census.look((), [7], ())[0][7].standing is Standing.FOREIGN


def test_a_claim_holds_only_for_a_process_of_that_tenant(kernel: Kernel) -> None:
    claims = [Claim("t", HERE, 7), Claim("t", HERE, 8), Claim("t", HERE, 9), Claim("other", HERE, 7)]

    verdicts, found = kernel.census().look(ANCHORS, [], claims)

    assert (verdicts, found) == ({}, {Claim("t", HERE, 7): 7})


def test_a_claim_from_another_namespace_is_searched_for_once_in_a_while(kernel: Kernel) -> None:
    census = kernel.census()
    claims = [Claim("t", ELSEWHERE, 1), Claim("t", ELSEWHERE, 5)]

    looks = [census.look(ANCHORS, [], claims)[1] for _ in range(3)]
    kernel.now += 3.0
    kernel.processes[7] = replace(kernel.processes[7], start=101)
    kernel.outside.clear()

    assert looks == [{Claim("t", ELSEWHERE, 1): 7}] * 3
    assert kernel.scans == 1
    assert census.look(ANCHORS, [], claims)[1] == {}
    assert kernel.scans == 2


def test_a_lost_card_makes_nvml_open_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def lost(_index: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    for name, answer in (
        ("nvmlInit", lambda: opened.append("open")),
        ("nvmlShutdown", lambda: opened.append("close")),
        ("nvmlSystemGetDriverVersion", lambda: "580"),
        ("nvmlDeviceGetCount", lambda: 1),
        ("nvmlDeviceGetHandleByIndex", lost),
    ):
        monkeypatch.setattr(pynvml, name, answer)

    with nvml.Session() as session:
        drivers = [session.read() for _ in range(2)]
        says = session.lost

    assert drivers == [Driver("580", (), simulated=False)] * 2
    assert says == ("GPU 0 doesn't answer (GPU is lost): see what nvidia-smi and the kernel's log say",)
    assert opened == ["open", "close", "open", "close"]


def test_nvml_that_fails_is_a_problem_of_the_node_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(0, "GPU-aa", "H100", 1000, 10, None, False, (CardProcess(1 << 22, 10),))
    driver = Driver("580", (card,), simulated=False)
    answers: list[Driver | HamirtError] = [driver, HamirtError("NVML failed: GPU is lost"), driver]

    def read(_session: nvml.Session) -> Driver:
        answer = answers.pop(0)
        if isinstance(answer, HamirtError):
            raise answer
        return answer

    monkeypatch.setattr(nvml.Session, "read", read)

    with Sampler(False, tmp_path) as sampler:
        nodes = [sampler.sample(()) for _ in range(3)]

    assert [(node.driver, node.problem) for node in nodes] == [
        (driver, None),
        (None, "NVML failed: GPU is lost"),
        (driver, None),
    ]
