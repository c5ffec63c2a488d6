"""Runs the table natively and in a tenant and compares what the programs print."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.guest import NOT_AVAILABLE
from bench.machine import Setup, environment, print_bars, table, tenant_argv, write
from bench.measure import Bar, Verdict
from bench.process import Ended, run
from tests.gpu.table import PROGRAMS, Entry

MEM = "16GiB"
GRACE_S = 40.0
"""How long a program that was started in time may go on when the time is over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one program ended natively and in a tenant, and what follows from it."""

    entry: Entry
    verdict: Verdict
    reason: str
    native: Ended
    tenant: Ended | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {
            "name": self.entry.name,
            "needs": self.entry.needs,
            "verdict": self.verdict,
            "reason": self.reason,
            "native_hash": digest(self.native),
            "tenant_hash": self.tenant and digest(self.tenant),
            "native": self.native.as_dict(3000),
            "tenant": self.tenant and self.tenant.as_dict(3000),
        }


def results(ended: Ended) -> list[str]:
    """Return the lines that have to be the same in every run."""
    return [line for line in ended.stdout.splitlines() if line.startswith("RESULT")]


def digest(ended: Ended) -> str | None:
    """Return the hash of a program's results; None where it failed or printed none."""
    lines = results(ended)
    if ended.status != 0 or not lines:
        return None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def compare(setup: Setup, entry: Entry) -> Outcome:
    """Run one program natively, then in a tenant, and where they differ natively once more."""
    command = entry.command(setup.programs)
    env = environment(setup, {"PYTHONHASHSEED": "0", **entry.env})
    timeout_s = min(entry.timeout_s, setup.left_s() + GRACE_S)
    native = run(command, env, timeout_s)
    expected = digest(native)
    if native.status == NOT_AVAILABLE:
        reason = str((native.result() or {}).get("not_available", native.why()))
        return Outcome(entry, "not resolved", f"not available: {reason}", native, None)
    if expected is None:
        return Outcome(entry, "not resolved", f"fails natively: {native.why()}", native, None)
    name = "program-" + "".join(c if c.isalnum() else "-" for c in entry.name)
    argv = tenant_argv(setup, command, MEM, name)
    if entry.all_cards:
        at = argv.index("--gpu")
        del argv[at : at + 2]
    tenant = run(argv, env, min(entry.timeout_s, setup.left_s() + GRACE_S))
    if digest(tenant) == expected:
        return Outcome(entry, "pass", "same output", native, tenant)
    if digest(tenant) is None:
        return Outcome(entry, "fail", f"fails in a tenant: {tenant.why()}", native, tenant)
    if digest(run(command, env, timeout_s)) != expected:
        return Outcome(entry, "not resolved", "prints something else natively too", native, tenant)
    return Outcome(entry, "fail", _difference(results(native), results(tenant)), native, tenant)


def run_programs(setup: Setup, only: Sequence[str], jobs: int) -> int:
    """Compare all programs, some side by side; write programs.json and return the exit status."""
    chosen = [entry for entry in PROGRAMS if (not only or entry.name in only) and (entry.sim or not setup.sim)]
    outcomes: list[Outcome] = []
    left_out: list[str] = []

    def one(entry: Entry) -> Outcome | None:
        return compare(setup, entry) if setup.left_s() > 0 else None

    slow_first = sorted(chosen, key=lambda entry: -entry.timeout_s)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for entry, outcome in zip(slow_first, pool.map(one, slow_first), strict=True):
            if outcome is None:
                left_out.append(entry.name)
                continue
            outcomes.append(outcome)
            print(f"{entry.name}: {outcome.verdict}, {outcome.reason}", flush=True)
    bars = [bar_of(outcomes, left_out)]
    order = {entry.name: place for place, entry in enumerate(chosen)}
    outcomes.sort(key=lambda outcome: order[outcome.entry.name])
    body = {"mem": MEM, "programs": [outcome.as_dict() for outcome in outcomes], "left_out": left_out}
    path = write(setup, "programs", bars, body)
    rows = [
        [o.entry.name, digest(o.native) or "-", (o.tenant and digest(o.tenant)) or "-", o.verdict, o.reason[:120]]
        for o in outcomes
    ]
    print(table(rows, ["program", "native", "tenant", "", ""]))
    print_bars(bars, setup.sim)
    print(path)
    return 0 if bars[0].verdict == "pass" else 1


def bar_of(outcomes: Sequence[Outcome], left_out: Sequence[str]) -> Bar:
    """Return the bar over all programs: any difference fails it, anything not compared leaves it open."""
    by_verdict = {
        verdict: [o for o in outcomes if o.verdict == verdict] for verdict in ("pass", "fail", "not resolved")
    }
    open_ones = [f"{o.entry.name} ({o.reason[:60]})" for o in by_verdict["not resolved"]] + list(left_out)
    verdict: Verdict = "pass"
    if by_verdict["fail"]:
        verdict = "fail"
    elif open_ones or not outcomes:
        verdict = "not resolved"
    detail = "; ".join([*(f"{o.entry.name}: {o.reason[:80]}" for o in by_verdict["fail"]), *open_ones])
    measured = f"{len(by_verdict['pass'])} of {len(outcomes) + len(left_out)} the same"
    return Bar("programs of the table", "same output hash", measured, verdict, detail)


def _difference(expected: Sequence[str], seen: Sequence[str]) -> str:
    for native, tenant in zip(expected, seen, strict=False):
        if native != tenant:
            return f"{tenant!r} instead of {native!r}"
    return f"{len(seen)} lines instead of {len(expected)}"
