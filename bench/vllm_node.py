"""The card that bench/vllm.py measures on: a daemon of its own, and the engines that run at the moment."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from bench.machine import MeasureError, Setup, environment
from bench.nvml import Nvml
from bench.process import can_unshare, run
from bench.sampler import Sampler
from bench.share_tenants import NodeDaemon
from bench.vllm_load import Requests, Shape, saturate
from bench.vllm_serve import Engine, Plan, Site
from hamirt import client

COMMAND_S = 30.0
LOG_CHARS = 200_000


class Node:
    """All that the parts share; a context manager that ends what runs."""

    def __init__(self, setup: Setup, site: Site, folder: Path, asked: argparse.Namespace) -> None:
        self.setup, self.folder, self.asked = setup, folder, asked
        self.root = folder / "root"
        self.engines: dict[str, Engine] = {}
        self.namespace = can_unshare()
        self.shape: Shape | None = None
        """The load that was found to keep the card at work."""
        self.nvml: Nvml = setup.nvml()
        self._site = site
        self._log = setup.out / f"{asked.name}.log"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Node:
        self.root.mkdir(mode=0o700)
        self._log.write_text("")
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.nvml)
            stack.enter_context(NodeDaemon(self.setup, self.root))
            stack.callback(self.keep)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, *plans: Plan, gpus: tuple[int, ...] = ()) -> list[Engine]:
        """Return engines, after starting those that do not run, all at once. Raises MeasureError."""
        begun = time.monotonic()
        new = [plan for plan in plans if plan.name not in self.engines]
        for plan in new:
            self.engines[plan.name] = Engine(self.setup, self._site, self.root, plan, gpus or (self.setup.gpu,))
        found = [self.engines[plan.name].ready() for plan in plans]
        if new:
            names = ", ".join(plan.name for plan in new)
            print(f"  {names}: up after {time.monotonic() - begun:.0f} s", flush=True)
        return found

    def stop(self, *names: str) -> None:
        """End engines, where they run, and keep their logs."""
        for name in names:
            engine = self.engines.pop(name, None)
            if engine is not None:
                with self._log.open("a") as log:
                    shown = [Path(word).name if word.startswith("/") else word for word in engine.argv]
                    log.write(f"== {name}: {' '.join(shown)}\n{engine.log()[-LOG_CHARS:]}\n")
                engine.__exit__(None, None, None)

    def keep(self, *names: str) -> None:
        """End all engines but these."""
        self.stop(*(name for name in list(self.engines) if name not in names))

    def change(self, name: str, *options: str) -> None:
        """Change a tenant's limits as its user would. Raises MeasureError."""
        argv = [sys.executable, "-m", "hamirt", "set", name, *options]
        ended = run(argv, environment(self.setup, {"HAMIRT_ROOT": str(self.root)}), COMMAND_S)
        if ended.status != 0:
            raise MeasureError(f"hamirt set {name} {' '.join(options)}: {ended.why()}")

    def ledger_bytes(self, name: str) -> int:
        """Return what a tenant holds by its ledger, 0 where the daemon knows none of that name."""
        tenants = client.Client(self.root).node()["tenants"]
        cards = [card for one in tenants if one["name"] == name for card in one["cards"]]
        return sum(int(card["used_bytes"]) for card in cards)

    def sampler(self, pid: int, gpu: int | None = None) -> Sampler:
        """Return a sampler of a program's footprint, not yet running."""
        index = self.setup.gpu if gpu is None else gpu
        return Sampler(self.nvml, index, pid, self.nvml.memory(self.nvml.handle(index)).used)

    def busy_mark(self) -> Any:
        """Return a mark for `busy`."""
        return self.nvml.busy_mark(self.nvml.handle(self.setup.gpu))

    def busy(self, first: Any) -> dict[str, float] | None:
        """Return how busy the card was since a mark, None: not known."""
        found = self.nvml.busy_between(first, self.busy_mark())
        return None if found is None else {"engine": round(found.engine, 4), "sm": round(found.sm, 4)}

    def generate(self, shape: Shape, *engines: Engine) -> dict[str, Any]:
        """Load engines and return their tokens per second by name, and how busy the card was. Raises MeasureError."""
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(saturate(engine, shape)) for engine in engines]
            time.sleep(self.asked.settle)
            mark, before = self.busy_mark(), [engine.tokens() for engine in engines]
            time.sleep(self.asked.window)
            after = [engine.tokens() for engine in engines]
            busy = self.busy(mark)
            none_failed(loads)
        rates = {
            engine.name: (tokens[0] - base[0]) / (tokens[1] - base[1])
            for engine, base, tokens in zip(engines, before, after, strict=True)
        }
        if not all(rates.values()):
            raise MeasureError(f"no tokens came: {rates}")
        return {"rates": {name: round(rate, 2) for name, rate in rates.items()}, "busy": busy}


def none_failed(loads: list[Requests]) -> None:
    """Raise MeasureError where a request failed."""
    errors = {kind: count for load in loads for kind, count in load.answers.errors.items()}
    if errors:
        raise MeasureError(f"requests failed: {errors}")
