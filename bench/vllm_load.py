"""Requests to engines from a thread: completions that keep a card at work, and others at a steady pace."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.vllm_models import EMBED, VOCABULARY, WORDS
from bench.vllm_serve import Engine

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_S = 120.0
STOP_S = 30.0
SPECIAL_TOKENS = 3
DOCUMENTS, DOCUMENT_WORDS = 8, 60


@dataclass(frozen=True, slots=True)
class Shape:
    """A saturating load: so many requests at a time, each of so many tokens in and out."""

    streams: int
    prompt: int
    answer: int

    def __str__(self) -> str:
        return f"{self.streams} streams, {self.prompt} tokens in, {self.answer} out"


@dataclass(slots=True)
class Answers:
    """What came of the requests: when each was asked (time.monotonic()), its milliseconds, errors by kind."""

    asked: list[float] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def between(self, start: float, end: float) -> list[float]:
        """Return the milliseconds of what was asked between two moments."""
        return [took for at, took in zip(self.asked, self.taken_ms, strict=True) if start <= at < end]


class Requests:
    """Asks in a thread of its own while its `with` block runs; what is under way then is given up."""

    def __init__(self, work: Callable[[aiohttp.ClientSession, Answers], Sequence[Awaitable[None]]]) -> None:
        self.answers = Answers()
        self._work = work
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Requests:
        self._task = self._loop.create_task(self._all())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        assert self._task is not None
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _all(self) -> None:
        import aiohttp

        limit = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=limit) as session:
            await asyncio.gather(*self._work(session, self.answers))


def saturate(engine: Engine, shape: Shape) -> Requests:
    """Return a load that keeps `shape.streams` completions under way, no two with the same prompt."""
    luck = random.Random(engine.name)

    async def stream(session: aiohttp.ClientSession, answers: Answers, first: int) -> None:
        body: dict[str, Any] = {"model": engine.plan.model, "ignore_eos": True, "temperature": 0.0}
        answer = first
        while True:
            prompt = [luck.randrange(SPECIAL_TOKENS, VOCABULARY) for _ in range(shape.prompt)]
            body |= {"prompt": prompt, "max_tokens": answer}
            await _ask(session, answers, engine.url + "/v1/completions", body, time.monotonic())
            answer = shape.answer

    def work(session: aiohttp.ClientSession, answers: Answers) -> list[Awaitable[None]]:
        # first answers of all lengths, so that the streams do not begin and end together
        firsts = [max(1, shape.answer * (at + 1) // shape.streams) for at in range(shape.streams)]
        return [stream(session, answers, first) for first in firsts]

    return Requests(work)


def pace(engine: Engine, every_s: float) -> Requests:
    """Return a load of one ranking or embedding each so many seconds, whose time counts from when it was due."""
    luck = random.Random(engine.name)

    def text(words: int) -> str:
        return " ".join(luck.choices(WORDS, k=words))

    def request() -> tuple[str, dict[str, Any]]:
        documents = [text(DOCUMENT_WORDS) for _ in range(DOCUMENTS)]
        if engine.plan.model == EMBED:
            return "/v1/embeddings", {"model": EMBED, "input": documents}
        return "/v1/rerank", {"model": engine.plan.model, "query": text(10), "documents": documents}

    async def regularly(session: aiohttp.ClientSession, answers: Answers) -> None:
        due = time.monotonic()
        waiting: set[asyncio.Task[None]] = set()
        try:
            while True:
                path, body = request()
                one = asyncio.ensure_future(_ask(session, answers, engine.url + path, body, due))
                waiting.add(one)
                one.add_done_callback(waiting.discard)
                due += every_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            # before the session is closed, in which they would fail and count as errors
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    return Requests(lambda session, answers: [regularly(session, answers)])


async def _ask(session: aiohttp.ClientSession, answers: Answers, url: str, body: Any, due: float) -> None:
    import aiohttp

    try:
        async with session.post(url, json=body) as response:
            await response.read()
            failed = None if response.status == 200 else f"HTTP {response.status}"
    except asyncio.TimeoutError:
        failed = f"no answer within {TIMEOUT_S:g} s"
    except (aiohttp.ClientError, OSError) as error:
        failed = type(error).__name__
    if failed is None:
        answers.asked.append(due)
        answers.taken_ms.append((time.monotonic() - due) * 1e3)
        return
    answers.errors[failed] += 1
    await asyncio.sleep(0.1)  # an engine that is gone refuses at once
