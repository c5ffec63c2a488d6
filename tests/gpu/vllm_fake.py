"""Stands in for vLLM's server on the simulated card: its arguments, its answers, its memory, its work.

It allocates what a model of that name would, sizes a KV cache as vLLM does, and runs a kernel for each request and for
each step of a generation.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import ctypes
import random
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from bench.vllm_models import EMBED, LARGE, RERANK, SMALL
from tests.gpu.cuda import Cuda

MIB = 1 << 20
WEIGHTS_MIB = {EMBED: 1100, RERANK: 1100, SMALL: 2100, LARGE: 4000}
KV_TOKEN_BYTES = 128 << 10
REQUEST_NS, STEP_NS = 1_000_000, 5_000_000
DIMENSIONS = 16
PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry hm_spin(.param .u64 p_ns) { ret; }
"""


class Card(Cuda):
    """Device 0 with a kernel that takes a given time."""

    def __init__(self) -> None:
        super().__init__()
        module, self._spin = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
        self._call("cuModuleGetFunction", ctypes.byref(self._spin), module, ctypes.c_char_p(b"hm_spin"))

    def spin(self, nanoseconds: int) -> None:
        """Run the kernel and wait for it."""
        argument = ctypes.c_uint64(nanoseconds)
        arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(argument), ctypes.c_void_p))
        one = [ctypes.c_uint(1)] * 6
        self._call("cuLaunchKernel", self._spin, *one, ctypes.c_uint(0), None, arguments, None)
        self._call("cuCtxSynchronize")


class Generation:
    """The requests under way, each of which gets a token a step, and the tokens so far."""

    def __init__(self, work: Callable[[int], Any]) -> None:
        self.tokens = 0
        self._work = work
        self._left: dict[asyncio.Future[None], int] = {}
        self._task: asyncio.Task[None] | None = None

    async def run(self, tokens: int) -> None:
        """Return once so many tokens were made."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left[done] = tokens
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._steps())
        try:
            await done
        finally:
            self._left.pop(done, None)

    async def _steps(self) -> None:
        while self._left:
            await self._work(STEP_NS)
            self.tokens += len(self._left)
            for done in list(self._left):
                self._left[done] -= 1
                if self._left[done] == 0 and not done.done():
                    done.set_result(None)


def application(model: str, work: Callable[[int], Any]) -> web.Application:
    """Return the server; `work` is a coroutine that takes so many ns of the card."""
    generation = Generation(work)

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": model}]})

    async def embeddings(request: web.Request) -> web.Response:
        body = await request.json()
        await work(REQUEST_NS)
        rows = [{"index": at, "embedding": vector(text)} for at, text in enumerate(body["input"])]
        return web.json_response({"data": rows[::-1]})

    async def rerank(request: web.Request) -> web.Response:
        body = await request.json()
        await work(REQUEST_NS)
        rows = [{"index": at, "relevance_score": 1 / (1 + at)} for at in range(len(body["documents"]))]
        return web.json_response({"results": rows})

    async def completions(request: web.Request) -> web.Response:
        body = await request.json()
        await generation.run(int(body["max_tokens"]))
        return web.json_response({"choices": [{"text": ""}]})

    async def metrics(_: web.Request) -> web.Response:
        name = "vllm:generation_tokens_total"
        return web.Response(
            text=f'# TYPE {name} counter\n{name}{{engine="0",model_name="{model}"}} {generation.tokens}\n'
        )

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/v1/models", models), web.get("/metrics", metrics)])
    app.add_routes([web.post("/v1/embeddings", embeddings), web.post("/v1/rerank", rerank)])
    app.add_routes([web.post("/v1/completions", completions)])
    return app


def vector(text: str) -> str:
    """Return a text's vector as base64 of floats, the same for the same text."""
    luck = random.Random(text)
    return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *(luck.gauss(0, 1) for _ in range(DIMENSIONS)))).decode()


def _load(card: Card, asked: argparse.Namespace) -> None:
    weights = WEIGHTS_MIB[asked.served_model_name] * MIB
    _, total = card.info()
    card.allocate(weights)
    card.spin(REQUEST_NS)
    if asked.served_model_name in (SMALL, LARGE):
        size = asked.kv_cache_memory_bytes or int(total * asked.gpu_memory_utilization) - weights
        card.allocate(size // MIB * MIB)
        print(f"INFO GPU KV cache size: {size // KV_TOKEN_BYTES:,} tokens", flush=True)


def main() -> None:
    """Serve the model that the command line names."""
    options = argparse.ArgumentParser()
    options.add_argument("--served-model-name", required=True)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    options.add_argument("--kv-cache-memory-bytes", type=int, default=0)
    asked, _ = options.parse_known_args()
    with ThreadPoolExecutor(1) as pool:  # the context is current in this one thread
        card = pool.submit(Card).result()
        pool.submit(_load, card, asked).result()

        async def work(nanoseconds: int) -> None:
            await asyncio.get_running_loop().run_in_executor(pool, card.spin, nanoseconds)

        web.run_app(application(asked.served_model_name, work), host="127.0.0.1", port=asked.port, print=None)


if __name__ == "__main__":
    main()
