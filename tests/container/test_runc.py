"""Containers of runc: what they see and get of the card, from each way into them, and what is left when they end."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.container.conftest import MEMORY, Bundle, Runtime, Site, runtime_on, say_to
from tests.node.conftest import read_line
from tests.support import need, wait_for

CAPPED = "cuda 8192 "
CONTEXT_MIB = 520  # of a simulated card; before the first is measured, more is kept back
PAM = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\nsession sufficient pam_permit.so\n"

# Each way to start a program in a container that may lose the environment, and the user it starts from.
WAYS = {
    "a child": ("/bin/sh -c 'sh -c \"/inmate views\"'", 0),
    "an empty environment": ("env -i /inmate views", 0),
    "a login": ("su - user -c '/inmate views'", 0),
    "a set-uid program": ("/setuid views", 1000),
    "another user": ("/inmate views", 1000),
}


def get_state(runc: Runtime, bundle: Bundle) -> dict[str, object]:
    state: dict[str, object] = json.loads(runc("state", bundle.id).stdout)
    return state


def test_the_cap_holds_and_the_views_agree(runc: Runtime) -> None:
    ended = runc.run(runc.bundle("/inmate", "views", "fill", "take", "64", "pids"))

    cuda, nvml, got, again, pids = (line.split() for line in ended.stdout.splitlines())
    total, free = int(cuda[1]), int(cuda[2])
    assert total == 8192
    assert nvml == ["nvml", "1", "8192", str(total - free)]
    assert free - 128 < int(got[1]) <= 8192 - CONTEXT_MIB
    assert (got[2], again, pids) == ("2", ["take", "2"], ["pids", "1"])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_sees_the_cap(runc: Runtime, way: str) -> None:
    script, uid = WAYS[way]
    bundle = runc.bundle("/bin/sh", "-c", script, user={"uid": uid, "gid": uid})
    for service in ("su", "su-l"):
        (bundle.rootfs / "etc" / "pam.d").mkdir(exist_ok=True)
        (bundle.rootfs / "etc" / "pam.d" / service).write_text(PAM)

    ended = runc.run(bundle)

    assert ended.stdout.startswith(CAPPED), ended


def test_a_program_started_in_a_running_container_is_of_its_tenant(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "take", "7000", "wait")
    process = runc.start(bundle)
    assert (read_line(process), read_line(process)) == ("take 0", "waiting")

    seen = [runc("exec", *words, bundle.id, "/inmate", "views", "take", "1000") for words in ((), ("--user", "1000"))]

    for ended in seen:
        assert ended.stdout.startswith(CAPPED), ended
        assert ended.stdout.endswith("take 2\n")


def test_the_node_knows_the_container_and_its_pids(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "take", "1", "pids", "wait", annotations={MEMORY: "8GiB", "hamirt.io/name": "web"})
    process = runc.start(bundle)
    assert [read_line(process) for _ in range(3)] == ["take 0", "pids 1", "waiting"]

    def tenant() -> dict[str, object]:
        found: dict[str, object] = runc.site.daemon.client.node()["tenants"][0]
        return found

    def pids() -> list[object]:
        tenants = runc.site.daemon.client.node()["tenants"]
        return [one["pid"] for tenant in tenants for one in tenant["cards"][0]["processes"]]

    wait_for(lambda: any(pids()), "the process, by its pid on the node")
    assert tenant()["name"] == "web"
    assert tenant()["container"] == bundle.id
    assert pids() == [get_state(runc, bundle)["pid"]]


def test_a_cap_changes_while_the_container_runs(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "views", "wait", "views", annotations={MEMORY: "8GiB", "hamirt.io/name": "live"})
    process = runc.start(bundle)
    before = [read_line(process) for _ in range(3)]

    wait_for(lambda: runc.site.daemon.client.node()["tenants"], "the tenant to be seen")
    (limit,) = [one["uuid"] for one in runc.site.daemon.client.node()["tenants"][0]["cards"]]
    runc.site.daemon.client.change("live", {limit: {"memory_bytes": 4 << 30}})
    say_to(process)

    assert before[0].startswith(CAPPED)
    assert read_line(process).startswith("cuda 4096 ")


def test_a_container_starts_again_under_its_name(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "views")

    assert [runc.run(bundle).stdout.split(" ")[1] for _ in range(3)] == ["8192"] * 3


def test_a_container_that_asks_for_nothing_is_left_alone(runc: Runtime) -> None:
    sandbox = {MEMORY: "8GiB", "io.kubernetes.cri.container-type": "sandbox"}
    for annotations in ({"org.example/key": "8GiB"}, sandbox):
        ended = runc.run(runc.bundle("/bin/sh", "-c", "ls -d /run/hamirt /etc/ld*", annotations=annotations))

        assert ended.stdout == "", ended


def test_a_killed_container_leaves_nothing(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "take", "100", "wait")
    process = runc.start(bundle)
    assert (read_line(process), read_line(process)) == ("take 0", "waiting")
    assert len(runc.site.tenants()) == 1

    runc("kill", bundle.id, "KILL")

    assert process.wait(30) == 128 + signal.SIGKILL
    assert runc.site.tenants() == []


def test_a_container_whose_runtime_forgot_it_leaves_nothing(runc: Runtime) -> None:
    bundle = runc.bundle("/inmate", "take", "100", "wait")
    bundle.config["hooks"].pop("poststop")
    process = runc.start(bundle)
    assert (read_line(process), read_line(process)) == ("take 0", "waiting")

    runc("kill", bundle.id, "KILL")

    assert len(runc.site.tenants()) == 1
    wait_for(lambda: runc.site.tenants() == [], "the daemon to sweep")


@pytest.mark.parametrize("poststop", [True, False])
def test_a_container_that_ends_while_the_daemon_is_down_is_swept_by_the_next(
    own_site: Site, tmp_path: Path, poststop: bool
) -> None:
    for runc in runtime_on(own_site, "runc", tmp_path):
        bundle = runc.bundle("/inmate", "take", "100", "wait")
        if not poststop:
            bundle.config["hooks"].pop("poststop")
        process = runc.start(bundle)
        assert (read_line(process), read_line(process)) == ("take 0", "waiting")

        own_site.daemon.end(signal.SIGKILL)
        runc("kill", bundle.id, "KILL")
        process.wait(30)
        assert len(own_site.tenants()) == 1
        own_site.daemon.start()

        wait_for(lambda: own_site.tenants() == [], "the next daemon to sweep")


def test_a_container_goes_on_under_the_next_daemon(own_site: Site, tmp_path: Path) -> None:
    for runc in runtime_on(own_site, "runc", tmp_path):
        process = runc.start(runc.bundle("/inmate", "take", "7000", "wait", "take", "1000", "views"))
        assert (read_line(process), read_line(process)) == ("take 0", "waiting")

        own_site.daemon.end(signal.SIGKILL)
        own_site.daemon.start()
        say_to(process)

        assert read_line(process) == "take 2"
        assert read_line(process).startswith(CAPPED)
        assert len(own_site.tenants()) == 1


def test_a_static_program_is_unharmed(runc: Runtime, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    need("busybox", busybox is not None)
    assert busybox is not None
    image = tmp_path / "busybox"
    (image / "bin").mkdir(parents=True)
    shutil.copy(busybox, image / "bin" / "busybox")
    bundle = runc.bundle("/bin/busybox", "cat", "/etc/ld.so.preload", image=image)
    bundle.config["mounts"].pop()  # /usr

    ended = runc.run(bundle)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "/run/hamirt/lib/libhamirt.so\n", "")
