"""Ending processes, on simulated cards: those without the shim go, and their neighbours stay."""

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hamirt import members, tenants
from hamirt.daemon.enforce import Event, carry_out, end
from hamirt.daemon.policy import Kill, Kind, State, judge
from hamirt.daemon.sampler import Sampler
from tests.node.conftest import PROGRAMS, Node
from tests.support import wait_for

TAKER = (sys.executable, str(PROGRAMS / "taker.py"))


@dataclass(frozen=True)
class Rules:
    policy: str
    grace_seconds: float = 0.2
    kill_after_seconds: float = 0.5


class Watch:
    """Samples, judges and enforces, as the supervisor does."""

    def __init__(self, node: Node, rules: Rules) -> None:
        self.node, self.rules = node, rules
        self.sampler = Sampler(True, node.root)
        self.state = State()
        self.events: list[Event] = []

    def tick(self) -> None:
        seen = self.sampler.sample(tenants.list_pages(self.node.root))
        self.state, actions = judge(self.state, seen, time.monotonic(), self.rules, self.sampler.verdicts)
        self.events += carry_out(actions, self.sampler.anchors)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def until(self, kind: str, seconds: float) -> None:
        """Tick until such an event has happened."""

        def happened() -> bool:
            self.tick()
            return kind in self.kinds()

        wait_for(happened, f"an event {kind}", seconds)


@pytest.fixture
def watch(seen_from_here: Node) -> Iterator[Watch]:
    made = Watch(seen_from_here, Rules("kill"))
    yield made
    made.sampler.close()


def start(node: Node, line_of: Any, name: str, *command: str) -> tuple[Any, int]:
    process = node.start("--name", name, "--gpu", "0", "--mem", "8GiB", "--", *command)
    pid, answer = map(int, line_of(process).split())
    assert answer == 0
    return process, pid


def is_alive(pid: int) -> bool:
    """Return whether a process goes on, asleep or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "RSD"
    except OSError:
        return False


def test_a_program_without_the_shim_is_told_of(node: Node, watch: Watch, line_of: Any) -> None:
    watch.rules = Rules("report")
    _, pid = start(node, line_of, "bad", "env", "-u", "LD_PRELOAD", *TAKER, "4096")

    watch.until("violation", 2.0)
    for _ in range(3):
        watch.tick()

    (tenant,) = node.folders()
    text = f"process {pid} (python) holds 4616 MiB without the shim"
    assert watch.events == [Event("violation", tenant, text)]
    assert is_alive(pid)


@pytest.mark.parametrize("stubborn", [(), ("ignore",)], ids=["ends", "ignores SIGTERM"])
def test_a_program_without_the_shim_is_ended_and_its_neighbour_is_not(
    node: Node, watch: Watch, line_of: Any, stubborn: tuple[str, ...]
) -> None:
    good, neighbour = start(node, line_of, "good", *TAKER, "4096")
    bad, pid = start(node, line_of, "bad", "env", "-u", "LD_PRELOAD", *TAKER, "4096", *stubborn)
    began = time.monotonic()

    watch.until("violation_ended", 5.0)

    assert time.monotonic() - began < 5.0
    assert watch.kinds() == ["violation", "killed", *(["kill_forced"] if stubborn else []), "violation_ended"]
    assert bad.wait(30) == 128 + (signal.SIGKILL if stubborn else signal.SIGTERM)
    assert not is_alive(pid)
    assert is_alive(neighbour)
    assert good.poll() is None


def test_a_page_full_of_lies_ends_nobody(node: Node, watch: Watch, line_of: Any) -> None:
    good, neighbour = start(node, line_of, "good", *TAKER, "1000")
    watch.rules = Rules("kill", 0.0, 0.0)
    liar = node.start("--name", "liar", "--gpu", "0", "--mem", "8GiB", "--",
                      sys.executable, str(PROGRAMS / "liar.py"), str(neighbour))  # fmt: skip
    assert line_of(liar) == "ready"

    for _ in range(5):
        watch.tick()

    assert [(event.kind, event.tenant.partition("-")[0]) for event in watch.events] == [("violation", "liar")]
    assert "over its cap by" in watch.events[0].text
    assert (good.poll(), liar.poll(), is_alive(neighbour)) == (None, None, True)


def test_nobody_is_ended_whom_a_second_look_does_not_confirm(node: Node, watch: Watch, line_of: Any) -> None:
    _, neighbour = start(node, line_of, "good", *TAKER, "1000")
    process, pid = start(node, line_of, "bad", "env", "-u", "LD_PRELOAD", *TAKER, "1000")
    watch.tick()
    found = members.read_process(pid)
    assert found is not None
    good, bad = (next(name for name in node.folders() if name.startswith(prefix)) for prefix in ("good", "bad"))
    kill = Kill(bad, pid, found.start, "python", Kind.UNSHIMMED, force=True)
    registered = members.read_process(neighbour)
    assert registered is not None

    refused = [
        end(one, watch.sampler.anchors)
        for one in (
            replace(kill, start=found.start + 1),
            replace(kill, tenant=good),
            replace(kill, tenant=good, pid=neighbour, start=registered.start),
            replace(kill, pid=neighbour, start=registered.start),
            replace(kill, pid=1),
            replace(kill, pid=1 << 22),
        )
    ]

    assert refused == [
        "it has ended",
        "it is no member of that tenant any more",
        "the shim is in it by now",
        "it is no member of that tenant any more",
        "hamirt never ends that one",
        "it can't be reached (No such process)",
    ]
    assert (is_alive(pid), is_alive(neighbour)) == (True, True)
    assert end(kill, watch.sampler.anchors) is None
    assert process.wait(30) == 128 + signal.SIGKILL
