"""The daemon's image: built by buildah from a root filesystem and wheels, without a registry, and started."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pip
import pytest

from hamirt import config
from hamirt.cli.install_library import install
from hamirt.client import Client
from tests.container import userlands
from tests.support import TOP, need, wait_for

TIMEOUT_S = 300
TAG = "localhost/hamirt-node"
MACHINE = os.uname().machine
PLATFORMS = ("manylinux_2_17", "manylinux2014", "manylinux_2_28", "manylinux_2_31", "manylinux_2_34")


@dataclass
class Buildah:
    """Buildah with a store of its own, which needs no runtime and changes nothing of the machine's."""

    folder: Path

    def words(self, verb: str, *words: str) -> list[str]:
        store = ["--root", f"{self.folder}/store", "--runroot", f"{self.folder}/run", "--storage-driver", "vfs"]
        return ["buildah", *store, verb, *words]

    def __call__(self, verb: str, *words: str, cwd: Path = TOP) -> str:
        done = subprocess.run(self.words(verb, *words), cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, f"buildah {verb} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    need("root", os.geteuid() == 0)
    need("buildah", shutil.which("buildah") is not None)
    made = Buildah(tmp_path_factory.mktemp("buildah"))
    yield made
    made("rm", "--all")
    made("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's wheel of `make dist`, with what it depends on beside it."""
    made = userlands.wheel(MACHINE, tmp_path_factory.mktemp("wheel"))
    assert made.name.endswith(f"-cp310-abi3-manylinux_2_17_{MACHINE}.whl")
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_{MACHINE}")]
    fetch = [*userlands.PIP, "download", "--only-binary", ":all:", "--python-version", "3.11", *platforms]
    subprocess.run([*fetch, "--dest", str(made.parent), str(made)], check=True, capture_output=True, timeout=TIMEOUT_S)
    return made


@pytest.fixture(scope="module")
def image(buildah: Buildah, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dockerfile.node, built on an image with nothing but Python, pip and a shell."""
    context = tmp_path_factory.mktemp("context")
    root = userlands.furnish(context / "root", userlands.OWN, MACHINE, userlands.PYTHON_IMAGE)
    for name in ("sh", "uname", "rm"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    shutil.copytree(Path(pip.__file__).parent, root / "usr/lib/python3/dist-packages/pip")
    base = buildah("from", "scratch")
    buildah("add", base, str(root), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", base)
    buildah("commit", base, "localhost/base")

    arguments = {"BASE": "localhost/base", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/tmp/dist"}
    for name in ("Dockerfile.node", ".dockerignore"):
        shutil.copy(TOP / name, context)
    (context / "deploy").mkdir()
    shutil.copy(TOP / "deploy/hamirt-node", context / "deploy")
    shutil.copytree(wheel.parent, context / "dist")
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    buildah("build", "--isolation", "chroot", "--file", "Dockerfile.node", "--tag", TAG, *given, ".", cwd=context)
    return TAG


def test_the_image_starts_the_daemon_and_installs_the_library(buildah: Buildah, image: str, tmp_path: Path) -> None:
    told = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    root, library = tmp_path / "run", tmp_path / "library"
    root.mkdir(mode=0o755)
    library.mkdir()
    container = buildah("from", image)
    volumes = ["--volume", f"{root}:/run/hamirt", "--volume", f"{library}:/opt/hamirt"]
    command = buildah.words("run", "--isolation", "chroot", *volumes, container, "--", *told["Entrypoint"], "--sim")
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: config.socket_path(root).exists() or started.poll() is not None, "the daemon's socket")
        health = Client(root).health()
        daemon = peer(config.socket_path(root))
    finally:
        if started.poll() is None and config.socket_path(root).exists():
            os.kill(peer(config.socket_path(root)), signal.SIGTERM)
        output = started.communicate(timeout=TIMEOUT_S)[0]

    assert health, output
    assert daemon > 0
    assert sorted(path.name.split(".so")[0] for path in library.iterdir() if path.is_symlink()) == ["libhamirt"]
    libraries, versions, _ = userlands.needed_by(library / "libhamirt.so")
    assert "libc.so.6" in libraries
    assert max(versions) <= (2, 17)
    assert "HAMIRT_NATIVE=/opt/hamirt" in told["Env"]
    assert not (Path(buildah("mount", container)) / "tmp/dist").exists()


def peer(path: Path) -> int:
    """Return the process that listens on a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def test_an_upgrade_leaves_the_library_that_is_in_use(tmp_path: Path) -> None:
    old, new, target = tmp_path / "old.so", tmp_path / "new.so", tmp_path / "there" / "lib.so"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    install(old, target)
    first = target.resolve()
    in_use = target.open("rb")

    install(new, target)
    install(new, target)

    assert (target.read_bytes(), in_use.read(), first.read_bytes()) == (b"new", b"old", b"old")
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(
        {target.name, first.name, target.readlink().name}
    )
    in_use.close()


def test_a_damaged_copy_is_written_anew(tmp_path: Path) -> None:
    source, target = tmp_path / "source.so", tmp_path / "lib.so"
    source.write_bytes(b"whole")
    install(source, target)
    target.resolve().write_bytes(b"half")

    install(source, target)

    assert target.read_bytes() == b"whole"
