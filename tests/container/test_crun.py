"""The same with crun, which mounts in another order than runc does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.conftest import MEMORY, Runtime, Site, runtime_on
from tests.container.test_runc import CAPPED
from tests.node.conftest import read_line


@pytest.fixture
def crun(site: Site, tmp_path: Path) -> Iterator[Runtime]:
    yield from runtime_on(site, "crun", tmp_path)


@pytest.mark.parametrize("readonly", [False, True])
def test_the_cap_holds(crun: Runtime, readonly: bool) -> None:
    bundle = crun.bundle("/bin/sh", "-c", "env -i /inmate views take 7000 take 1000")
    bundle.config["root"]["readonly"] = readonly

    ended = crun.run(bundle)

    assert ended.stdout.startswith(CAPPED), ended
    assert ended.stdout.endswith("take 0\ntake 2\n")


def test_a_container_is_refused(crun: Runtime) -> None:
    ended = crun.run(crun.bundle("/inmate", "views", annotations={MEMORY: "1TiB"}))

    assert (ended.returncode != 0, ended.stdout) == (True, "")


def test_a_killed_container_leaves_nothing(crun: Runtime) -> None:
    bundle = crun.bundle("/inmate", "wait")
    process = crun.start(bundle)
    assert read_line(process) == "waiting"
    assert crun.exec(bundle, "/inmate", "views").stdout.startswith(CAPPED)

    crun("kill", bundle.id, "KILL")

    assert process.wait(30) != 0
