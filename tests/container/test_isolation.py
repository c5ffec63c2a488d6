"""Two containers on one card are kept apart; test_escape.py tries what one can do to its own."""

from pathlib import Path

import pytest

from tests.container.conftest import MEMORY, Runtime, say_to
from tests.container.test_runc import CAPPED
from tests.node.conftest import read_line
from tests.support import wait_for


def named(name: str) -> dict[str, str]:
    return {MEMORY: "8GiB", "hamirt.io/name": name, "hamirt.io/gpu": "0"}


def folder_of(runc: Runtime, name: str) -> Path:
    (found,) = (path for path in (runc.site.root / "tenants").iterdir() if path.name.startswith(f"{name}-"))
    return found


def test_each_has_its_own_pages_cap_and_pids(runc: Runtime) -> None:
    bundles = [
        runc.bundle("/inmate", "views", "pids", "fill", "wait", annotations=named(name)) for name in ("one", "two")
    ]

    said = [[read_line(process) for _ in range(5)] for process in map(runc.start, bundles)]

    for lines in said:
        assert lines[0].startswith(CAPPED)
        assert lines[2] == "pids 1"
        assert 7000 < int(lines[3].split()[1]) <= 8192
    inodes = [
        runc.exec(one, "stat", "-c", "%i", "/run/hamirt/ro/limits", "/run/hamirt/rw/usage").stdout for one in bundles
    ]
    assert len({*inodes[0].split(), *inodes[1].split()}) == 4


def test_what_one_does_to_its_page_the_other_does_not_notice(runc: Runtime) -> None:
    neighbour = runc.start(
        runc.bundle("/inmate", "take", "1000", "wait", "views", "take", "7000", annotations=named("one"))
    )
    assert (read_line(neighbour), read_line(neighbour)) == ("take 0", "waiting")

    vandal = runc.run(
        runc.bundle("/bin/sh", "-c", ": > /run/hamirt/rw/usage; rm -f /run/hamirt/rw/*", annotations=named("two"))
    )
    say_to(neighbour)

    assert vandal.returncode == 0
    assert read_line(neighbour).startswith(CAPPED)
    assert read_line(neighbour).startswith("nvml 1 8192 ")
    assert read_line(neighbour) == "take 2"


@pytest.mark.parametrize(
    "way",
    [
        "ls {folder}",
        "cat {folder}/rw/usage",
        "ls /run/hamirt/../tenants",
        "ls /run/hamirt/ro/../../tenants",
        "ls /run/hamirt/rw/../../{name}",
        "cat /proc/1/root{folder}/rw/usage",
        "cat /proc/{pid}/root/run/hamirt/rw/usage",
        "mknod /tmp/disk b {major} {minor} && dd if=/tmp/disk of=/dev/null count=1",
        "mkdir /tmp/there && mount --bind {folder} /tmp/there",
        "nsenter --target {pid} --mount true",
        "nsenter --target 1 --mount=/proc/1/ns/mnt ls {folder}",
    ],
)
def test_one_does_not_reach_the_others_pages(runc: Runtime, way: str) -> None:
    owner = runc.bundle("/inmate", "wait", annotations=named("one"))
    process = runc.start(owner)
    assert read_line(process) == "waiting"
    wait_for(lambda: (folder_of(runc, "one") / "rw" / "usage").exists(), "the pages")
    folder, device = folder_of(runc, "one"), runc.site.root.stat().st_dev
    script = way.format(
        folder=folder, name=folder.name, pid=process.pid, major=device >> 8 & 0xFFF, minor=device & 0xFF
    )

    ended = runc.run(
        runc.bundle("/bin/sh", "-c", f"{{ {script}; }} >/dev/null 2>&1 || echo refused", annotations=named("two"))
    )

    assert ended.stdout == "refused\n", ended


def test_the_limits_are_the_daemons_alone(runc: Runtime) -> None:
    script = "(: <> /run/hamirt/ro/limits) 2>&1; stat -c %a:%u /run/hamirt/ro/limits"

    ended = runc.run(runc.bundle("/bin/sh", "-c", script))

    assert ended.stdout.splitlines()[0].endswith("Read-only file system"), ended
    assert ended.stdout.splitlines()[1] == "644:0"
