"""What the daemon listens on: the unix socket for the API, and TCP for Prometheus where the settings want it."""

import asyncio
import logging
import socket
import ssl
import time
from contextlib import suppress
from typing import Any

from aiohttp import web

from hamirt.daemon.settings import Settings, host_and_port
from hamirt.errors import HamirtError

_SHUTDOWN_SECONDS = 1.0
_MOST_CONNECTION_SECONDS = 60.0  # longer than any request takes that is not given up
_LOOK_SECONDS = 5.0


def _runner(app: web.Application) -> web.AppRunner:
    """Return what answers. Bodies stay as they come, so that their size is known; what is no HTTP is not logged."""
    silent = logging.getLogger("hamirt.http")
    silent.propagate = False
    silent.addHandler(logging.NullHandler())
    return web.AppRunner(app, access_log=None, logger=silent, auto_decompress=False, shutdown_timeout=_SHUTDOWN_SECONDS)


class ApiListener:
    """Serves the API, and closes connections that were left open, so that no user can take all there are."""

    def __init__(self, app: web.Application) -> None:
        self._runner = _runner(app)

    async def start(self, server: socket.socket) -> None:
        """Begin to answer on this listening socket."""
        await self._runner.setup()
        await web.SockSite(self._runner, server).start()

    async def drop_old(self) -> None:
        """Close what is open for too long, until cancelled."""
        since: dict[Any, float] = {}
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            assert self._runner.server is not None
            since = {one: since.get(one, now) for one in self._runner.server.connections}
            for connection, first_seen in since.items():
                if now - first_seen > _MOST_CONNECTION_SECONDS:
                    connection.force_close()

    async def stop(self) -> None:
        """Answer nothing more."""
        await self._runner.cleanup()


class MetricsListener:
    """Serves /metrics as the settings say."""

    def __init__(self, app: web.Application) -> None:
        self._runner = _runner(app)
        self._site: web.TCPSite | None = None
        self._place: tuple[str, str | None, str | None] = ("", None, None)

    async def apply(self, settings: Settings) -> None:
        """Listen where `settings` want it, and nowhere else any more.

        Raises HamirtError where that can't be done, and goes on as before.
        """
        place = (settings.metrics_address, settings.metrics_tls_cert, settings.metrics_tls_key)
        if place == self._place:
            return
        context = _tls(settings)
        await self._stop_site()
        try:
            await self._listen(settings.metrics_address, context)
        except HamirtError:
            with suppress(HamirtError):
                await self._listen(self._place[0], _tls_of(*self._place[1:]))
            raise
        self._place = place

    async def stop(self) -> None:
        """Answer nothing more."""
        await self._runner.cleanup()

    async def _listen(self, address: str, context: ssl.SSLContext | None) -> None:
        if not address:
            return
        if self._runner.server is None:
            await self._runner.setup()
        host, port = host_and_port(address)
        site = web.TCPSite(self._runner, host, port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await site.stop()
            raise HamirtError(
                f"/metrics can't be served at {address} ({error.strerror}): choose another metrics_address"
            ) from None
        self._site = site

    async def _stop_site(self) -> None:
        if self._site is not None:
            await self._site.stop()
            self._site = None


def _tls(settings: Settings) -> ssl.SSLContext | None:
    return _tls_of(settings.metrics_tls_cert, settings.metrics_tls_key)


def _tls_of(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise HamirtError(f"metrics_tls_cert and metrics_tls_key can't be used ({error}): name PEM files") from None
    return context
