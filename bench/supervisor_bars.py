"""What the figures of bench/supervisor.py amount to: each bar with its verdict. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.machine import MIB
from bench.measure import Bar, Verdict

CPU_BAR_RATIO = 0.02
RSS_BAR_BYTES = 80 * MIB
GROWTH_NOISE_BYTES = 2 * MIB
"""What the allocator may still do after the first tenants; 10,000 leaks of 210 bytes are more."""
GROWTH_NOISE_FDS = 4
"""Connections that clients have open at that moment."""
SET_BAR_S = 0.010
STATUS_BAR_S = 0.150
STALL_BAR_S = 1.5


def load_bars(found: dict[str, Any]) -> list[Bar]:
    """Return the bars of the daemon's share of a core and of its memory."""
    seconds, cpu_s = found["seconds"], found["cpu_s"]
    share = cpu_s / seconds
    rss = max(row["rss_bytes"] for row in found["samples"])
    unfit = []
    if (found["tenants_seen"], found["processes_seen"]) != (found["tenants"], found["processes"]):
        unfit.append(f"it saw {found['tenants_seen']} tenants with {found['processes_seen']} registered processes")
    if found["samples_taken"] < 0.9 * seconds:
        unfit.append(f"it took {found['samples_taken']} samples in {seconds:.0f} s")
    detail = "; ".join(unfit) or f"{found['samples_taken']} samples, {cpu_s / found['samples_taken'] * 1e3:.1f} ms each"
    name = f"{found['tenants']} tenants, {found['processes']} processes, 1 Hz"
    return [
        Bar(f"{name}: CPU", "under 2 % of a core", f"{share:.2%}", _under(share, CPU_BAR_RATIO, unfit), detail),
        Bar(f"{name}: memory", "under 80 MiB", f"{rss / MIB:.1f} MiB", _under(rss, RSS_BAR_BYTES, unfit)),
    ]


def growth_bars(found: dict[str, Any]) -> list[Bar]:
    """Return the bars of growth over tenants that came and went, and of the meter itself."""
    warm, end = found["rows"][found["warm_row"]], found["rows"][-1]
    rss, fds, threads = (end[key] - warm[key] for key in ("rss_bytes", "fds", "threads"))
    name = f"{end['tenants']} tenants created and removed"
    asked = f"no growth: {GROWTH_NOISE_BYTES // MIB} MiB, {GROWTH_NOISE_FDS} descriptors, no thread at most"
    measured = f"{rss / MIB:+.2f} MiB, {fds:+d} descriptors, {threads:+d} threads since the first {warm['tenants']}"
    grew = rss > GROWTH_NOISE_BYTES or fds > GROWTH_NOISE_FDS or threads > 0
    wrong = [*found["errors"][:3], *(f"{left} was left behind" for left in found["left"][:3])]
    short = end["tenants"] < found["asked"]
    verdict: Verdict = "fail" if grew or wrong else "not resolved" if short else "pass"
    detail = "; ".join(wrong) or f"{end['rss_bytes'] / MIB:.1f} MiB, {end['fds']} descriptors in the end"
    seen = found["control"]["fds"] - end["fds"]
    held = found["control"]["tenants"]
    control: Verdict = "pass" if seen >= held else "not resolved"
    return [
        Bar(name, asked, measured, verdict, detail),
        Bar("growth: negative control", f"{held} tenants kept are seen", f"{seen:+d} descriptors", control),
    ]


def set_bars(found: dict[str, Any]) -> list[Bar]:
    """Return the bars of live limits, each way from the start of the request on, and of their control."""
    bars = []
    for way in ("up", "down"):
        name = f"hamirt set, {way}: to the next allocation"
        whole = [row["seconds"] for row in found["command"][way]]
        detail = f"from the start of the command {_ms(whole)}" if whole else ""
        bars.append(_each_under(name, [row["seconds"] for row in found["request"][way]], SET_BAR_S, detail))
    control = found["control"]
    measured = "granted" if control["granted"] else f"still refused after {control['seconds']:g} s"
    verdict: Verdict = "not resolved" if control["granted"] else "pass"
    return [*bars, Bar("hamirt set: negative control", "another weight grants nothing", measured, verdict)]


def status_bars(found: dict[str, Any]) -> list[Bar]:
    """Return the bars of `hamirt status`; the median counts, and what the daemon does not answer is for comparison."""
    bars = []
    for row in found["runs"]:
        seconds = [run["seconds"] for run in row["runs"]]
        cpu = statistics.median(run["cpu_s"] for run in row["runs"])
        wrong = [run["wrong"] for run in row["runs"] if run["wrong"]]
        median = statistics.median(seconds)
        verdict: Verdict = "fail" if wrong or median >= STATUS_BAR_S else "pass"
        if not wrong and cpu < STATUS_BAR_S <= median:
            verdict = "not resolved"  # the machine kept it waiting
        name = f"hamirt status{row['option']} with {found['tenants']} tenants, {row['source']}"
        detail = wrong[0] if wrong else f"{cpu * 1e3:.0f} ms of CPU; a bare Python takes {found['bare_s'] * 1e3:.0f} ms"
        bars.append(Bar(name, f"under {STATUS_BAR_S * 1e3:g} ms, the median", _ms(seconds), verdict, detail))
    return bars


def kill_bars(found: dict[str, Any]) -> list[Bar]:
    """Return the bars of a daemon that was killed again and again, and of their controls."""
    done, asked = found["kills"], found["asked"]
    name = f"daemon killed with -9 {done} times"
    unfit = [] if done >= asked else [f"{asked} kills were asked for"]
    counted = [ended["result"] or {} for ended in found["churn"]]
    if not all(one.get("granted") and one.get("refused") for one in counted):
        unfit.append("a tenant was never refused anything, or never granted")
    failed = [ended["why"] for ended in found["churn"] if ended["status"] != 0 or ended["result"] is None]
    failed += [f"{one['errors']} calls with other errors" for one in counted if one.get("errors")]
    failed += [run["why"] for run in found["runs"] if run["status"] != 0] + found["died"]
    calls = sum(one.get("granted", 0) + one.get("refused", 0) for one in counted)
    went = f"{len(found['runs'])} `hamirt run`s came and went, {calls} allocations, {len(failed)} failures"
    stall_s = max((one.get("longest_gap_ns", 0) for one in counted), default=0) / 1e9
    call_s = max((one.get("longest_call_ns", 0) for one in counted), default=0) / 1e9
    differ = [f"kill {row['kill']}: {text}" for row in found["rounds"] for text in row["differences"]]
    back = [row["back_s"] for row in found["rounds"]]
    return [
        Bar(f"{name}: no tenant fails", "none", went, _judged(failed, unfit), "; ".join([*failed[:3], *unfit])),
        Bar(
            f"{name}: no tenant stalls",
            f"{STALL_BAR_S:g} s at most",
            f"longest pause {stall_s:.3f} s, longest call {call_s:.3f} s",
            "fail" if stall_s > STALL_BAR_S else "not resolved" if unfit else "pass",
        ),
        Bar(
            f"{name}: ledger and state",
            "identical after each restart",
            f"{len(differ)} differences in {len(found['rounds'])} restarts, back in {_ms(back) if back else '-'}",
            _judged(differ + found["left"], unfit),
            "; ".join([*differ[:3], *found["left"][:3]]),
        ),
        Bar(
            "kills: negative controls",
            "a changed cap and a stopped tenant are seen",
            f"{len(found['control']['differences'])} differences, a pause of {found['control']['stall_s']:.2f} s",
            "pass"
            if len(found["control"]["differences"]) >= 2 and found["control"]["stall_s"] > STALL_BAR_S
            else "not resolved",
        ),
    ]


def _each_under(name: str, seconds: Sequence[float], bar_s: float, detail: str) -> Bar:
    asked = f"under {bar_s * 1e3:g} ms"
    if not seconds:
        return Bar(name, asked, "not measured", "not resolved", detail)
    beyond = sum(one >= bar_s for one in seconds)
    late = f"{beyond} of {len(seconds)} took longer"
    verdict: Verdict = "fail" if statistics.median(seconds) >= bar_s else "not resolved" if beyond else "pass"
    return Bar(name, asked, _ms(seconds), verdict, "; ".join(filter(None, [late if beyond else "", detail])))


def _ms(seconds: Sequence[float]) -> str:
    median, worst = statistics.median(seconds), max(seconds)
    return f"{median * 1e3:.1f} ms, {worst * 1e3:.1f} at most ({len(seconds)} times)"


def _judged(wrong: Sequence[str], unfit: Sequence[str]) -> Verdict:
    return "fail" if wrong else "not resolved" if unfit else "pass"


def _under(value: float, bar: float, unfit: Sequence[str]) -> Verdict:
    return "fail" if value >= bar else "not resolved" if unfit else "pass"
