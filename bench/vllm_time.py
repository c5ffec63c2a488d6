"""The parts of bench/vllm.py about generators: kv, share, latency, tp2."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from bench.machine import MIB, MeasureError, table
from bench.vllm_bars import BUSY_BAR, busy_bar, kv_bars, latency_bars, share_bars, tenant_row, tp_bars
from bench.vllm_chain import FRACTION, Found, native, tenant
from bench.vllm_load import Shape, pace
from bench.vllm_models import LARGE, SMALL
from bench.vllm_node import Node
from bench.vllm_serve import Engine, Plan, total_bytes

KV_MIB = 14_000
ENDS_S = 20.0
"""What ending the engines and writing the results may take."""
GENERATOR_MIB = 20_000
KV_BYTES = 5 << 29
# A KV cache of a fixed size, so that engines can start at once whatever the others take meanwhile.
GENERATE = (
    *("--max-model-len", "4096", "--max-num-seqs", "64", "--max-num-batched-tokens", "2048"),
    *("--no-enable-prefix-caching", "--kv-cache-memory-bytes", str(KV_BYTES)),
)
SHAPES = (Shape(32, 64, 448), Shape(64, 64, 192), Shape(32, 512, 64), Shape(8, 2048, 16))
"""From one that only decodes, in CUDA graphs, to one that hardly does; the first to keep the card at work is used."""
CAPS = {"h1": 25, "h2": 75}
RANK_EVERY_S = 0.05

_T = TypeVar("_T")


def generator(name: str) -> Plan:
    """Return how a generator runs: h1 and h2 are tenants, n1 and n2 native."""
    if name.startswith("h"):
        return Plan(name, LARGE, (*GENERATE, "--gpu-memory-utilization", "0.9"), ("--mem", f"{GENERATOR_MIB}MiB"))
    return Plan(name, LARGE, (*GENERATE, "--gpu-memory-utilization", "0.1"))


def kv(node: Node) -> Found:
    """Compare the KV cache at a cap with that of the same fraction of the bare card, by the engines' logs."""
    node.keep()
    total = total_bytes(node.setup)
    fraction = float(FRACTION) * KV_MIB * MIB / total
    # what vLLM chooses by the size of the card that it sees is given to both: a step's tokens make its activations
    step = ("--max-num-batched-tokens", "2048", "--max-num-seqs", "256")
    options = ("--max-model-len", "2048", *step, "--gpu-memory-utilization")
    plans = {
        "native": Plan("kv-native", SMALL, (*options, f"{fraction:.6f}")),
        "hamirt": Plan("kv", SMALL, (*options, FRACTION), ("--mem", f"{KV_MIB}MiB")),
    }

    def size(side: str) -> int:
        (engine,) = node.start(plans[side])
        tokens = engine.kv_tokens()
        node.stop(engine.name)
        if tokens is None:
            raise MeasureError(f"{engine.name} does not log the size of its KV cache")
        return tokens

    found = _in_turn(node, min(2, node.asked.rounds), tuple(plans), size)
    return kv_bars(found), {"rounds": found, "fraction": fraction, "card_bytes": total}


def share(node: Node) -> Found:
    """Share the card between two generators: natively, with equal weights, and with caps, in turn."""
    engines = _generators(node)
    shape, tried = _saturating(node, engines["n1"])
    node.shape = shape
    second = node.generate(shape, engines["n2"])
    bars = [busy_bar("n1", tried[str(shape)], str(shape)), busy_bar("n2", second["busy"], str(shape))]
    steps = {"alone": ("n1",), "native": ("n1", "n2"), "tenant": ("h1",), "equal": ("h1", "h2"), "caps": ("h1", "h2")}

    def take(step: str) -> dict[str, Any]:
        with _capped(node) if step == "caps" else contextlib.nullcontext():
            return node.generate(shape, *(engines[name] for name in steps[step]))

    rounds = _in_turn(node, node.asked.rounds, tuple(steps), take)
    rates = [{step: one[step]["rates"] for step in steps} for one in rounds]
    print(
        table([[step, *(str(one[step]) for one in rates)] for step in steps], ["tokens/s", *(["round"] * len(rates))])
    )
    print(f"a tenant alone against native alone: {tenant_row(rates)}")
    return [*bars, *share_bars(rates, CAPS)], {"tried": tried, "second": second, "rounds": rounds}


def latency(node: Node) -> Found:
    """Have the reranker asked at a steady pace beside a generator, with and without its class."""
    engines = _generators(node, "h1", "n1")
    shape = node.shape or SHAPES[0]
    ours, theirs = engines["rerank"], engines["rerank-native"]

    def take(step: str) -> dict[str, Any]:
        if step == "alone":
            return _ranked(node, ours, [], shape)
        if step == "native":
            return _ranked(node, theirs, [engines["n1"]], shape)
        node.change("rerank", "--class", step)
        node.change("h1", "--class", "batch" if step == "latency" else "normal")
        return _ranked(node, ours, [engines["h1"]], shape)

    rounds = _in_turn(node, node.asked.rounds, ("alone", "native", "normal", "latency"), take)
    return latency_bars(rounds), {"shape": str(shape), "every_s": RANK_EVERY_S, "rounds": rounds}


def tp2(node: Node) -> Found:
    """Run an engine over two cards, as a tenant and natively."""
    if node.nvml.count() < 2:
        return tp_bars(None), {}
    node.keep()
    cards = (0, 1)
    split = ("--tensor-parallel-size", "2")
    rates: dict[str, float] = {}
    found: list[dict[str, Any]] = []
    for side, name in (("hamirt", "h1"), ("native", "n1")):
        plan = generator(name)
        with contextlib.ExitStack() as stack:
            two = Plan(f"{name}-tp2", plan.model, (*plan.options, *split), plan.tenant)
            (engine,) = node.start(two, gpus=cards)
            samplers = [stack.enter_context(node.sampler(engine.program.pid, card)) for card in cards]
            rates[side] = node.generate(SHAPES[0], engine)["rates"][engine.name]
        if side == "hamirt":
            found = [{"peak_bytes": one.trace.peak_tree(), "hz": round(one.trace.rate(), 1)} for one in samplers]
        node.stop(engine.name)
    result = {"cards": found, "cap_bytes": GENERATOR_MIB * MIB, "tokens_per_s": rates}
    return tp_bars(result), {"tp2": result}


def _in_turn(node: Node, most: int, steps: Sequence[str], take: Callable[[str], _T]) -> list[dict[str, _T]]:
    """Return rounds of all steps, in an order that is reversed from round to round, as far as time allows.

    Raises MeasureError where the first round fails; what fails later ends it.
    """
    rounds: list[dict[str, _T]] = []
    for number in range(most):
        begun = time.monotonic()
        try:
            rounds.append({step: take(step) for step in (steps if number % 2 == 0 else steps[::-1])})
        except MeasureError as error:
            if not rounds:
                raise
            print(f"  round {number + 1} is left out: {error}", flush=True)
            break
        if node.setup.left_s() < time.monotonic() - begun + ENDS_S:
            break
    return rounds


def _generators(node: Node, *needed: str) -> dict[str, Engine]:
    """Return the generators and both rerankers by name.

    The first start fills vLLM's compilation cache. Tenants come first, since the daemon admits none whose cap does not
    fit beside what native engines hold.
    """
    names = needed or ("h1", "h2", "n1", "n2")
    plans = [generator(name) for name in names]
    others = [tenant(node, "rerank"), native("rerank")]
    node.keep("n1", "n2", "h1", "h2", *(plan.name for plan in others))
    node.start(plans[0])
    return {engine.name: engine for engine in node.start(*others, *plans)}


def _saturating(node: Node, engine: Engine) -> tuple[Shape, dict[str, Any]]:
    """Return the load that keeps the card at work, or does so most, and how busy it was by what was tried."""
    tried: dict[str, Any] = {}
    best, most = SHAPES[0], -1.0
    for shape in SHAPES:
        busy = tried[str(shape)] = node.generate(shape, engine)["busy"]
        if busy is None or busy["engine"] >= BUSY_BAR:
            return shape, tried
        if busy["engine"] > most:
            best, most = shape, busy["engine"]
    return best, tried


@contextlib.contextmanager
def _capped(node: Node) -> Iterator[None]:
    for name, cap in CAPS.items():
        node.change(name, "--sm", str(cap))
    try:
        yield
    finally:
        for name in CAPS:
            node.change(name, "--sm", "none")


def _ranked(node: Node, asked: Engine, beside: list[Engine], shape: Shape) -> dict[str, Any]:
    """Return the rankings' milliseconds over a window, and what the generator beside makes."""
    with pace(asked, RANK_EVERY_S) as load:
        begun = time.monotonic() + node.asked.settle
        if beside:
            made = node.generate(shape, *beside)["rates"][beside[0].name]
        else:
            time.sleep(node.asked.settle + node.asked.window)
            made = 0.0
        taken = load.answers.between(begun, time.monotonic())
    if not taken:
        raise MeasureError(f"{asked.name} answered nothing: {dict(load.answers.errors)}")
    return {
        "taken_ms": [round(one, 2) for one in taken],
        "p50_ms": round(statistics.median(taken), 2),
        "errors": sum(load.answers.errors.values()),
        "tokens_per_s": made,
    }
