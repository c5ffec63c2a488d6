"""`hamirt cdi`, and podman with the devices that it wrote into /etc/cdi."""

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.container import guest
from tests.node.conftest import TIMEOUT_SECONDS, Node
from tests.node.daemons import UUIDS, Daemon
from tests.support import need, wait_for

FOLDER = Path("/etc/cdi")
PROFILES = ("--profile", "small=mem:8GiB,sm:30", "--profile", "pair=gpus:2,mem:2GiB")
UUID_IN_LIMITS = "grep -a -o 'GPU-[0-9a-f-]*' /run/hamirt/ro/limits"
# what podman needs where there is no systemd and root may not raise limits
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """podman on a served node, with that node's CDI devices."""

    daemon: Daemon
    folder: Path
    rootfs: Path
    runroot: Path
    """At a short path: it takes 50 characters."""

    def generate(self, *words: str) -> None:
        """Write the devices that containers find in /etc/cdi."""
        generate(self.daemon.node, self.folder / "cdi", *words)

    def run(self, *words: str, script: str = "/card_size") -> "subprocess.CompletedProcess[str]":
        """Run a container to its end."""
        podman = [
            "podman", "--root", str(self.folder / "storage"), "--runroot", str(self.runroot),
            "--storage-driver", "vfs", "run", "--rm", "--network", "none", "--volume", "/usr:/usr:ro", *words,
            "--rootfs", str(self.rootfs), "/bin/bash", "-c", script,
        ]  # fmt: skip
        # only these containers see the devices
        command = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/cdi && exec "$@"', str(self.folder / "cdi")]
        return subprocess.run(
            [*command, *podman],
            env=os.environ | {"CONTAINERS_CONF": str(self.folder / "containers.conf")},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip


def cdi(node: Node, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `hamirt cdi` with the hook in PATH."""
    hook = guest.install_hook(node.root.parent)
    return node.hamirt("cdi", *words, env=node.env | {"PATH": f"{hook.parent}:{os.environ['PATH']}"})


def generate(node: Node, folder: Path, *words: str) -> None:
    """Write a simulated node's devices into a folder."""
    ended = cdi(node, "generate", "--sim", "--output", str(folder), *words)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman, a daemon, and the devices with PROFILES."""
    need("root", os.geteuid() == 0)
    for program in ("podman", "runc", "gcc", "unshare"):
        need(program, shutil.which(program) is not None)
    FOLDER.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(CONTAINERS_CONF)
    rootfs = guest.make_root(folder / "rootfs", guest.build_card_size(folder))
    with guest.served_node(folder) as daemon, tempfile.TemporaryDirectory(prefix="hamirt-") as short:
        made = Podman(daemon, folder, rootfs, Path(short))
        made.generate(*PROFILES)
        yield made


def outcome(ended: "subprocess.CompletedProcess[str]") -> tuple[int, str, str]:
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("words", "size_mib"),
    [
        (["--device", "hamirt.io/vgpu=small"], "8192"),
        (["--device", f"hamirt.io/vgpu=small-{UUIDS[1]}"], "8192"),
        (["--device", "hamirt.io/vgpu=all", "--annotation", "hamirt.io/memory=4GiB"], "4096"),
        (["--device", "hamirt.io/vgpu=1", "--annotation", "hamirt.io/memory=50%"], str(81559 * 50 // 100)),
        (["--device", "hamirt.io/vgpu=all"], str(guest.WHOLE_MIB)),
        (["--device", "hamirt.io/vgpu=small", "--env", "LD_PRELOAD="], "8192"),
    ],
)
def test_a_device_is_a_cap(podman: Podman, words: list[str], size_mib: str) -> None:
    assert outcome(podman.run(*words)) == (0, f"{size_mib}\n", "")
    assert podman.daemon.ids() == []


@pytest.mark.parametrize(
    ("device", "uuids"),
    [
        ("small-0", UUIDS[:1]),
        ("1", UUIDS[1:]),
        (UUIDS[1], UUIDS[1:]),
        (f"small-{UUIDS[0]}", UUIDS[:1]),
        ("pair", UUIDS),
    ],
)
def test_a_device_is_the_card_that_it_names(podman: Podman, device: str, uuids: tuple[str, ...]) -> None:
    ended = podman.run("--device", f"hamirt.io/vgpu={device}", script=UUID_IN_LIMITS)

    assert (ended.returncode, sorted(ended.stdout.split())) == (0, list(uuids))


def test_a_container_needs_no_more_than_the_device_to_use_the_simulated_card(podman: Podman) -> None:
    program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"

    ended = podman.run("--device", "hamirt.io/vgpu=small", script=f'python3 -c "{program}"')

    assert outcome(ended) == (0, "0\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--device", "hamirt.io/vgpu=small", "--annotation", "hamirt.io/memory=16GiB"],
            "hamirt.io/memory is '16GiB' by annotation and '8GiB' by the device",
        ),
        (
            ["--device", "hamirt.io/vgpu=small", "--device", "hamirt.io/vgpu=pair"],
            "give a container one hamirt.io/vgpu device",
        ),
        (["--device", "hamirt.io/vgpu=all", "--annotation", "hamirt.io/memory=lots"], "'lots' is not a size"),
        (["--device", "hamirt.io/vgpu=large"], "hamirt.io/vgpu=large"),  # podman's own sentence
    ],
)
def test_a_contradiction_refuses_the_container(podman: Podman, words: list[str], says: str) -> None:
    ended = podman.run(*words, script="echo started")

    assert (ended.returncode, ended.stdout) == (126, "")
    assert says in ended.stderr
    wait_for(lambda: podman.daemon.ids() == [], "the tenant to be gone")


def test_without_a_daemon_it_is_refused_or_let_go_as_the_node_says(podman: Podman) -> None:
    podman.daemon.end()
    try:
        refused = podman.run("--device", "hamirt.io/vgpu=small", script="echo started")
        podman.generate(*PROFILES, "--on-error", "allow")
        allowed = podman.run("--device", "hamirt.io/vgpu=small", script="echo started")
    finally:
        podman.generate(*PROFILES)
        podman.daemon.start()

    assert refused.returncode in (126, 127)  # podman's, 127 for every "no such file" in a hook's words
    assert refused.stdout == ""
    assert "no daemon answers" in refused.stderr
    assert (allowed.returncode, allowed.stdout) == (0, "started\n")


def test_a_container_that_runs_keeps_its_library_over_an_upgrade(podman: Podman, tmp_path: Path) -> None:
    library = podman.folder / "native" / "libhamirt.so"
    os.mkfifo(tmp_path / "go")
    script = "touch /exchange/up; read line < /exchange/go; /card_size"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(
            podman.run, "--device", "hamirt.io/vgpu=small", "--volume", f"{tmp_path}:/exchange", script=script
        )
        wait_for((tmp_path / "up").exists, "the container")
        shutil.copy(library, tmp_path / "old")
        (tmp_path / "new").write_text("of another version")
        os.replace(tmp_path / "new", library)
        (tmp_path / "go").write_text("on\n")
        ended = running.result()
    os.replace(tmp_path / "old", library)

    assert outcome(ended) == (0, "8192\n", "")


def test_what_was_generated_is_listed(podman: Podman) -> None:
    ended = cdi(podman.daemon.node, "list", "--output", str(podman.folder / "cdi"))

    assert (ended.returncode, ended.stderr) == (0, "")
    lines = [re.split("  +", line) for line in ended.stdout.splitlines()]
    assert len(lines) == 11
    assert ["hamirt.io/vgpu=small", "gpu=count=1 memory=8GiB sm=30"] in lines
    assert ["hamirt.io/vgpu=pair", "gpu=count=2 memory=2GiB"] in lines
    assert [f"hamirt.io/vgpu={UUIDS[1]}", f"gpu={UUIDS[1]}"] in lines


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without a daemon."""
    root = tmp_path / "root"
    return Node(root, {"PATH": os.environ["PATH"], "HAMIRT_ROOT": str(root), "HAMIRT_SIM": "1"})


def test_a_file_that_cant_be_written_stays_as_it_was(node: Node, tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "cdi"), "--sim"]
    assert cdi(node, "generate", *output).returncode == 0
    before = (tmp_path / "cdi" / "hamirt.json").read_text()

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    hook = guest.install_hook(tmp_path)
    ended = node.hamirt(
        "cdi", "generate", *output, "--mem", "1GiB",
        env=node.env | {"PATH": f"{hook.parent}:{node.env['PATH']}"}, preexec_fn=small_files,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        r"hamirt: .*/cdi/hamirt.json can't be written \(File too large\): it is as it was.*\n", ended.stderr
    )
    assert [path.name for path in (tmp_path / "cdi").iterdir()] == ["hamirt.json"]
    assert (tmp_path / "cdi" / "hamirt.json").read_text() == before


def test_the_file_is_replaced_and_everybody_may_read_it(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "cdi" / "hamirt.json"
    cdi(node, "generate", "--sim", "--output", str(path.parent))
    before = path.stat().st_ino

    ended = cdi(node, "generate", "--sim", "--output", str(path.parent), "--mem", "1GiB")

    assert outcome(ended) == (0, f"{path}: 3 devices, such as --device hamirt.io/vgpu=all\n", "")
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o644
    printed = cdi(node, "generate", "--sim", "--stdout", "--mem", "1GiB").stdout
    assert json.loads(printed) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["generate", "--sim", "--stdout", "--mem", "0"], "hamirt.io/memory: a cap of '0' leaves no memory"),
        (["generate", "--sim", "--stdout", "--profile", "x"], "--profile 'x': write NAME=KEY:VALUE"),
        (["list", "--output", "/nowhere"], "there is no /nowhere/hamirt.json: run hamirt cdi generate"),
    ],
)
def test_what_is_wrong_is_a_sentence(node: Node, words: list[str], says: str) -> None:
    ended = cdi(node, *words)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"hamirt: {says}")


def test_a_machine_without_a_gpu_is_told_so(node: Node) -> None:
    need("no GPU", not Path("/dev/nvidiactl").exists())

    ended = cdi(node, "generate", "--stdout")

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "no NVIDIA driver answers on this machine" in ended.stderr
