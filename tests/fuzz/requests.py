"""Sends the daemon request after request, most of them spoiled on the way, and knows which tenants there must be.

    python -m tests.fuzz.requests --count N --seed N --root FOLDER --out FILE [--data-file FILE]

Every complete request gets an answer, every refusal is a sentence in JSON (or HTTP's own, for what is no HTTP), and
nothing ever happens to another tenant than the one that was named by somebody who may. The environment is that of
__main__.py.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hamirt import config, exporter, region, wire
from hamirt._region import ffi
from hamirt.model import LatencyClass
from hamirt.region import DEVICES
from tests.fuzz import request_cases
from tests.fuzz.containers import Containers
from tests.fuzz.daemon import Asker, Daemon, askers, running
from tests.fuzz.http_answers import GLANCE_SECONDS, Answer, NoHttpError, exchange, fault_of, read_answers
from tests.fuzz.outcome import Outcome, TooManyFindings, growth
from tests.fuzz.request_cases import Request, Sending, mutated, whole, written

UUIDS = tuple(f"GPU-5a1e0000-0000-4000-8000-{index:012x}" for index in range(2))
_GATE_BYTES = ffi.sizeof("struct hm_gate")
_LIVE = [(ffi.offsetof("struct hm_limits", "device", at, "gate"), _GATE_BYTES) for at in range(DEVICES)]
_LIVE.append((ffi.offsetof("struct hm_limits", "lease_ns"), 8))  # with the gates what changes by itself
_LOOKS = 20
_FILES = 5  # that the daemon keeps open for a tenant: two pages, the arbiter's for one, `alive`, and a pidfd
_MOST_TENANTS = 12
_PATIENCE_SECONDS = 10.0
_CHECK_EVERY = 200
_INHABIT_EVERY = 500
_ORPHAN_EVERY = 10_000
_CONTAIN_EVERY = 500
_WARM_UP = 0.2  # of the cases


@dataclass(slots=True)
class Made:
    """A tenant as it must be: its limits page without what changes by itself, and who asked for it with what."""

    name: str
    asker: Asker
    request: Request
    page: bytes


class Fuzzer:
    """Sends cases to one daemon, and keeps the books of what it should have done."""

    def __init__(self, daemon: Daemon, outcome: Outcome, seed: int) -> None:
        self._daemon = daemon
        self._outcome = outcome
        self._seed = seed
        self._askers = askers()
        self._containers = Containers(daemon, outcome, UUIDS, self._found)
        self._case, self._how = 0, ""
        self._tenants: dict[str, Made] = {}
        self._unsure: set[str] = set()
        self._unsure_before: set[str] = set()
        self._unknown = self._unknown_before = 0
        rng = random.Random(f"{seed}/neighbours")
        self._neighbours: tuple[str, ...] = ()  # while they are made
        self._neighbours = tuple(self._make(rng) for _ in range(2))
        self._base = min(map(self._files, range(_LOOKS))) - _FILES * len(self._tenants)

    def run(self, case: int) -> None:
        """Send a request, spoiled or not, and look at what comes of it."""
        self._case = case
        try:
            self._run(random.Random(f"{self._seed}/{case}"), case)
        except TooManyFindings:
            raise
        except Exception as error:  # what it answered made no sense to us
            self._outcome.crashed(case, error, self._how)

    def _run(self, rng: random.Random, case: int) -> None:
        if case % _INHABIT_EVERY == _INHABIT_EVERY // 2:
            self._inhabited(rng)
        if case % _ORPHAN_EVERY == _ORPHAN_EVERY // 20:
            self._orphaned(rng)
        if case % _CONTAIN_EVERY == _CONTAIN_EVERY // 4:
            self._containers.episode(rng, self._askers)
        asker = rng.choice(self._askers)
        if rng.random() < 0.04:
            self._ask_metrics(rng)
        else:
            request = self._choose(rng, asker)
            sending = mutated(rng, request, UUIDS)
            hasty = rng.random() < (0.01 if sending.is_whole else 0.3)
            self._send(asker, sending, hasty=hasty)
        if case % _CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Compare the root, the pages and the daemon's descriptors with the books."""
        self._how = "what lies there after some requests"
        answer = self._ask(self._askers[0], Request("GET", "/v1/node"))
        shown = {tenant.id for tenant in wire.node_from_json(json.loads(answer.body)).tenants}
        if not {*self._neighbours} <= shown:
            self._found("the neighbours are not shown", shown)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        partial = self._reconcile()
        while partial or self._daemon.holdings().descriptors != self._expected():
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
            partial = self._reconcile()
        now = self._daemon.holdings().descriptors
        if partial:
            self._found("half a folder is left", partial)
        if now != self._expected():
            self._found("the daemon has other files open than its tenants take", (now, self._expected()))
            self._base += now - self._expected()
        for identity, made in self._tenants.items():
            page = self._page(identity)
            if self._is_sure(identity) and page != made.page:
                self._found("the limits of another tenant changed", identity)
            made.page = page
        self._unsure, self._unsure_before = set(), self._unsure  # what nobody waited for may still be under way
        self._unknown, self._unknown_before = 0, self._unknown

    def _reconcile(self) -> set[str]:
        """Compare the folders with the books, and clear away what nobody saw made; return what is half a folder."""
        names = {folder.name for folder in (self._daemon.root / "tenants").iterdir()}
        there = {name for name in names if not name.startswith(".")}
        for identity in there - self._tenants.keys():
            if self._unknown + self._unknown_before == 0:
                self._found("there is a tenant that nobody asked for", identity)
            self._ask(self._askers[0], Request("DELETE", f"/v1/tenants/{identity}?force=1"))
        for identity in self._tenants.keys() - there:
            if self._is_sure(identity):
                self._found("a tenant has gone", identity)
            del self._tenants[identity]
        return names - there

    def _is_sure(self, identity: str) -> bool:
        """Return whether we saw all answers to what was asked of this tenant."""
        return identity not in self._unsure | self._unsure_before

    def _expected(self) -> int:
        """Return how many files the daemon should have open."""
        return self._base + _FILES * len(self._tenants)

    def clear(self) -> None:
        """Remove all but the neighbours, as their users."""
        for identity in self._tenants.keys() - {*self._neighbours}:
            self._send(self._tenants[identity].asker, whole(request_cases.removal(random.Random(1), identity)))
        self.check()
        if self._tenants.keys() != {*self._neighbours}:
            self._found("a tenant is left", [*self._tenants])

    def _choose(self, rng: random.Random, asker: Asker) -> Request:
        """Return a request that is right, if not always allowed."""
        own = [one for one in self._tenants if one not in self._neighbours]
        targets = own if asker.is_admin else [*own, *self._neighbours]
        kind = rng.random()
        if len(own) > _MOST_TENANTS:
            return request_cases.removal(rng, rng.choice(own))
        if kind < 0.4 or not targets:
            return request_cases.creation(rng, UUIDS)
        target = rng.choice(targets)
        if kind < 0.45:
            return self._tenants[target].request
        key = rng.choice((target, self._tenants[target].name))
        if kind < 0.85:
            return request_cases.change(rng, key, UUIDS)
        return request_cases.removal(rng, key) if kind < 0.95 else request_cases.question(rng)

    def _send(self, asker: Asker, sending: Sending, *, hasty: bool = False) -> list[Answer]:
        """Send it, and note what it did; with `hasty` don't wait for the answer."""
        self._how = f"as {asker.uid}: " + " | ".join(repr(packet[:600]) for packet in sending.packets[:6])
        request = sending.request
        patience = _PATIENCE_SECONDS if sending.is_whole else GLANCE_SECONDS
        with self._daemon.connect(asker, patience) as connection:
            answers = self._exchange(connection, sending, hasty=hasty)
        self._outcome.count("sent", sending.kind)
        for answer in answers:
            self._check_answer(answer)
        if sending.is_whole and not hasty and len(answers) < min(sending.answers, 1):
            self._found("there was no answer")
        if answers and answers[0].status == 200:
            self._carried_out(asker, sending, answers[0])
        elif not answers and request.method in ("PUT", "PATCH", "DELETE"):
            named = {one for one, made in self._tenants.items() if {one, made.name} & {request.target, sending.key}}
            self._unsure |= named - {*self._neighbours}
            self._unknown += request.method == "PUT"
        return answers

    def _exchange(self, connection: socket.socket, sending: Sending, *, hasty: bool) -> list[Answer]:
        try:
            answers = exchange(connection, sending, _PATIENCE_SECONDS, hasty=hasty)
        except NoHttpError as error:
            self._found("an answer is no HTTP", error)
            return []
        if not answers:
            self._outcome.count("answers", "not waited for" if hasty else "connection closed")
        return answers

    def _check_answer(self, answer: Answer) -> None:
        """See that it is success, or a refusal with a reason."""
        self._outcome.count("answers", str(answer.status))
        if answer.status != 200:
            self._outcome.count("refused", "by HTTP" if answer.is_by_http else "with a sentence")
        fault = fault_of(answer)
        if fault is not None:
            self._found(fault, answer.body)

    def _carried_out(self, asker: Asker, sending: Sending, answer: Answer) -> None:
        """Note what was done, and look whether it was that and nothing else."""
        request = sending.request
        content = json.loads(answer.body) if answer.body else {}
        identity = content.get("id") if isinstance(content, dict) else None
        if request.method == "GET" or identity is None:
            if "tenants" in content:
                wire.node_from_json(content)
            return
        key = sending.key
        if key not in (identity, content["name"]):
            self._found("another tenant was meant", (key, identity))
        made = self._tenants.get(identity)
        is_sure = self._is_sure(identity)  # else it may have been removed unseen, and be another user's by now
        if made is not None and is_sure and not asker.is_admin and made.asker.uid != asker.uid:
            self._found("a user had a say in what belongs to another", (asker, identity))
        if identity in self._neighbours and (made is None or made.request != request):
            self._found("something was done to a neighbour", identity)
        self._outcome.count("done", request.method)
        if request.method == "DELETE":
            self._tenants.pop(identity, None)
            return
        page, is_new = self._page(identity), made is None
        if request.method == "PUT":
            if made is not None and is_sure and page != made.page:
                self._found("a tenant was made again", identity)
            made = made if is_sure else None
            if Path(content["folder"]) != self._daemon.root / "tenants" / identity:
                self._found("a tenant has another folder", content)
            made = made or Made(content["name"], asker, request, page)
            self._tenants[identity] = made
        elif made is None:
            self._found("a tenant was changed that nobody made", identity)
            return
        made.page = page
        if sending.is_whole and (is_new or request.method == "PATCH"):
            self._check_limits(identity, request)

    def _check_limits(self, identity: str, request: Request) -> None:
        """See that the page has what was asked for."""
        devices = json.loads(request.body)["devices"]
        pairs = devices.items() if isinstance(devices, dict) else ((one["uuid"], one) for one in devices)
        limits = region.read_limits(self._daemon.root / "tenants" / identity / "ro" / "limits")
        by_uuid = {one.uuid: one for one in limits.devices}
        for uuid, fields in pairs:
            for name, value in fields.items():
                wanted = LatencyClass(value) if name == "latency_class" else value
                if name == "time_percent" and value == 100:
                    wanted = None  # the whole card is no cap
                if getattr(by_uuid[uuid], name) != wanted:
                    self._found(f"{name} is not what was asked for", getattr(by_uuid[uuid], name))

    def _inhabited(self, rng: random.Random) -> None:
        """Remove a tenant in which a process lives: refused at first, and with force only that process ends."""
        identity = self._make(rng)
        if not identity:
            return
        made = self._tenants[identity]
        with self._inhabitant(made.asker, identity) as process:
            (refused,) = self._send(made.asker, whole(Request("DELETE", f"/v1/tenants/{identity}", target=identity)))
            if (refused.status, process.poll()) != (409, None):
                self._found("a tenant with a process was not spared", refused)
            forced = Request("DELETE", f"/v1/tenants/{made.name}?force=1", target=identity)
            (done,) = self._send(made.asker, whole(forced))
            if done.status != 200 or process.wait(5) not in (-signal.SIGTERM, -signal.SIGKILL):
                self._found("a tenant was not removed by force", done)

    def _orphaned(self, rng: random.Random) -> None:
        """Have a process make a tenant and end: the daemon buries it, and nothing else."""
        request = request_cases.creation(rng, UUIDS)
        pid = os.fork()
        if pid == 0:
            try:
                self._ask(rng.choice(self._askers), request)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        folder, deadline = self._daemon.root / "tenants" / str(request.target), time.monotonic() + _PATIENCE_SECONDS
        while folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if folder.exists():
            self._found("a tenant whose maker has ended is not removed", folder.name)

    @contextmanager
    def _inhabitant(self, asker: Asker, identity: str) -> Iterator["subprocess.Popen[bytes]"]:
        env = {config.TENANT_VARIABLE: str(self._daemon.root / "tenants" / identity)}
        user = asker.uid if asker.uid != os.geteuid() else None
        with subprocess.Popen(["/bin/sleep", "1000"], env=env, user=user) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def living_neighbour(self) -> Iterator[None]:
        """Have a process live in a neighbour meanwhile, which nobody may end."""
        identity = next(iter(self._neighbours))
        with self._inhabitant(self._tenants[identity].asker, identity) as process:
            yield
            if process.poll() is not None:
                self._found("the neighbour's process was ended")

    def _make(self, rng: random.Random) -> str:
        """Make a tenant as we are; return its id, nothing where there is no room for it."""
        identity = f"n{rng.getrandbits(48):x}-{rng.getrandbits(24):06x}"
        body = {"devices": [{"uuid": UUIDS[0], "memory_bytes": 1 << 30}], "simulated": True}
        request = Request("PUT", f"/v1/tenants/{identity}", json.dumps(body).encode(), target=identity)
        (answer,) = self._send(self._askers[0], whole(request))
        return identity if answer.status == 200 else ""

    def _ask_metrics(self, rng: random.Random) -> None:
        sending = mutated(rng, Request("GET", "/metrics"), UUIDS)
        self._how = "to /metrics: " + " | ".join(repr(packet[:600]) for packet in sending.packets[:6])
        with self._daemon.connect_metrics(_PATIENCE_SECONDS if sending.is_whole else GLANCE_SECONDS) as connection:
            answers = self._exchange(connection, sending, hasty=False)
        self._outcome.count("sent", f"{sending.kind}, to /metrics")
        for answer in answers:
            self._check_answer(answer)
            if answer.type == exporter.CONTENT_TYPE:
                answer.body.decode()

    def _ask(self, asker: Asker, request: Request) -> Answer:
        with self._daemon.connect(asker, _PATIENCE_SECONDS) as connection:
            connection.sendall(written(request))
            (answer,) = read_answers(connection, 1, without_body=False)
        return answer

    def _page(self, identity: str) -> bytes:
        page = bytearray((self._daemon.root / "tenants" / identity / "ro" / "limits").read_bytes())
        for start, size in _LIVE:
            page[start : start + size] = bytes(size)
        return bytes(page)

    def _files(self, look: int) -> int:
        """Return how many files the daemon has open; more than one look finds out what it has only for an instant."""
        time.sleep(0.01 * bool(look))
        return self._daemon.holdings().descriptors

    def _found(self, what: str, detail: object = "") -> None:
        self._outcome.found(self._case, what, f"{self._how}; of containers {self._containers.how}", str(detail))


def main() -> None:
    """Run so many cases, and write what came of them."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--count", type=int, required=True)
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--root", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--data-file", type=Path)
    chosen = options.parse_args()
    outcome, began, case = Outcome(), time.monotonic(), 0
    grown: dict[str, float] = {}
    try:
        with ExitStack() as stack:
            daemon = stack.enter_context(running(chosen.root, chosen.data_file))
            fuzzer = Fuzzer(daemon, outcome, chosen.seed)
            stack.enter_context(fuzzer.living_neighbour())
            warm = daemon.holdings()
            for case in range(1, chosen.count + 1):
                fuzzer.run(case)
                if case == int(chosen.count * _WARM_UP):
                    fuzzer.check()
                    fuzzer.clear()
                    warm = daemon.holdings()
            fuzzer.clear()
            grown = growth(warm, daemon.holdings())
        for kind, line in daemon.oddities():
            outcome.found(case, f"the daemon's log has {kind}", "", line)
        if daemon.process.returncode != 0:
            outcome.found(case, f"the daemon ended with {daemon.process.returncode}", "", daemon.log.read_text()[-600:])
    except TooManyFindings:
        pass
    outcome.write(chosen.out, cases=case, seconds=round(time.monotonic() - began, 1), grown=grown)


if __name__ == "__main__":
    main()
