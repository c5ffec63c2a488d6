"""podman with the hooks of hooks/hooks.d, as an operator installs them."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container.conftest import MEMORY, Site
from tests.container.test_runc import CAPPED
from tests.node.conftest import TIMEOUT_SECONDS
from tests.support import TOP, need, wait_for

HOOKS = TOP / "hooks" / "hooks.d"
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
Podman = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["hooks.d", "precreate"])
def podman(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[Podman]:
    """podman with a storage of its own, and either set of hooks."""
    for program in ("podman", "runc", "conmon"):
        need(program, shutil.which(program) is not None)
    need("root", os.geteuid() == 0)
    tmp_path.chmod(0o755)
    image = site.image(tmp_path / "image")
    (image / "sys").mkdir()
    (tmp_path / "containers.conf").write_text(SETTINGS)
    hooks = tmp_path / "hooks"
    install(HOOKS if request.param == "hooks.d" else HOOKS / "precreate", hooks, site)
    short = Path(tempfile.mkdtemp(prefix="hamirt-"))  # it takes 50 characters
    places = [f"--{name}={short / name}" for name in ("root", "runroot", "tmpdir")]
    command = ["podman", *places, f"--hooks-dir={hooks}", "--storage-driver=vfs"]
    env = {**os.environ, "CONTAINERS_CONF": str(tmp_path / "containers.conf")}

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        given = ["--net=host", "--volume=/usr:/usr:ro", "--rootfs", str(image)]
        words = tuple(part for word in words for part in (given if word == "IMAGE" else [word]))
        return subprocess.run(
            [*command, *words],
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
        )

    yield run
    run("rm", "--all", "--force", "--time=0")
    wait_for(lambda: is_removed(short), "podman to let go")


def is_removed(folder: Path) -> bool:
    """Remove a folder into which podman's clean-up may write still."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def install(source: Path, target: Path, site: Site) -> None:
    """Copy hook files, with the paths of this site."""
    target.mkdir()
    for path in source.glob("*.json"):
        entry = json.loads(path.read_text())
        hook = entry["hook"]
        assert (hook["path"], hook["args"][0]) == ("/usr/local/bin/hamirt-oci-hook", "hamirt-oci-hook")
        assert hook["env"]
        hook["path"] = str(site.hook)
        hook["args"] = [*hook["args"], "--root", str(site.root)]
        (target / path.name).write_text(json.dumps(entry))


def test_an_annotation_is_all_it_takes(podman: Podman) -> None:
    ended = podman("run", "--rm", "--annotation", f"{MEMORY}=8GiB", "IMAGE", "env", "-i", "/inmate", "views", "fill")

    assert ended.stdout.startswith(CAPPED), ended
    assert 7000 < int(ended.stdout.split()[-2]) <= 8192


def test_a_container_without_an_annotation_is_left_alone(podman: Podman) -> None:
    ended = podman("run", "--rm", "IMAGE", "grep", "-c", "/run/hamirt", "/proc/self/mountinfo")

    assert ended.stdout == "0\n", ended


def test_a_read_only_container(podman: Podman) -> None:
    ended = podman("run", "--rm", "--read-only", "--annotation", f"{MEMORY}=8GiB", "IMAGE", "/inmate", "views")

    assert ended.stdout.startswith(CAPPED), ended


def test_exec_restart_and_kill(podman: Podman, site: Site) -> None:
    started = podman("run", "--detach", "--name=one", "--annotation", f"{MEMORY}=8GiB", "IMAGE", "sleep", "1000")
    assert started.returncode == 0, started
    seen = [podman("exec", "one", "/inmate", "views").stdout]
    (first,) = site.tenants()

    assert podman("restart", "--time=0", "one").returncode == 0
    seen.append(podman("exec", "one", "/inmate", "views").stdout)
    (second,) = site.tenants()
    assert podman("kill", "one").returncode == 0

    assert [text.startswith(CAPPED) for text in seen] == [True, True]
    assert first != second


def test_what_can_not_be_refuses_the_container(podman: Podman) -> None:
    ended = podman("run", "--rm", "--annotation", f"{MEMORY}=1TiB", "IMAGE", "/inmate", "views")

    assert (ended.returncode != 0, ended.stdout) == (True, "")
    assert MEMORY in ended.stderr
