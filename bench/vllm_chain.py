"""The parts of bench/vllm.py about two pooling engines at their caps: start, rag, kill."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from typing import Any

from bench.machine import MIB, MeasureError, environment, table, tenant_argv
from bench.measure import Bar, percentile
from bench.process import Program, run
from bench.supervisor_daemon import wait_until
from bench.vllm_bars import RAG_HEADER, kill_bars, look_bars, rag_bars, rag_rows, yes
from bench.vllm_load import Answers, pace
from bench.vllm_models import EMBED, RERANK
from bench.vllm_node import Node
from bench.vllm_serve import Engine, Plan
from hamirt.errors import HamirtError

CAPS_MIB = {"embed": 14_000, "rerank": 8_000}
FRACTION, NATIVE_FRACTIONS = "0.85", {"embed": "0.15", "rerank": "0.06"}
"""Natively a fraction is of the whole card, and only has to be free when the engine starts."""
OPTIONS = ("--runner", "pooling", "--enforce-eager")
ENGINES = {
    "embed": (EMBED, (*OPTIONS, "--max-model-len", "8192", "--max-num-seqs", "32")),
    "rerank": (RERANK, (*OPTIONS, "--max-model-len", "512", "--max-num-seqs", "8")),
}
BLOCKS = 4
TAKER_MIB, TAKER_WANTS_MIB = 2_000, 60_000
LOAD_EVERY_S = 0.2
FREED_S, AFTER_S = 10.0, 2.0
LOOK_S = 0.01

Found = tuple[list[Bar], dict[str, Any]]


def tenant(node: Node, name: str, *more: str) -> Plan:
    """Return how `embed` or `rerank` runs as a tenant."""
    model, options = ENGINES[name]
    given = ("--mem", f"{CAPS_MIB[name]}MiB", *more)
    return Plan(name, model, (*options, "--gpu-memory-utilization", FRACTION), given, node.namespace)


def native(name: str) -> Plan:
    """Return how `embed` or `rerank` runs natively."""
    model, options = ENGINES[name]
    return Plan(f"{name}-native", model, (*options, "--gpu-memory-utilization", NATIVE_FRACTIONS[name]))


def start(node: Node) -> Found:
    """Start both engines at their caps and look at the card from inside each."""
    node.keep(*CAPS_MIB)
    engines = node.start(*(tenant(node, name) for name in CAPS_MIB))
    answers = {engine.name: answers_well(engine) for engine in engines}
    seconds = ", ".join(f"{engine.name} {engine.ready_s:.0f} s" for engine in engines)
    bars = [Bar("both engines start at their caps", "and answer", seconds, yes(all(answers.values())))]
    looks = {engine.name: engine.look() for engine in engines}
    for engine in engines:
        held = [used // MIB for used in engine.on_card(node.nvml, node.setup.gpu).values()]
        bars += look_bars(engine.name, looks[engine.name], CAPS_MIB[engine.name], held if node.namespace else None)
    return bars, {"ready_s": {engine.name: engine.ready_s for engine in engines}, "looks": looks, "answers": answers}


def rag(node: Node) -> Found:
    """Ask both chains in blocks in turn, and watch the tenants' footprints all along."""
    node.keep(*CAPS_MIB)
    found = node.start(*(tenant(node, name) for name in CAPS_MIB), *(native(name) for name in CAPS_MIB))
    sides = {"hamirt": found[:2], "native": found[2:]}
    queries = {"hamirt": node.asked.queries, "native": node.asked.native_queries}
    blocks: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        samplers = {engine.name: stack.enter_context(node.sampler(engine.program.pid)) for engine in sides["hamirt"]}
        for side, engines in sides.items():
            _block(node, side, engines, 0, node.asked.concurrency)  # embeds the documents, and warms up
        for number in range(BLOCKS):
            for side in ("hamirt", "native") if number % 2 == 0 else ("native", "hamirt"):
                size = math.ceil(queries[side] / BLOCKS)
                first = number * size
                if first < queries[side]:
                    blocks.append(_block(node, side, sides[side], first, min(size, queries[side] - first)))
                    print(f"  {side}: {blocks[-1]['queries_per_s']:.1f} queries/s", flush=True)
    traces = {name: sampler.trace for name, sampler in samplers.items()}
    footprints = {
        name: {"peak_bytes": trace.peak_tree(), "cap_bytes": CAPS_MIB[name] * MIB, "hz": trace.rate()}
        for name, trace in traces.items()
    }
    print(table(rag_rows(blocks), RAG_HEADER))
    shown = {name: trace.summary() for name, trace in traces.items()}
    return rag_bars(blocks, node.asked.queries, footprints), {
        "blocks": blocks,
        "footprints": footprints,
        "traces": shown,
    }


def kill(node: Node) -> Found:
    """Have a third tenant want too much, then kill an engine, each beside the others at work."""
    node.keep(*CAPS_MIB)
    embed, rerank = node.start(*(tenant(node, name) for name in CAPS_MIB))
    taker = _taker(node, embed, rerank)
    held = node.ledger_bytes("embed")
    with pace(rerank, LOAD_EVERY_S) as load:
        time.sleep(AFTER_S)
        killed_at = embed.kill()
        times: dict[str, float] = {}

        def free() -> bool:
            now = time.monotonic() - killed_at
            if "card_s" not in times and not embed.on_card(node.nvml, node.setup.gpu):
                times["card_s"] = round(now, 3)
            with contextlib.suppress(HamirtError):
                if "ledger_s" not in times and node.ledger_bytes("embed") == 0:
                    times["ledger_s"] = round(now, 3)
            return len(times) == 2

        with contextlib.suppress(MeasureError):
            wait_until(free, FREED_S, "not all was freed")
        time.sleep(AFTER_S)
    node.stop("embed")
    killed: dict[str, Any] = {
        "held_bytes": held,
        "card_s": times.get("card_s"),
        "ledger_s": times.get("ledger_s"),
        "freed_s": max(times.values()) if len(times) == 2 else None,
        "errors": sum(load.answers.errors.values()),
        "answered": len(load.answers.taken_ms),
        "again_s": None,
    }
    try:
        (again,) = node.start(tenant(node, "embed"))
        killed |= {"again_s": again.ready_s if answers_well(again) else None, "again": f"after {again.ready_s:.0f} s"}
    except MeasureError as error:
        killed["again"] = str(error)
    return kill_bars(taker, killed), {"taker": taker, "killed": killed}


def answers_well(engine: Engine) -> bool:
    """Tell whether an engine answers one request as its model should. Raises MeasureError where it fails."""
    if engine.plan.model == EMBED:
        found = engine.ask("/v1/embeddings", {"model": EMBED, "input": ["babaca", "babada"]})
        return len(found["data"]) == 2
    found = engine.ask("/v1/rerank", {"model": RERANK, "query": "babaca", "documents": ["babada", "babafa"]})
    return len(found["results"]) == 2


def _block(node: Node, side: str, engines: list[Engine], skip: int, queries: int) -> dict[str, Any]:
    """Ask so many queries of a chain, from a process of its own, and return the figures. Raises MeasureError."""
    embed, rerank = engines
    path = node.folder / "block.json"
    path.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "bench.vllm_rag", "--embed", embed.url, "--rerank", rerank.url]
    numbers = {"queries": queries, "skip": skip} | {
        name: getattr(node.asked, name) for name in ("concurrency", "corpus", "nearest")
    }
    argv += [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    argv += ["--vectors", str(node.folder / f"{side}.npy"), "--json", str(path)]
    cpu, begun, mark = [engine.cpu_s() for engine in engines], time.monotonic(), node.busy_mark()
    ended = run(argv, environment(node.setup), max(1.0, node.setup.left_s()))
    busy, seconds = node.busy(mark), time.monotonic() - begun
    if not path.exists():
        raise MeasureError(f"the load on {side} {ended.why()}")
    used = [
        after - before.get(pid, 0.0)
        for engine, before in zip(engines, cpu, strict=True)
        for pid, after in engine.cpu_s().items()
    ]
    more = {"side": side, "busy": busy, "cores": round(max(used, default=0.0) / seconds, 3)}
    return {**json.loads(path.read_text()), **more}


def _taker(node: Node, *others: Engine) -> dict[str, Any]:
    """Have a tenant allocate until it is refused, while the others are asked; return what came of it."""
    wants = [node.setup.program("fill"), "malloc", str(TAKER_WANTS_MIB), "500"]
    argv = tenant_argv(node.setup, wants, f"{TAKER_MIB}MiB", "taker")
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(pace(engine, LOAD_EVERY_S)) for engine in others]
        time.sleep(AFTER_S)
        begun = time.monotonic()
        with Program(argv, environment(node.setup, {"HAMIRT_ROOT": str(node.root)})) as program:
            sampler = node.sampler(program.pid)
            with sampler:
                ended = program.finish(60)
        over = time.monotonic()
        time.sleep(AFTER_S)
    result = ended.result()
    if result is None:
        raise MeasureError(f"the third tenant {ended.why()}")
    answers = {engine.name: load.answers for engine, load in zip(others, loads, strict=True)}
    return {
        "cap_bytes": TAKER_MIB * MIB,
        "peak_bytes": sampler.trace.peak_tree(),
        "obtained_bytes": result["obtained_bytes"],
        "code": result["oom"]["message"],
        "answer": result["oom"]["type"],
        "errors": sum(sum(one.errors.values()) for one in answers.values()),
        "answered": min(len(one.taken_ms) for one in answers.values()),
        "p50_ms": {name: [_middle(one, 0, begun), _middle(one, begun, over)] for name, one in answers.items()},
    }


def _middle(answers: Answers, start: float, end: float) -> float | None:
    values = answers.between(start, end)
    return round(percentile(values, 50), 2) if values else None
