"""Containers as the daemon sees them, and its hook's requests for them."""

import subprocess
import time
from pathlib import Path
from typing import Any

from tests.node.conftest import Node
from tests.node.daemons import Daemon
from tests.support import wait_for

CAP = {"hamirt.io/memory": "8GiB"}


class Container:
    """What a container is to the daemon: an init process, and maybe a cgroup."""

    def __init__(self, node: Node, cgroup: Path | None = None, script: str = "exec sleep 1000") -> None:
        join = f"echo $$ >{cgroup}/cgroup.procs; " if cgroup else ""
        self.init = subprocess.Popen(
            ["sh", "-c", f"{join}echo ready; {script}"], env=node.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        node.started.append(self.init)
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.init.stdout is not None
        return self.init.stdout.readline().strip()

    def end(self) -> None:
        self.init.kill()
        self.init.wait(30)


def put(daemon: Daemon, name: str, pid: int, annotations: dict[str, str], **settings: str) -> tuple[int, Any]:
    body = {"pid": pid, "annotations": annotations, "settings": {f"hamirt.io/{key}": settings[key] for key in settings}}
    return daemon.ask("PUT", f"/v1/containers/{name}", body)


def remove(daemon: Daemon, name: str, query: str = "") -> tuple[int, Any]:
    return daemon.ask("DELETE", f"/v1/containers/{name}{query}")


def made(daemon: Daemon, name: str, container: Container, annotations: dict[str, str], **settings: str) -> Any:
    """Have a container's tenant made, and return the answer."""
    status, answer = put(daemon, name, container.init.pid, annotations, **settings)
    assert (status, answer.get("error")) == (200, None)
    return answer


def still_there(daemon: Daemon, identity: str) -> None:
    """See that two rounds of the reaper leave a tenant alone."""
    began = time.monotonic()
    while time.monotonic() < began + 2.5:
        assert identity in daemon.ids()
        time.sleep(0.05)


def gone(daemon: Daemon, identity: str) -> None:
    wait_for(lambda: identity not in daemon.ids(), "the folder to be removed")
