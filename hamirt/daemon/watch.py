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

from hamirt.daemon import enforce, policy
from hamirt.daemon.refusal import UNAVAILABLE, RefusalError
from hamirt.daemon.sampler import Sampler
from hamirt.daemon.settings import Settings
from hamirt.model import Node, Supervisor, TenantPages
from hamirt.units import MIB

_LEAST_GAP_SECONDS = 0.1  # between two samples, however much happens
_FIRST_SECONDS = 2.0  # how long a request waits for the first sample
_STALE_SECONDS = 3.0  # a node older than this, and than three samples, says so
_DRIFT_BYTES = 8 * MIB  # a context's measurement is no more exact than that

Tell = Callable[..., None]
"""Counts and logs an event; from any thread."""
Pages = Callable[[], Sequence[TenantPages]]
"""Reads all tenants; from any thread."""


def drifting(node: Node) -> set[str]:
    """Return the tenants (by id) whose ledger says something else than NVML."""
    return {
        tenant.id
        for tenant in node.tenants
        for card in tenant.cards
        if card.footprint_bytes is not None and abs(card.footprint_bytes - card.used_bytes) > _DRIFT_BYTES
    }


class Watch:
    """The last sample of the node, and how sampling goes."""

    def __init__(self, root: Path, tell: Tell, *, sim: bool) -> None:
        self.samples, self.failures, self.seconds = 0, 0, 0.0
        self.last_unix_seconds: float | None = None
        self._tell = tell
        self._sampler = Sampler(sim, root)
        self._thread = ThreadPoolExecutor(1, "sampler")
        self._running: Future[Node] | None = None
        self._state = policy.State()
        self._node: Node | None = None
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
            self._running = self._thread.submit(self._look, pages, supervisor(), chosen)
            try:
                self._node, self._node_at = await asyncio.wrap_future(self._running), began
                self._first.set()
                ask_to_measure(drifting(self._node))
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

    def _look(self, pages: Pages, supervisor: Supervisor, settings: Settings) -> Node:
        node = replace(self._sampler.sample(pages()), supervisor=supervisor)
        now, verdicts = time.monotonic(), self._sampler.verdicts
        self._state, actions = policy.judge(self._state, node, now, settings, verdicts)
        for event in enforce.carry_out(actions, self._sampler.anchors):
            self._tell(event.kind, event.text, tenant=event.tenant)
        return node
