"""The rows of bench/share.py: which tenants, which loads, in which order, for how long, and what judges them.

Tenants come in pools that start together and stay for all rows that use them; a load that has no job does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench.share_bars import (
    ALONE_BAR,
    THREADS_BAR,
    Judged,
    Run,
    cap_bars,
    change_bars,
    crowd_bars,
    decode_bars,
    eager_bars,
    four_bars,
    killed_bars,
    latency_bars,
    ratio_bars,
    split_bars,
    two_cap_bars,
    waiting_bars,
)
from bench.share_load import Job, burst, decode, eager, graph, saturate, threads, training, wait

MEM, TORCH_MEM, CROWD_MEM = "2GiB", "10GiB", "16GiB"
"""Caps on memory far above what the loads take, so that all tenants of a pool fit the card."""
SETTLE_S = 0.4
"""What is not counted at the beginning of each run."""
EDGE_S = 0.4
"""What a run takes beside that: giving jobs, ending them."""
CAPS = (10, 25, 50, 75, 90)
REF = "native"
"""The load that is not in a tenant: what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Member:
    """A program of a pool; `options`: of hamirt run, None: natively."""

    name: str
    options: tuple[str, ...] | None = None
    processes: int = 1
    torch: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """Programs that are there together."""

    name: str
    members: tuple[Member, ...]
    start_s: float
    """How long they take to start and to end, about."""
    daemon: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One run: who does what for how long."""

    role: str
    """alone, with, off or calm, as in share_bars."""
    jobs: tuple[tuple[str, Job], ...]
    seconds: float
    action: str = ""
    """What share_measure.ACTIONS does meanwhile."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table."""

    name: str
    pool: Pool
    steps: tuple[Step, ...]
    judge: Callable[[Sequence[Run]], Judged]
    natively: bool = False
    """It says something without hamirt too."""

    def seconds(self) -> float:
        """Return how long it takes, about, without the start of its pool."""
        return sum(step.seconds + SETTLE_S + EDGE_S for step in self.steps)


def _members(options: Mapping[str, str], processes: int = 1, torch: bool = False) -> tuple[Member, ...]:
    """Return the native load and tenants with these options of hamirt run."""
    mem = ("--mem", TORCH_MEM if torch else CROWD_MEM if processes > 1 else MEM)
    named = (Member(name, (*mem, *text.split()), processes, torch) for name, text in options.items())
    return (Member(REF, None, processes, torch), *named)


_CAPPED = {f"cap{cap}": f"--sm {cap}" for cap in CAPS}
CAPPED = Pool("caps", _members({**_CAPPED, "free": ""}), 6)
TORCH = Pool("torch", _members({**_CAPPED, "free": ""}, torch=True), 45)
EAGER = Pool("eager", _members({"windowed": "--sm 99", "one": "", "two": ""}, torch=True), 30)
CROWD = Pool("crowd", _members({"crowd": "--sm 30", "free": ""}, processes=8), 8, daemon=False)
_EQUALS = dict.fromkeys(("n1", "n2", "n3", "n4"), "")
_OTHERS = {"w1": "--weight 100", "w3": "--weight 300", "s30": "--sm 30", "s60": "--sm 60"}
_BATCH = dict.fromkeys(("b1", "b2", "b3"), "--class batch")
PAIRS = Pool("pairs", _members({**_EQUALS, **_OTHERS}), 6)
LATENCY = Pool("latency", _members({"latency": "--class latency", **_BATCH}), 5)
LONE = Pool("lone", _members({"lone": "", "windowed": "--sm 99", "changing": "--sm 60"}), 5)
KILLED = Pool("killed", _members({"s30": "--sm 30", "s60": "--sm 60"}), 5)

HALF_MS = saturate(500)
CHANGES_S, AFTER_KILL_S = 16.0, 10.0
"""Of the actions `change` and `kill the daemon`."""


def rows(seconds: float = 5.0, alone_s: float = 2.0, rounds: int = 2) -> tuple[Row, ...]:
    """Return all rows, for runs of so many seconds, alone and otherwise, each `rounds` times."""

    def alone(*jobs: Job, length_s: float = alone_s) -> list[Step]:
        return [Step("alone", ((REF, job),), length_s) for job in jobs]

    def paired(jobs: dict[str, Job], length_s: float = seconds, action: str = "", count: int = rounds) -> list[Step]:
        """Alone, with, alone, with."""
        one = [*alone(*dict.fromkeys(jobs.values())), Step("with", tuple(jobs.items()), length_s, action)]
        return one * count

    def off(**jobs: Job) -> Step:
        return Step("off", tuple(jobs.items()), alone_s)

    def capped(name: str, pool: Pool, job: Job) -> Row:
        steps = [step for cap in _CAPPED for step in (*alone(job), Step("with", ((cap, job),), seconds))]
        steps += [*alone(job), off(free=job), *alone(job)]
        return Row(name, pool, tuple(steps), partial(cap_bars, dict(zip(_CAPPED, CAPS, strict=True))))

    def split(name: str, weights: dict[str, int], other: tuple[str, str]) -> Row:
        steps = (*paired(dict.fromkeys(weights, HALF_MS)), off(**dict.fromkeys(other, HALF_MS)), *alone(HALF_MS))
        return Row(name, PAIRS, steps, partial(split_bars, weights), natively=len(set(weights.values())) == 1)

    def latency(count: int) -> Row:
        steps = alone(burst(), length_s=seconds)
        for us in (500, 100, 5000):
            jobs = {"latency": burst(), **{f"b{number}": saturate(us) for number in range(1, count + 1)}}
            run = Step("with", tuple(jobs.items()), 2 * seconds)
            steps += [*alone(saturate(us)), run, *alone(saturate(us)), *alone(burst(), length_s=seconds)]
        return Row(f"latency-{count}", LATENCY, tuple(steps), partial(latency_bars, "latency"), natively=True)

    def lone(name: str, member: str, title: str, bar: float, *jobs: Job) -> Row:
        one = [(*alone(job, length_s=seconds), Step("with", ((member, job),), seconds)) for job in jobs] * rounds
        return Row(name, LONE, tuple(step for pair in one for step in pair), partial(ratio_bars, title, bar))

    def killed(role: str, name: str) -> Step:
        return Step(role, ((name, crowd),), seconds if role == "with" else alone_s + 1, "kill processes")

    crowd, two = saturate(500, depth=2), {"s30": 30, "s60": 60}
    windowed = "four threads on four streams, windowed by a cap of 99 %"
    return (
        capped("caps-50us", CAPPED, saturate(50)),
        capped("caps-500us", CAPPED, HALF_MS),
        capped("caps-5ms", CAPPED, saturate(5000)),
        capped("caps-graph", CAPPED, graph(50)),
        capped("caps-wait", CAPPED, wait(500)),
        capped("caps-torch", TORCH, training()),
        Row(
            "eager",
            EAGER,
            (*paired({"windowed": eager()}), *paired(dict.fromkeys(("one", "two"), eager()), count=1), *alone(eager())),
            partial(eager_bars, "windowed"),
            natively=True,
        ),
        Row(
            "crowd",
            CROWD,
            (
                *((killed("alone", REF), killed("with", "crowd")) * rounds),
                killed("alone", REF),
                killed("off", "free"),
                killed("alone", REF),
                *(Step("calm", ((name, crowd),), alone_s) for name in (REF, "crowd")),
            ),
            partial(crowd_bars, {"crowd": 30}),
        ),
        Row(
            "two-caps",
            PAIRS,
            (*paired(dict.fromkeys(two, HALF_MS)), off(n1=HALF_MS, n2=HALF_MS), *alone(HALF_MS)),
            partial(two_cap_bars, two),
        ),
        Row(
            "decode",
            PAIRS,
            (
                *paired(dict.fromkeys(("n1", "n2"), decode()), count=1),
                *paired(dict.fromkeys(two, decode()), count=1),
                *alone(decode()),
            ),
            decode_bars,
            natively=True,
        ),
        split("equal", {"n1": 1, "n2": 1}, ("w1", "w3")),
        split("weights", {"w1": 1, "w3": 3}, ("n1", "n2")),
        Row("four", PAIRS, tuple(paired(dict.fromkeys(("n1", "n2", "n3", "n4"), HALF_MS))), four_bars, natively=True),
        Row(
            "waiting",
            PAIRS,
            tuple(paired({"n1": wait(500), "n2": HALF_MS})),
            partial(waiting_bars, "n1"),
            natively=True,
        ),
        latency(1),
        latency(3),
        lone("alone", "lone", "alone, no cap", ALONE_BAR, saturate(50), HALF_MS, wait(500)),
        lone("threads", "windowed", windowed, THREADS_BAR, threads(4, 50)),
        lone("threads-empty", "windowed", windowed, THREADS_BAR, threads(4, 0)),
        Row(
            "change",
            LONE,
            (*paired({"changing": HALF_MS}, CHANGES_S, "change the cap", 1), *alone(HALF_MS)),
            partial(change_bars, 60, 20),
        ),
        Row(
            "killed",
            KILLED,
            (*paired(dict.fromkeys(two, HALF_MS), AFTER_KILL_S, "kill the daemon", rounds), *alone(HALF_MS)),
            partial(killed_bars, two),
        ),
    )


def seconds_of(chosen: Sequence[Row]) -> float:
    """Return how long rows take together, about, with the start of their pools."""
    return sum(row.seconds() for row in chosen) + sum({row.pool.name: row.pool.start_s for row in chosen}.values())


def deal(chosen: Sequence[Row], parts: int) -> list[list[Row]]:
    """Deal rows to parts that take about the same time: the longest first, each to whoever is done first with it.

    Rows keep their order within a part, so that those of one pool follow each other.
    """
    dealt: list[list[Row]] = [[] for _ in range(parts)]
    for row in sorted(chosen, key=lambda row: -row.seconds()):
        min(dealt, key=lambda part: seconds_of([*part, row])).append(row)
    return [sorted(part, key=chosen.index) for part in dealt]
