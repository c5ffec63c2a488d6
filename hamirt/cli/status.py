"""`hamirt status`: the cards, the tenants on them, and how far their caps hold."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hamirt import config, survey
from hamirt.errors import REFUSED, HamirtError
from hamirt.model import GateState, Node, TenantCard, TenantPages

if TYPE_CHECKING:  # imported where it is needed: a person waits for this command
    from hamirt.daemon.sampler import Sampler

_PATIENCE_SECONDS = 1.5  # with a supervisor that is stopped
_SHARE_SECONDS = 0.2  # between two looks at what was metered; slots of GPU time are a tenth of that


def _complete_tenant(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from hamirt.cli import completion  # late: only a shell asks

    return completion.complete_tenant(ctx, param, incomplete)


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: integer bytes, a versioned schema.")
@click.option("--sim", is_flag=True, help="Look at the simulated GPUs.")
@click.option("-i", "gpu", metavar="GPU", help="One GPU only, by index or UUID.")
@click.option("--tenant", metavar="NAME", shell_complete=_complete_tenant, help="One tenant only, by name or id.")
@click.option("--check", is_flag=True, help="Say what is not as it should be, and exit 1 if anything is.")
@click.option(
    "-w",
    "watch",
    metavar="[SEC]",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    help="Again every SEC seconds, 2 by default.",
)
def command(as_json: bool, sim: bool, gpu: str | None, tenant: str | None, check: bool, watch: float | None) -> int:
    """Show the cards, the tenants on them, what they hold of their caps and which share of GPU time they get.

    Asks the supervisor; where none answers, reads pages and NVML itself and says so. Inside a tenant: that tenant.
    A share with a ~ was not metered, but is the card's utilization. NO_COLOR and pipes give plain text.
    """
    if check and watch is not None:
        raise click.UsageError("--check looks once: leave -w out")
    with _Looker(sim) as looker:
        if watch is None:
            node = looker.look(gpu, tenant)
            violations = survey.violations(node) if check else []
            if check and not as_json:
                _say_violations(node, violations)
            else:
                _show(node, looker.note, as_json, indent=2)
            return REFUSED if violations else 0
        try:
            while True:
                _show(looker.look(gpu, tenant), looker.note, as_json, again=True)
                time.sleep(watch)
        except KeyboardInterrupt:
            return 0


def _show(node: Node, note: str, as_json: bool, *, indent: int | None = None, again: bool = False) -> None:
    if as_json:
        import json

        from hamirt import wire

        click.echo(json.dumps(wire.node_to_json(node), indent=indent))
        return
    from hamirt.cli import table  # late: rich

    if again:
        table.clear()
    table.print_node(node, note)


def _say_violations(node: Node, violations: list[str]) -> None:
    for violation in violations:
        click.echo(violation)
    if not violations:
        cards = len(node.driver.cards) if node.driver else 0
        click.echo(f"nothing is amiss: {len(node.tenants)} tenants on {cards} GPUs")


class _Looker:
    """Asks the supervisor, or looks itself; keeps NVML open from one look to the next."""

    def __init__(self, sim: bool) -> None:
        self._root, self._inside = config.root_path(), config.tenant_dir()
        self._sim = sim or (self._inside is not None and config.SIM_STATE_VARIABLE in os.environ)
        self._sampler: Sampler | None = None
        self.note = ""
        """Why the last look was not the supervisor's, where that is so."""

    def __enter__(self) -> "_Looker":
        return self

    def __exit__(self, *_: object) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def look(self, gpu: str | None, tenant: str | None) -> Node:
        """Return the node, or inside a tenant that tenant, and of it what was asked for.

        Raises HamirtError for a card or a tenant that isn't there.
        """
        node = None if self._inside is not None else self._ask()
        return _select(node or self._read(self._inside), gpu, tenant)

    def _ask(self) -> Node | None:
        """Return the supervisor's last sample, None where it is of no use or there is none."""
        self.note = "no supervisor answers"
        if not config.socket_path(self._root).exists():
            return None
        from hamirt import client, wire

        try:
            node = wire.node_from_json(client.Client(self._root, _PATIENCE_SECONDS).node())
        except HamirtError as error:
            self.note = str(error)
            return None
        if node.driver is not None and node.driver.simulated != self._sim:
            self.note = f"the supervisor watches {'real' if self._sim else 'simulated'} GPUs"
            return None
        return node

    def _read(self, inside: Path | None) -> Node:
        from hamirt import tenants
        from hamirt.daemon.sampler import Sampler

        if self._sim and inside is None:
            config.make_root(self._root)
        pages: tuple[TenantPages, ...] = ()
        problem = None
        try:
            pages = tenants.list_pages(self._root) if inside is None else tenants.read_one(inside)
        except HamirtError as error:
            problem = str(error)
        first = self._sampler is None
        if self._sampler is None:
            self._sampler = Sampler(self._sim, self._root)
        node = self._sampler.sample(pages, inside=inside is not None)
        if first and any(_is_metered(on) for tenant in node.tenants for on in tenant.cards):
            time.sleep(_SHARE_SECONDS)
            return self._read(inside)
        return replace(node, problem="\n".join(filter(None, (problem, node.problem))) or None)


def _is_metered(on: TenantCard) -> bool:
    """Return whether a second look tells which share of GPU time it gets."""
    return bool(on.processes) and on.metering is not None and on.metering.gate is not GateState.FREE


def _select(node: Node, gpu: str | None, tenant: str | None) -> Node:
    uuid = None
    if gpu is not None:
        from hamirt import plan

        if node.driver is None:
            raise HamirtError(node.problem or "no NVIDIA driver answers on this machine")
        uuid = plan.find_card(node.driver, gpu).uuid
    if tenant is not None and not any(tenant in (one.name, one.id) for one in node.tenants):
        there = ", ".join(one.name for one in node.tenants) or "none at all"
        raise HamirtError(f"no tenant is called {tenant!r}: there is {there}")
    return survey.select(node, uuid, tenant)
