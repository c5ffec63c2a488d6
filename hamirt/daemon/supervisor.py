"""The daemon's life: it samples the node, renews leases, buries the dead and answers, each in its own time."""

import asyncio
import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from hamirt import __version__, config
from hamirt.daemon import api, instance, settings
from hamirt.daemon.arbiter import Arbiter
from hamirt.daemon.containers import Containers
from hamirt.daemon.listeners import ApiListener, MetricsListener
from hamirt.daemon.log import Log
from hamirt.daemon.notify import notify
from hamirt.daemon.peers import group_id
from hamirt.daemon.registry import Registry, find_dead
from hamirt.daemon.watch import Watch
from hamirt.errors import HamirtError
from hamirt.model import Health, Node, Supervisor
from hamirt.topology import Topology

_BEAT_SECONDS = 0.25  # between two renewals of the leases, which last four times as long
_REAP_SECONDS = 1.0
_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_MAPPED_FROM_BYTES = 1 << 16
_SWITCH_SECONDS = 0.0005  # a sample of many tenants computes for 30 ms beside us: a request does not wait for it
_COUNTED = ("tenant_created", "tenant_changed", "tenant_removed", "violation", "killed")


def run(root: Path, config_path: Path | None, *, sim: bool) -> None:
    """Serve `root` until SIGTERM or SIGINT.

    Raises HamirtError where that can't be begun.
    """
    chosen = settings.Settings() if config_path is None else settings.load(config_path)
    admin_gid = group_id(chosen.admin_group)
    _raise_file_limit()
    _keep_memory_together()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with instance.only_one(root), instance.listening(root) as server:
        asyncio.run(_serve(root, config_path, chosen, admin_gid, server, sim=sim))


async def _serve(
    root: Path,
    config_path: Path | None,
    chosen: settings.Settings,
    admin_gid: int | None,
    server: socket.socket,
    *,
    sim: bool,
) -> None:
    await Daemon(root, config_path, chosen, admin_gid, sim=sim).serve(server)


class Daemon:
    """The supervisor of one root; api.py says what it is asked."""

    def __init__(
        self, root: Path, config_path: Path | None, chosen: settings.Settings, admin_gid: int | None, *, sim: bool
    ) -> None:
        self.settings = chosen
        self.admin_gid = admin_gid
        self.log = Log(chosen.log_format)
        self._arbiter = Arbiter()
        self.registry = Registry(root, chosen, simulated=sim, owned=os.geteuid() == 0, arbiter=self._arbiter)
        self.containers = Containers(self.registry, root, simulated=sim)
        self._root = root
        self._config_path = config_path
        self._watch = Watch(root, self._tell, sim=sim)
        self._api = ApiListener(api.build(self))
        self._metrics = MetricsListener(api.build_metrics(self))
        self._began, self._began_unix = time.monotonic(), time.time()
        self._requests: Counter[str] = Counter()
        self._events: Counter[str] = Counter()

    async def serve(self, server: socket.socket) -> None:
        """Serve until a signal ends it; the tenants go on."""
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, over.set)
        await self._metrics.apply(self.settings)
        self._arbiter.start()
        self.registry.refresh()
        self.registry.renew()
        await self._api.start(server)
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(work) for work in (
            _every(_BEAT_SECONDS, self._beat),
            _every(_REAP_SECONDS, self._reap),
            self._watch.go_on(
                self.registry.pages, self._supervisor, lambda: self.settings, self.registry.ask_to_measure
            ),
            self._api.drop_old(),
            self._reload_when_asked(),
        )]  # fmt: skip
        notify("READY=1")
        self.log.event("started", f"hamirt {__version__} serves {self._root}", pid=os.getpid())
        ended: asyncio.Task[object] = asyncio.create_task(over.wait())
        done, _ = await asyncio.wait({ended, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        for task in tasks:
            task.cancel()
        await self._metrics.stop()
        await self._api.stop()
        self.registry.close()
        self._arbiter.stop()
        for task in done - {ended}:
            task.result()
        self.log.event("stopped", "the tenants go on without a daemon")
        with suppress(OSError):
            config.socket_path(self._root).unlink()
        self._watch.close()

    async def node(self) -> Node:
        """Return the last sample, the first one as soon as there is one."""
        return await self._watch.node()

    def topology(self) -> Topology:
        """Return how close the node's cards are to each other."""
        return self._watch.topology

    def health(self) -> Health:
        """Return how the daemon does."""
        watch = self._watch
        return Health(
            started_unix_seconds=self._began_unix,
            nvml_answers=watch.nvml_answers,
            samples=watch.samples,
            sample_failures=watch.failures,
            sample_seconds=watch.seconds,
            last_sample_unix_seconds=watch.last_unix_seconds,
            requests=dict(self._requests),
            events=dict(self._events),
            handover_seconds=self._arbiter.handover_seconds(),
        )

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._requests[str(status)] += 1

    def happened(self, kind: str, message: str, **fields: object) -> None:
        """Count and log an event, and have the next sample taken now."""
        self._tell(kind, message, **fields)
        self._watch.hurry()

    def _tell(self, kind: str, message: str, **fields: object) -> None:
        if kind in _COUNTED:
            self._events[kind] += 1
        self.log.event(kind, message, **fields)

    def _supervisor(self) -> Supervisor:
        uptime = time.monotonic() - self._began
        return Supervisor(__version__, os.getpid(), uptime, self.settings.policy, self._arbiter.open_cards())

    async def _beat(self) -> None:
        if not self._arbiter.lives():  # then the leases run out, the tenants see to themselves, and systemd to us
            return
        self.registry.renew()
        notify("WATCHDOG=1")

    async def _reap(self) -> None:
        self.registry.refresh()  # what is new gets its lease with the next beat
        orphans = self.registry.orphans()
        if not orphans:
            return
        dead = await asyncio.to_thread(find_dead, orphans)
        for tenant in self.registry.bury(orphans, dead):
            self.happened("tenant_removed", f"{tenant.name} has ended", tenant=tenant.id)

    async def _reload_when_asked(self) -> None:
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        while True:
            await asked.wait()
            asked.clear()
            try:
                await self._reload()
            except HamirtError as error:
                self._tell("settings_refused", f"{error}; the settings stay as they were")

    async def _reload(self) -> None:
        if self._config_path is None:
            raise HamirtError("there is no file of settings to read again: start with hamirt daemon --config FILE")
        chosen = settings.load(self._config_path)
        admin_gid = group_id(chosen.admin_group)
        await self._metrics.apply(chosen)
        self.settings = self.registry.settings = chosen
        self.admin_gid, self.log.style = admin_gid, chosen.log_format
        self._tell("settings_loaded", f"{self._config_path} was read again")


async def _every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    """Do this again and again; what was missed, because the machine slept, is not made up for."""
    while True:
        began = time.monotonic()
        await step()
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))


def _keep_memory_together() -> None:
    """Have glibc map large blocks, instead of keeping one in the arena of each thread."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


def _raise_file_limit() -> None:
    """Every tenant takes some descriptors, and users may open connections."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
