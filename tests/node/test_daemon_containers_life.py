"""Containers' tenants go with their containers, and not before."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from hamirt import config, members, tenants
from hamirt.units import GIB
from tests.node.conftest import PROGRAMS
from tests.node.containers import CAP, Container, gone, made, put, remove, still_there
from tests.node.daemons import Daemon
from tests.support import wait_for


def test_a_tenant_goes_with_its_container_also_when_nobody_says_so(daemon: Daemon) -> None:
    container = Container(daemon.node)
    identity = made(daemon, "web", container, CAP)["id"]

    still_there(daemon, identity)
    container.end()

    wait_for(lambda: daemon.events("tenant_removed"), "the event")
    gone(daemon, identity)
    assert [event["event"] for event in daemon.events()] == ["started", "tenant_created", "tenant_removed"]


def test_one_that_is_said_to_have_ended_goes_at_once_and_only_then(daemon: Daemon) -> None:
    container = Container(daemon.node)
    identity = made(daemon, "web", container, CAP)["id"]

    early = remove(daemon, "web")
    still_there(daemon, identity)
    container.end()
    late = remove(daemon, "web")

    assert early == (200, {"id": identity, "name": "web", "removed": False})
    assert (late, daemon.ids()) == ((200, {"id": identity, "name": "web", "removed": True}), [])
    assert remove(daemon, "web") == (200, {"id": None})


def test_a_hook_that_failed_undoes_what_it_had_made(daemon: Daemon) -> None:
    container = Container(daemon.node)
    identity = made(daemon, "web", container, CAP)["id"]

    other = remove(daemon, "web", f"?pid={container.init.pid + 1}")
    undone = remove(daemon, "web", f"?pid={container.init.pid}")

    assert [answer["removed"] for _status, answer in (other, undone)] == [False, True]
    assert (identity == undone[1]["id"], daemon.ids()) == (True, [])


def test_containers_outlive_the_daemon_and_those_that_ended_meanwhile_are_swept(daemon: Daemon) -> None:
    living, dead = Container(daemon.node), Container(daemon.node)
    there, swept = (made(daemon, name, one, CAP)["id"] for name, one in (("living", living), ("dead", dead)))
    daemon.end(signal.SIGKILL)
    dead.end()
    listed = [pages.id for pages in tenants.list_pages(daemon.root)]  # which sweeps, while no daemon is there

    daemon.start()

    assert listed == [there]
    still_there(daemon, there)
    assert swept not in daemon.ids()
    living.end()
    gone(daemon, there)


def test_one_that_ends_while_the_daemon_is_away_is_swept_at_its_start(daemon: Daemon) -> None:
    container = Container(daemon.node)
    identity = made(daemon, "web", container, CAP)["id"]
    daemon.end(signal.SIGKILL)
    container.end()

    daemon.start()

    gone(daemon, identity)


def test_a_pid_that_passed_to_another_process_keeps_nothing_alive(daemon: Daemon) -> None:
    container = Container(daemon.node)
    identity = made(daemon, "web", container, CAP)["id"]
    daemon.end(signal.SIGKILL)
    note = daemon.root / "tenants" / identity / "tenant.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"start": 12345}))

    daemon.start()

    gone(daemon, identity)


def test_what_lives_in_the_cgroup_keeps_the_tenant(daemon: Daemon, cgroup: Path) -> None:
    container = Container(daemon.node, cgroup, "setsid sleep 1000 & exec sleep 1000")
    identity = made(daemon, "web", container, CAP)["id"]
    record = tenants.read_record(daemon.root / "tenants" / identity)
    wait_for(lambda: len((cgroup / "cgroup.procs").read_text().split()) == 2, "the other process")

    container.end()

    assert record is not None
    assert (record.cgroup or "").rpartition("/")[2] == cgroup.name
    assert remove(daemon, "web")[1]["removed"] is False
    still_there(daemon, identity)
    (left,) = (cgroup / "cgroup.procs").read_text().split()
    os.kill(int(left), signal.SIGKILL)
    gone(daemon, identity)


def test_a_cgroup_that_others_are_in_says_nothing(daemon: Daemon, cgroup: Path) -> None:
    shared = Container(daemon.node)  # where we are, and the daemon
    first, second = Container(daemon.node, cgroup), Container(daemon.node, cgroup)

    ids = [made(daemon, f"c{at}", one, CAP)["id"] for at, one in enumerate((shared, first, second))]

    records = [tenants.read_record(daemon.root / "tenants" / identity) for identity in ids]
    assert [one is not None and one.cgroup is not None for one in records] == [False, True, False]


def test_a_container_that_starts_again_has_a_new_tenant(daemon: Daemon, cgroup: Path) -> None:
    old, new = Container(daemon.node, cgroup), Container(daemon.node, cgroup)
    first = made(daemon, "web", old, {"hamirt.io/gpu": "0"})["id"]

    early = put(daemon, "web", new.init.pid, {"hamirt.io/gpu": "0"})
    old.end()
    second = made(daemon, "web", new, {"hamirt.io/gpu": "0"})["id"]  # though the first had the whole card
    late = remove(daemon, "web")

    assert early == (409, {
        "error": f"another container with the id web lives, as tenant web (init process {old.init.pid}): "
        "end it, or give this one another id"
    })  # fmt: skip
    assert (first != second, daemon.ids()) == (True, [second])
    assert late == (200, {"id": second, "name": "web", "removed": False})
    new.end()
    assert remove(daemon, "web")[1]["removed"] is True


def test_status_shows_it_as_any_tenant(daemon: Daemon, cgroup: Path) -> None:
    holder = f"exec {sys.executable} {PROGRAMS / 'holder.py'} 0 0 100 0 520 0 "
    container = Container(daemon.node, cgroup, "read folder; " + holder + '"$folder"')
    answer = made(
        daemon, "0123456789abcdef", container, CAP | {"io.kubernetes.pod.name": "train", "hamirt.io/gpu": "0"}
    )
    assert container.init.stdin is not None
    container.init.stdin.write(answer["folder"] + "\n")
    container.init.stdin.flush()
    assert container.line() == "ready"

    wait_for(
        lambda: [on["processes"] for one in daemon.node.status()["tenants"] for on in one["cards"] if on["processes"]],
        "a sample with the process",
    )
    (tenant,) = daemon.node.status()["tenants"]
    (on,) = tenant["cards"]
    text = daemon.node.hamirt("status", "--sim").stdout

    assert (tenant["name"], tenant["container"], tenant["pod"]) == ("0123456789ab", "0123456789abcdef", "train")
    assert (on["cap_bytes"], on["processes"][0]["pid"]) == (8 * GIB, container.init.pid)
    assert "container 0123456789abcdef" in text
    assert "pod train" in text


def test_rm_ends_the_container_and_nobody_who_only_says_so(daemon: Daemon) -> None:
    container = Container(daemon.node, script="for _ in $(seq 20); do sleep 1000 & echo $!; done; wait")
    children = [int(container.line()) for _ in range(20)]
    identity = made(daemon, "web", container, CAP)["id"]
    folder = str(daemon.root / "tenants" / identity)
    impostor = subprocess.Popen(["sleep", "1000"], env=daemon.node.env | {config.TENANT_VARIABLE: folder}, text=True)
    daemon.node.started.append(impostor)

    refused = daemon.node.hamirt("rm", "web")
    forced = daemon.node.hamirt("rm", "web", "--force")

    assert (refused.returncode, f"{container.init.pid} (sh)" in refused.stderr) == (1, True)
    assert (forced.returncode, daemon.ids()) == (0, [])
    container.init.wait(30)
    assert [pid for pid in children if members.read_process(pid) is not None] == []
    assert impostor.poll() is None


def test_an_environment_keeps_no_containers_tenant_alive(daemon: Daemon) -> None:
    container = Container(daemon.node)
    identity = made(daemon, "web", container, CAP)["id"]
    folder = str(daemon.root / "tenants" / identity)
    impostor = subprocess.Popen(["sleep", "1000"], env=daemon.node.env | {config.TENANT_VARIABLE: folder}, text=True)
    daemon.node.started.append(impostor)

    container.end()

    gone(daemon, identity)


def test_containers_that_come_and_go_leave_no_descriptor_behind(daemon: Daemon) -> None:
    assert daemon.process is not None
    process, container = psutil.Process(daemon.process.pid), Container(daemon.node)

    def come_and_go() -> int:
        made(daemon, "web", container, CAP)
        assert remove(daemon, "web", f"?pid={container.init.pid}")[1]["removed"] is True
        return process.num_fds()

    come_and_go()
    wait_for(lambda: not daemon.client.node()["tenants"], "a sample without it")
    before = process.num_fds()
    for _ in range(50):
        come_and_go()

    wait_for(lambda: process.num_fds() <= before, "the descriptors to be closed")
