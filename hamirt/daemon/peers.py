"""Who is at the other end of the socket, by the kernel's word, and what he may do."""

import grp
import os
import socket
import struct
from dataclasses import dataclass

from hamirt.errors import HamirtError

_CREDENTIALS = struct.Struct("3i")  # struct ucred of socket(7): pid, uid, gid
_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13
_MOST_GROUPS = 256  # Python reads 1024 bytes of a socket option at most


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected. `pid` is 0 where it is in a PID namespace that we don't see."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected this unix socket."""
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # in more groups than that: only the first one counts
        groups = b""
    return Peer(pid, uid, frozenset((gid, *struct.unpack(f"{len(groups) // 4}I", groups))))


def is_admin(peer: Peer, admin_gid: int | None) -> bool:
    """Return whether the peer may do everything: root, the daemon's own user, and the group of the settings."""
    return peer.uid in (0, os.geteuid()) or (admin_gid is not None and admin_gid in peer.groups)


def group_id(name: str | None) -> int | None:
    """Return the id of the settings' `admin_group`.

    Raises HamirtError where there is no such group.
    """
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise HamirtError(f"admin_group: this machine has no group {name!r}") from None
