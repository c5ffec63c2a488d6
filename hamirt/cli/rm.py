"""`hamirt rm`: remove a tenant."""

import click

from hamirt import client, config
from hamirt.cli.completion import complete_tenant


@click.command("rm")
@click.argument("name", shell_complete=complete_tenant)
@click.option("--force", is_flag=True, help="End its processes first: SIGTERM, and SIGKILL to what goes on.")
def command(name: str, force: bool) -> None:
    """Remove the tenant NAME, given by name or id. One with living processes is refused, unless with --force."""
    removed = client.Client(config.root_path()).remove(name, force=force)
    click.echo(f"{removed['name']} is removed")
