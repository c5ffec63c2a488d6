"""`hamirt demo`: two tenants share one GPU, and one of them runs into its cap."""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from hamirt import config, nvml
from hamirt.errors import HamirtError
from hamirt.model import Card
from hamirt.units import GIB

_ROOM_BYTES = 6 * GIB
_DEADLINE_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_REFUSAL = "OUT_OF_MEMORY"
_AFTER_SECONDS = 1.5  # for steady to be seen going on after greedy's refusal


@dataclass(frozen=True, slots=True)
class Actor:
    """One tenant of the demo: its program's part, its cap, and its colour on the screen."""

    name: str
    cap: str
    colour: str


STEADY = Actor("steady", "4GiB", "cyan")
GREEDY = Actor("greedy", "2GiB", "magenta")


@click.command("demo")
@click.option("--sim", is_flag=True, help="Use a simulated GPU even where there is a real one.")
def command(sim: bool) -> int:
    """Show two tenants on one GPU: one runs into its cap, the other doesn't notice.

    It uses a real GPU where there is one with 6GiB free, and a simulated one elsewhere. About ten seconds.
    """
    if config.tenant_dir() is not None:
        raise HamirtError("this already runs in a tenant: run the demo outside of one")
    card = None if sim else _real_card()
    with tempfile.TemporaryDirectory(prefix="hamirt-demo-") as folder:
        os.environ[config.ROOT_VARIABLE] = folder
        os.environ.pop(config.SIM_STATE_VARIABLE, None)
        click.secho(_introduction(card), bold=True)
        with _start(STEADY, card) as steady, _start(GREEDY, card) as greedy:
            good = _watch(steady, greedy)
            good &= _print_status(card)
            good &= _finish(STEADY, steady) & _finish(GREEDY, greedy)
    click.secho(_conclusion(good), fg="green" if good else "red", bold=True)
    return 0 if good else 1


def _real_card() -> Card | None:
    """Return the real card with the most free memory, None if there is none with room for the demo."""
    try:
        cards = [card for card in nvml.read_driver().cards if not card.mig]
    except HamirtError:
        return None
    best = max(cards, key=lambda card: card.total_bytes - card.used_bytes, default=None)
    return best if best is not None and best.total_bytes - best.used_bytes >= _ROOM_BYTES else None


def _introduction(card: Card | None) -> str:
    if card is None:
        return "Two tenants share one GPU. No free NVIDIA GPU is used here: the GPU below is SIMULATED."
    return f"Two tenants share GPU {card.index}, {card.name}."


def _conclusion(good: bool) -> str:
    if good:
        return "greedy met its cap with a clean out-of-memory error and went on; steady never noticed."
    return "The demo did not go as it should: see the lines above."


@contextmanager
def _start(actor: Actor, card: Card | None) -> Iterator[subprocess.Popen[str]]:
    """Start one tenant with the command that a person would type; it is gone when the block ends."""
    where = ["--sim"] if card is None else ["--gpu", str(card.index)]
    options = ["run", *where, "--mem", actor.cap, "--name", actor.name, "--"]
    program = Path(__file__).with_name("demo_tenant.py")
    click.secho(f"$ hamirt {' '.join(options)} python {program.name} {actor.name}", dim=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "hamirt", *options, sys.executable, str(program), actor.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _watch(steady: subprocess.Popen[str], greedy: subprocess.Popen[str]) -> bool:
    """Show what both say until greedy was refused and steady was seen going on; return whether it came to that."""
    actors = {_output(steady): STEADY, _output(greedy): GREEDY}
    partial = dict.fromkeys(actors, "")
    refused, deadline = False, time.monotonic() + _DEADLINE_SECONDS
    while len(actors) == 2 and time.monotonic() < deadline:
        ready, _, _ = select.select(list(actors), [], [], 0.1)
        for descriptor in ready:
            chunk = os.read(descriptor, 65536).decode("utf-8", "replace")
            *lines, partial[descriptor] = (partial[descriptor] + chunk).split("\n")
            for line in lines:
                _show(actors[descriptor], line)
                if _REFUSAL in line and not refused:
                    refused, deadline = True, time.monotonic() + _AFTER_SECONDS
            if not chunk:
                del actors[descriptor]
    return refused and len(actors) == 2


def _print_status(card: Card | None) -> bool:
    options = ["status", "--sim"] if card is None else ["status", "-i", str(card.index)]
    click.secho(f"\n$ hamirt {' '.join(options)}", dim=True)
    ended = subprocess.run([sys.executable, "-m", "hamirt", *options], timeout=_DEADLINE_SECONDS)
    click.echo()
    return ended.returncode == 0


def _output(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return process.stdout.fileno()


def _finish(actor: Actor, process: subprocess.Popen[str]) -> bool:
    """Close the tenant's input, show its last words, and return whether it ended well."""
    try:
        output, _ = process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    for line in output.splitlines():
        _show(actor, line)
    if process.returncode != 0:
        _show(actor, f"failed: it ended with status {process.returncode}")
    return process.returncode == 0


def _show(actor: Actor, line: str) -> None:
    colour = "red" if _REFUSAL in line or line.startswith("failed") else None
    click.echo(click.style(f"  {actor.name:>6} | ", fg=actor.colour) + click.style(line, fg=colour))
