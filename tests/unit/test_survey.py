"""What status says of cards and tenants: sums, enforcement and its reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from hamirt.members import Process, Verdict
from hamirt.metering import ALONE, NOBODY
from hamirt.model import (
    Card,
    CardProcess,
    DeviceUsage,
    Driver,
    Enforcement,
    Gate,
    GateState,
    KindBytes,
    LatencyClass,
    Level,
    Limit,
    Limits,
    Metering,
    ProcessView,
    Slot,
    Standing,
    Tenant,
    TenantCard,
    TenantPages,
    TenantRecord,
    Usage,
    Use,
)
from hamirt.survey import Claim, Gates, Totals, claims_of, intruders, judged, select, survey, violations
from hamirt.units import GIB, MIB

HERE, ELSEWHERE = 4026531836, 4026532999
OWN = CardProcess(7, 4 * GIB, Standing.REGISTERED, "train-1-abc", "python")
BARE = CardProcess(8, 3 * GIB, Standing.UNSHIMMED, "train-1-abc", "sneak")
OTHER = CardProcess(99, None, Standing.FOREIGN, None, "Xorg")
CARD = Card(1, "GPU-bb", "H100", 80 * GIB, 9 * GIB, 0.5, False, (OWN, OTHER))
DRIVER = Driver("580", (replace(CARD, index=0, uuid="GPU-aa", processes=()), CARD), simulated=False)
NOTHING = Use(0, 0, 0, KindBytes(0, 0, 0, 0, 0, 0, 0), 0, 0)
USE = Use(4 * GIB, 3 * GIB, 520 * MIB, KindBytes(GIB, 0, GIB, 0, 0, GIB, 0), 2, 1)
RECORD = TenantRecord("train-1-abc", "train-1", 5, ("train",), simulated=False, unenforced=None)
PAGES = TenantPages(
    id="train-1-abc",
    folder=Path("/run/hamirt/tenants/train-1-abc"),
    record=RECORD,
    limits=Limits("train-1", False, 2, (Limit("GPU-bb", 8 * GIB, 80 * GIB, None),)),
    usage=Usage((DeviceUsage(False, 520 * MIB),), (Slot(0, 7, HERE, "python", (USE,)),)),
    problem=None,
)
PIDS = {Claim("train-1-abc", HERE, 7): 7}


def tenant_card(pages: TenantPages, driver: Driver | None = DRIVER) -> TenantCard:
    return survey(driver, None, [pages], PIDS, inside=False).tenants[0].cards[0]


def with_processes(*processes: CardProcess) -> Driver:
    return Driver("580", (replace(CARD, processes=processes),), simulated=False)


def test_a_tenant_on_its_card() -> None:
    node = survey(DRIVER, None, [PAGES], PIDS, inside=False)

    card = TenantCard(
        index=1,
        uuid="GPU-bb",
        cap_bytes=8 * GIB,
        card_bytes=80 * GIB,
        allocation_bytes=GIB,
        pool_bytes=2 * GIB,
        overhead_bytes=520 * MIB,
        footprint_bytes=4 * GIB,
        denials=2,
        over=False,
        enforcement=Enforcement(Level.FULL, None),
        processes=(ProcessView(7, 7, "python", 3 * GIB + 520 * MIB, 4 * GIB),),
        metering=Metering(GateState.FREE),
    )
    assert node.tenants == (Tenant("train-1-abc", "train-1", False, None, (card,)),)
    assert card.used_bytes == 3 * GIB + 520 * MIB


def test_a_process_of_another_namespace_is_shown_by_its_own_pid() -> None:
    assert PAGES.usage is not None
    pages = replace(PAGES, usage=replace(PAGES.usage, slots=(Slot(0, 1, ELSEWHERE, "python", (USE,)),)))

    assert claims_of([pages]) == {Claim("train-1-abc", ELSEWHERE, 1)}
    card = tenant_card(pages, with_processes(OTHER))
    assert card.processes == (ProcessView(None, 1, "python", 3 * GIB + 520 * MIB, None),)
    assert card.footprint_bytes is None


def test_a_process_that_uses_nothing_of_a_card_is_not_on_it() -> None:
    assert PAGES.usage is not None
    pages = replace(PAGES, usage=replace(PAGES.usage, slots=(Slot(0, 7, HERE, "python", (NOTHING,)),)))

    assert tenant_card(pages).processes == ()


@pytest.mark.parametrize(
    ("pages", "enforcement"),
    [
        (PAGES, Enforcement(Level.FULL, None)),
        (
            replace(PAGES, limits=Limits("train-1", False, 2, (Limit("GPU-bb", None, 80 * GIB, None),))),
            Enforcement(Level.NONE, "uncapped"),
        ),
        (
            replace(PAGES, record=replace(RECORD, unenforced="it is statically linked")),
            Enforcement(Level.NONE, "it is statically linked"),
        ),
        (
            replace(PAGES, usage=None, problem="the page is damaged"),
            Enforcement(Level.NONE, "the page is damaged"),
        ),
        (
            replace(PAGES, usage=Usage((DeviceUsage(True, None),), ())),
            Enforcement(Level.PARTIAL, "overhead is estimated, since NVML does not show these processes"),
        ),
    ],
)
def test_enforcement_has_a_reason(pages: TenantPages, enforcement: Enforcement) -> None:
    assert tenant_card(pages).enforcement == enforcement


def test_a_footprint_above_the_cap_is_over() -> None:
    card = tenant_card(PAGES, with_processes(replace(OWN, used_bytes=8 * GIB + 1)))

    assert card.over
    assert card.enforcement == Enforcement(Level.PARTIAL, "holds more of the card than its cap")


def test_what_a_process_without_the_shim_holds_is_the_tenants() -> None:
    card = tenant_card(PAGES, with_processes(OWN, BARE))

    assert card.unshimmed == (BARE,)
    assert (card.footprint_bytes, card.over) == (7 * GIB, False)
    says = "process 8 (sneak) holds 3072 MiB without the shim"
    assert card.enforcement == Enforcement(Level.PARTIAL, says)
    alone = tenant_card(replace(PAGES, usage=Usage((DeviceUsage(False, None),), ())), with_processes(BARE))
    assert alone.enforcement == Enforcement(Level.NONE, says)


def test_the_footprint_is_unknown_where_nvml_does_not_show_all_of_it() -> None:
    assert tenant_card(PAGES, with_processes(BARE)).footprint_bytes is None
    assert tenant_card(PAGES, with_processes(replace(OWN, used_bytes=None))).footprint_bytes is None
    more_than_the_cap = tenant_card(PAGES, with_processes(replace(BARE, used_bytes=9 * GIB)))
    assert (more_than_the_cap.footprint_bytes, more_than_the_cap.over) == (9 * GIB, True)


def test_two_slots_that_claim_one_process_do_not_both_get_it() -> None:
    slots = (Slot(0, 7, HERE, "python", (USE,)), Slot(3, 7, HERE, "liar", (USE,)))
    pages = replace(PAGES, usage=Usage((DeviceUsage(False, None),), slots))

    assert [view.pid for view in tenant_card(pages).processes] == [7, None]


def test_totals_count_the_dead_too() -> None:
    totals = {("train-1-abc", 0): Totals(11, 2_500_000_000, 77)}

    card = survey(DRIVER, None, [PAGES], PIDS, inside=False, totals=totals).tenants[0].cards[0]

    assert (card.denials, card.throttled_seconds, card.bus_bytes) == (11, 2.5, 77)


TIMED = replace(PAGES, limits=Limits("train-1", False, 2, (Limit("GPU-bb", 8 * GIB, 80 * GIB, None, 25),)))
NOW = 5_000
LED = Gate(GateState.WINDOWED, 1_500_000_000, 0, 3, 1, unpreemptible=True, lease_ns=NOW + 1)


def timed_card(pages: TenantPages, driver: Driver | None = DRIVER, gate: Gate = LED) -> TenantCard:
    gates = Gates({"train-1-abc": (gate,)}, NOW)
    return survey(driver, None, [pages], PIDS, inside=False, gates=gates).tenants[0].cards[0]


def test_what_is_known_of_gpu_time() -> None:
    limit = Limit("GPU-bb", 8 * GIB, 80 * GIB, None, 25, 300, LatencyClass.BATCH)

    card = timed_card(replace(PAGES, limits=Limits("train-1", False, 2, (limit,))))

    assert (card.time_percent, card.weight, card.latency_class) == (25, 300, LatencyClass.BATCH)
    assert card.metering == Metering(GateState.WINDOWED, True, 1.5, 1.5, 0.0, 3, 1, unpreemptible=True)
    assert card.time_enforcement == Enforcement(Level.FULL, None)
    assert card.busy_ratio is None


def test_a_time_cap_holds_without_a_supervisor_as_long_as_somebody_leads() -> None:
    busy = replace(USE, busy=True)
    slots = (Slot(0, 7, HERE, "python", (busy,)),)
    left = replace(TIMED, usage=Usage((DeviceUsage(False, None),), slots))
    led = replace(TIMED, usage=Usage((DeviceUsage(False, None, LED),), slots))

    assert timed_card(TIMED, gate=Gate()).time_enforcement == Enforcement(Level.FULL, ALONE)
    assert timed_card(led, gate=Gate()).time_enforcement == Enforcement(Level.FULL, ALONE)
    assert timed_card(left, gate=Gate()).time_enforcement == Enforcement(Level.NONE, NOBODY)
    assert timed_card(left).time_enforcement == Enforcement(Level.FULL, None)


def test_a_time_cap_holds_for_nothing_without_the_shim() -> None:
    bare = "process 8 (sneak) holds 3072 MiB without the shim"
    damaged = replace(TIMED, usage=None, problem="the page is damaged")
    static = replace(TIMED, record=replace(RECORD, unenforced="it is statically linked"))

    assert timed_card(TIMED, with_processes(OWN, BARE)).time_enforcement == Enforcement(Level.NONE, bare)
    assert timed_card(damaged).time_enforcement == Enforcement(Level.NONE, "the page is damaged")
    assert timed_card(damaged).metering is None
    assert timed_card(static).time_enforcement == Enforcement(Level.NONE, "it is statically linked")


def test_violations_of_gpu_time_are_told() -> None:
    def told(pages: TenantPages, gate: Gate = LED) -> list[str]:
        gates = Gates({"train-1-abc": (gate,)}, NOW)
        return violations(survey(DRIVER, None, [pages], PIDS, inside=False, gates=gates))

    quiet = replace(LED, unpreemptible=False)
    busy = Usage((DeviceUsage(False, None),), (Slot(0, 7, HERE, "python", (replace(USE, busy=True),)),))
    static = replace(TIMED, record=replace(RECORD, unenforced="it is statically linked"))

    assert told(TIMED, quiet) == []
    assert told(TIMED) == ["train-1 on GPU 1: unpreemptible: its work goes on when its turn is over"]
    assert told(replace(TIMED, usage=busy), Gate()) == [
        f"train-1 on GPU 1: its cap on GPU time is not enforced: {NOBODY}"
    ]
    assert told(static, quiet) == ["train-1 on GPU 1: its cap is not enforced: it is statically linked"]


def test_processes_are_called_what_they_are() -> None:
    driver = with_processes(CardProcess(7, GIB), CardProcess(8, None))
    process = Process(7, 1, 1, "python")

    cards = judged(driver, {7: Verdict(process, Standing.REGISTERED, "t", ("t",))}).cards

    assert cards[0].processes == (
        CardProcess(7, GIB, Standing.REGISTERED, "t", "python"),
        CardProcess(8, None),
    )


def test_violations_are_told() -> None:
    over = survey(with_processes(replace(OWN, used_bytes=9 * GIB)), None, [PAGES], PIDS, inside=False)
    bare = survey(with_processes(OWN, BARE), None, [PAGES], PIDS, inside=False)
    unenforced = replace(PAGES, record=replace(RECORD, unenforced="it is statically linked"))
    damaged = replace(PAGES, usage=None, problem="the page is damaged")
    uncapped = replace(PAGES, limits=Limits("train-1", False, 2, (Limit("GPU-bb", None, 80 * GIB, None),)))

    def told(pages: TenantPages, driver: Driver | None = DRIVER, problem: str | None = None) -> list[str]:
        return violations(survey(driver, problem, [pages], PIDS, inside=False))

    assert told(PAGES) == []
    assert violations(over) == ["train-1 on GPU 1: over its cap by 1024 MiB"]
    assert violations(bare) == ["train-1 on GPU 1: process 8 (sneak) holds 3072 MiB without the shim"]
    assert told(unenforced) == ["train-1 on GPU 1: its cap is not enforced: it is statically linked"]
    assert told(damaged) == ["train-1: the page is damaged"]
    assert told(uncapped, with_processes(OWN, BARE)) == []
    assert told(PAGES, None, "no NVIDIA driver answers") == ["no NVIDIA driver answers"]


def test_a_process_without_the_shim_on_a_card_that_its_tenant_was_not_given() -> None:
    elsewhere = replace(CARD, index=0, uuid="GPU-aa", processes=(BARE,))
    node = survey(Driver("580", (elsewhere, CARD), simulated=False), None, [PAGES], PIDS, inside=False)

    assert intruders(node, elsewhere) == (BARE,)
    assert intruders(select(node, "GPU-aa", None), elsewhere) == (BARE,)
    assert intruders(select(node, None, "other"), elsewhere) == ()
    assert violations(node) == [
        "train-1 on GPU 0, which it was not given: process 8 (sneak) holds 3072 MiB without the shim"
    ]


def test_a_simulated_tenant_is_not_on_a_real_card() -> None:
    pages = replace(PAGES, record=replace(RECORD, simulated=True))

    card = tenant_card(pages)

    assert (card.index, card.footprint_bytes) == (None, None)


def test_without_a_driver_the_pages_are_shown() -> None:
    node = survey(None, "no driver", [PAGES], PIDS, inside=False)

    assert node.problem == "no driver"
    assert node.tenants[0].cards[0].index is None


def test_a_tenant_whose_limits_cannot_be_read_is_named_with_its_problem() -> None:
    pages = TenantPages("x-1", Path("/x"), None, None, None, "the page /x is damaged")

    node = survey(DRIVER, None, [pages], {}, inside=False)

    assert node.tenants == (Tenant("x-1", "x-1", False, "the page /x is damaged", ()),)


def test_one_card_and_one_tenant_can_be_selected() -> None:
    node = survey(DRIVER, None, [PAGES], PIDS, inside=False)

    assert select(node, None, "train-1") == node
    assert select(node, None, "other").tenants == ()
    assert select(node, "GPU-aa", None).tenants == ()
    only = select(node, "GPU-bb", "train-1-abc")
    assert only.driver == Driver("580", (CARD,), simulated=False)
    assert only.tenants == node.tenants
