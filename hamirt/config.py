"""Where things lie: the root folder of the node's state, the native libraries, the tenant we are in."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from hamirt.errors import HamirtError

SYSTEM_ROOT = Path("/run/hamirt")
SOCKET_NAME = "hamirt.sock"  # of the daemon, in the root that it serves
CONTAINER_TENANT = SYSTEM_ROOT  # where a container finds its tenant's pages, ro/ and rw/
TENANT_VARIABLE = "HAMIRT_TENANT_DIR"
SIM_STATE_VARIABLE = "HAMIRT_SIM_STATE"
ROOT_VARIABLE = "HAMIRT_ROOT"
NATIVE_VARIABLE = "HAMIRT_NATIVE"  # another folder with libhamirt.so and sim/, such as an instrumented build


def root_path(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that holds this node's tenants, which may not exist yet."""
    given = env.get(ROOT_VARIABLE)
    if given:
        return Path(given).absolute()
    if os.geteuid() == 0 or _answers(socket_path(SYSTEM_ROOT)):
        return SYSTEM_ROOT
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime).absolute() / "hamirt"
    return Path(f"/tmp/hamirt-{os.geteuid()}")


def make_root(root: Path) -> None:
    """Create `root` if it is missing, and check that nobody else can put files there.

    Raises HamirtError with the reason.
    """
    try:
        root.mkdir(mode=0o755 if root == SYSTEM_ROOT else 0o700, parents=True, exist_ok=True)
        check_root(root)
        probe = os.access(root, os.W_OK | os.X_OK)
    except OSError as error:
        raise HamirtError(
            f"the state folder {root} can't be made ({error.strerror}): name a writable one with {ROOT_VARIABLE}"
        ) from None
    if not probe:
        raise HamirtError(f"the state folder {root} is not writable: name a writable one with {ROOT_VARIABLE}")


def check_root(root: Path) -> None:
    """Raise HamirtError unless `root` is a folder of ours that no other user can write to; OSError if it is missing."""
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise HamirtError(f"{root} is not a folder: name another one with {ROOT_VARIABLE}")
    if status.st_uid not in (os.geteuid(), 0):
        raise HamirtError(f"{root} belongs to user {status.st_uid}, not to you: name another one with {ROOT_VARIABLE}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HamirtError(f"other users can write to {root}: run chmod 700 {root}, or name another {ROOT_VARIABLE}")


def native_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of libhamirt.so and, in sim/, of the simulated driver."""
    given = env.get(NATIVE_VARIABLE)
    return Path(given).absolute() if given else Path(__file__).parent / "_native"


def shim_path(env: Mapping[str, str] = os.environ) -> Path:
    """Return the library that is preloaded into a tenant's processes."""
    return native_dir(env) / "libhamirt.so"


def sim_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the simulated driver's libraries."""
    return native_dir(env) / "sim"


def socket_path(root: Path) -> Path:
    """Return the socket of the daemon that serves this root."""
    return root / SOCKET_NAME


def sim_state_path(root: Path) -> Path:
    """Return the file in which the processes on simulated cards share their state."""
    return root / "sim"


def tenant_dir(env: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the tenant that this process belongs to, None outside of one."""
    if (CONTAINER_TENANT / "ro" / "limits").exists():
        return CONTAINER_TENANT
    given = env.get(TENANT_VARIABLE)
    return Path(given) if given else None


def _answers(path: Path) -> bool:
    import socket  # late: it is only needed by users other than root

    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.2)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
