"""The program that measures the supervisor: it comes to its end on the simulated card, and its verdicts can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.machine import MIB
from bench.process import TOP, run
from bench.supervisor_bars import growth_bars, kill_bars, load_bars, set_bars, status_bars
from bench.supervisor_state import differences, shown


def found_load(**more: Any) -> dict[str, Any]:
    """Return a minute of 64 tenants, as measure_load returns it."""
    usual = {"tenants": 64, "processes": 256, "tenants_seen": 64, "processes_seen": 256, "samples_taken": 60}
    return {**usual, "seconds": 60.0, "cpu_s": 0.6, "samples": [{"rss_bytes": 60 * MIB}], **more}


def found_growth(rss: int, fds: int, threads: int = 2, **more: Any) -> dict[str, Any]:
    """Return what was seen of 10,000 tenants after which the daemon takes so much."""
    warm = {"tenants": 1000, "rss_bytes": 60 * MIB, "fds": 10, "threads": 2}
    end = {"tenants": 10_000, "rss_bytes": rss, "fds": fds, "threads": threads}
    control = {"tenants": 50, "fds": fds + 200}
    return {"asked": 10_000, "warm_row": 0, "rows": [warm, end], "errors": [], "left": [], "control": control, **more}


def found_set(up: list[float], granted: bool = False) -> dict[str, Any]:
    """Return changes of a cap that took so long upwards."""
    ways = {"up": [{"seconds": one} for one in up], "down": [{"seconds": 0.002}]}
    return {"request": ways, "command": {"up": [], "down": []}, "control": {"seconds": 1.0, "granted": granted}}


def found_status(seconds: float, cpu_s: float, wrong: str | None = None) -> dict[str, Any]:
    """Return one kind of `hamirt status` that was run once."""
    runs = [{"seconds": seconds, "cpu_s": cpu_s, "wrong": wrong}]
    return {"tenants": 64, "bare_s": 0.02, "runs": [{"option": "", "source": "from the daemon", "runs": runs}]}


def found_kill(**more: Any) -> dict[str, Any]:
    """Return fifty kills that nobody noticed."""
    result = {"granted": 9, "refused": 9, "errors": 0, "longest_gap_ns": 20_000_000, "longest_call_ns": 10_000_000}
    return {
        "asked": 50,
        "kills": 50,
        "rounds": [{"kill": 50, "back_s": 0.4, "differences": []}],
        "runs": [{"status": 0, "why": "ended well"}],
        "churn": [{"status": 0, "why": "ended well", "result": result}],
        "died": [],
        "left": [],
        "control": {"differences": ["page", "node"], "stall_s": 2.0},
        **more,
    }


def churned(status: int = 0, **more: int) -> list[dict[str, Any]]:
    """Return how one tenant of the storm ended."""
    usual = {"granted": 9, "refused": 9, "errors": 0, "longest_gap_ns": 0, "longest_call_ns": 0}
    return [{"status": status, "why": "status 1", "result": usual | more}]


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (found_load(), ["pass", "pass"]),
        (found_load(cpu_s=1.2), ["fail", "pass"]),
        (found_load(samples=[{"rss_bytes": 80 * MIB}, {"rss_bytes": 60 * MIB}]), ["pass", "fail"]),
        (found_load(processes_seen=255), ["not resolved", "not resolved"]),
        (found_load(samples_taken=40), ["not resolved", "not resolved"]),
    ],
)
def test_load(found: dict[str, Any], verdicts: list[str]) -> None:
    assert [bar.verdict for bar in load_bars(found)] == verdicts


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (found_growth(62 * MIB, 14), ["pass", "pass"]),
        (found_growth(62 * MIB + 1, 10), ["fail", "pass"]),
        (found_growth(60 * MIB, 15), ["fail", "pass"]),
        (found_growth(60 * MIB, 10, threads=3), ["fail", "pass"]),
        (found_growth(60 * MIB, 10, left=["g7-012345"]), ["fail", "pass"]),
        (found_growth(60 * MIB, 10, errors=["tenant 7: 409"]), ["fail", "pass"]),
        (found_growth(60 * MIB, 10, asked=10_001), ["not resolved", "pass"]),
        (found_growth(60 * MIB, 10, control={"tenants": 50, "fds": 59}), ["pass", "not resolved"]),
    ],
)
def test_growth(found: dict[str, Any], verdicts: list[str]) -> None:
    assert [bar.verdict for bar in growth_bars(found)] == verdicts


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (found_set([0.001, 0.002, 0.0099]), ["pass", "pass", "pass"]),
        (found_set([0.001, 0.002, 0.010]), ["not resolved", "pass", "pass"]),
        (found_set([0.001, 0.010, 0.011]), ["fail", "pass", "pass"]),
        (found_set([]), ["not resolved", "pass", "pass"]),
        (found_set([0.001], granted=True), ["pass", "pass", "not resolved"]),
    ],
)
def test_set(found: dict[str, Any], verdicts: list[str]) -> None:
    assert [bar.verdict for bar in set_bars(found)] == verdicts


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (found_status(0.149, 0.140), "pass"),
        (found_status(0.150, 0.140), "not resolved"),
        (found_status(0.160, 0.150), "fail"),
        (found_status(0.100, 0.090, wrong="it does not show the last tenant"), "fail"),
    ],
)
def test_status(found: dict[str, Any], verdict: str) -> None:
    assert [bar.verdict for bar in status_bars(found)] == [verdict]


@pytest.mark.parametrize(
    ("found", "verdicts"),
    [
        (found_kill(), ["pass", "pass", "pass", "pass"]),
        (found_kill(churn=churned(status=1)), ["fail", "pass", "pass", "pass"]),
        (found_kill(churn=churned(errors=1)), ["fail", "pass", "pass", "pass"]),
        (found_kill(runs=[{"status": 125, "why": "status 125"}]), ["fail", "pass", "pass", "pass"]),
        (found_kill(died=["still0 has ended"]), ["fail", "pass", "pass", "pass"]),
        (found_kill(churn=churned(longest_gap_ns=1_500_000_001)), ["pass", "fail", "pass", "pass"]),
        (found_kill(rounds=[{"kill": 3, "back_s": 1.0, "differences": ["x"]}]), ["pass", "pass", "fail", "pass"]),
        (found_kill(left=["the folder x is left behind or missing"]), ["pass", "pass", "fail", "pass"]),
        (found_kill(kills=49), ["not resolved", "not resolved", "not resolved", "pass"]),
        (found_kill(churn=churned(refused=0)), ["not resolved", "not resolved", "not resolved", "pass"]),
        (found_kill(control={"differences": ["page"], "stall_s": 2.0}), ["pass", "pass", "pass", "not resolved"]),
        (found_kill(control={"differences": ["a", "b"], "stall_s": 0.1}), ["pass", "pass", "pass", "not resolved"]),
    ],
)
def test_kill(found: dict[str, Any], verdicts: list[str]) -> None:
    assert [bar.verdict for bar in kill_bars(found)] == verdicts


def test_a_state_differs_where_a_cap_or_a_page_does() -> None:
    card = {"cap_bytes": 8, "used_bytes": 3, "processes": [{"pid": 7, "charged_bytes": 3}]}
    other = {"cap_bytes": 9, "used_bytes": 4, "processes": [{"pid": 7, "charged_bytes": 4}]}
    before, after = ({"tenants": [{"id": "a-000000", "cards": [one]}]} for one in (card, other))

    moving = differences("a", shown(before, "a-000000", still=False), shown(after, "a-000000", still=False))
    resting = differences("a", shown(before, "a-000000", still=True), shown(after, "a-000000", still=True))
    pages = differences("a", {"limits": b"12"}, {"limits": b"13"})

    assert list(moving) == ["a: cards[0].cap_bytes was 8, is 9"]
    assert [text.split()[1] for text in resting] == [
        "cards[0].cap_bytes",
        "cards[0].processes[0].charged_bytes",
        "cards[0].used_bytes",
    ]
    assert list(pages) == ["a: limits was 2 other bytes, is 2 other bytes"]
    assert list(differences("a", None, {"id": "a"})) == ['a: it was null, is {"id": "a"}']


def test_it_comes_to_its_end_on_the_simulated_card(programs: Path, tmp_path: Path) -> None:
    small = ["--tenants=2", "--seconds=2", "--sets=2", "--runs=1", "--come-and-go=40", "--warm-up=20", "--kills=3"]
    argv = [sys.executable, "-m", "bench.supervisor", "--sim", "--programs", str(programs), *small]

    ended = run([*argv, "--out", str(tmp_path)], {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)}, 300)

    assert (tmp_path / "supervisor.json").exists(), ended.stdout + ended.stderr
    document = json.loads((tmp_path / "supervisor.json").read_text())
    assert [bar["verdict"] for bar in document["bars"] if "control" in bar["name"]] == ["pass"] * 3
    assert [bar["verdict"] for bar in document["bars"] if "daemon killed" in bar["name"]] == ["pass"] * 3
    assert len(document["set"]["request"]["up"]) == len(document["set"]["command"]["down"]) == 2
    assert [len(row["runs"]) for row in document["status"]["runs"]] == [1] * 4
    assert document["growth"]["rows"][-1]["tenants"] == 40
    assert str(tmp_path) not in (tmp_path / "supervisor.json").read_text()
