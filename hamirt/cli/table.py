"""The table of `hamirt status`. The only user of rich."""

import os
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hamirt import __version__, survey
from hamirt.model import Card, CardProcess, Level, Node, ProcessView, Tenant, TenantCard
from hamirt.units import format_mib

_PIPE_COLUMNS = 132
_BAR_CELLS = 16
_BARS_FROM_COLUMNS = 90
_NUMBERS = ("used", "cap", "alloc", "pools", "overhead", "denied")
_LEVEL_STYLES = {Level.FULL: "green", Level.PARTIAL: "yellow", Level.NONE: "yellow"}
_UNCAPPED = "uncapped"


def print_node(node: Node) -> None:
    """Print the node for a person: coloured on a terminal, plain elsewhere and with NO_COLOR."""
    on_terminal = sys.stdout.isatty()
    console = Console(
        color_system="auto" if on_terminal and not os.environ.get("NO_COLOR") else None,
        width=None if on_terminal else _PIPE_COLUMNS,
        highlight=False,
    )
    unicode = console.encoding.lower().startswith("utf")
    picture = render(node, unicode=unicode, bars=console.width >= _BARS_FROM_COLUMNS)
    if on_terminal:
        console.print(picture)
        return
    with console.capture() as capture:
        console.print(picture)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def clear() -> None:
    """Begin a new page for the next look, on a terminal."""
    if sys.stdout.isatty():
        Console().clear()


def render(node: Node, *, unicode: bool, bars: bool) -> RenderableType:
    """Return what a person is shown: a head line, then for each card its tenants and their processes."""
    parts: list[RenderableType] = [_head(node)]
    if node.problem:
        parts.append(Text(node.problem, style="yellow"))
    for card in node.driver.cards if node.driver else ():
        parts += [Text(), _card_line(card, unicode), *_card_body(card, node, unicode, bars)]
    unseen = [(tenant, on) for tenant in node.tenants for on in tenant.cards if on.index is None]
    for uuid in sorted({on.uuid for _tenant, on in unseen}):
        line = Text.assemble((uuid, "bold"), "  (not shown by a driver here)")
        parts += [Text(), line, _table([(tenant, on) for tenant, on in unseen if on.uuid == uuid], unicode, bars)]
    parts += [Text(f"{tenant.name}: {tenant.problem}", style="red") for tenant in node.tenants if tenant.problem]
    if not node.tenants:
        parts += [Text(), Text("No tenant. Start one with: hamirt run --mem 8GiB -- CMD", style="dim")]
    return Group(*parts)


def _head(node: Node) -> Text:
    head = Text.assemble(("hamirt ", "bold"), __version__)
    if node.driver is not None:
        head.append(f"   driver {node.driver.version}")
        if node.driver.simulated:
            head.append("   ")
            head.append("SIMULATED GPU", style="bold black on yellow")
    if node.inside:
        head.append("   inside a tenant")
    return head


def _card_line(card: Card, unicode: bool) -> Text:
    line = Text.assemble((f"GPU {card.index}", "bold"), f"  {card.name}  ")
    line.append_text(_bar(card.used_bytes, card.total_bytes, unicode))
    line.append(f"  {format_mib(card.used_bytes)} / {format_mib(card.total_bytes)} MiB")
    if card.busy_ratio is not None:
        line.append(f"   busy {card.busy_ratio:.0%}")
    if card.mig:
        line.append("   MIG mode, not divided", style="yellow")
    return line


def _card_body(card: Card, node: Node, unicode: bool, bars: bool) -> list[RenderableType]:
    rows = [(tenant, on) for tenant in node.tenants for on in tenant.cards if on.index == card.index]
    body: list[RenderableType] = [_table(rows, unicode, bars)] if rows else []
    owned = survey.owners(node)
    foreign = [process for process in card.processes if process.pid not in owned] if not node.inside else []
    if foreign:
        body.append(Text(f"  outside hamirt: {', '.join(map(_foreign_text, foreign))}", style="dim"))
    return body


def _foreign_text(process: CardProcess) -> str:
    size = "" if process.used_bytes is None else f" ({format_mib(process.used_bytes)} MiB)"
    return f"pid {process.pid}{size}"


def _table(rows: Sequence[tuple[Tenant, TenantCard]], unicode: bool, bars: bool) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("tenant (MiB)", overflow="fold")  # the one that gives way on a narrow terminal
    if bars:
        table.add_column("", no_wrap=True)
    for header in _NUMBERS:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("enforced", no_wrap=True)
    notes: list[RenderableType] = []
    for tenant, card in rows:
        name, *numbers = _tenant_row(tenant, card)
        bar = _bar(card.used_bytes, card.card_bytes if card.cap_bytes is None else card.cap_bytes, unicode)
        table.add_row(name, *([bar] if bars else []), *numbers)
        for process in card.processes:
            name, used = _process_row(process, unicode)
            table.add_row(name, *([Text()] if bars else []), used)
        reason = card.enforcement.reason
        if reason is not None and reason != _UNCAPPED:
            notes.append(Text(f"{tenant.name}: {reason}", style="yellow"))
    return Padding(Group(table, *notes), (0, 0, 0, 2))


def _tenant_row(tenant: Tenant, card: TenantCard) -> list[Text]:
    name = Text(tenant.name, style="bold")
    if tenant.simulated and card.index is None:
        name.append(" simulated", style="yellow")
    cap = card.cap_bytes
    level = card.enforcement.level
    enforced = Text(level.value, style=_LEVEL_STYLES[level])
    if card.over:
        enforced = Text("OVER", style="bold red")
    return [
        name,
        Text(format_mib(card.used_bytes)),
        Text(format_mib(cap) if cap is not None else _UNCAPPED),
        Text(format_mib(card.allocation_bytes)),
        Text(format_mib(card.pool_bytes)),
        Text(format_mib(card.overhead_bytes)),
        Text(str(card.denials), style="red" if card.denials else ""),
        enforced,
    ]


def _process_row(process: ProcessView, unicode: bool) -> list[Text]:
    branch = "└ " if unicode else "- "
    pid = f"{process.pid}" if process.pid is not None else f"({process.pid_inside} inside)"
    used = process.charged_bytes if process.card_bytes is None else process.card_bytes
    return [Text(f"{branch}{pid} {process.command}", style="dim"), Text(format_mib(used), style="dim")]


def _bar(used: int, total: int, unicode: bool) -> Text:
    """Return a bar of fixed width: green, yellow from 80 %, red from 95 %."""
    ratio = min(used / total, 1.0) if total else 0.0
    full, empty = ("█", "░") if unicode else ("#", ".")
    cells = round(ratio * _BAR_CELLS)
    style = "red" if ratio >= 0.95 else "yellow" if ratio >= 0.8 else "green"
    return Text.assemble((full * cells, style), (empty * (_BAR_CELLS - cells), "dim"))
