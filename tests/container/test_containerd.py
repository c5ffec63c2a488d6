"""containerd without CDI: hooks/hamirt-runc in place of runc."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container import guest
from tests.container.conftest import MADE_HERE, MEMORY, Runtime, Site, specification
from tests.container.test_runc import CAPPED
from tests.node.conftest import TIMEOUT_SECONDS
from tests.support import TOP, need

WRAPPER = TOP / "hooks" / "hamirt-runc"
SETTINGS = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{folder}/sock"
"""
DEVICES = {"containerEdits": {"env": ["HAMIRT_SIM_STATE=/run/hamirt/sim-state"]}}
Ctr = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """containerd with a folder of its own, in which its socket is."""
    for program in ("containerd", "ctr", "runc"):
        need(program, shutil.which(program) is not None)
    need("root", os.geteuid() == 0)
    folder = tmp_path_factory.mktemp("containerd")
    (folder / "config.toml").write_text(SETTINGS.format(folder=folder))
    serve = ["containerd", "--config", str(folder / "config.toml")]
    version = ["ctr", "--address", str(folder / "sock"), "version"]
    with guest.serving(
        serve, folder / "log", lambda: subprocess.run(version, capture_output=True).returncode == 0, os.environ
    ):
        yield folder


@pytest.fixture
def wrapper(site: Site, tmp_path: Path) -> Path:
    return install_wrapper(site, tmp_path)


def install_wrapper(site: Site, folder: Path) -> Path:
    """Install hooks/hamirt-runc as an operator does, for this site."""
    path = folder / "hamirt-runc"
    text = WRAPPER.read_text()
    assert "hamirt-oci-hook runc " in text
    (folder / "devices.json").write_text(json.dumps(DEVICES))
    given = f"{site.hook} runc --root {site.root} --devices {folder / 'devices.json'} "
    path.write_text(text.replace("hamirt-oci-hook runc ", given))
    path.chmod(0o755)
    return path


@pytest.fixture
def ctr(containerd: Path, site: Site, wrapper: Path, tmp_path: Path) -> Ctr:
    image = site.image(tmp_path / "image")
    (image / "sys").mkdir()
    tmp_path.chmod(0o755)

    def run(name: str, annotations: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
        given = [word for item in annotations.items() for word in ("--annotation", "=".join(item))]
        volume = ["--mount", "type=bind,src=/usr,dst=/usr,options=rbind:ro"]
        command = ["ctr", "--address", str(containerd / "sock"), "run", "--rm", "--runc-binary", str(wrapper)]
        return subprocess.run(
            [*command, *given, *volume, "--rootfs", str(image), f"{MADE_HERE}-{name}", *words],
            capture_output=True, text=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


def test_an_annotation_is_all_it_takes(ctr: Ctr) -> None:
    ended = ctr("capped", {MEMORY: "8GiB"}, "/bin/sh", "-c", "/inmate views fill; export")

    assert ended.stdout.startswith(CAPPED), ended
    assert 7000 < int(ended.stdout.splitlines()[2].split()[1]) <= 8192
    assert "HAMIRT_SIM_STATE='/run/hamirt/sim-state'\n" in ended.stdout


def test_a_container_without_an_annotation_is_left_alone(ctr: Ctr) -> None:
    ended = ctr("free", {}, "/bin/sh", "-c", "grep hamirt /proc/self/mountinfo; export")

    assert ended.stdout != ""
    assert "hamirt" not in ended.stdout.lower().replace(MADE_HERE, "")


def test_what_can_not_be_refuses_the_container_and_containerd_says_why(ctr: Ctr) -> None:
    ended = ctr("refused", {MEMORY: "1TiB"}, "/inmate", "views")

    assert (ended.returncode != 0, ended.stdout) == (True, "")
    assert MEMORY in ended.stderr


def test_the_wrapper_is_the_real_runtime_with_an_edited_bundle(runc: Runtime, wrapper: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    image = runc.site.image(tmp_path / "image")
    before = specification(["/inmate", "views"], image, {MEMORY: "8GiB"}, {})
    (bundle / "config.json").write_text(json.dumps(before))
    (bundle / "config.json").chmod(0o600)
    command = [str(wrapper), "--root", str(tmp_path / "state"), "run", "--bundle", str(bundle), f"{MADE_HERE}-wrapped"]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    version = subprocess.run([str(wrapper), "--version"], capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    assert ended.stdout.startswith(CAPPED), ended
    assert version.stdout.startswith("runc version")
    assert (bundle / "config.json").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json"]


def test_the_wrapper_says_in_the_runtimes_log_why_it_refuses(wrapper: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no JSON")
    log = tmp_path / "log.json"
    words = ["--log", str(log), "--log-format", "json", "create", "--bundle", str(tmp_path), f"{MADE_HERE}-broken"]

    ended = subprocess.run([str(wrapper), *words], capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    said = "hamirt: the container's configuration is no JSON object"
    assert (ended.returncode, ended.stderr) == (1, f"{said}\n")
    assert json.loads(log.read_text()) == {"level": "error", "msg": said}


def test_a_runtime_that_is_missing_is_named(wrapper: Path) -> None:
    ended = subprocess.run(
        [str(wrapper), "--version"], env={**os.environ, "HAMIRT_RUNTIME": "no-such-runtime"},
        capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
    )  # fmt: skip

    assert ended.returncode == 1
    assert "no-such-runtime can't be started" in ended.stderr
