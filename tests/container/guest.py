"""A container's root filesystem with this machine's own programs, and the daemon and the hook that give it limits."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from hamirt import config
from tests.node.conftest import TIMEOUT_SECONDS, Node, kill_tree
from tests.node.daemons import Daemon
from tests.support import need, wait_for

SOURCES = Path(__file__).parent / "programs"
WHOLE_MIB = 81008  # a simulated card, less what the driver keeps, as CUDA tells it
# What podman and Docker leave to a container's root, or more.
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
        "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    )
)  # fmt: skip


@contextmanager
def served_node(folder: Path) -> Iterator[Daemon]:
    """A node with two simulated cards and a daemon, until the end of the block."""
    need("the simulated driver (make build)", (config.sim_dir() / "libcuda.so.1").exists())
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HAMIRT_", "CUDA_", "LD_"))}
    root, native = folder / "root", folder / "native"
    shutil.copytree(config.native_dir(), native)  # a hole may be written through, and not into what was built
    ours = {config.ROOT_VARIABLE: str(root), config.NATIVE_VARIABLE: str(native), "HAMIRT_SIM": "2"}
    daemon = Daemon(Node(root, env | ours))
    try:
        yield daemon.start()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            kill_tree(daemon.process.pid)
            daemon.process.wait(TIMEOUT_SECONDS)


@contextmanager
def serving(command: Sequence[str], log: Path, is_ready: Callable[[], bool], env: Mapping[str, str]) -> Iterator[None]:
    """Have an engine's daemon serve until the end of the block."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env)
    try:
        wait_for(is_ready, command[0])
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT_SECONDS)


def install_hook(folder: Path) -> Path:
    """Return hamirt-oci-hook as pip would install it."""
    path = folder / "bin" / "hamirt-oci-hook"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom hamirt.oci import main\nsys.exit(main())\n")
    path.chmod(0o755)
    return path


def build_card_size(folder: Path) -> Path:
    """Build programs/card_size.c."""
    program = folder / "card_size"
    subprocess.run(["gcc", "-O1", "-o", str(program), str(SOURCES / "card_size.c"), "-ldl"], check=True, timeout=60)
    return program


def make_root(folder: Path, program: Path) -> Path:
    """Make a root filesystem whose /usr is to be this machine's; the program is in it, and set-uid as /setuid."""
    for part in ("usr", "proc", "dev", "etc", "tmp"):
        (folder / part).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (folder / link).symlink_to(f"usr/{link}")
    (folder / "tmp").chmod(0o1777)
    (folder / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    for name, mode in ((program.name, 0o755), ("setuid", 0o4755)):
        shutil.copy(program, folder / name)
        (folder / name).chmod(mode)
    return folder


def write_image(path: Path, name: str, root: Path, command: list[str]) -> None:
    """Write a root filesystem as an image of one layer, as `docker save` does."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, ".")
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Cmd": command, "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(path, "w") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
