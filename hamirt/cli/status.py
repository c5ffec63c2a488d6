"""`hamirt status`: the cards, the tenants on them, and how far their caps hold."""

import json
import os
import time

import click

from hamirt import __version__, config, members, nvml, plan, survey, tenants
from hamirt.errors import HamirtError
from hamirt.model import Card, Driver, Node, ProcessView, Tenant, TenantCard, TenantPages

SCHEMA = 1  # of --json; docs/status-json.md


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: integer bytes, a versioned schema.")
@click.option("--sim", is_flag=True, help="Look at the simulated GPUs.")
@click.option("-i", "gpu", metavar="GPU", help="One GPU only, by index or UUID.")
@click.option("--tenant", metavar="NAME", help="One tenant only, by name or id.")
@click.option(
    "-w",
    "watch",
    metavar="[SEC]",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    help="Again every SEC seconds, 2 by default.",
)
def command(as_json: bool, sim: bool, gpu: str | None, tenant: str | None, watch: float | None) -> None:
    """Show the cards, the tenants on them and what they hold of their caps.

    Inside a tenant: that tenant. NO_COLOR and pipes give plain text.
    """
    if as_json and watch is None:
        click.echo(json.dumps(to_json(look(sim, gpu, tenant)), indent=2))
        return
    from hamirt.cli import table  # late: rich

    if watch is None:
        table.print_node(look(sim, gpu, tenant))
        return
    try:
        while True:
            node = look(sim, gpu, tenant)
            if as_json:
                click.echo(json.dumps(to_json(node)))
            else:
                table.clear()
                table.print_node(node)
            time.sleep(watch)
    except KeyboardInterrupt:
        return


def look(sim: bool, gpu: str | None = None, tenant: str | None = None) -> Node:
    """Read the node, or inside a tenant that tenant, and keep what was asked for.

    Raises HamirtError for a card or a tenant that isn't there.
    """
    root, inside = config.root_path(), config.tenant_dir()
    if inside is not None and config.SIM_STATE_VARIABLE in os.environ:
        sim = True
    if sim:
        if inside is None:
            config.make_root(root)
        os.environ.setdefault(config.SIM_STATE_VARIABLE, str(config.sim_state_path(root)))
    driver: Driver | None = None
    pages: tuple[TenantPages, ...] = ()
    problems = []
    try:
        pages = tenants.list_pages(root) if inside is None else tenants.read_one(inside)
    except HamirtError as error:
        problems.append(str(error))
    try:
        driver = nvml.read_driver(config.sim_dir() if sim else None)
    except HamirtError as error:
        problems.append(str(error))
    namespace = members.own_namespace()
    slots = survey.slots_of(pages)
    pids = members.outside_pids({slot for slot in slots if slot[0] != namespace})
    pids |= {slot: slot[1] for slot in slots if slot[0] == namespace}
    node = survey.survey(driver, "\n".join(problems) or None, pages, pids, inside=inside is not None)
    return _select(node, gpu, tenant)


def _select(node: Node, gpu: str | None, tenant: str | None) -> Node:
    uuid = None
    if gpu is not None:
        if node.driver is None:
            raise HamirtError(node.problem or nvml.NO_DRIVER)
        uuid = plan.find_card(node.driver, gpu).uuid
    if tenant is not None and not any(tenant in (one.name, one.id) for one in node.tenants):
        there = ", ".join(one.name for one in node.tenants) or "none at all"
        raise HamirtError(f"no tenant is called {tenant!r}: there is {there}")
    return survey.select(node, uuid, tenant)


def to_json(node: Node) -> dict[str, object]:
    """Return the node in the schema of docs/status-json.md."""
    driver = node.driver
    owners = survey.owners(node)
    return {
        "schema": SCHEMA,
        "hamirt": __version__,
        "simulated": driver is not None and driver.simulated,
        "inside_tenant": node.inside,
        "driver": driver.version if driver else None,
        "problem": node.problem,
        "gpu_time": "not metered",
        "cards": [_card_json(card, owners) for card in driver.cards] if driver else [],
        "tenants": [_tenant_json(tenant) for tenant in node.tenants],
    }


def _card_json(card: Card, owners: dict[int, str]) -> dict[str, object]:
    return {
        "index": card.index,
        "uuid": card.uuid,
        "name": card.name,
        "total_bytes": card.total_bytes,
        "used_bytes": card.used_bytes,
        "busy_ratio": card.busy_ratio,
        "mig": card.mig,
        "processes": [
            {"pid": process.pid, "used_bytes": process.used_bytes, "tenant": owners.get(process.pid)}
            for process in card.processes
        ],
    }


def _tenant_json(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "simulated": tenant.simulated,
        "problem": tenant.problem,
        "cards": [_tenant_card_json(card) for card in tenant.cards],
    }


def _tenant_card_json(card: TenantCard) -> dict[str, object]:
    return {
        "index": card.index,
        "uuid": card.uuid,
        "cap_bytes": card.cap_bytes,
        "card_bytes": card.card_bytes,
        "used_bytes": card.used_bytes,
        "allocation_bytes": card.allocation_bytes,
        "pool_bytes": card.pool_bytes,
        "overhead_bytes": card.overhead_bytes,
        "footprint_bytes": card.footprint_bytes,
        "denials": card.denials,
        "over": card.over,
        "enforcement": {"memory": card.enforcement.level.value, "reason": card.enforcement.reason},
        "processes": [_process_json(process) for process in card.processes],
    }


def _process_json(process: ProcessView) -> dict[str, object]:
    return {
        "pid": process.pid,
        "pid_inside": process.pid_inside,
        "command": process.command,
        "charged_bytes": process.charged_bytes,
        "card_bytes": process.card_bytes,
    }
