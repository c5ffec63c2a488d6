"""Docker: by CDI device, and by annotation with hooks/hamirt-runc as a runtime of daemon.json.

This machine's Docker if it knows both, which it does since 25, and Debian 13's if not.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.container import guest, userlands
from tests.container.conftest import MEMORY, Site
from tests.container.test_cdi_podman import PROFILES, generate
from tests.container.test_containerd import install_wrapper
from tests.container.test_runc import CAPPED
from tests.node.conftest import TIMEOUT_SECONDS
from tests.support import need, wait_for

IMAGE = "localhost/inmate:1"
RUN = ("run", "--rm", "--network", "none", "--volume", "/usr:/usr:ro")
Docker = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def docker(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """The docker command, with a dockerd of its own."""
    need("runc", shutil.which("runc") is not None)
    need("root", os.geteuid() == 0)
    folder = tmp_path_factory.mktemp("docker")
    settings = {
        "features": {"cdi": True},
        "cdi-spec-dirs": [str(folder / "cdi")],
        "runtimes": {"hamirt": {"path": str(install_wrapper(shared_site, folder))}},
        "bridge": "none", "iptables": False, "ip6tables": False,
        "storage-driver": "vfs", "data-root": str(folder / "data"),
        "exec-root": str(folder / "exec"), "pidfile": str(folder / "pid"), "hosts": [f"unix://{folder}/sock"],
    }  # fmt: skip
    (folder / "daemon.json").write_text(json.dumps(settings))
    generate(shared_site.daemon.node, folder / "cdi", *PROFILES)
    guest.write_image(folder / "image.tar", IMAGE, shared_site.image(folder / "image"), ["/bin/sh"])

    env = os.environ | {"PATH": userlands.path_with("dockerd", (25, 0)), "DOCKER_HOST": f"unix://{folder}/sock"}

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["docker", *words],
            env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    serve = ["dockerd", "--config-file", str(folder / "daemon.json")]
    with guest.serving(serve, folder / "log", lambda: call("version").returncode == 0, env):
        loaded = call("load", "--input", str(folder / "image.tar"))
        assert loaded.returncode == 0, loaded
        yield call


@pytest.fixture
def run(docker: Docker, site: Site) -> Docker:
    """`docker run`, to the container's end."""
    return lambda *options, program=("/inmate", "views"): docker(*RUN, *options, IMAGE, *program)


@pytest.mark.parametrize(
    ("options", "size_mib"),
    [
        (["--device", "hamirt.io/vgpu=small"], 8192),
        (["--device", "hamirt.io/vgpu=all", "--annotation", f"{MEMORY}=4GiB"], 4096),
        (["--runtime", "hamirt", "--annotation", f"{MEMORY}=4GiB"], 4096),
    ],
)
def test_a_device_or_an_annotation_is_a_cap(run: Docker, options: list[str], size_mib: int) -> None:
    ended = run(*options)

    assert ended.stdout.startswith(f"cuda {size_mib} "), ended


def test_what_is_executed_in_a_container_has_its_cap(docker: Docker, site: Site) -> None:
    options = ("--detach", "--device", "hamirt.io/vgpu=small")

    container = docker(*RUN, *options, IMAGE, "/bin/sleep", "1000").stdout.strip()
    views = docker("exec", container, "/inmate", "views").stdout
    ended = docker("kill", container)

    assert views.startswith(CAPPED)
    assert ended.returncode == 0
    wait_for(lambda: site.tenants() == [], "the tenant to go")


def test_a_container_that_asks_for_nothing_is_left_alone(run: Docker, site: Site) -> None:
    ended = run("--runtime", "hamirt", program=("/bin/cat", "/proc/self/mountinfo"))

    assert ended.returncode == 0
    assert "hamirt" not in ended.stdout


def test_what_can_not_be_is_said_to_the_person(run: Docker) -> None:
    ended = run("--device", "hamirt.io/vgpu=all", "--annotation", f"{MEMORY}=1TiB")

    assert (ended.returncode != 0, ended.stdout) == (True, "")
    assert f"no place for a GPU with {MEMORY} 1TiB" in ended.stderr
