"""The load that retrieval makes, against servers that answer as vLLM's do: its figures, its chain, its errors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bench.vllm_models import EMBED, RERANK, WORDS
from bench.vllm_rag import DOCUMENT_WORDS, Chain, main, summary, texts
from tests.gpu.vllm_fake import application

SMALL = ("--queries", "9", "--corpus", "20", "--batch", "6", "--nearest", "4", "--concurrency", "3")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, int], web.Response | None]
"""Gets a request and how many of its path came before; returns an answer in place of the right one, or None."""


class Servers:
    """Both engines, in this event loop; counts what they are asked."""

    def __init__(self, fault: Fault = lambda request, before: None) -> None:
        self.asked: dict[str, int] = {}
        self._fault = fault
        self._runners: list[web.AppRunner] = []

    async def __aenter__(self) -> list[str]:
        return ["--embed", await self._start(EMBED), "--rerank", await self._start(RERANK)]

    async def __aexit__(self, *_: object) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _start(self, model: str) -> str:
        async def idle(_: int) -> None:
            pass

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            before = self.asked.get(request.path, 0)
            self.asked[request.path] = before + 1
            return self._fault(request, before) or await handler(request)

        app = application(model, idle)
        app.middlewares.append(count)
        runner = web.AppRunner(app)
        self._runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        return f"http://{host}:{port}"


def run(servers: Servers, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run the program against servers, with small numbers; return its exit status."""

    async def both() -> int:
        async with servers as urls:
            monkeypatch.setattr(sys, "argv", ["vllm_rag", *urls, *SMALL, *options])
            return await asyncio.to_thread(main)

    return asyncio.run(both())


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(200, 0, -1)]

    assert summary(values) == {"count": 200, "p50_ms": 100, "p95_ms": 190, "p99_ms": 198, "max_ms": 200}
    assert summary([]) == {"count": 0}


def test_texts_are_the_same_for_the_same_seed() -> None:
    found = texts(50, "one", DOCUMENT_WORDS)

    assert found == texts(50, "one", DOCUMENT_WORDS)
    assert found != texts(50, "two", DOCUMENT_WORDS)
    assert {word for text in found for word in text.split()} <= set(WORDS)
    assert all(DOCUMENT_WORDS[0] <= len(text.split()) <= DOCUMENT_WORDS[1] for text in found)


def test_nearest_are_the_largest_cosines_in_order() -> None:
    documents = texts(30, "documents", DOCUMENT_WORDS)

    async def look() -> tuple[Any, Any, list[int]]:
        import aiohttp

        async with Servers() as urls, aiohttp.ClientSession() as session:
            chain = Chain(session, urls[1], urls[3], documents)
            await chain.start(8, 2, lambda count: None)
            vector = (await chain.embed([documents[17]]))[0]
            return chain.vectors, vector, chain.nearest(vector, 5)

    vectors, vector, found = asyncio.run(look())

    cosines = [float(row @ vector) for row in vectors]
    assert found == sorted(range(30), key=lambda index: -cosines[index])[:5]
    assert found[0] == 17
    assert cosines[17] == pytest.approx(1, abs=1e-5)


def test_every_stage_of_every_query_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers, path = Servers(), tmp_path / "rag.json"

    assert run(servers, monkeypatch, "--json", str(path)) == 0

    found = json.loads(path.read_text())
    assert {stage: one["count"] for stage, one in found["stages"].items()} == dict.fromkeys(
        ("embed", "nearest", "rerank", "total"), 9
    )
    assert found["stages"]["total"]["p50_ms"] >= found["stages"]["rerank"]["p50_ms"] > 0
    assert (found["queries"], found["failed"], found["errors"]) == (9, 0, {})
    assert servers.asked == {"/v1/models": 2, "/v1/embeddings": 4 + 9, "/v1/rerank": 9}


def test_vectors_are_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Servers(), Servers()
    kept = ("--vectors", str(tmp_path / "vectors.npy"))

    assert run(first, monkeypatch, *kept) == run(second, monkeypatch, *kept) == 0

    assert (first.asked["/v1/embeddings"], second.asked["/v1/embeddings"]) == (4 + 9, 9)


def _fault(request: web.Request, before: int) -> web.Response | None:
    """Fail 2 of 9 rankings and 3 embeddings after those of the documents, each in another way."""
    answers: dict[tuple[str, int], web.Response] = {
        ("/v1/rerank", 1): web.Response(status=500),
        ("/v1/rerank", 3): web.json_response({"results": [{"index": 0, "relevance_score": 1.0}]}),
        ("/v1/embeddings", 5): web.json_response({"data": [{"index": 0, "embedding": [1.0, float("nan")]}]}),
        ("/v1/embeddings", 6): web.json_response({"data": []}),
        ("/v1/embeddings", 7): web.json_response({"rows": []}),
    }
    return answers.get((request.path, before))


def test_errors_are_counted_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rag.json"

    assert run(Servers(_fault), monkeypatch, "--json", str(path)) == 1

    found = json.loads(path.read_text())
    assert found["errors"] == {
        "rerank: HTTP 500": 1,
        "rerank: not one score for each document": 1,
        "embed: a vector is not finite, or 0": 1,
        "embed: 0 vectors for 1 texts": 1,
        "embed: the answer has another form (KeyError)": 1,
    }
    assert (found["queries"], found["failed"], found["stages"]["total"]["count"]) == (9, 5, 4)
    assert "error: 1 x rerank: HTTP 500" in capsys.readouterr().out


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(sys, "argv", ["vllm_rag", "--embed", nobody, "--rerank", nobody])

    assert main() == 1

    assert capsys.readouterr().err == "error: the engines are not ready: embed: ClientConnectorError\n"
