"""The daemon's HTTP: tenants, the node and its health on the unix socket, and /metrics for Prometheus.

    PUT    /v1/tenants/ID       make a tenant; the same request again gives the same answer
    PATCH  /v1/tenants/TENANT   change limits of a tenant, by id or name
    DELETE /v1/tenants/TENANT   remove it; ?force=1 ends its processes first
    GET    /v1/node             the last sample
    GET    /v1/health           how the daemon does

Every refusal is {"error": "a sentence"}. docs/daemon.md describes the bodies.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from hamirt import exporter, wire
from hamirt.daemon import inhabitants
from hamirt.daemon.log import Log
from hamirt.daemon.peers import is_admin, peer_of
from hamirt.daemon.refusal import BAD_REQUEST, CONFLICT, UNAVAILABLE, RefusalError
from hamirt.daemon.registry import Asker, Registry
from hamirt.daemon.requests import MOST_BODY_BYTES, read_change, read_creation
from hamirt.daemon.settings import Settings
from hamirt.daemon.tenant import HeldTenant
from hamirt.members import Process
from hamirt.model import Health, Node

_MOST_PIDS = 8  # in a sentence
_FLAGS = {"": False, "0": False, "1": True}


class Daemon(Protocol):
    """What the handlers need of the supervisor."""

    registry: Registry
    settings: Settings
    admin_gid: int | None
    log: Log

    async def node(self) -> Node:
        """Return the last sample, the first one as soon as there is one."""

    def health(self) -> Health:
        """Return how the daemon does."""

    def answered(self, status: int) -> None:
        """Count an answer."""

    def happened(self, kind: str, message: str, **fields: object) -> None:
        """Count and log an event, and have the next sample taken now."""


def build(daemon: Daemon) -> web.Application:
    """Return what is served on the unix socket."""
    handlers = _Handlers(daemon)
    app = web.Application(middlewares=[_answering(daemon)], client_max_size=MOST_BODY_BYTES)
    app.router.add_put("/v1/tenants/{tenant}", handlers.create)
    app.router.add_patch("/v1/tenants/{tenant}", handlers.change)
    app.router.add_delete("/v1/tenants/{tenant}", handlers.remove)
    app.router.add_get("/v1/node", handlers.node)
    app.router.add_get("/v1/health", handlers.health)
    return app


def build_metrics(daemon: Daemon) -> web.Application:
    """Return what is served to Prometheus."""

    async def metrics(_request: web.Request) -> web.Response:
        content = exporter.render(await daemon.node(), daemon.health(), hami=daemon.settings.compat_hami)
        return web.Response(body=content, headers={"Content-Type": exporter.CONTENT_TYPE})

    app = web.Application(middlewares=[_answering(daemon)], client_max_size=MOST_BODY_BYTES)
    app.router.add_get("/metrics", metrics)
    return app


def _answering(daemon: Daemon) -> Middleware:
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn every refusal into a sentence; a failure of ours costs this one answer and nothing else."""
        try:
            response = await handler(request)
        except RefusalError as error:
            response = web.json_response({"error": str(error)}, status=error.status)
        except web.HTTPRequestEntityTooLarge:
            response = web.json_response({"error": f"a body has {MOST_BODY_BYTES} bytes at most"}, status=413)
        except web.RequestPayloadError:
            response = web.json_response({"error": "the body is not what its headers say"}, status=BAD_REQUEST)
        except ConnectionError:  # the client left, and nobody reads the answer
            response = web.json_response({"error": "the connection was closed"}, status=BAD_REQUEST)
        except web.HTTPException as error:
            sentence = f"{request.method} {request.path[:200]!r}: {error.reason.lower()}"
            response = web.json_response({"error": sentence}, status=error.status)
        except Exception as error:
            daemon.log.event("request_failed", f"{request.method} failed: {error!r}", path=request.path[:200])
            response = web.json_response({"error": "the daemon failed to answer: see its log"}, status=500)
        daemon.answered(response.status)
        return response

    return answer


def _check_dead(tenant: HeldTenant, living: Sequence[Process], *, force: bool) -> None:
    if living or tenant.has_living_slot():
        pids = ", ".join(f"{one.pid} ({one.command})" for one in living[:_MOST_PIDS]) or "which are not its children"
        advice = "they can't be ended from here: end them by hand" if force else "end them, or give --force"
        raise RefusalError(CONFLICT, f"{tenant.name} has living processes, {pids}: {advice}")


class _Handlers:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def create(self, request: web.Request) -> web.Response:
        daemon = self._daemon
        body = await request.read()
        creation = read_creation(body)
        node = await daemon.node()
        identity = request.match_info["tenant"]
        tenant, is_new = daemon.registry.create(identity, creation, body, self._asker(request), node.driver)
        if is_new:
            daemon.happened("tenant_created", f"{tenant.name} was made", tenant=tenant.id, uid=tenant.uid)
        return web.json_response({"id": tenant.id, "name": tenant.name, "folder": str(tenant.folder)})

    async def change(self, request: web.Request) -> web.Response:
        daemon = self._daemon
        change = read_change(await request.read())
        node = await daemon.node()
        tenant = self._find(request)
        shown = next((one for one in node.tenants if one.id == tenant.id), None)
        footprints = {card.uuid: card.footprint_bytes for card in shown.cards} if shown else {}
        limits = daemon.registry.change(tenant, change, node.driver, footprints)
        daemon.happened("tenant_changed", f"{tenant.name} has other limits", tenant=tenant.id, limits=limits)
        return web.json_response({"id": tenant.id, "name": tenant.name, "devices": limits})

    async def remove(self, request: web.Request) -> web.Response:
        daemon = self._daemon
        force = _FLAGS.get(request.query.get("force", ""))
        if force is None or not {"force"} >= request.query.keys():
            raise RefusalError(BAD_REQUEST, "DELETE takes force=1 and nothing else")
        tenant = self._find(request)
        living = await asyncio.to_thread(inhabitants.living, tenant)
        if living and force:
            living = await asyncio.to_thread(inhabitants.end, tenant, daemon.settings.kill_after_seconds)
        if daemon.registry.knows(tenant):  # its `hamirt run` may have removed it by now
            _check_dead(tenant, living, force=force)
            daemon.registry.remove(tenant)
            daemon.happened("tenant_removed", f"{tenant.name} was removed", tenant=tenant.id)
        return web.json_response({"id": tenant.id, "name": tenant.name})

    async def node(self, _request: web.Request) -> web.Response:
        return web.json_response(wire.node_to_json(await self._daemon.node()))

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response(dataclasses.asdict(self._daemon.health()))

    def _find(self, request: web.Request) -> HeldTenant:
        return self._daemon.registry.find(request.match_info["tenant"], self._asker(request))

    def _asker(self, request: web.Request) -> Asker:
        connection = request.get_extra_info("socket")
        if connection is None:
            raise RefusalError(UNAVAILABLE, "the connection was closed")
        peer = peer_of(connection)
        return Asker(peer, is_admin(peer, self._daemon.admin_gid))
