"""The daemon on a card: what it sees of a training loop, and what it does about a program that avoids the shim."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import GIB, MIB, MeasureError, Setup, environment, mem_option, print_bars, table, tenant_argv, write
from bench.measure import Bar, Verdict
from bench.process import Program
from hamirt import client, config
from hamirt.errors import HamirtError

CAP_BYTES = 8 * GIB
EVADER_MIB, CONTEXT_MIB = 4096, 256
TRAINING_S = 20.0
START_S = 60.0
REPORT_BAR_S, KILL_BAR_S = 2.0, 5.0
DRIFT_BAR_BYTES, DRIFT_BAR_RATIO = 32 * MIB, 0.02
LOOK_S = 0.02

Row = tuple[float, int, int]
"""Seconds since the start, bytes on the card by the ledger, and by NVML."""


def run_supervised(setup: Setup) -> int:
    """Run it, write supervised.json and return the exit status."""
    root = config.root_path()
    settings = setup.out / "hamirt.toml"
    with _daemon(setup, settings) as daemon:
        drift = _drift(setup, root)
        report_s, kill_s, neighbour = _evader(setup, root, settings, daemon)
    bars = [
        _drift_bar(drift, setup.sim),
        _seconds_bar("unshimmed program reported", report_s, REPORT_BAR_S),
        _seconds_bar("unshimmed program gone, with kill", kill_s, KILL_BAR_S),
        Bar("its neighbour", "goes on to its own end", neighbour, "pass" if neighbour == "ended well" else "fail"),
    ]
    path = write(setup, "supervised", bars, {"drift_s_ledger_nvml": drift, "report_s": report_s, "kill_s": kill_s})
    print_bars(bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


@contextlib.contextmanager
def _daemon(setup: Setup, settings: Path) -> Iterator[Program]:
    _write_settings(settings, "report")
    argv = [sys.executable, "-m", "hamirt", "daemon", "--config", str(settings), *(["--sim"] if setup.sim else [])]
    with Program(argv, environment(setup)) as daemon:
        _wait(lambda: client.available(config.root_path()), START_S, "the daemon did not come up", daemon)
        yield daemon
        daemon.send(signal.SIGTERM)
        print(daemon.finish(20).stderr[-3000:], file=sys.stderr)


def _write_settings(path: Path, policy: str) -> None:
    path.write_text(f'policy = "{policy}"\nmetrics_address = ""\n')


def _drift(setup: Setup, root: Path) -> list[Row]:
    """Return what ledger and NVML say of a training loop at each of the daemon's samples."""
    inside = [sys.executable, "-m", "tests.gpu.training", str(TRAINING_S)]
    if setup.sim:
        inside = [setup.program("fill"), "malloc", "2048", str(int(TRAINING_S * 100))]
    rows: list[Row] = []
    with Program(tenant_argv(setup, inside, mem_option(CAP_BYTES), "training"), environment(setup)) as program:
        start = time.monotonic()
        while program.running() and time.monotonic() < start + START_S + TRAINING_S:
            card = _on_card(root, "training")
            if card is not None and card["footprint_bytes"] and card["processes"]:  # none: it is ending
                ledger = card["used_bytes"] - card["ahead_bytes"]
                row = (round(time.monotonic() - start, 2), ledger, card["footprint_bytes"])
                if not rows or rows[-1][1:] != row[1:] or row[0] - rows[-1][0] > 1:
                    rows.append(row)
            time.sleep(LOOK_S)
        ended = program.finish(20)
    if ended.status != 0:
        raise MeasureError(f"the training loop {ended.why()}: {ended.stderr[-500:]}")
    return rows


def _evader(setup: Setup, root: Path, settings: Path, daemon: Program) -> tuple[float, float, str]:
    """Start a program without the shim beside an honest one; return when it was reported, and gone once that is policy.

    The clock runs from NVML's first sight of its context on the card, and from the change of the policy, by when it has
    its 4 GiB.
    """
    honest = [setup.program("fill"), "malloc", "2048", "4000"]
    evading = ["env", "-u", "LD_PRELOAD", setup.program("fill"), "malloc", str(EVADER_MIB), "3000"]
    with (
        setup.nvml() as nvml,
        Program(tenant_argv(setup, honest, mem_option(CAP_BYTES), "honest"), environment(setup)) as neighbour,
    ):
        handle = nvml.handle(setup.gpu)
        _wait(lambda: _on_card(root, "honest") is not None, START_S, "the neighbour did not come up", neighbour)
        before = nvml.memory(handle).used
        with Program(tenant_argv(setup, evading, mem_option(CAP_BYTES), "evader"), environment(setup)) as program:

            def taken() -> int:
                return int(nvml.memory(handle).used) - before

            _wait(lambda: taken() > CONTEXT_MIB * MIB, START_S, "the evader made no context", program)
            start = time.monotonic()
            _wait(lambda: bool((_on_card(root, "evader") or {}).get("unshimmed")), 30, "it was not reported", program)
            report_s = time.monotonic() - start
            _wait(lambda: taken() > EVADER_MIB * MIB, START_S, "the evader took nothing", program)
            _write_settings(settings, "kill")
            daemon.send(signal.SIGHUP)
            start = time.monotonic()
            _wait(lambda: not program.running() and taken() < EVADER_MIB * MIB, 30, "it was not killed")
            kill_s = time.monotonic() - start
        ended = neighbour.finish(60)
    return round(report_s, 2), round(kill_s, 2), ended.why()


def _on_card(root: Path, name: str) -> dict[str, Any] | None:
    """Return what the daemon says of a tenant's first card, None while it does not know it."""
    try:
        node = client.Client(root).node()
    except HamirtError:
        return None
    cards: list[dict[str, Any]] = [card for one in node["tenants"] if one["name"] == name for card in one["cards"]]
    return cards[0] if cards else None


def _wait(holds: Callable[[], bool], seconds: float, otherwise: str, program: Program | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline or (program is not None and not program.running()):
            why = f": {program.finish(1).stderr[-800:]}" if program is not None else ""
            raise MeasureError(otherwise + why)
        time.sleep(LOOK_S)


def _drift_bar(rows: list[Row], sim: bool) -> Bar:
    name, asked = "ledger against NVML over a training loop", "within 2 % or 32 MiB, all along"
    if len(rows) < 5 and not sim:
        return Bar(name, asked, f"{len(rows)} samples", "not resolved")
    beyond = [row for row in rows if abs(row[1] - row[2]) > max(DRIFT_BAR_BYTES, DRIFT_BAR_RATIO * row[2])]
    worst = max(rows, key=lambda row: abs(row[1] - row[2]))
    measured = f"worst {(worst[1] - worst[2]) / MIB:+.1f} MiB of {worst[2] / MIB:.0f}, {len(rows)} samples"
    print(table([[f"{s:.2f}", str(a >> 20), str(b >> 20)] for s, a, b in beyond[:20]], ["s", "ledger MiB", "NVML MiB"]))
    return Bar(name, asked, measured, "fail" if beyond else "pass", f"{len(beyond)} samples beyond" if beyond else "")


def _seconds_bar(name: str, seconds: float, most: float) -> Bar:
    verdict: Verdict = "pass" if seconds <= most else "fail"
    return Bar(name, f"within {most:g} s", f"{seconds:.2f} s", verdict)
