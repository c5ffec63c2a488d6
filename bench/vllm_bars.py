"""What the runs of bench/vllm.py amount to: bars with their verdicts. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.machine import MIB
from bench.measure import Bar, Verdict, percentile
from bench.sampler import BAR_HZ

SLACK_MIB = 2
KV_BAR_RATIO = 0.02
BUSY_BAR = 0.95
POINTS_BAR = 2.0
FREE_S_BAR = 1.0
_PROCESS = re.compile(r"^\|\s+\d+\s+\S+\s+\S+\s+(\d+)\s+\S+\s+(\S.*?)\s+(\d+)MiB\s+\|$", re.M)


def yes(holds: bool) -> Verdict:
    """Return the verdict of a bar that holds or does not."""
    return "pass" if holds else "fail"


def look_bars(name: str, text: str, cap_mib: int, held_mib: Sequence[int] | None) -> list[Bar]:
    """Judge what nvidia-smi printed in a tenant: its total, and in a PID namespace its processes.

    `held_mib`: what each of its processes holds as the host sees it; None: it is in no namespace of its own.
    """
    total = re.search(rf"\d+MiB\s*/\s*{cap_mib}MiB", text)
    other = re.search(r"\d+MiB\s*/\s*\d+MiB", text)
    seen = total.group() if total else other.group() if other else "no such line"
    bars = [Bar(f"nvidia-smi in {name}", f"… / {cap_mib}MiB", seen, yes(total is not None))]
    asked = "its own, with their names"
    if held_mib is None:
        return [*bars, Bar(f"processes in {name}", asked, "not measured", "not resolved", "no PID namespace here")]
    rows = [(command, int(pid), int(mib)) for pid, command, mib in _PROCESS.findall(text)]
    shown = ", ".join(f"{command} ({pid}) {mib} MiB" for command, pid, mib in rows)
    pairs = zip(sorted(mib for *_, mib in rows), sorted(held_mib), strict=False)
    own = 0 < len(rows) == len(held_mib) and all(abs(inside - outside) <= SLACK_MIB for inside, outside in pairs)
    named = all(re.search(r"[A-Za-z]{3}", command) and "Not Found" not in command for command, *_ in rows)
    outside = f"from outside {', '.join(map(str, held_mib))} MiB"
    return [*bars, Bar(f"processes in {name}", asked, shown or "none", yes(own and named), outside)]


def rag_bars(blocks: Sequence[Mapping[str, Any]], asked: int, footprints: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Judge the chain's blocks of the tenants and their footprints, by tenant: peak_bytes, cap_bytes, hz."""
    ours = [block for block in blocks if block["side"] == "hamirt"]
    done = sum(block["queries"] - block["failed"] for block in ours)
    failed = sum(block["failed"] for block in ours)
    kinds = sorted({kind for block in ours for kind in block["errors"]})
    verdict: Verdict = "fail" if failed else "pass" if done >= asked else "not resolved"
    bars = [Bar(f"{asked} queries", "no error", f"{done} answered, {failed} errors", verdict, ", ".join(kinds))]
    for name, one in footprints.items():
        over = one["peak_bytes"] - one["cap_bytes"]
        sure: Verdict = "pass" if one["hz"] >= BAR_HZ else "not resolved"
        measured = f"{one['peak_bytes'] / MIB:.0f} MiB at most, {one['hz']:.0f} Hz"
        bars.append(Bar(f"footprint of {name}", f"never above {one['cap_bytes'] / MIB:.0f} MiB", measured,
            "fail" if over > 0 else sure))  # fmt: skip
    return bars


def rag_rows(blocks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return what is shown of each block without a bar: rate, latency, the card's busy share, the processors."""
    return [
        [
            block["side"],
            f"{block['queries_per_s']:.1f}",
            *(f"{block['stages'][stage].get('p50_ms', 0):.0f}" for stage in ("embed", "rerank", "total")),
            f"{block['stages']['total'].get('p99_ms', 0):.0f}",
            ratio(block["busy"], "engine"),
            ratio(block["busy"], "sm"),
            f"{block['cores']:.2f}",
        ]
        for block in blocks
    ]


RAG_HEADER = (
    "",
    "queries/s",
    "p50 ms embed",
    "rerank",
    "total",
    "p99 total",
    "card busy",
    "SMs busy",
    "cores, busiest",
)


def ratio(busy: Mapping[str, float] | None, key: str) -> str:
    """Return a busy share as percent, "?" where it is not known."""
    return "?" if busy is None else f"{busy[key]:.1%}"


def kv_bars(found: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Judge the KV caches of rounds that each have `native` and `hamirt`: tokens."""
    name, asked = "KV cache at 14000 MiB and 0.85", f"within {KV_BAR_RATIO:.0%} of native"
    if not found:
        return [Bar(name, asked, "not measured", "not resolved")]
    worst = max(found, key=lambda one: abs(one["hamirt"] / one["native"] - 1))
    error = worst["hamirt"] / worst["native"] - 1
    measured = f"{worst['hamirt']} tokens against {worst['native']}: {error:+.2%}"
    return [Bar(name, asked, measured, yes(abs(error) <= KV_BAR_RATIO), f"{len(found)} rounds, the worst")]


def busy_bar(name: str, busy: Mapping[str, float] | None, shape: str) -> Bar:
    """Judge whether one engine alone keeps the card at work."""
    asked = f"card busy {BUSY_BAR:.0%} of the time, by GPM"
    if busy is None:
        return Bar(f"{name} alone", asked, "not measured", "not resolved", "the driver has no such counter")
    measured = f"{busy['engine']:.1%}; multiprocessors {busy['sm']:.1%}"
    return Bar(f"{name} alone", asked, measured, yes(busy["engine"] >= BUSY_BAR), shape)


def share_bars(rounds: Sequence[Mapping[str, Mapping[str, float]]], caps: Mapping[str, int]) -> list[Bar]:
    """Judge rounds of tokens per second by engine, in the steps alone, native, tenant, equal, caps.

    A share is against the native engine alone in the same round; bars are on the means over the rounds, and how far
    the native engine alone differs between rounds is the noise.
    """
    if not rounds:
        return [Bar("two generators", "equal shares", "not measured", "not resolved")]
    alone = [one["alone"]["n1"] for one in rounds]
    noise = (max(alone) - min(alone)) / statistics.mean(alone)
    resolved = len(rounds) > 1
    unsure = f"{len(rounds)} rounds, native alone within {noise:.1%}"

    def shares(step: str) -> dict[str, float]:
        names = rounds[0][step]
        return {
            name: statistics.mean(one[step][name] / base for one, base in zip(rounds, alone, strict=True))
            for name in names
        }

    def within(points: float, bar: float) -> Verdict:
        if points > bar + noise * 100:
            return "fail"
        return yes(points <= bar) if resolved and noise * 100 < bar else "not resolved"

    equal, native = shares("equal"), shares("native")
    apart = (max(equal.values()) - min(equal.values())) * 100
    together = [sum(one["equal"].values()) / sum(one["native"].values()) for one in rounds]
    middle = statistics.median(together)
    bars = [
        Bar("two generators, equal weights", f"within {POINTS_BAR:g} points of each other",
            f"{_points(equal)}: {apart:.1f} apart", within(apart, POINTS_BAR), unsure),
        Bar("two generators, tokens/s together", "at least the driver's own time slicing", f"x {middle:.3f}",
            "fail" if middle < 1 - noise else "pass" if middle >= 1 and resolved else "not resolved",
            f"each round {', '.join(f'{one:.3f}' for one in together)}; driver {_points(native)}; {unsure}"),
    ]  # fmt: skip
    capped = shares("caps")
    for name, cap in caps.items():
        error = abs(capped[name] * 100 - cap)
        bars.append(Bar(f"cap of {cap} %", f"within {POINTS_BAR:g} points", f"{capped[name]:.1%}",
            within(error, POINTS_BAR), unsure))  # fmt: skip
    return bars


def tenant_row(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return what one tenant alone makes against native alone."""
    ratios = [one["tenant"]["h1"] / one["alone"]["n1"] for one in rounds]
    return f"x {statistics.median(ratios):.3f}" if ratios else "?"


def latency_bars(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[Bar]:
    """Judge rounds of rankings: alone, normal and latency, each with taken_ms and the generator's tokens per second."""
    name, asked = "reranker beside a generator: p99", "lower with class latency than without"
    if not rounds:
        return [Bar(name, asked, "not measured", "not resolved")]

    def tail(step: str) -> float:
        return percentile([took for one in rounds for took in one[step]["taken_ms"]], 99)

    def tokens(step: str) -> float:
        return statistics.mean(float(one[step]["tokens_per_s"]) for one in rounds)

    alone, normal, latency = (tail(step) for step in ("alone", "normal", "latency"))
    native = f", driver's time slices {tail('native'):.0f} ms" if "native" in rounds[0] else ""
    measured = f"{latency:.0f} ms with it, {normal:.0f} without"
    detail = f"alone {alone:.0f} ms{native}; generator {tokens('latency'):.0f} and {tokens('normal'):.0f} tokens/s"
    errors = sum(one[step]["errors"] for one in rounds for step in one)
    return [
        Bar(name, asked, measured, yes(latency < normal), detail),
        Bar("reranker beside a generator: errors", "none", str(errors), yes(errors == 0)),
    ]


def kill_bars(taker: Mapping[str, Any], killed: Mapping[str, Any]) -> list[Bar]:
    """Judge a third tenant that wants more than its cap, and an engine that is killed and starts again."""
    refused = taker["code"] == "2"  # CUDA_ERROR_OUT_OF_MEMORY
    peak, cap = taker["peak_bytes"] / MIB, taker["cap_bytes"] / MIB
    freed = killed["freed_s"]
    return [
        Bar("a tenant that wants too much", "its own out-of-memory error",
            f"got {taker['obtained_bytes'] / MIB:.0f} MiB, then {taker['answer']}", yes(refused)),
        Bar("its footprint", f"never above {cap:.0f} MiB", f"{peak:.0f} MiB at most", yes(peak <= cap)),
        Bar("its neighbours", "no error", f"{taker['errors']} errors in {taker['answered']} answers",
            yes(taker["errors"] == 0 and taker["answered"] > 0)),
        Bar("an engine killed with -9", f"all free within {FREE_S_BAR:g} s",
            "never" if freed is None else f"{freed:.2f} s", yes(freed is not None and freed <= FREE_S_BAR),
            f"NVML {killed['card_s']} s, ledger {killed['ledger_s']} s, {killed['held_bytes'] / MIB:.0f} MiB"),
        Bar("its neighbour", "no error", f"{killed['errors']} errors in {killed['answered']} answers",
            yes(killed["errors"] == 0 and killed["answered"] > 0)),
        Bar("it starts again", "and answers", f"{killed['again']}", yes(killed["again_s"] is not None)),
    ]  # fmt: skip


def tp_bars(found: Mapping[str, Any] | None) -> list[Bar]:
    """Judge an engine on two cards; None: there is one card."""
    name, asked = "tensor parallel 2", "answers, each card below the cap"
    if found is None:
        return [Bar(name, asked, "not measured", "not resolved", "one card here")]
    peaks = [one["peak_bytes"] for one in found["cards"]]
    holds = found["tokens_per_s"]["hamirt"] > 0 and all(0 < peak <= found["cap_bytes"] for peak in peaks)
    measured = " and ".join(f"{peak / MIB:.0f}" for peak in peaks) + f" of {found['cap_bytes'] / MIB:.0f} MiB"
    rates = ", ".join(f"{side} {rate:.0f}" for side, rate in found["tokens_per_s"].items())
    return [Bar(name, asked, measured, yes(holds), f"tokens/s: {rates}")]


def _points(shares: Mapping[str, float]) -> str:
    return " + ".join(f"{share:.1%}" for share in shares.values())
