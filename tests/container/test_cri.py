"""containerd as Kubernetes uses it: pods through CRI, by device and by annotation.

This machine's containerd if it knows CDI, which came with 1.7, and Debian 13's if not.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator

import grpc
import pytest

from tests.container import guest, userlands
from tests.container.conftest import MEMORY, Site
from tests.container.cri import Cri
from tests.container.test_cdi_podman import PROFILES, generate
from tests.container.test_containerd import install_wrapper
from tests.container.test_runc import CAPPED
from tests.node.conftest import TIMEOUT_SECONDS
from tests.support import need, wait_for

IMAGE = "localhost/inmate:1"
SETTINGS = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  enable_cdi = true
  cdi_spec_dirs = ["{folder}/cdi"]
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.hamirt]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["hamirt.io/*", "nvidia.com/*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.hamirt.options]
        BinaryName = "{wrapper}"
"""


@pytest.fixture(scope="module")
def cri(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    for program in ("runc", "busybox"):
        need(program, shutil.which(program) is not None)
    need("root", os.geteuid() == 0)
    folder = tmp_path_factory.mktemp("cri")
    wrapper = install_wrapper(shared_site, folder)
    (folder / "config.toml").write_text(SETTINGS.format(folder=folder, wrapper=wrapper, image=IMAGE))
    generate(shared_site.daemon.node, folder / "cdi", *PROFILES)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, shared_site.image(folder / "image") / "busybox")
    guest.write_image(folder / "image.tar", IMAGE, folder / "image", ["/busybox", "sleep", "1000000"])

    env = os.environ | {"PATH": userlands.path_with("containerd", (1, 7))}
    serve = ["containerd", "--config", str(folder / "config.toml")]
    ctr = ["ctr", "--address", str(folder / "sock"), "--namespace", "k8s.io"]
    load = [*ctr, "images", "import", "--local", "--snapshotter", "native", str(folder / "image.tar")]
    with guest.serving(
        serve,
        folder / "log",
        lambda: subprocess.run([*ctr, "version"], capture_output=True, env=env).returncode == 0,
        env,
    ):
        subprocess.run(load, check=True, capture_output=True, env=env, timeout=TIMEOUT_SECONDS)
        made = Cri(folder / "sock")
        yield made
        made.close()


@pytest.fixture
def pods(cri: Cri, site: Site) -> Iterator[Cri]:
    yield cri
    cri.end()


def names(site: Site) -> list[tuple[str, str]]:
    """Return the names and pods of the tenants."""
    return sorted((tenant["name"], tenant["pod"]) for tenant in site.daemon.node.status()["tenants"])


def test_a_device_is_a_cap_until_the_pod_ends(pods: Cri, site: Site) -> None:
    (container,) = pods.run("device", IMAGE, ["main"], device="hamirt.io/vgpu=small")

    views = pods.ask(container, "/inmate", "views")
    wait_for(lambda: names(site) == [("main", "default/device")], "a sample with the container")
    pods.end()

    assert views.startswith(CAPPED)
    wait_for(lambda: site.tenants() == [], "the tenant to go")


def test_a_pods_annotation_caps_each_container_and_not_its_sandbox(pods: Cri, site: Site) -> None:
    made = pods.run("annotated", IMAGE, ["main", "side"], {MEMORY: "8GiB"}, handler="hamirt")

    views = [pods.ask(container, "/inmate", "views") for container in made]
    wait_for(lambda: len(names(site)) >= len(made), "a sample with the containers")

    assert [view.startswith(CAPPED) for view in views] == [True, True]
    assert names(site) == [("main", "default/annotated"), ("side", "default/annotated")]


def test_a_pod_without_annotation_is_left_alone(pods: Cri, site: Site) -> None:
    (container,) = pods.run("free", IMAGE, ["main"], handler="hamirt")

    assert "hamirt" not in pods.ask(container, "/bin/cat", "/proc/self/mountinfo").replace(str(site.folder), "")
    assert site.tenants() == []


def test_what_can_not_be_is_said_to_the_kubelet(pods: Cri, site: Site) -> None:
    with pytest.raises(grpc.RpcError, match=f"no place for a GPU with {MEMORY} 1TiB"):
        pods.run("refused", IMAGE, ["main"], {MEMORY: "1TiB"}, handler="hamirt")
