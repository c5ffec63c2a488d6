"""What status says of cards and tenants: sums, enforcement and its reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from hamirt.model import (
    Card,
    CardProcess,
    DeviceUsage,
    Driver,
    Enforcement,
    KindBytes,
    Level,
    Limit,
    Limits,
    ProcessView,
    Slot,
    Tenant,
    TenantCard,
    TenantPages,
    TenantRecord,
    Usage,
    Use,
)
from hamirt.survey import owners, select, slots_of, survey
from hamirt.units import GIB, MIB

HERE, ELSEWHERE = 4026531836, 4026532999
CARD = Card(1, "GPU-bb", "H100", 80 * GIB, 9 * GIB, 0.5, False, (CardProcess(7, 4 * GIB), CardProcess(99, None)))
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
PIDS = {(HERE, 7): 7}


def tenant_card(pages: TenantPages, driver: Driver | None = DRIVER) -> TenantCard:
    return survey(driver, None, [pages], PIDS, inside=False).tenants[0].cards[0]


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
    )
    assert node.tenants == (Tenant("train-1-abc", "train-1", False, None, (card,)),)
    assert card.used_bytes == 3 * GIB + 520 * MIB
    assert owners(node) == {7: "train-1-abc"}


def test_a_process_of_another_namespace_is_shown_by_its_own_pid() -> None:
    assert PAGES.usage is not None
    pages = replace(PAGES, usage=replace(PAGES.usage, slots=(Slot(0, 1, ELSEWHERE, "python", (USE,)),)))

    assert slots_of([pages]) == {(ELSEWHERE, 1)}
    card = tenant_card(pages)
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
    big = replace(CARD, processes=(CardProcess(7, 8 * GIB + 1),))

    card = tenant_card(PAGES, Driver("580", (big,), simulated=False))

    assert card.over
    assert card.enforcement == Enforcement(Level.PARTIAL, "holds more of the card than its cap")


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
