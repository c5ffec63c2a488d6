"""Looks at the node again and again, in a thread of its own, and acts by the policy on what it sees.

NVML may take as long as it pleases: leases, requests and the reaper do not wait for it.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hamirt.daemon import enforce, policy
from hamirt.daemon.drift import Drift
from hamirt.daemon.refusal import UNAVAILABLE, RefusalError
from hamirt.daemon.sampler import Sampler
from hamirt.daemon.settings import Settings
from hamirt.model import Node, Supervisor, TenantPages
from hamirt.topology import Topology

_LEAST_GAP_SECONDS = 0.1  # between two samples, however much happens
_FIRST_SECONDS = 2.0  # how long a request waits for the first sample
_MEASURE_SECONDS = 0.03  # how long shims have to look in NVML, which takes them a millisecond
_STALE_SECONDS = 3.0  # a node older than this, and than three samples, says so

_T = TypeVar("_T")

Tell = Callable[..., None]
"""Counts and logs an event; from any thread."""
Pages = Callable[[], Sequence[TenantPages]]
"""Reads all tenants; from any thread."""


class Watch:
    """The last sample of the node, and how sampling goes."""

    def __init__(self, root: Path, tell: Tell, *, sim: bool) -> None:
        self.samples, self.failures, self.seconds = 0, 0, 0.0
        self.last_unix_seconds: float | None = None
        self._tell = tell
        self._sampler = Sampler(sim, root)
        self._thread = ThreadPoolExecutor(1, "sampler")
        self._running: Future[Any] | None = None
        self._state = policy.State()
        self._drift = Drift()
        self._node: Node | None = None
        self.topology = Topology()
        """How close the cards are to each other; read when there are other cards than before."""
        self._cards: tuple[str, ...] = ()
        self._node_at = 0.0
        self._patience = _STALE_SECONDS
        self._first, self._wanted = asyncio.Event(), asyncio.Event()

    @property
    def nvml_answers(self) -> bool:
        """Whether NVML answered the last time."""
        return self._node is not None and self._node.driver is not None

    def hurry(self) -> None:
        """Have the next sample taken now, since something changed."""
        self._wanted.set()

    async def node(self) -> Node:
        """Return the last sample; one that is old says so.

        Raises RefusalError where there is none yet.
        """
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._first.wait(), _FIRST_SECONDS)
        if self._node is None:
            raise RefusalError(UNAVAILABLE, "NVML has not answered since the daemon started: try again soon")
        age = time.monotonic() - self._node_at
        if age <= self._patience:
            return self._node
        old = f"NVML does not answer: what is shown is {age:.0f} s old"
        return replace(self._node, problem=f"{self._node.problem}\n{old}" if self._node.problem else old)

    async def go_on(
        self,
        pages: Pages,
        supervisor: Callable[[], Supervisor],
        settings: Callable[[], Settings],
        ask_to_measure: Callable[[Iterable[str]], None],
    ) -> None:
        """Take samples until it is cancelled."""
        while True:
            began = time.monotonic()
            self._wanted.clear()
            chosen = settings()
            self._patience = max(_STALE_SECONDS, 3 * chosen.sample_seconds)
            try:
                node = await self._sample(pages, ask_to_measure)
                self._node, self._node_at = replace(node, supervisor=supervisor()), began
                self._first.set()
                await self._in_thread(self._act, self._node, chosen)
                self.last_unix_seconds = time.time()
                self.failures += self._node.driver is None
            except Exception as error:  # ours: the next sample may do better, and the tenants still need the rest of us
                self.failures += 1
                self._tell("sample_failed", f"the node could not be sampled: {error!r}")
            self.samples += 1
            self.seconds += time.monotonic() - began
            await asyncio.sleep(_LEAST_GAP_SECONDS)
            left = began + chosen.sample_seconds - time.monotonic()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), max(0.0, left))

    def close(self) -> None:
        """Let go of NVML; where it hangs, leave it hanging and end the process."""
        if self._running is not None and not self._running.done():
            os._exit(0)
        self._thread.shutdown()
        self._sampler.close()

    async def _sample(self, pages: Pages, ask_to_measure: Callable[[frozenset[str]], None]) -> Node:
        """Return a sample; where ledger and NVML part, of the moment after the tenants concerned looked themselves."""
        node = await self._in_thread(self._look, pages)
        asked = self._drift.find(node)
        if asked:
            ask_to_measure(asked)
            await asyncio.sleep(_MEASURE_SECONDS)
            node = await self._in_thread(self._look, pages)
            ask_to_measure(self._drift.find(node))
        return node

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        running = self._thread.submit(work, *arguments)
        self._running = running
        return await asyncio.wrap_future(running)

    def _look(self, pages: Pages) -> Node:
        node = self._sampler.sample(pages())
        cards = tuple(card.uuid for card in node.driver.cards) if node.driver else ()
        if cards != self._cards:
            self.topology, self._cards = self._sampler.topology(), cards
        return node

    def _act(self, node: Node, settings: Settings) -> None:
        now, verdicts = time.monotonic(), self._sampler.verdicts
        self._state, actions = policy.judge(self._state, node, now, settings, verdicts)
        for event in enforce.carry_out(actions, self._sampler.anchors):
            self._tell(event.kind, event.text, tenant=event.tenant)
