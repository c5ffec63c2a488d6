"""The table of `hamirt status`. The only user of rich."""

import os
import sys
from collections.abc import Container, Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from hamirt import __version__, survey
from hamirt.model import (
    DEFAULT_WEIGHT,
    Card,
    CardProcess,
    Enforcement,
    LatencyClass,
    Level,
    Metering,
    Node,
    ProcessView,
    ShareSource,
    Supervisor,
    Tenant,
    TenantCard,
)
from hamirt.units import format_mib

_PIPE_COLUMNS = 132
_BAR_CELLS = 16
_GAP = 2
_LEAST_NAME_CELLS = 8
_WIDE_FROM_COLUMNS = 124
"""Below this neither bars nor what the memory is made of are shown."""
_UNCAPPED = "uncapped"
_UNKNOWN = "-"
_OPEN = "no turns: they left this GPU idle; weights and classes do not count meanwhile"
_MEMORY = ("used", "cap")
_PARTS = ("alloc", "pools", "overhead")
_PRESSURE = ("denied", "GPU time", "p99 wait", "throttled")
_LEVEL_STYLES = {Level.FULL: "green", Level.PARTIAL: "yellow", Level.NONE: "yellow"}

Row = tuple[Tenant, TenantCard]


def print_node(node: Node, note: str) -> None:
    """Print the node for a person: coloured on a terminal, plain elsewhere and with NO_COLOR.

    `note` says why it is not from the supervisor, where it is not.
    """
    on_terminal = sys.stdout.isatty()
    console = Console(
        color_system="auto" if on_terminal and not os.environ.get("NO_COLOR") else None,
        width=None if on_terminal else _PIPE_COLUMNS,
        highlight=False,
    )
    unicode = console.encoding.lower().startswith("utf")
    picture = render(node, note, unicode=unicode, wide=console.width >= _WIDE_FROM_COLUMNS)
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


def render(node: Node, note: str, *, unicode: bool, wide: bool) -> RenderableType:
    """Return what a person is shown: a head, then for each card its tenants and their processes."""
    parts: list[RenderableType] = [_head(node)]
    if not node.inside:
        parts.append(Text(_source(node.supervisor, note), style="dim"))
    if node.problem:
        parts.append(Text(node.problem, style="yellow"))
    for card in node.driver.cards if node.driver else ():
        parts += [Text(), _card_line(card, unicode), *_card_body(card, node, unicode, wide)]
    unseen = [(tenant, on) for tenant in node.tenants for on in tenant.cards if on.index is None]
    for uuid in sorted({on.uuid for _tenant, on in unseen}):
        line = Text.assemble((uuid, "bold"), "  (not shown by a driver here)")
        parts += [Text(), line, _table([(tenant, on) for tenant, on in unseen if on.uuid == uuid], unicode, wide)]
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


def _source(supervisor: Supervisor | None, note: str) -> str:
    if supervisor is None:
        return f"read directly: {note}"
    other = "" if supervisor.version == __version__ else f" {supervisor.version}"
    return (
        f"from the daemon{other}, pid {supervisor.pid}, up {_format_seconds(supervisor.uptime_seconds)}, "
        f"policy {supervisor.policy}"
    )


def _format_seconds(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _card_line(card: Card, unicode: bool) -> Text:
    line = Text.assemble((f"GPU {card.index}", "bold"), f"  {card.name}  ")
    line.append_text(_bar(card.used_bytes, card.total_bytes, unicode))
    line.append(f"  {format_mib(card.used_bytes)} / {format_mib(card.total_bytes)} MiB")
    if card.busy_ratio is not None:
        line.append(f"   busy {card.busy_ratio:.0%}")
    if card.mig:
        line.append("   MIG mode, not divided", style="yellow")
    return line


def _card_body(card: Card, node: Node, unicode: bool, wide: bool) -> list[RenderableType]:
    rows = [(tenant, on) for tenant in node.tenants for on in tenant.cards if on.index == card.index]
    body: list[RenderableType] = [_table(rows, unicode, wide)] if rows else []
    if node.supervisor is not None and card.uuid in node.supervisor.open_cards:
        body.append(Text(f"  {_OPEN}", style="yellow"))
    names = {tenant.id: tenant.name for tenant in node.tenants}
    for process in survey.intruders(node, card):
        name = names.get(process.tenant or "", process.tenant)
        body.append(Text(f"  {name} was not given this GPU: {survey.unshimmed_text(process)}", style="red"))
    foreign = [process for process in card.processes if process.tenant is None]
    if foreign and not node.inside:
        body.append(Text(f"  outside hamirt: {', '.join(map(_foreign_text, foreign))}", style="dim"))
    return body


def _foreign_text(process: CardProcess) -> str:
    name = f" {process.command}" if process.command else ""
    size = "" if process.used_bytes is None else f" ({format_mib(process.used_bytes)} MiB)"
    return f"pid {process.pid}{name}{size}"


def _table(rows: Sequence[Row], unicode: bool, wide: bool) -> RenderableType:
    headers = ["tenant (MiB)", *([""] if wide else []), *_MEMORY, *(_PARTS if wide else ()), *_PRESSURE, "enforced"]
    blank = [Text()] * (len(headers) - 3 - wide)
    lines = [[Text(header, style="dim") for header in headers]]
    for tenant, on in rows:
        lines.append(_tenant_row(tenant, on, unicode, wide))
        lines += [[line] for line in _said_below(tenant, on)]
        for name, size, end in _processes_below(on, unicode):
            lines.append([name, *([Text()] if wide else []), size, *blank, end])
    grid = _Grid(lines, right=range(1 + wide, len(headers) - 1))
    return Padding(Group(grid, *_notes(rows)), (0, 0, 0, 2))


class _Grid:
    """Lines of cells below each other. With 64 tenants rich's own table takes five times as long."""

    def __init__(self, lines: Sequence[Sequence[Text]], right: Container[int]) -> None:
        """Take cells of one line each; columns named in `right` end together, and the first gives way.

        A cell alone in its line has the whole of it.
        """
        self._lines = lines
        self._right = right

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        columns = zip(*(line for line in self._lines if len(line) > 1), strict=True)
        widths = [max(cell.cell_len for cell in column) for column in columns]
        missing = sum(widths) + _GAP * (len(widths) - 1) - options.max_width
        widths[0] = max(_LEAST_NAME_CELLS, widths[0] - max(0, missing))
        for cells in self._lines:
            line = Text(no_wrap=True, overflow="crop")
            if len(cells) == 1:
                cells[0].truncate(options.max_width, overflow="ellipsis")
                yield cells[0]
                continue
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                empty = " " * (width - cell.cell_len)
                cell.truncate(width, overflow="ellipsis")
                line.append_text(Text(empty) + cell if position in self._right else cell)
                if position + 1 < len(widths):
                    line.append(" " * _GAP if position in self._right else empty + " " * _GAP)
            yield line


def _said_below(tenant: Tenant, on: TenantCard) -> Iterator[Text]:
    """Yield what is said below a tenant's own line: what is special about its share, and what it runs in."""
    special = _special(on)
    if special:
        yield special
    for kind, place in (("pod", tenant.pod), ("container", tenant.container)):
        if place is not None:
            yield Text(f"  {kind} {place}", style="dim")


def _processes_below(on: TenantCard, unicode: bool) -> Iterator[tuple[Text, Text, Text]]:
    """Yield the tenant's processes: a name, what it uses, and what is said of its cap."""
    for process in on.processes:
        yield _process_name(process, unicode), Text(_process_size(process), style="dim"), Text()
    for intruder in on.unshimmed:
        size = _UNKNOWN if intruder.used_bytes is None else format_mib(intruder.used_bytes)
        name = Text(f"{_branch(unicode)}{intruder.pid} {intruder.command or ''}", style="red")
        yield name, Text(size, style="red"), Text("no shim", style="red")


def _special(on: TenantCard) -> Text:
    """Return how GPU time is shared with this tenant, as far as it is not as with any other."""
    words = [] if on.weight == DEFAULT_WEIGHT else [f"weight {on.weight}"]
    words += [] if on.latency_class is LatencyClass.NORMAL else [f"class {on.latency_class.value}"]
    words += ["ganged"] if on.metering is not None and on.metering.ganged else []
    text = Text(f"  {', '.join(words)}" if words else "", style="dim")
    if on.metering is not None and on.metering.unpreemptible:
        text.append(", " if words else "  ")
        text.append("unpreemptible", style="yellow")
    return text


def _notes(rows: Sequence[Row]) -> list[Text]:
    """Return what the table has no room for: how much a tenant is over, and why a cap does not hold."""
    notes = []
    for tenant, on in rows:
        if on.over:
            notes.append(Text(f"{tenant.name}: over by {format_mib(on.over_bytes)} MiB", style="bold red"))
        reason = on.enforcement.reason
        if reason not in (None, _UNCAPPED, tenant.problem):
            notes.append(Text(f"{tenant.name}: {reason}", style="yellow"))
    told: dict[Enforcement, list[str]] = {}
    for tenant, on in rows:
        held = on.time_enforcement
        if held is not None and held.reason not in (None, tenant.problem, on.enforcement.reason):
            told.setdefault(held, []).append(tenant.name)
    for held, names in told.items():
        style = "dim" if held.level is Level.FULL else "yellow"
        unheld = "GPU time is not capped: " if held.level is Level.NONE else ""
        notes.append(Text(f"{', '.join(names)}: {unheld}{held.reason}", style=style))
    return notes


def _tenant_row(tenant: Tenant, on: TenantCard, unicode: bool, wide: bool) -> list[Text]:
    name = Text(tenant.name, style="bold")
    if tenant.simulated and on.index is None:
        name.append(" simulated", style="yellow")
    cap, held = on.cap_bytes, max(on.used_bytes, on.footprint_bytes or 0)
    parts = [format_mib(size) for size in (on.allocation_bytes, on.pool_bytes, on.overhead_bytes)]
    level = _level(on)
    enforced = Text(level.value, style=_LEVEL_STYLES[level])
    return [
        name,
        *([_bar(held, on.card_bytes if cap is None else cap, unicode)] if wide else []),
        Text(format_mib(on.used_bytes)),
        Text(format_mib(cap) if cap is not None else _UNCAPPED),
        *(map(Text, parts) if wide else ()),
        Text(str(on.denials), style="red" if on.denials else ""),
        _gpu_time(on),
        Text(_format_wait(on.metering)),
        Text(f"{on.throttled_seconds:.1f} s" if on.throttled_seconds else "0"),
        Text("OVER", style="bold red") if on.over else enforced,
    ]


def _level(on: TenantCard) -> Level:
    """Return how far all that was asked for holds: as far as the part that holds least."""
    memory = [on.enforcement.level] if on.cap_bytes is not None else []
    time = [on.time_enforcement.level] if on.time_enforcement is not None else []
    return max(memory + time, key=list(Level).index, default=Level.NONE)


def _gpu_time(on: TenantCard) -> Text:
    """Return the share of GPU time, and what it is capped at."""
    sampled = "~" if on.busy_source is ShareSource.SAMPLED else ""
    share = _UNKNOWN if on.busy_ratio is None else f"{sampled}{on.busy_ratio:.0%}"
    return Text(share) if on.time_percent is None else Text.assemble(share, (f" / {on.time_percent}%", "dim"))


def _format_wait(seen: Metering | None) -> str:
    seconds = None if seen is None else seen.wait_p99_seconds
    if seconds is None:
        return _UNKNOWN
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _process_name(process: ProcessView, unicode: bool) -> Text:
    """Return a process with its pid here, and in brackets the one that it has in its container if that is another."""
    here = "" if process.pid is None else f"{process.pid} "
    inside = "" if process.pid == process.pid_inside else f"({process.pid_inside}) "
    return Text(f"{_branch(unicode)}{here}{inside}{process.command}", style="dim")


def _process_size(process: ProcessView) -> str:
    return format_mib(process.charged_bytes if process.card_bytes is None else process.card_bytes)


def _branch(unicode: bool) -> str:
    return "└ " if unicode else "- "


def _bar(used: int, total: int, unicode: bool) -> Text:
    """Return a bar of fixed width: green, yellow from 80 %, red from 95 %."""
    ratio = min(used / total, 1.0) if total else 0.0
    full, empty = ("█", "░") if unicode else ("#", ".")
    cells = round(ratio * _BAR_CELLS)
    style = "red" if ratio >= 0.95 else "yellow" if ratio >= 0.8 else "green"
    return Text.assemble((full * cells, style), (empty * (_BAR_CELLS - cells), "dim"))
