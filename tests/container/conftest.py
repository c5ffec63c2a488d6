"""Containers of real runtimes on simulated cards: a served node, images made of this machine, and bundles."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hamirt import ocispec
from tests.container import guest
from tests.node.conftest import TIMEOUT_SECONDS, kill_tree
from tests.node.daemons import Daemon
from tests.support import need, wait_for

PROGRAMS = Path(__file__).parent / "programs"
MEMORY = "hamirt.io/memory"
MADE_HERE = f"t{os.getpid()}"  # in the names of containers, which are the machine's

_numbers = itertools.count()


@dataclass
class Site:
    """A node, its daemon, the installed hook, and an image's contents."""

    daemon: Daemon
    hook: Path
    folder: Path
    inmate: Path

    @property
    def root(self) -> Path:
        return self.daemon.root

    def words(self, verb: str, *options: str) -> list[str]:
        """Return the hook's command line, by its name."""
        return [self.hook.name, verb, "--root", str(self.root), *options]

    def image(self, folder: Path) -> Path:
        """Make a root file system with this machine's programs, /inmate, and nothing of hamirt's."""
        guest.make_root(folder, self.inmate)
        shutil.copy(self.inmate, folder / "inmate")
        return folder

    def tenants(self) -> list[str]:
        """Return the folders of tenants, and check that no others are there."""
        return self.daemon.ids()


@dataclass
class Bundle:
    """An OCI bundle: `config` is written when a runtime is called."""

    folder: Path
    id: str
    config: dict[str, Any]

    @property
    def rootfs(self) -> Path:
        return Path(self.config["root"]["path"])

    def write(self) -> Path:
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self.folder


@dataclass
class Runtime:
    """An OCI runtime with a state of its own, on this site."""

    site: Site
    command: Sequence[str]
    tmp: Path
    bundles: list[Bundle] = field(default_factory=list)
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def bundle(
        self,
        *args: str,
        annotations: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        image: Path | None = None,
        **process: Any,
    ) -> Bundle:
        """Make a bundle that runs `args` with 8 GiB, or what the annotations say; `options` are the hook's."""
        number = next(_numbers)
        folder = self.tmp / f"bundle-{number}"
        folder.mkdir()
        folder.chmod(0o755)
        rootfs = image if image is not None else self.site.image(folder / "rootfs")
        config = specification(args, rootfs, {MEMORY: "8GiB"} if annotations is None else annotations, process)
        hook, words = str(self.site.hook), ["--root", str(self.site.root), *options]
        made = Bundle(folder, f"{MADE_HERE}-{number}", ocispec.add_hooks(config, hook, words))
        self.bundles.append(made)
        return made

    def __call__(self, *words: str, **changed: Any) -> "subprocess.CompletedProcess[str]":
        """Run the runtime to its end."""
        options: dict[str, Any] = {
            "capture_output": True, "text": True, "timeout": TIMEOUT_SECONDS, "stdin": subprocess.DEVNULL,
        }  # fmt: skip
        command = [*self.command, "--root", str(self.tmp / "state"), *words]
        ended: subprocess.CompletedProcess[str] = subprocess.run(command, **(options | changed))
        return ended

    def run(self, bundle: Bundle, **changed: Any) -> "subprocess.CompletedProcess[str]":
        """Run a container to its end."""
        return self("run", "--bundle", str(bundle.write()), bundle.id, **changed)

    def start(self, bundle: Bundle) -> "subprocess.Popen[str]":
        """Run a container in the background; it ends with the test."""
        command = [*self.command, "--root", str(self.tmp / "state"), "run", "--bundle", str(bundle.write()), bundle.id]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def exec(self, bundle: Bundle, *args: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in a container that runs."""
        return self("exec", bundle.id, *args)

    def end(self) -> None:
        """End what the test has left."""
        for bundle in self.bundles:
            self("delete", "--force", bundle.id)
        for process in self.started:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait(TIMEOUT_SECONDS)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()


def specification(
    args: Sequence[str], rootfs: Path, annotations: Mapping[str, str], process: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the configuration of a container as podman and Docker leave it to its root, without hooks."""
    kinds = ("bounding", "effective", "permitted")
    return {
        "ociVersion": "1.0.2",
        "hostname": "inmate",
        "root": {"path": str(rootfs)},
        "annotations": dict(annotations),
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "noNewPrivileges": False,
            "capabilities": {kind: list(guest.CAPABILITIES) for kind in kinds},
            **process,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of inmate, which runs in containers."""
    need("gcc", shutil.which("gcc") is not None)
    folder = tmp_path_factory.mktemp("programs")
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(folder / "inmate")]
    subprocess.run([*command, str(PROGRAMS / "inmate.c"), "-ldl"], check=True, timeout=TIMEOUT_SECONDS)
    return folder


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Site]:
    """A site for tests that leave its daemon alone."""
    folder = tmp_path_factory.mktemp("site")
    with guest.served_node(folder) as daemon:
        yield Site(daemon, guest.install_hook(folder), folder, programs / "inmate")


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """The site, on which a test leaves no tenant and no mount."""
    before = mounts_of(shared_site)
    yield shared_site
    if not shared_site.daemon.has_ended():
        wait_for(lambda: shared_site.tenants() == [], "the tenants to go")
    assert mounts_of(shared_site) == before


@pytest.fixture
def own_site(tmp_path: Path, programs: Path) -> Iterator[Site]:
    """A site whose daemon the test may end."""
    with guest.served_node(tmp_path) as daemon:
        yield Site(daemon, guest.install_hook(tmp_path), tmp_path, programs / "inmate")


def mounts_of(site: Site) -> list[str]:
    """Return the lines of this node's own mounts that have to do with hamirt's containers."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(site.root) in line or "ld.so.preload" in line or " hamirt " in line]


def find_runtime(name: str) -> list[str]:
    """Return the command of a runtime as it works on this machine."""
    need(name, shutil.which(name) is not None)
    need("root", os.geteuid() == 0)
    if name == "crun" and os.path.ismount("/sys/fs/cgroup/unified"):
        # it takes a hybrid hierarchy for a unified one
        script = 'umount /sys/fs/cgroup/unified && exec crun "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "crun"]
    return [name]


@pytest.fixture
def runc(site: Site, tmp_path: Path) -> Iterator[Runtime]:
    yield from runtime_on(site, "runc", tmp_path)


def runtime_on(site: Site, name: str, tmp: Path) -> Iterator[Runtime]:
    """Yield a runtime; what it runs is ended afterwards."""
    tmp.chmod(0o755)
    runtime = Runtime(site, find_runtime(name), tmp)
    yield runtime
    runtime.end()


def say_to(process: "subprocess.Popen[str]", line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
