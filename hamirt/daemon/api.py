"""The daemon's HTTP: tenants, the node and its health on the unix socket, and /metrics for Prometheus.

    PUT    /v1/tenants/ID       make a tenant; the same request again gives the same answer
    PATCH  /v1/tenants/TENANT   change limits of a tenant, by id or name
    DELETE /v1/tenants/TENANT   remove it; ?force=1 ends its processes first
    PUT    /v1/containers/ID    make the tenant of a container that is about to start, if it asks for one
    DELETE /v1/containers/ID    the container has ended: remove its tenant, if it has one
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
from hamirt.daemon.containers import Containers
from hamirt.daemon.log import Log
from hamirt.daemon.peers import is_admin, peer_of
from hamirt.daemon.refusal import BAD_REQUEST, CONFLICT, FORBIDDEN, TOO_LONG, UNAVAILABLE, RefusalError
from hamirt.daemon.registry import Asker, Registry
from hamirt.daemon.requests import (
    MOST_BODY_BYTES,
    MOST_CONTAINMENT_BYTES,
    check_container_id,
    read_change,
    read_containment,
    read_creation,
)
from hamirt.daemon.settings import Settings
from hamirt.daemon.tenant import HeldTenant
from hamirt.members import Process
from hamirt.model import Health, Node
from hamirt.topology import Topology

_MOST_PIDS = 8  # in a sentence
_FLAGS = {"": False, "0": False, "1": True}


class Daemon(Protocol):
    """What the handlers need of the supervisor."""

    registry: Registry
    containers: Containers
    settings: Settings
    admin_gid: int | None
    log: Log

    async def node(self) -> Node:
        """Return the last sample, the first one as soon as there is one."""

    def topology(self) -> Topology:
        """Return how close the node's cards are to each other."""

    def health(self) -> Health:
        """Return how the daemon does."""

    def answered(self, status: int) -> None:
        """Count an answer."""

    def happened(self, kind: str, message: str, **fields: object) -> None:
        """Count and log an event, and have the next sample taken now."""


def build(daemon: Daemon) -> web.Application:
    """Return what is served on the unix socket."""
    handlers = _Handlers(daemon)
    app = web.Application(middlewares=[_answering(daemon)])
    app.router.add_put("/v1/tenants/{tenant}", handlers.create)
    app.router.add_patch("/v1/tenants/{tenant}", handlers.change)
    app.router.add_delete("/v1/tenants/{tenant}", handlers.remove)
    app.router.add_put("/v1/containers/{container}", handlers.contain)
    app.router.add_delete("/v1/containers/{container}", handlers.release)
    app.router.add_get("/v1/node", handlers.node)
    app.router.add_get("/v1/health", handlers.health)
    return app


def build_metrics(daemon: Daemon) -> web.Application:
    """Return what is served to Prometheus."""

    async def metrics(_request: web.Request) -> web.Response:
        content = exporter.render(await daemon.node(), daemon.health(), hami=daemon.settings.compat_hami)
        return web.Response(body=content, headers={"Content-Type": exporter.CONTENT_TYPE})

    app = web.Application(middlewares=[_answering(daemon)])
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


async def _body(request: web.Request, most_bytes: int) -> bytes:
    try:
        return await request.clone(client_max_size=most_bytes).read()
    except web.HTTPRequestEntityTooLarge:
        raise RefusalError(TOO_LONG, f"a body has {most_bytes} bytes at most") from None


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
        body = await _body(request, MOST_BODY_BYTES)
        creation = read_creation(body)
        node = await daemon.node()
        identity = request.match_info["tenant"]
        tenant, is_new = daemon.registry.create(identity, creation, body, self._asker(request), node.driver)
        if is_new:
            daemon.happened("tenant_created", f"{tenant.name} was made", tenant=tenant.id, uid=tenant.uid)
        return web.json_response({"id": tenant.id, "name": tenant.name, "folder": str(tenant.folder)})

    async def change(self, request: web.Request) -> web.Response:
        daemon = self._daemon
        change = read_change(await _body(request, MOST_BODY_BYTES))
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

    async def contain(self, request: web.Request) -> web.Response:
        daemon = self._daemon
        container, asker = self._container(request)
        asked = read_containment(await _body(request, MOST_CONTAINMENT_BYTES))
        driver = (await daemon.node()).driver
        if request.transport is None:  # the hook has given up, and its DELETE may be answered already
            raise ConnectionResetError
        contained = daemon.containers.put(container, asked, asker.peer, driver, daemon.topology())
        tenant = contained.tenant
        if tenant is not None and contained.is_new:
            message, warnings = f"{tenant.name} was made", contained.warnings or None
            daemon.happened("tenant_created", message, tenant=tenant.id, container=container, warnings=warnings)
        return web.json_response(daemon.containers.answer(contained))

    async def release(self, request: web.Request) -> web.Response:
        daemon = self._daemon
        container, _asker = self._container(request)
        if not {"pid"} >= request.query.keys():
            raise RefusalError(BAD_REQUEST, "DELETE takes pid=PID and nothing else")
        tenant = daemon.containers.find(container)
        if tenant is None or tenant.init is None:
            return web.json_response({"id": None})
        if request.query.get("pid") == str(tenant.init[0]):  # a hook has failed, and nothing runs in it yet
            living = False
        else:
            living = bool(await asyncio.to_thread(inhabitants.living, tenant)) or tenant.has_living_slot()
        if living:
            tenant.look_again_at = 0.0
            return web.json_response({"id": tenant.id, "name": tenant.name, "removed": False})
        if daemon.registry.knows(tenant):
            daemon.registry.remove(tenant)
            daemon.happened("tenant_removed", f"{tenant.name} was removed", tenant=tenant.id, container=container)
        return web.json_response({"id": tenant.id, "name": tenant.name, "removed": True})

    async def node(self, _request: web.Request) -> web.Response:
        return web.json_response(wire.node_to_json(await self._daemon.node()))

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response(dataclasses.asdict(self._daemon.health()))

    def _find(self, request: web.Request) -> HeldTenant:
        return self._daemon.registry.find(request.match_info["tenant"], self._asker(request))

    def _container(self, request: web.Request) -> tuple[str, Asker]:
        asker = self._asker(request)
        if not asker.admin:
            raise RefusalError(FORBIDDEN, "only administrators may say what a container gets: ask as root")
        container = request.match_info["container"]
        check_container_id(container)
        return container, asker

    def _asker(self, request: web.Request) -> Asker:
        connection = request.get_extra_info("socket")
        if connection is None:
            raise RefusalError(UNAVAILABLE, "the connection was closed")
        peer = peer_of(connection)
        return Asker(peer, is_admin(peer, self._daemon.admin_gid))
