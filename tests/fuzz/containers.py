"""Requests for containers, most of them spoiled on the way, about one process that could be the init of any."""

import json
import random
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hamirt import tenants
from tests.fuzz.daemon import Asker, Daemon
from tests.fuzz.http_answers import GLANCE_SECONDS, Answer, exchange, fault_of
from tests.fuzz.outcome import Outcome
from tests.fuzz.request_cases import JSON, Request, Sending, mutated, whole

_FORM = "/v1/containers/"
_REQUESTS = 40
_PATIENCE_SECONDS = 10.0

Found = Callable[[str, object], None]
"""Notes that something was as it should not be."""


class Containers:
    """Has containers come and go beside the tenants that the fuzzer keeps books of, and leaves none behind."""

    def __init__(self, daemon: Daemon, outcome: Outcome, uuids: tuple[str, ...], found: Found) -> None:
        self._daemon = daemon
        self._outcome = outcome
        self._uuids = uuids
        self._found = found
        self.how = ""

    def episode(self, rng: random.Random, askers: tuple[Asker, ...]) -> None:
        """Send requests about a process; then end it, and see that all its tenants go."""
        before = self._folders()
        with subprocess.Popen(["/bin/sleep", "1000"], stdin=subprocess.DEVNULL) as init:
            try:
                for _ in range(_REQUESTS):
                    request = self._removal(rng) if rng.random() < 0.25 else self._containment(rng, init.pid)
                    self._send(rng.choice(askers), mutated(rng, request, self._uuids))
                self._valid(rng, askers[0], init.pid)
            finally:
                init.kill()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (left := self._folders() - before) and time.monotonic() < deadline:
            self._release_strangers(askers[0], left, init.pid)
            time.sleep(0.05)
        if left:
            self._found("the tenant of a container that has ended is not removed", left)
        if before - self._folders():
            self._found("a tenant went with a container that is not its own", before - self._folders())

    def _valid(self, rng: random.Random, asker: Asker, pid: int) -> None:
        """Have a container come and go without anything going wrong."""
        target = f"v{rng.getrandbits(32):x}"
        body = {"pid": pid, "annotations": {"hamirt.io/sm": "50", "hamirt.io/memory": "700MiB"}}
        asked = Request("PUT", f"{_FORM}{target}", json.dumps(body).encode(), (JSON,), target)
        first, again = (self._send(asker, whole(asked)) for _ in range(2))
        if (first.status, first.body) != (again.status, again.body):
            self._found("the same request has another answer", (first, again))
        if first.status != 200:
            return  # there may be no room
        undone = self._send(asker, whole(Request("DELETE", f"{_FORM}{target}?pid={pid}", target=target)))
        if not json.loads(undone.body).get("removed"):
            self._found("what a hook had made is not undone", undone.body)

    def _release_strangers(self, asker: Asker, left: set[str], own: int) -> None:
        """Undo what was made for a living process that a spoiled request happened to name."""
        for identity in left:
            record = tenants.read_record(self._daemon.root / "tenants" / identity)
            if record is not None and record.container is not None and record.pid != own:
                path = f"{_FORM}{quote(record.container)}?pid={record.pid}"
                self._send(asker, whole(Request("DELETE", path, target=record.container)))

    def _send(self, asker: Asker, sending: Sending) -> Answer:
        self.how = f"as {asker.uid}: " + " | ".join(repr(packet[:600]) for packet in sending.packets[:6])
        patience = _PATIENCE_SECONDS if sending.is_whole else GLANCE_SECONDS
        with self._daemon.connect(asker, patience) as connection:
            answers = exchange(connection, sending, _PATIENCE_SECONDS, hasty=False)
        self._outcome.count("sent", f"{sending.kind}, of containers")
        for answer in answers:
            self._outcome.count("answers", str(answer.status))
            if (fault := fault_of(answer)) is not None:
                self._found(fault, answer.body)
            if answer.status == 200 and b'"folder"' in answer.body:
                self._outcome.count("done", "PUT of a container")
                if not asker.is_admin:
                    self._found("a user made the tenant of a container", answer.body)
        if sending.is_whole and not answers:
            self._found("there was no answer", "")
        return answers[0] if answers else Answer(0, "", b"")

    def _folders(self) -> set[str]:
        return {folder.name for folder in tenants.folders(self._daemon.root)}

    def _containment(self, rng: random.Random, pid: int) -> Request:
        target = rng.choice(("web", f"c{rng.getrandbits(16):x}"))
        said: dict[str, Any] = {
            "hamirt.io/memory": rng.choice(("1GiB", "2%", "100%", "79GiB", "200GiB", "1")),
            "hamirt.io/sm": rng.choice(("1", "100")),
            "hamirt.io/weight": "7",
            "hamirt.io/class": rng.choice(("latency", "batch")),
            "hamirt.io/name": rng.choice(("web", "other")),
            "hamirt.io/gpu": rng.choice(("0", "count=2", "count=1", "0,1", *self._uuids)),
            "hamirt.io/policy": rng.choice(("binpack", "spread")),
            "nvidia.com/use-gputype": "H100,A100",
            "nvidia.com/nouse-gpuuuid": rng.choice(("", self._uuids[0])),
            "io.kubernetes.container.name": "main",
            "io.kubernetes.pod.name": "train",
        }
        annotations = {key: value for key, value in said.items() if rng.random() < 0.4}
        settings = {key: value for key, value in annotations.items() if "nvidia" not in key and rng.random() < 0.1}
        body = {"pid": pid, "annotations": {"hamirt.io/memory": "1GiB", **annotations}, "settings": settings}
        return Request("PUT", f"{_FORM}{target}", json.dumps(body).encode(), (JSON,), target)

    def _removal(self, rng: random.Random) -> Request:
        query = rng.choice(("", "", "?pid=2", "?pid=x", "?force=1"))
        return Request("DELETE", f"{_FORM}web{query}", target="web")
