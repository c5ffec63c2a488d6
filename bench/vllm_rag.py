"""Load for two engines as retrieval makes it: embed a question, take the nearest documents, have them ranked.

    python3 -m bench.vllm_rag --embed URL --rerank URL [--queries 2000] [--concurrency 16] [--corpus 3000] [--json FILE]

The engines are vLLM's OpenAI servers, or answer as those do. The documents and the questions are made up from a seed,
so that every run asks the same. The nearest documents are by exact cosine. Ends with 1 where a query failed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import percentile
from bench.vllm_models import WORDS

if TYPE_CHECKING:
    import aiohttp
    import numpy
    from numpy.typing import NDArray

    Vectors = NDArray[numpy.float32]

STAGES = ("embed", "nearest", "rerank", "total")
PERCENTS = (50, 95, 99)
DOCUMENT_WORDS, QUERY_WORDS = (40, 80), (6, 14)
TIMEOUT_S = 120.0
MOST_KINDS_SHOWN = 20


class RagError(Exception):
    """A stage failed; the text is the kind of the error, the same for all errors of that kind."""


@dataclass(slots=True)
class Outcome:
    """What came of a run: the milliseconds of each stage, and errors by kind."""

    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    errors: Counter[str] = field(default_factory=Counter)

    def as_dict(self, seconds: float) -> dict[str, Any]:
        """Return it for the JSON file; `seconds` is how long it took."""
        done = len(self.stages_ms["total"])
        return {
            "queries": done + sum(self.errors.values()),
            "seconds": round(seconds, 3),
            "queries_per_s": round(done / seconds, 3) if seconds > 0 else 0.0,
            "stages": {stage: summary(values) for stage, values in self.stages_ms.items()},
            "errors": dict(self.errors.most_common(MOST_KINDS_SHOWN)),
            "failed": sum(self.errors.values()),
        }


def summary(values_ms: Sequence[float]) -> dict[str, float]:
    """Return how many there are and their percentiles, by nearest rank; of none only that."""
    if not values_ms:
        return {"count": 0}
    shown = {f"p{percent}_ms": round(percentile(values_ms, percent), 3) for percent in PERCENTS}
    return {"count": len(values_ms), **shown, "max_ms": round(max(values_ms), 3)}


def texts(count: int, seed: str, lengths: tuple[int, int]) -> list[str]:
    """Return texts of words that the models of bench/vllm_models.py know, the same for the same seed."""
    luck = random.Random(seed)
    return [" ".join(luck.choices(WORDS, k=luck.randint(*lengths))) for _ in range(count)]


class Chain:
    """The two engines and the documents; `vectors` is None until they are embedded."""

    def __init__(self, session: aiohttp.ClientSession, embed: str, rerank: str, documents: Sequence[str]) -> None:
        self._session = session
        self._urls = {"embed": embed.rstrip("/"), "rerank": rerank.rstrip("/")}
        self._models: dict[str, str] = {}
        self._documents = documents
        self.vectors: Vectors | None = None

    async def start(self, batch: int, concurrency: int, tick: Callable[[int], None]) -> None:
        """Ask both engines for their models and embed the documents. Raises RagError."""
        for stage in self._urls:
            answer = await self._ask(stage, "/v1/models", None)
            with _shape(stage):
                self._models[stage] = str(answer["data"][0]["id"])
        if self.vectors is None:
            import numpy

            parts = [self._documents[at : at + batch] for at in range(0, len(self._documents), batch)]
            gate = asyncio.Semaphore(concurrency)

            async def one(part: Sequence[str]) -> Vectors:
                async with gate:
                    found = await self.embed(part)
                    tick(len(part))
                    return found

            self.vectors = numpy.concatenate(await asyncio.gather(*(one(part) for part in parts)))

    async def query(self, text: str, nearest: int) -> dict[str, float]:
        """Answer one question; return the milliseconds of each stage. Raises RagError."""
        begun = time.perf_counter()
        vector = (await self.embed([text]))[0]
        embedded = time.perf_counter()
        found = [self._documents[index] for index in self.nearest(vector, nearest)]
        chosen = time.perf_counter()
        await self.rerank(text, found)
        ended = time.perf_counter()
        moments = (embedded - begun, chosen - embedded, ended - chosen, ended - begun)
        return {stage: seconds * 1e3 for stage, seconds in zip(STAGES, moments, strict=True)}

    async def embed(self, inputs: Sequence[str]) -> Vectors:
        """Return a vector of length 1 for each text, in order. Raises RagError."""
        import numpy

        body = {"model": self._models["embed"], "input": list(inputs), "encoding_format": "base64"}
        answer = await self._ask("embed", "/v1/embeddings", body)
        with _shape("embed"):
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            found = numpy.array([_vector(row["embedding"]) for row in rows], dtype=numpy.float32)
        if found.ndim != 2 or len(found) != len(inputs):
            raise RagError(f"embed: {len(found)} vectors for {len(inputs)} texts")
        lengths = numpy.linalg.norm(found, axis=1, keepdims=True)
        if not numpy.isfinite(found).all() or not lengths.all():
            raise RagError("embed: a vector is not finite, or 0")
        return numpy.asarray(found / lengths, dtype=numpy.float32)

    def nearest(self, vector: Vectors, count: int) -> list[int]:
        """Return the indexes of the documents with the largest cosines, the largest first. `start` comes before."""
        import numpy

        assert self.vectors is not None
        cosines = self.vectors @ vector
        some = numpy.argpartition(-cosines, min(count, len(cosines) - 1))[:count]
        return [int(index) for index in some[numpy.argsort(-cosines[some], kind="stable")]]

    async def rerank(self, query: str, documents: Sequence[str]) -> list[tuple[int, float]]:
        """Return index and score of each document, the best first. Raises RagError."""
        body = {"model": self._models["rerank"], "query": query, "documents": list(documents)}
        answer = await self._ask("rerank", "/v1/rerank", body)
        with _shape("rerank"):
            found = [(int(row["index"]), float(row["relevance_score"])) for row in answer["results"]]
        if sorted(index for index, _ in found) != list(range(len(documents))):
            raise RagError("rerank: not one score for each document")
        if any(score != score for _, score in found):
            raise RagError("rerank: a score is not a number")
        return found

    async def _ask(self, stage: str, path: str, body: object) -> Any:
        import aiohttp

        url = self._urls[stage] + path
        try:
            async with self._session.request("GET" if body is None else "POST", url, json=body) as response:
                if response.status != 200:
                    raise RagError(f"{stage}: HTTP {response.status}")
                return await response.json()
        except asyncio.TimeoutError:
            raise RagError(f"{stage}: no answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise RagError(f"{stage}: {type(error).__name__}") from None


@contextlib.contextmanager
def _shape(stage: str) -> Iterator[None]:
    """Make one kind of error of whatever an answer lacks."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RagError(f"{stage}: the answer has another form ({type(error).__name__})") from None


def _vector(given: object) -> Any:
    import numpy

    return numpy.frombuffer(base64.b64decode(given), dtype="<f4") if isinstance(given, str) else given


async def ask_all(
    chain: Chain, queries: Sequence[str], concurrency: int, nearest: int, tick: Callable[[int], None]
) -> Outcome:
    """Ask all queries, so many at a time; `tick` is called after each."""
    outcome, left = Outcome(), iter(queries)

    async def worker() -> None:
        for text in left:
            try:
                taken = await chain.query(text, nearest)
            except RagError as error:
                outcome.errors[str(error)] += 1
            else:
                for stage, value in taken.items():
                    outcome.stages_ms[stage].append(value)
            tick(1)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return outcome


async def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Do what the options ask for; return the JSON document. Raises RagError where no query could be asked."""
    import aiohttp
    import numpy

    documents = texts(asked.corpus, f"{asked.seed}: documents", DOCUMENT_WORDS)
    queries = texts(asked.skip + asked.queries, f"{asked.seed}: queries", QUERY_WORDS)[asked.skip :]
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        chain = Chain(session, asked.embed, asked.rerank, documents)
        if asked.vectors is not None and asked.vectors.exists():
            chain.vectors = numpy.load(asked.vectors)
        begun = time.perf_counter()
        with _bar("documents", asked.corpus) as tick:
            await chain.start(asked.batch, asked.concurrency, tick)
        embedded = time.perf_counter()
        if asked.vectors is not None and chain.vectors is not None:
            numpy.save(asked.vectors, chain.vectors)
        with _bar("queries", asked.queries) as tick:
            outcome = await ask_all(chain, queries, asked.concurrency, asked.nearest, tick)
        ended = time.perf_counter()
    options = {name: getattr(asked, name) for name in ("concurrency", "corpus", "nearest", "batch", "seed")}
    return {"options": options, "embed_corpus_s": round(embedded - begun, 3), **outcome.as_dict(ended - embedded)}


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def table(found: dict[str, Any]) -> str:
    """Return the figures as lines for a person."""
    lines = [f"{found['queries_per_s']:.1f} queries/s, {found['queries']} in {found['seconds']:.1f} s"]
    for stage, one in found["stages"].items():
        shown = ", ".join(f"p{percent} {one[f'p{percent}_ms']:.1f}" for percent in PERCENTS) if one["count"] else "none"
        lines.append(f"{stage:>8}: {shown} ms")
    lines += [f"   error: {count} x {kind}" for kind, count in found["errors"].items()] or ["no error"]
    return "\n".join(lines)


def main() -> int:
    """Run the load that the options ask for; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--embed", required=True, metavar="URL", help="the engine with /v1/embeddings")
    options.add_argument("--rerank", required=True, metavar="URL", help="the engine with /v1/rerank")
    options.add_argument("--queries", type=int, default=2000)
    options.add_argument("--skip", type=int, default=0, help="queries of the seed that come before the first")
    options.add_argument("--concurrency", type=int, default=16, help="queries at a time")
    options.add_argument("--corpus", type=int, default=3000, help="documents")
    options.add_argument("--nearest", type=int, default=20, help="documents that are ranked for a query")
    options.add_argument("--batch", type=int, default=64, help="documents embedded by one request")
    options.add_argument("--seed", default="hamirt")
    options.add_argument("--vectors", type=Path, metavar="FILE.npy", help="keeps the documents' vectors for a next run")
    options.add_argument("--json", type=Path, metavar="FILE", help="for the figures")
    asked = options.parse_args()
    try:
        found = asyncio.run(measure(asked))
    except RagError as error:
        print(f"error: the engines are not ready: {error}", file=sys.stderr)
        return 1
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
