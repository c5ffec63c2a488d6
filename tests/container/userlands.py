"""Other userlands than this machine's: Debian's C libraries of other years and for aarch64, in chroots and under QEMU.

Packages come from Debian's mirror through apt with lists of its own, checked by Debian's signatures, and stay in
build/userlands. Programs for another machine or C library are compiled with PyPI's ziglang, as `make dist` does.
"""

import fcntl
import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pynvml

from tests.shim.conftest import Native
from tests.support import TOP, need

PROGRAMS = Path(__file__).parent / "programs"
STORE = TOP / "build" / "userlands"
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
OLDEST, OWN, STABLE, NEWEST = "bullseye", "bookworm", "trixie", "sid"
C_LIBRARIES = ("libc6", "musl", "busybox-static")
PYTHON = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g", "libexpat1"),
    *("libffi8", "libbz2-1.0", "liblzma5", "libssl3", "libuuid1", "libtirpc3", "libnsl2"),
)
PYTHON_IMAGE = ("busybox-static", *PYTHON)
ENGINES = ("docker.io", "docker-cli", "containerd")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
TIMEOUT_S = 300


@functools.cache
def portable(machine: str) -> Native:
    """Build the shim and the simulated driver for a machine as `make dist` does, and return them."""
    need_zig()
    env = {name: value for name, value in os.environ.items() if not name.startswith("HAMIRT_")}
    env |= {"HAMIRT_TARGET": machine, "HAMIRT_WERROR": "1"}
    subprocess.run([sys.executable, "-m", "hamirt._build"], cwd=TOP, env=env, check=True, timeout=2 * TIMEOUT_S)
    return Native(TOP / "build" / machine / "_native")


def wheel(machine: str, folder: Path) -> Path:
    """Build a machine's wheel as `make dist` does, into `folder`/dist, and return it."""
    need_zig()
    left_out = shutil.ignore_patterns(".*", "build", "dist", "tests", "bench", "_native", "*.so", "__pycache__")
    tree = shutil.copytree(TOP, folder / "tree", ignore=left_out)
    env = zig_cache() | os.environ | {"HAMIRT_TARGET": machine}
    make = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), "."]
    subprocess.run(make, cwd=tree, env=env, check=True, capture_output=True, timeout=TIMEOUT_S)
    (made,) = (folder / "dist").glob("*.whl")
    return made


def zig_cache() -> dict[str, str]:
    """Return the environment in which zig keeps what it compiled in the tree's build folder."""
    return dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(TOP / "build" / "zig"))


def need_zig() -> None:
    """The test needs the compiler of PyPI's ziglang."""
    need("ziglang", importlib.util.find_spec("ziglang") is not None)


def qemu(machine: str) -> str:
    """Return the static QEMU that runs a machine's programs here, "" for this machine's own."""
    if machine == platform.machine():
        return ""
    path = shutil.which(f"qemu-{machine}-static")
    need("qemu-user-static", path is not None)
    assert path is not None
    return path


def userland(suite: str, machine: str, packages: Sequence[str] = C_LIBRARIES) -> Path:
    """Return a folder with packages of a Debian release unpacked, as a root filesystem; it must not be changed."""
    root = STORE / f"{suite}-{machine}-{packages[0]}"
    STORE.mkdir(parents=True, exist_ok=True)
    with open(STORE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            need("apt-get", shutil.which("apt-get") is not None and KEYRING.exists())
            with tempfile.TemporaryDirectory(dir=STORE) as folder:
                _unpack(Path(folder), suite, DEBIAN[machine], packages).rename(root)
    return root


def path_with(program: str, least: tuple[int, int]) -> str:
    """Return a PATH with an engine of at least this version: this machine's, or Debian 13's."""
    path = os.environ["PATH"]
    if shutil.which(program) is not None:
        said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
        found = re.search(r" v?(\d+)\.(\d+)\.", said)
        if found is not None and (int(found[1]), int(found[2])) >= least:
            return path
    root = userland(STABLE, platform.machine(), ENGINES)
    return f"{root}/usr/sbin:{root}/usr/bin:{path}"


def _unpack(folder: Path, suite: str, arch: str, packages: Sequence[str]) -> Path:
    """Download packages without the machine's apt taking notice, and unpack them."""
    for part in ("lists/partial", "cache/archives/partial", "root/usr"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::State": folder, "Dir::State::status": folder / "status", "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache", "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null", "APT::Architecture": arch, "APT::Architectures": arch,
        "Acquire::Languages": "none", "Acquire::Retries": "3", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    reached = subprocess.run([*apt, "update"], timeout=TIMEOUT_S, capture_output=True, text=True)
    need("debian-mirror", reached.returncode == 0)
    subprocess.run([*apt, "download", *packages], cwd=folder, timeout=TIMEOUT_S, check=True, capture_output=True)
    for name in ("bin", "lib", "lib64", "sbin"):  # older packages put folders of their own in their place
        (folder / "root" / "usr" / name).mkdir()
        (folder / "root" / name).symlink_to(f"usr/{name}")
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], timeout=TIMEOUT_S, check=True)
    return folder / "root"


def zig(target: str, out: Path, *words: str | Path) -> Path:
    """Compile and link for a target of zig's."""
    need_zig()
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-O1", "-o", str(out), *map(str, words)]
    subprocess.run(command, env=zig_cache() | os.environ, check=True, timeout=TIMEOUT_S)
    return out


def chrooted(root: Path, machine: str, *command: str) -> list[str]:
    """Return the command line of a program with `root` as its root, and with a PID namespace."""
    enter = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", "chroot", str(root)]
    return [*enter, *(["/qemu"] if qemu(machine) else []), *command]


def furnish(folder: Path, suite: str, machine: str, packages: Sequence[str] = C_LIBRARIES) -> Path:
    """Make a root filesystem of one's own, of a userland and what a container has besides."""
    found = userland(suite, machine, packages)
    subprocess.run(["cp", "--archive", "--reflink=auto", found, folder], check=True, timeout=60)
    for part in ("dev", "proc", "tmp", "etc", "run/hamirt/lib"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    os.mknod(folder / "dev" / "null", 0o020666, os.makedev(1, 3))
    if emulator := qemu(machine):
        shutil.copy(emulator, folder / "qemu")
    return folder


def toolbox(folder: Path, machine: str) -> Path:
    """Fill a folder with `cc` for a machine and, if it isn't this one, `python3`; what these make and are runs here.

    Python's module pynvml is beside them.
    """
    lines = ["#!/bin/bash", "set -e", f'"{sys.executable}" -m ziglang cc -target {machine}-linux-gnu.2.17 "$@"']
    if emulator := qemu(machine):
        root = userland(OWN, machine, PYTHON)
        define = [f'-DQEMU="{emulator}"', f'-DROOT="{root}"']
        launcher = zig(f"{platform.machine()}-linux-musl", folder / "python3", *define, PROGRAMS / "emulated.c")
        (folder / "python3.elf").symlink_to(root / "usr/bin/python3.11")
        lines += [
            'for word in "$@"; do',
            '    [ "$word" != -shared ] || exit 0',
            '    [ "$before" != -o ] || out=$word',
            "    before=$word",
            "done",
            '[ -n "$out" ] || exit 0',
            'mv "$out" "$out.elf"',
            f'cp "{launcher}" "$out"',
        ]
    (folder / "cc").write_text("\n".join(lines) + "\n")
    (folder / "cc").chmod(0o755)
    shutil.copy(pynvml.__file__, folder)
    return folder


def needed_by(library: Path) -> tuple[set[str], set[tuple[int, ...]], str]:
    """Return the libraries that a library needs, the versions of glibc, and for which machine it is."""
    read = ["readelf", "--wide", "--file-header", "--dynamic", "--version-info", str(library)]
    lines = subprocess.run(read, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    libraries = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    named = {line.split("Name: GLIBC_")[1].split()[0] for line in lines if "Name: GLIBC_" in line}
    machine = next(line.split(":")[1].strip() for line in lines if line.strip().startswith("Machine:"))
    return libraries, {tuple(map(int, name.split("."))) for name in named}, machine
