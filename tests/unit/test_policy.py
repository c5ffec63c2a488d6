"""What is done about violations, and that nobody is ended for what a page says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamirt import survey
from hamirt.daemon.policy import Action, Kill, Kind, Report, State, judge
from hamirt.members import Process, Verdict
from hamirt.model import (
    Card,
    CardProcess,
    DeviceUsage,
    Driver,
    KindBytes,
    Limit,
    Limits,
    Node,
    Slot,
    Standing,
    TenantPages,
    TenantRecord,
    Usage,
    Use,
)
from hamirt.survey import Claim
from hamirt.units import GIB

CAP, UUIDS = 8 * GIB, ("GPU-aa", "GPU-bb")


@dataclass(frozen=True)
class Rules:
    policy: str = "kill"
    grace_seconds: float = 1.0
    kill_after_seconds: float = 2.0


@dataclass(frozen=True)
class Seen:
    """A process on a card as NVML and the kernel show it."""

    pid: int
    gib: float
    tenant: str | None = "a"
    standing: Standing = Standing.REGISTERED
    member: bool = True
    card: int = 0

    @property
    def verdict(self) -> Verdict:
        members = (self.tenant,) if self.member and self.tenant else ()
        return Verdict(Process(self.pid, 100 + self.pid, 1, "python"), self.standing, self.tenant, members)


def pages(tenant: str, cap: int | None = CAP, slots: Sequence[Slot] = ()) -> TenantPages:
    """Return a tenant with the first card."""
    record = TenantRecord(tenant, tenant, 1, ("x",), simulated=False, unenforced=None)
    limits = Limits(tenant, False, 2, (Limit(UUIDS[0], cap, 80 * GIB, None),))
    return TenantPages(tenant, Path("/x"), record, limits, Usage((DeviceUsage(False, None),), tuple(slots)), None)


def make_node(seen: Sequence[Seen], tenants: Sequence[TenantPages], pids: survey.Pids | None = None) -> Node:
    cards = tuple(
        Card(index, uuid, "H100", 80 * GIB, 0, None, False,
             tuple(CardProcess(one.pid, int(one.gib * GIB)) for one in seen if one.card == index))
        for index, uuid in enumerate(UUIDS)
    )  # fmt: skip
    driver = survey.judged(Driver("580", cards, False), {one.pid: one.verdict for one in seen})
    return survey.survey(driver, None, tenants, pids or {}, inside=False)


class Watch:
    """Judges one look after the other."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.state = rules, State()

    def at(self, now: float, *seen: Seen, cap: int | None = CAP, node: Node | None = None) -> tuple[Action, ...]:
        if node is None:
            node = make_node(seen, [pages("a", cap), pages("b")])
        verdicts = {one.pid: one.verdict for one in seen}
        self.state, actions = judge(self.state, node, now, self.rules, verdicts)
        return actions


def kills(actions: Sequence[Action]) -> list[tuple[int, bool]]:
    return [(action.pid, action.force) for action in actions if isinstance(action, Kill)]


def reports(actions: Sequence[Action]) -> list[tuple[str, Kind, bool]]:
    return [(one.violation.tenant, one.violation.kind, one.ended) for one in actions if isinstance(one, Report)]


BARE = Seen(7, 4, standing=Standing.UNSHIMMED)
BLIND = Node(None, (), False, "NVML failed")


def test_a_violation_is_told_once_when_it_begins_and_once_when_it_ends() -> None:
    watch = Watch(Rules("report"))

    told = [watch.at(now, BARE) for now in (0.0, 1.0, 50.0)]
    ended = watch.at(51.0)

    assert [reports(one) for one in told] == [[("a", Kind.UNSHIMMED, False)], [], []]
    assert reports(ended) == [("a", Kind.UNSHIMMED, True)]
    assert [one.violation.since for one in ended if isinstance(one, Report)] == [0.0]
    assert kills([*told[0], *told[1], *told[2]]) == []


def test_a_process_without_the_shim_gets_a_grace_then_sigterm_then_sigkill() -> None:
    watch = Watch(Rules())

    looks = {now: kills(watch.at(now, BARE)) for now in (0.0, 0.9, 1.0, 2.0, 2.9, 3.0, 4.0)}

    assert looks == {0.0: [], 0.9: [], 1.0: [(7, False)], 2.0: [], 2.9: [], 3.0: [(7, True)], 4.0: []}


def test_each_process_has_its_own_grace() -> None:
    watch = Watch(Rules())
    later = replace(BARE, pid=8)

    watch.at(0.0, BARE)
    watch.at(0.5, BARE, later)

    assert kills(watch.at(1.0, BARE, later)) == [(7, False)]
    assert kills(watch.at(1.5, later)) == [(8, False)]


def test_a_pid_of_another_start_is_another_process() -> None:
    watch = Watch(Rules())
    watch.at(0.0, BARE)
    verdict = BARE.verdict
    reused = replace(verdict, process=replace(verdict.process, start=999))

    _, actions = judge(watch.state, make_node([BARE], [pages("a")]), 1.0, watch.rules, {7: reused})

    assert kills(actions) == []


def test_who_is_not_verified_is_not_ended() -> None:
    watch = Watch(Rules())
    watch.at(0.0, BARE)

    _, actions = judge(watch.state, make_node([BARE], [pages("a")]), 5.0, watch.rules, {})

    assert kills(actions) == []


def test_on_a_card_that_was_not_given_nothing_is_allowed_and_on_an_uncapped_one_everything() -> None:
    elsewhere, uncapped = Watch(Rules()), Watch(Rules())

    for now in (0.0, 1.0):
        away = elsewhere.at(now, replace(BARE, card=1))
        free = uncapped.at(now, BARE, cap=None)

    assert kills(away) == [(7, False)]
    assert free == ()


def test_of_a_tenant_over_its_cap_the_largest_is_ended_and_then_the_next() -> None:
    watch = Watch(Rules())
    small, large, huge = Seen(5, 5), Seen(6, 9), Seen(7, 10)
    watch.at(0.0, Seen(5, 1))

    watch.at(1.0, small, large, huge)
    first = watch.at(2.0, small, large, huge)
    grown = watch.at(3.0, small, replace(large, gib=12), huge)
    forced = watch.at(4.0, small, large, huge)
    second = watch.at(5.0, small, large)
    within = watch.at(6.0, small)

    assert [kills(one) for one in (first, grown, forced, second, within)] == [
        [(7, False)], [], [(7, True)], [(6, False)], [],
    ]  # fmt: skip
    assert reports(within) == [("a", Kind.OVER, True)]


def test_those_without_the_shim_are_at_fault_first() -> None:
    watch = Watch(Rules())
    watch.at(0.0)

    for now in (1.0, 2.0):
        actions = watch.at(now, Seen(5, 7.9), BARE)

    assert kills(actions) == [(7, False)]


def test_a_tenant_over_a_cap_that_shrank_is_only_told_of() -> None:
    watch = Watch(Rules())
    watch.at(0.0, Seen(5, 7))

    shrunk = [watch.at(now, Seen(5, 7), cap=4 * GIB) for now in (1.0, 9.0)]
    beyond = [kills(watch.at(now, Seen(5, 8.5), cap=4 * GIB)) for now in (10.0, 11.0)]

    assert [reports(one) for one in shrunk] == [[("a", Kind.OVER, False)], []]
    assert [kills(one) for one in shrunk] == [[], []]
    assert beyond == [[], [(5, False)]]


def test_once_within_the_new_cap_the_old_one_is_forgotten() -> None:
    watch = Watch(Rules())
    watch.at(0.0, Seen(5, 7))
    watch.at(1.0, Seen(5, 7), cap=4 * GIB)
    watch.at(2.0, Seen(5, 3), cap=4 * GIB)

    assert [kills(watch.at(now, Seen(5, 7), cap=4 * GIB)) for now in (3.0, 4.0)] == [[], [(5, False)]]


def test_who_is_over_at_first_sight_is_spared_until_it_grows() -> None:
    watch = Watch(Rules())

    assert [kills(watch.at(now, Seen(5, 9))) for now in (0.0, 5.0)] == [[], []]
    assert [kills(watch.at(now, Seen(5, 10))) for now in (6.0, 7.0)] == [[], [(5, False)]]


def test_what_others_hold_in_a_tenants_name_ends_nobody() -> None:
    watch = Watch(Rules())
    watch.at(0.0, Seen(5, 1))
    pretender = Seen(6, 20, member=False)

    looks = [watch.at(now, Seen(5, 1), pretender) for now in (1.0, 9.0)]

    assert [reports(one) for one in looks] == [[("a", Kind.OVER, False)], []]
    assert [kills(one) for one in looks] == [[], []]


def test_while_nvml_is_silent_nothing_is_concluded_and_the_grace_begins_anew() -> None:
    watch = Watch(Rules())
    watch.at(0.0, BARE)

    silent = watch.at(5.0, node=BLIND)
    back = [watch.at(now, BARE) for now in (6.0, 7.0)]

    assert silent == ()
    assert [reports(one) for one in back] == [[], []]
    assert [kills(one) for one in back] == [[], [(7, False)]]


def test_a_card_that_fell_silent_ends_no_violation() -> None:
    watch = Watch(Rules("report"))
    watch.at(0.0, BARE)
    node = make_node([], [pages("a")])
    assert node.driver is not None
    lost = replace(node, driver=replace(node.driver, cards=node.driver.cards[1:]))

    assert watch.at(1.0, node=lost) == ()
    assert reports(watch.at(2.0)) == [("a", Kind.UNSHIMMED, True)]


@pytest.mark.parametrize("now", [1.0, 100.0])
def test_a_policy_that_is_lifted_ends_nobody(now: float) -> None:
    watch = Watch(Rules())
    watch.at(0.0, BARE)
    watch.rules = Rules("report")

    assert kills(watch.at(now, BARE)) == []


names = st.sampled_from(["a", "b"])
seen_processes = st.lists(
    st.builds(
        Seen,
        pid=st.integers(2, 9),
        gib=st.floats(0, 20),
        tenant=names | st.none(),
        standing=st.sampled_from(Standing),
        member=st.booleans(),
        card=st.integers(0, 1),
    ),
    max_size=6,
    unique_by=lambda one: one.pid,
)
lies = st.lists(
    st.builds(
        Slot,
        index=st.integers(0, 511),
        pid=st.integers(0, 9),
        pid_ns=st.just(1),
        command=st.just("x"),
        uses=st.builds(
            lambda units, overhead: (Use(units, units, overhead, KindBytes(units, 0, 0, 0, 0, 0, 0), units, 1),),
            st.integers(0, 1 << 40), st.integers(0, 1 << 40),
        ),
    ),
    max_size=4,
)  # fmt: skip
looks = st.lists(st.tuples(seen_processes, lies, lies, st.sampled_from([CAP, 2 * GIB, None])), min_size=1, max_size=6)


@settings(deadline=None)
@given(looks)
def test_only_verified_members_of_the_violating_tenant_are_ended(
    looks: list[tuple[list[Seen], list[Slot], list[Slot], int | None]],
) -> None:
    state = State()
    for now, (seen, a_lies, b_lies, cap) in enumerate(looks):
        tenants = [pages("a", cap, a_lies), pages("b", CAP, b_lies)]
        pids = {Claim(name, 1, pid): pid for name in ("a", "b") for pid in range(10)}
        verdicts = {one.pid: one.verdict for one in seen}
        node = make_node(seen, tenants, pids)

        state, actions = judge(state, node, float(now), Rules(grace_seconds=0.0, kill_after_seconds=1.0), verdicts)
        honest = judge(State(), make_node(seen, [pages("a", cap), pages("b")]), 0.0, Rules(grace_seconds=0.0), verdicts)

        caps = {"a": cap, "b": CAP}
        by_pid = {one.pid: one for one in seen}
        for action in actions:
            if not isinstance(action, Kill):
                continue
            target = by_pid[action.pid]
            assert target.member
            assert target.tenant == action.tenant
            assert action.start == target.verdict.process.start
            if action.kind is Kind.UNSHIMMED:
                assert target.standing is Standing.UNSHIMMED
                continue
            members = [one for one in seen if one.member and one.tenant == target.tenant and one.card == target.card]
            limit = caps[action.tenant]
            assert limit is not None
            assert sum(int(one.gib * GIB) for one in members) > limit
        told = judge(State(), node, 0.0, Rules(grace_seconds=0.0), verdicts)
        assert kills(told[1]) == kills(honest[1])
