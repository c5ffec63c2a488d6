"""Two vLLM models on one card: start, memory, shares of GPU time, latency, and what an engine's death leaves behind.

    python3 -m bench.vllm --site DIR [--only PART ...] [--budget SECONDS] [--out DIR]

PART: start, rag, kv, share, latency, kill, tp2. --site is the folder that vLLM and what it needs were unpacked into;
PyTorch is the machine's. The models are made here, with weights that vLLM makes up. Engines run natively and as tenants
of a daemon that is this program's own, in turn. What was not measured is listed in the JSON as `unmeasured`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import vllm_chain, vllm_models, vllm_time
from bench.machine import MeasureError, Setup, main_of, parser, print_bars, setup_of, write
from bench.measure import Bar
from bench.nvml import NvmlError
from bench.share_tenants import simulated_card
from bench.vllm_chain import Found
from bench.vllm_node import Node
from bench.vllm_serve import SERVER, Site
from hamirt.errors import HamirtError

PARTS: dict[str, tuple[Callable[[Node], Found], float]] = {
    "start": (vllm_chain.start, 150),
    "rag": (vllm_chain.rag, 330),
    "kill": (vllm_chain.kill, 90),
    "kv": (vllm_time.kv, 120),
    "share": (vllm_time.share, 330),
    "latency": (vllm_time.latency, 130),
    "tp2": (vllm_time.tp2, 250),
}
"""Each part and the seconds that it takes at most; it is not begun where fewer are left."""


def measure_vllm() -> int:
    """Measure the parts that the options name and write the JSON file; return the exit status."""
    asked = _options().parse_args()
    unknown = set(asked.only) - set(PARTS)
    if unknown:
        raise MeasureError(f"no part is called {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    chosen = [name for name in PARTS if name in asked.only or not asked.only]
    asked.name = "-".join(["vllm", *(chosen if asked.only else [])])
    setup = setup_of(asked)
    bars: list[Bar] = []
    found: dict[str, Any] = {}
    missing = {name: "not asked for" for name in PARTS if name not in chosen}
    with (
        tempfile.TemporaryDirectory(prefix="hamirt-bench-") as name,
        simulated_card(setup, Path(name)),
    ):
        site = Site.of(asked.site, Path(name) / "models", asked.server)
        vllm_models.make(site.models)
        with Node(setup, site, Path(name), asked) as node:
            for part in chosen:
                measure, needs_s = PARTS[part]
                if setup.left_s() < needs_s * asked.estimate:
                    missing[part] = f"{setup.left_s():.0f} s were left, it takes {needs_s * asked.estimate:.0f} s"
                    continue
                print(f"== {part}, {setup.left_s():.0f} s are left ==", flush=True)
                begun = time.monotonic()
                try:
                    judged, body = measure(node)
                except Exception as error:  # what was measured is kept: time on a card is scarce
                    known = isinstance(error, (MeasureError, NvmlError, HamirtError))
                    missing[part] = str(error) if known else repr(error)
                    print(f"{part}: not measured: {missing[part]}", flush=True)
                    node.keep()
                    continue
                bars += judged
                found[part] = {"took_s": round(time.monotonic() - begun, 1), **body}
                _write(setup, asked, bars, found, missing)
    path = _write(setup, asked, bars, found, missing)
    print_bars(bars, setup.sim)
    for part in chosen:
        if part in missing:
            print(f"{part}: not measured: {missing[part]}")
    print(path)
    whole = not any(part in missing for part in chosen)
    return 0 if whole and all(bar.verdict == "pass" for bar in bars) else 1


def _write(
    setup: Setup, asked: argparse.Namespace, bars: list[Bar], found: dict[str, Any], missing: dict[str, str]
) -> Path:
    """Write what is known so far, and return the file's path."""
    options = {key: getattr(asked, key) for key in ("queries", "native_queries", "window", "settle", "rounds")}
    unmeasured = [{"part": part, "reason": reason} for part, reason in missing.items()]
    command = ["bench/vllm.py", *(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])]
    body = {"command": command, "options": options, "parts": found, "unmeasured": unmeasured}
    return write(setup, asked.name, bars, body)


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__)
    options.set_defaults(budget=570.0)
    options.add_argument("--site", type=Path, help="the folder that vLLM was unpacked into")
    options.add_argument("--only", nargs="+", metavar="PART", default=[], help=", ".join(PARTS))
    options.add_argument("--server", default=SERVER, help="the command of the server, or of what stands in for it")
    options.add_argument("--queries", type=int, default=2000, help="of the chain, to the tenants")
    options.add_argument("--native-queries", type=int, default=1000, help="of the chain, natively")
    options.add_argument("--concurrency", type=int, default=16, help="queries at a time")
    options.add_argument("--corpus", type=int, default=3000, help="documents")
    options.add_argument("--nearest", type=int, default=20, help="documents that are ranked for a query")
    options.add_argument("--window", type=float, default=8.0, help="seconds over which tokens are counted")
    options.add_argument("--settle", type=float, default=2.0, help="seconds of load before that")
    options.add_argument("--rounds", type=int, default=3, help="of what is measured in turn")
    options.add_argument(
        "--estimate", type=float, default=1.0, help="how much of its seconds a part is thought to need"
    )
    return options


if __name__ == "__main__":
    main_of(measure_vllm)
