"""What systemd is told of the daemon (sd_notify(3)); nothing where no systemd asks."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


def notify(state: str, env: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager `READY=1`, `WATCHDOG=1`, `RELOADING=1` or `STOPPING=1`."""
    address = env.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel, suppress(OSError):
        channel.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
