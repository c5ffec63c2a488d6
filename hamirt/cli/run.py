"""`hamirt run`: a tenant of one program and what it starts, under a daemon or without one."""

import os
import sys
from pathlib import Path

import click

from hamirt import child, config, contexts, metering, nvml, plan, program, region, tenants
from hamirt.cli import own
from hamirt.errors import HamirtError
from hamirt.model import DEFAULT_WEIGHT, Driver, LatencyClass, Limits


@click.command("run", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option("--gpu", "gpus", multiple=True, metavar="INDEX|UUID", help="A GPU to give; repeat it. Default: all.")
@click.option(
    "--mem",
    metavar="SIZE|PERCENT%",
    help="Cap on each GPU's memory: 8GiB, 8192MiB, 50%, or 0=8GiB,1=16GiB. Default: the whole card.",
)
@click.option(
    "--sm",
    metavar="PERCENT",
    type=click.IntRange(1, 100),
    help="Cap on GPU time, as a share of each GPU, also where nobody else wants it. Default: no cap.",
)
@click.option(
    "--weight",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=DEFAULT_WEIGHT,
    show_default=True,
    help="Share of GPU time where several want it, relative to others'. Needs a daemon.",
)
@click.option(
    "--class",
    "latency_class",
    type=click.Choice([one.value for one in LatencyClass]),
    default=LatencyClass.NORMAL.value,
    show_default=True,
    help="Whose work comes first. Needs a daemon.",
)
@click.option("--name", metavar="NAME", help="What status calls the tenant. Default: the command and a number.")
@click.option(
    "--on-error",
    type=click.Choice(["deny", "allow"]),
    default="deny",
    show_default=True,
    help="Where the cap can't be enforced: refuse, or go on without it.",
)
@click.option("--sim", is_flag=True, help="Use simulated GPUs.")
@click.argument("command_line", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    gpus: tuple[str, ...],
    mem: str | None,
    sm: int | None,
    weight: int,
    latency_class: str,
    name: str | None,
    on_error: str,
    sim: bool,
    command_line: tuple[str, ...],
) -> int:
    """Start CMD with caps on the GPU memory that it and all it starts can hold, and on the GPU time that they get.

    Ends with CMD's own status, 128+n if signal n ended it; 125 is an error of hamirt's, 126 a CMD that can't be
    executed, 127 one that was not found. SIZE: 8GiB and 8G count in 1024s, 8GB in 1000s.
    """
    inside = config.tenant_dir()
    if inside is not None:
        raise HamirtError(f"this already runs in a tenant ({inside}): start the program itself, under the same cap")
    if name is not None:
        tenants.check_name(name)
    root = config.root_path()
    if sim and config.SIM_STATE_VARIABLE not in os.environ:
        config.make_root(root)
        os.environ[config.SIM_STATE_VARIABLE] = str(config.sim_state_path(root))
    shim = config.shim_path()
    found = program.find(command_line[0], os.environ.get("PATH", os.defpath), shim)
    driver = nvml.read_driver(config.sim_dir() if sim else None)
    limits = plan.plan_limits(
        driver,
        gpus,
        mem,
        allow_on_error=on_error == "allow",
        measured=contexts.read(root),
        predicted_context_bytes=region.CONTEXT_BYTES,
        reserve_bytes=region.RESERVE_BYTES,
        time_percent=sm,
        weight=weight,
        latency_class=LatencyClass(latency_class),
    )
    unenforced = _why_unenforced(shim, found)
    if unenforced is not None and _limits_anything(limits):
        if not limits.allow_on_error:
            raise HamirtError(f"{unenforced}; --on-error allow starts it without a cap")
        click.echo(f"hamirt: no cap: {unenforced}", err=True)
    notes = tenants.Notes(simulated=sim, unenforced=unenforced)
    with child.signals_kept() as mask:
        lease = own.make(root, name, command_line, limits, notes)
        if not lease.by_daemon and (weight, latency_class) != (DEFAULT_WEIGHT, LatencyClass.NORMAL.value):
            click.echo(f"hamirt: {metering.ALONE_WITH_WISHES}", err=True)
        folder = lease.tenant.folder
        env = _environment(folder, shim if shim.exists() else None, sim)
        if gpus:
            env.pop("CUDA_VISIBLE_DEVICES", None)  # it counts the node's GPUs, and would count those given
        try:
            ended = child.run(found.path, command_line, env, mask)
        except BaseException:
            lease.end()
            raise
    contexts.note(root, _measured_contexts(folder, limits, driver))
    if not ended.survivors:
        lease.end()
    return ended.exit_code


def _why_unenforced(shim: Path, found: program.Program) -> str | None:
    """Return why the shim would not get into the program, None if nothing speaks against it."""
    if not shim.exists():
        return f"the library {shim} is missing: run make build, or install hamirt again"
    if any(char in str(shim) for char in " :"):
        return f"LD_PRELOAD can't name {shim}, which has a space or a colon in its path: install hamirt elsewhere"
    return found.unreachable


def _limits_anything(limits: Limits) -> bool:
    if len(limits.devices) < limits.node_devices:
        return True
    return any(limit.memory_bytes or limit.time_percent for limit in limits.devices)


def _environment(folder: Path, shim: Path | None, sim: bool) -> dict[str, str]:
    """Return our environment with what the shim, and with `sim` the simulated driver, are found by."""
    env = dict(os.environ)
    env[config.TENANT_VARIABLE] = str(folder)
    if shim is not None:
        env["LD_PRELOAD"] = ":".join(filter(None, (str(shim), env.get("LD_PRELOAD"))))
    if sim:
        env["LD_LIBRARY_PATH"] = ":".join(filter(None, (str(config.sim_dir()), env.get("LD_LIBRARY_PATH"))))
    return env


def _measured_contexts(folder: Path, limits: Limits, driver: Driver) -> dict[str, int]:
    """Return the context sizes that the tenant's processes measured, by contexts.key."""
    try:
        usage = region.read_usage(folder / "rw" / "usage", len(limits.devices))
    except HamirtError as error:
        print(f"hamirt: {error}", file=sys.stderr)
        return {}
    cards = {card.uuid: card for card in driver.cards}
    return {
        contexts.key(driver, cards[limit.uuid]): device.context_bytes
        for limit, device in zip(limits.devices, usage.devices, strict=True)
        if device.context_bytes is not None
    }
