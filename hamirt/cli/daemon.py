"""`hamirt daemon`: the supervisor of this node, in the foreground, as systemd and containers want it."""

import os
from pathlib import Path

import click

from hamirt import config


@click.command("daemon")
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings in TOML; SIGHUP reads them again. Default: none, and each setting's default holds.",
)
@click.option("--sim", is_flag=True, help="Serve simulated GPUs.")
def command(config_path: Path | None, sim: bool) -> None:
    """Serve this node: make tenants, change their limits while they run, and watch that these hold.

    It can be killed and started again at any time; tenants do not notice. SIGTERM ends it, and they go on.
    """
    from hamirt.daemon import supervisor  # late: its libraries are the daemon's alone

    root = config.root_path()
    if sim:
        os.environ.setdefault(config.SIM_STATE_VARIABLE, str(config.sim_state_path(root)))
    supervisor.run(root, config_path, sim=sim)
