"""`hamirt completion`: the shell's script that completes our command line, and the names of tenants for it.

A parameter that takes a tenant says `shell_complete=complete_tenant`.
"""

import json
import os
import re
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from hamirt import client, config, wire
from hamirt.errors import HamirtError

_PROGRAM, _VARIABLE = "hamirt", "_HAMIRT_COMPLETE"
_WHERE = {
    "bash": "~/.bashrc:  eval \"$(hamirt completion bash)\"",
    "zsh": "~/.zshrc:  eval \"$(hamirt completion zsh)\"",
    "fish": "~/.config/fish/completions/hamirt.fish:  hamirt completion fish | source",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # the shell's script takes words apart: only these come out whole
_RECORD_BYTES = 1 << 16
_ASK_SECONDS = 0.5


@click.command("completion", epilog="\b\nWhere it goes:\n" + "\n".join(f"  {line}" for line in _WHERE.values()))
@click.argument("shell", type=click.Choice(list(_WHERE)))
def command(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options and the names of tenants."""
    from hamirt.cli.main import cli  # late: main imports the commands

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(cli, {}, _PROGRAM, _VARIABLE).source())


def complete_tenant(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the tenants' names that begin with `incomplete`; none where they can't be read: TAB shows no error."""
    try:
        root = config.root_path()
        try:
            names = _noted_names(root)
        except PermissionError:  # the folder of a supervisor of root's
            names = {tenant.name for tenant in wire.node_from_json(client.Client(root, _ASK_SECONDS).node()).tenants}
    except (OSError, HamirtError):
        return []
    return sorted(name for name in names if name.startswith(incomplete) and _NAME.fullmatch(name))


def _noted_names(root: Path) -> set[str]:
    folders = [folder for folder in (root / "tenants").iterdir() if not folder.name.startswith(".")]
    names = {_name(folder / "tenant.json") for folder in folders}
    return {name for name in names if name is not None}


def _name(record: Path) -> str | None:
    try:
        fd = os.open(record, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            return str(json.loads(file.read(_RECORD_BYTES))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
