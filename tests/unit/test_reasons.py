"""Why a cap holds as far as it does, as a label of a metric."""

from dataclasses import replace
from pathlib import Path

from hamirt import metering, metrics
from hamirt.model import (
    CardProcess,
    DeviceUsage,
    Enforcement,
    Level,
    Limit,
    Limits,
    Tenant,
    TenantCard,
    TenantPages,
    TenantRecord,
    Usage,
)
from hamirt.survey import survey
from hamirt.units import GIB
from tests.unit.test_exporter import NODE, TRAIN


def seen(**changed: object) -> tuple[Tenant, TenantCard]:
    """Return a capped tenant as survey sees it, with some of its pages changed."""
    pages = TenantPages(
        id="t-1",
        folder=Path("/t"),
        record=TenantRecord("t-1", "t", 5, ("t",), simulated=False, unenforced=None),
        limits=Limits("t", False, 1, (Limit("GPU-aa", 8 * GIB, 80 * GIB, None),)),
        usage=Usage((DeviceUsage(False, None),), ()),
        problem=None,
    )
    (tenant,) = survey(NODE.driver, None, [replace(pages, **changed)], {}, inside=False).tenants  # type: ignore[arg-type]
    return tenant, tenant.cards[0]


def test_every_reason_has_its_code() -> None:
    tenant, card = NODE.tenants[0], TRAIN
    partial = Enforcement(Level.PARTIAL, "something new")
    record = TenantRecord("t-1", "t", 5, ("t",), simulated=False, unenforced="t is statically linked")

    memory = {
        "enforced": metrics.reason_code(*seen()),
        "uncapped": metrics.reason_code(*seen(limits=Limits("t", False, 1, (Limit("GPU-aa", None, 80 * GIB, None),)))),
        "unreadable": metrics.reason_code(*seen(usage=None, problem="the page /t is damaged")),
        "unshimmed": metrics.reason_code(tenant, card),
        "over": metrics.reason_code(tenant, replace(card, unshimmed=())),
        "estimated": metrics.reason_code(*seen(usage=Usage((DeviceUsage(True, None),), ()))),
        "not_preloaded": metrics.reason_code(*seen(record=record)),
        "other": metrics.reason_code(tenant, replace(card, unshimmed=(), over=False, enforcement=partial)),
    }
    time = {
        "enforced": time_code(Enforcement(Level.FULL, None)),
        "unsupervised": time_code(Enforcement(Level.FULL, metering.ALONE)),
        "not_arbitrated": time_code(Enforcement(Level.NONE, metering.NOBODY)),
        "unshimmed": time_code(Enforcement(Level.NONE, "process 11 has no shim"), unshimmed=TRAIN.unshimmed),
        "unreadable": time_code(Enforcement(Level.NONE, "the page /t is damaged"), problem="the page /t is damaged"),
        "not_preloaded": time_code(Enforcement(Level.NONE, "t is statically linked")),
    }

    assert memory == {code: code for code in memory}
    assert time == {code: code for code in time}
    assert {*memory, *time} == set(metrics.REASONS)


def time_code(
    held: Enforcement,
    *,
    unshimmed: tuple[CardProcess, ...] = (),
    problem: str | None = None,
) -> str | None:
    """Return the code of how far a cap on GPU time holds."""
    tenant = replace(NODE.tenants[0], problem=problem)
    return metrics.time_reason_code(tenant, replace(TRAIN, time_enforcement=held, unshimmed=unshimmed))
