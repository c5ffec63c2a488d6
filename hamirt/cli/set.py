"""`hamirt set`: change a tenant's limits while it runs."""

from collections.abc import Sequence
from typing import Any

import click

from hamirt import client, config, plan, wire
from hamirt.cli.completion import complete_tenant
from hamirt.errors import HamirtError
from hamirt.model import LatencyClass, Node, Tenant, TenantCard
from hamirt.units import format_mib, format_size


def _percent(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Return 1 to 100, or 0 for `none`."""
    if value is None or value == "none":
        return None if value is None else 0
    if not value.isdecimal() or not 1 <= int(value) <= 100:
        raise click.BadParameter(f"{value!r} is neither a whole number from 1 to 100 nor 'none'")
    return int(value)


@click.command("set")
@click.argument("name", shell_complete=complete_tenant)
@click.option("--mem", metavar="SIZE|PERCENT%", help="Cap on each GPU's memory: 8GiB, 50%, or 0=8GiB,1=16GiB.")
@click.option("--sm", metavar="PERCENT|none", callback=_percent, help="Cap on GPU time, as a share of each GPU.")
@click.option("--weight", metavar="N", type=click.IntRange(1, 10_000), help="Share of contended GPU time.")
@click.option(
    "--class",
    "latency_class",
    type=click.Choice([one.value for one in LatencyClass]),
    help="Whose work comes first.",
)
@click.option("--gpu", "gpus", multiple=True, metavar="INDEX|UUID", help="Only on this GPU; repeat it. Default: all.")
def command(
    name: str, mem: str | None, sm: int | None, weight: int | None, latency_class: str | None, gpus: tuple[str, ...]
) -> None:
    """Change the limits of the tenant NAME, at once.

    A cap below what the tenant holds is kept: nothing is taken away from it, it gets no more, and what its pools hold
    unused is given back.
    """
    given = {"weight": weight, "latency_class": latency_class}
    wanted: dict[str, object] = {field: value for field, value in given.items() if value is not None}
    if sm is not None:
        wanted["time_percent"] = sm or None
    if mem is None and not wanted:
        raise click.UsageError("nothing to change: give --mem, --sm, --weight or --class")
    daemon = client.Client(config.root_path())
    node = wire.node_from_json(daemon.node())
    tenant = _find(node, name)
    cards = _choose(tenant, gpus)
    caps = _caps(mem, node, cards)
    devices = {card.uuid: wanted | ({"memory_bytes": caps[card.uuid]} if caps else {}) for card in cards}
    answer = daemon.change(tenant.id, devices)
    for limit in answer["devices"]:
        if limit["uuid"] in devices:
            _tell(tenant.name, limit, next(card for card in cards if card.uuid == limit["uuid"]))


def _find(node: Node, name: str) -> Tenant:
    found = [one for one in node.tenants if one.id == name] or [one for one in node.tenants if one.name == name]
    if not found:
        there = ", ".join(one.name for one in node.tenants) or "none at all"
        raise HamirtError(f"no tenant is called {name!r}: there is {there}")
    return found[0]


def _choose(tenant: Tenant, gpus: Sequence[str]) -> list[TenantCard]:
    for gpu in gpus:
        if not any(gpu.lower() in (str(card.index), card.uuid.lower()) for card in tenant.cards):
            there = ", ".join(f"{card.index} ({card.uuid})" for card in tenant.cards)
            raise HamirtError(f"{tenant.name} has no GPU {gpu!r}: it has {there}")
    names = {gpu.lower() for gpu in gpus}
    return [card for card in tenant.cards if not names or names & {str(card.index), card.uuid.lower()}]


def _caps(mem: str | None, node: Node, cards: Sequence[TenantCard]) -> dict[str, int]:
    """Return the caps in bytes by UUID; nothing without `--mem`."""
    if mem is None:
        return {}
    uuids = {card.uuid for card in cards}
    shown = [card for card in node.driver.cards if card.uuid in uuids] if node.driver else []
    if len(shown) < len(cards):
        raise HamirtError(node.problem or "NVML does not show every GPU of this tenant: try again soon")
    caps = plan.resolve_caps(mem, shown)
    return {card.uuid: caps[card.uuid].resolve(card.total_bytes) for card in shown}


def _tell(name: str, limit: dict[str, Any], card: TenantCard) -> None:
    where = f"{name} on GPU {card.index if card.index is not None else card.uuid}"
    cap = "no cap" if limit["memory_bytes"] is None else format_size(limit["memory_bytes"])
    share = "no cap" if limit["time_percent"] is None else f"{limit['time_percent']}%"
    click.echo(f"{where}: memory {cap}, GPU time {share}, weight {limit['weight']}, class {limit['latency_class']}")
    if limit["over_bytes"]:
        over = format_mib(limit["over_bytes"])
        click.echo(f"hamirt: {where} is over its cap by {over} MiB: it gets no more until it fits", err=True)
