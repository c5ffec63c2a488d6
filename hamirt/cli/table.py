"""The table of `hamirt status`. The only user of rich."""

import os
import sys

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hamirt import __version__, survey
from hamirt.model import Card, Enforcement, Level, Node, ProcessView, Tenant, TenantCard
from hamirt.units import format_mib

_PIPE_COLUMNS = 132
_BAR_CELLS = 16
_LEVEL_STYLES = {Level.FULL: "green", Level.PARTIAL: "yellow", Level.NONE: "yellow"}
_COLUMNS = ("used", "cap", "alloc", "pools", "overhead", "denied")


def print_node(node: Node) -> None:
    """Print the node for a person: coloured on a terminal, plain elsewhere and with NO_COLOR."""
    plain = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    console = Console(
        color_system=None if plain else "auto", width=None if sys.stdout.isatty() else _PIPE_COLUMNS, highlight=False
    )
    console.print(render(node, unicode=console.encoding.lower().startswith("utf")))


def clear() -> None:
    """Begin a new page for --watch."""
    if sys.stdout.isatty():
        Console().clear()


def render(node: Node, *, unicode: bool) -> RenderableType:
    """Return what a person is shown: a head line, and for each card its tenants and their processes."""
    driver = node.driver
    parts: list[RenderableType] = [_head(node)]
    if node.problem:
        parts.append(Text(node.problem, style="yellow"))
    for card in driver.cards if driver else ():
        parts += [Text(""), _card_line(card, unicode), _card_table(card, node, unicode)]
    elsewhere = [
        (tenant, on) for tenant in node.tenants for on in tenant.cards if on.index is None
    ]
    if elsewhere:
        parts += [Text(""), Text("On cards that NVML does not show here", style="bold"), _table(elsewhere, (), unicode)]
    parts += [Text(f"{tenant.name}: {tenant.problem}", style="red") for tenant in node.tenants if tenant.problem]
    if not node.tenants:
        parts += [Text(""), Text("No tenant. Start one: hamirt run --mem 8GiB -- CMD", style="dim")]
    return Group(*parts)


def _head(node: Node) -> Text:
    head = Text.assemble(("hamirt ", "bold"), __version__)
    if node.driver is not None:
        head.append(f"   driver {node.driver.version}")
        if node.driver.simulated:
            head.append("   ")
            head.append(" SIMULATED GPU ", style="bold black on yellow")
    if node.inside:
        head.append("   inside a tenant")
    return head


def _card_line(card: Card, unicode: bool) -> Text:
    busy = "" if card.busy_ratio is None else f"   busy {card.busy_ratio:.0%}"
    line = Text.assemble(("GPU ", "bold"), (str(card.index), "bold"), f"  {card.name}  ")
    line.append_text(_bar(card.used_bytes, card.total_bytes, unicode))
    line.append(f"  {format_mib(card.used_bytes)} / {format_mib(card.total_bytes)} MiB{busy}")
    if card.mig:
        line.append("   MIG", style="yellow")
    return line


def _card_table(card: Card, node: Node, unicode: bool) -> RenderableType:
    here = [(tenant, on) for tenant in node.tenants for on in tenant.cards if on.uuid == card.uuid and on.index is not None]
    owned = survey.owners(node)
    others = () if node.inside else tuple(process for process in card.processes if process.pid not in owned)
    foreign = [f"{process.pid} {format_mib(process.used_bytes)} MiB" if process.used_bytes is not None else str(process.pid) for process in others]
    if not here and not foreign:
        return Text("  no tenant", style="dim")
    return _table(here, foreign, unicode)


def _table(rows: list[tuple[Tenant, TenantCard]], foreign: list[str] | tuple[str, ...], unicode: bool) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("tenant / process")
    table.add_column("of cap")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    table.add_column("enforced", overflow="fold")
    for tenant, card in rows:
        table.add_row(*_tenant_row(tenant, card, unicode))
        for process in card.processes:
            table.add_row(*_process_row(process, unicode))
    parts: list[RenderableType] = [table] if rows else []
    if foreign:
        parts.append(Text(f"outside hamirt: {', '.join(foreign)}", style="dim"))
    if rows:
        parts.append(Text("MiB", style="dim"))
    return Padding(Group(*parts), (0, 0, 0, 2))
