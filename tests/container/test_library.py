"""The library as `make dist` builds it: in Debian's oldest and newest C library, for aarch64, and beside what it
cannot be loaded into.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import cffi
import pytest

from hamirt import _build, pages
from hamirt.model import Limit, Limits
from tests.container import userlands
from tests.container.userlands import NEWEST, OLDEST, OWN, PROGRAMS
from tests.shim.conftest import CARD_BYTES, MIB, card_uuid
from tests.shim.test_exports import GLIBC
from tests.support import TOP

HERE = platform.machine()
TIMEOUT_S = 120
SUITE_TIMEOUT_S = 300
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
PLACES = [(OLDEST, "x86_64"), (OWN, "x86_64"), (NEWEST, "x86_64"), (OLDEST, "aarch64"), (NEWEST, "aarch64")]
RELEASED = {OLDEST: "2.31", OWN: "2.36"}  # the versions of glibc; the newest one's changes
CAP_MIB = 8192
PRELOAD = "/run/hamirt/lib/libhamirt.so"

# What depends on the compiler and the machine: what is exported, every route, threads at the gate, memory orders.
TESTS = {
    "x86_64": ("tests/shim/test_exports.py", "tests/shim/test_gate.py"),
    "aarch64": (
        *(f"tests/shim/test_{name}.py" for name in ("exports", "routes", "gate", "pool")),
        "tests/shim/test_views.py::test_a_device_that_was_not_given_does_not_exist",
        "tests/shim/test_views.py::test_the_slots_are_what_the_process_list_shows",
    ),
}
# The C library that zig links makes constructors of nothing, which the test of a test misses. QEMU 7.2 may hang where a
# program with threads calls exec, and has no robust futexes: who is killed leaves the simulated card locked.
LEFT_OUT = ("test_the_constructor_check_can_fail",)
NOT_EMULATED = ("test_exec_at_any_moment", "test_kill_at_any_moment")


@pytest.mark.parametrize("machine", MACHINES)
def test_it_needs_glibc_2_17_and_nothing_else(machine: str) -> None:
    native = userlands.portable(machine)

    for library in (native.shim, native.cuda, native.nvml):
        libraries, versions, built_for = userlands.needed_by(library)
        assert libraries <= GLIBC | {"libm.so.6"}
        assert "libc.so.6" in libraries
        assert max(versions) <= _build.TARGET_GLIBC
        assert built_for == MACHINES[machine]


def container(folder: Path, suite: str, machine: str) -> Path:
    """Make a root filesystem with what the hook puts into a container, and a tenant's pages with 8 GiB."""
    native, root = userlands.portable(machine), userlands.furnish(folder, suite, machine)
    shutil.copy(native.shim, f"{root}{PRELOAD}")
    shutil.copytree(native.cuda.parent, root / "run/hamirt/sim")
    (root / "etc" / "ld.so.preload").write_text(f"{PRELOAD}\n")
    limit = Limit(card_uuid(0), CAP_MIB * MIB, CARD_BYTES, None)
    for part in ("ro", "rw"):
        (root / "run/hamirt" / part).mkdir()
    pages.create_limits(
        root / "run/hamirt/ro/limits",
        Limits(tenant="there", allow_on_error=False, node_devices=1, devices=(limit,)),
    )
    pages.create_usage(root / "run/hamirt/rw/usage")
    sim: list[str | Path] = [native.cuda, native.nvml, "-Wl,-rpath,/run/hamirt/sim"]
    source: list[str | Path] = [PROGRAMS / "room.c", f"-I{_build.header_dir()}"]
    userlands.zig(f"{machine}-linux-gnu.2.17", root / "room", *source, *sim)
    return root


def run(root: Path, machine: str, *command: str) -> tuple[int, str, str]:
    """Run a program in there with an empty environment; its status, and what it printed."""
    words = userlands.chrooted(root, machine, *command)
    env = {"PATH": os.environ["PATH"], "HAMIRT_SIM_STATE": "/tmp/sim", "HOME": "/nowhere"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("suite", "machine"), PLACES)
def test_the_cap_holds_in_other_userlands(suite: str, machine: str, tmp_path: Path, unshare: str) -> None:
    root = container(tmp_path / "root", suite, machine)

    inside = run(root, machine, "/room")
    (root / "etc" / "ld.so.preload").unlink()
    without = run(root, machine, "/room")

    libc = inside[1].splitlines()[0]
    assert libc == f"glibc {RELEASED[suite]}" if suite in RELEASED else libc > f"glibc {RELEASED[OWN]}"
    assert inside[:2] == (0, f"{libc}\ncuda {CAP_MIB}\nnvml {CAP_MIB}\nwithin 0\nbeyond 2\n")
    assert [line[:46] for line in inside[2].splitlines()] == ["hamirt: out of memory: 4096.0 MiB asked, 3544."]
    assert without == (0, f"{libc}\ncuda 81008\nnvml 81559\nwithin 0\nbeyond 0\n", "")


@pytest.mark.parametrize(("suite", "machine"), [(OWN, "x86_64"), (NEWEST, "x86_64")])
def test_what_cannot_load_it_is_left_unharmed(suite: str, machine: str, tmp_path: Path, unshare: str) -> None:
    root = container(tmp_path / "root", suite, machine)
    plain = PROGRAMS / "plain.c"
    userlands.zig(f"{machine}-linux-musl", root / "musl", "-dynamic", plain)
    userlands.zig(f"{machine}-linux-musl", root / "musl-static", "-static", plain)
    commands = [["/musl", "word"], ["/musl-static", "word"], ["/bin/busybox", "sh", "-c", "echo word; exit 7"]]
    if machine == HERE:
        subprocess.run(["cc", "-static", "-o", root / "static", plain], check=True, timeout=TIMEOUT_S)
        commands.append(["/static", "word"])

    beside = [run(root, machine, *command) for command in commands]

    told = {7: "2 word /nowhere\n"}
    assert beside == [(7, "word\n" if "busybox" in command[0] else told[7], "") for command in commands]


def test_a_broken_library_would_be_heard_of(tmp_path: Path, unshare: str) -> None:
    # What the tests above take as "unharmed" is silence: a library that can't be loaded is not silent.
    root = container(tmp_path / "root", OLDEST, HERE)
    Path(f"{root}{PRELOAD}").write_bytes(b"")

    status, _, error = run(root, HERE, "/room")

    assert status == 0
    assert "libhamirt.so" in error


@pytest.mark.parametrize("machine", MACHINES)
def test_the_shims_tests_hold(machine: str, tmp_path: Path) -> None:
    native = userlands.portable(machine)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HAMIRT_", "PYTEST_"))}
    env |= userlands.zig_cache() | {"HAMIRT_NATIVE": str(native.folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "suite")]
    tools = userlands.toolbox(tmp_path, machine)
    env["PATH"] = f"{tools}:{env['PATH']}"
    env["PYTHONPATH"] = str(tools)
    left_out = list(LEFT_OUT)
    if userlands.qemu(machine):
        env["HAMIRT_TEST_PYTHON"] = str(tools / "python3")
        command += ["-p", "tests.container.emulated"]
        left_out += NOT_EMULATED
    command += ["-k", " and ".join(f"not {name}" for name in left_out)]
    done = subprocess.run(
        [*command, *TESTS[machine]], cwd=TOP, env=env, capture_output=True, text=True, timeout=SUITE_TIMEOUT_S
    )

    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_the_wheel_for_aarch64_is_one(tmp_path: Path) -> None:
    machine = "aarch64"
    wheel, tools = userlands.wheel(machine, tmp_path), tmp_path / "tools"
    tools.mkdir()
    python = userlands.toolbox(tools, machine) / "python3"
    only: list[str | Path] = [
        "--platform",
        f"manylinux_2_17_{machine}",
        "--python-version",
        "3.11",
        "--only-binary",
        ":all:",
        "--no-deps",
    ]
    install: list[str | Path] = [
        *userlands.PIP,
        "install",
        "--target",
        str(tmp_path / "lib"),
        *only,
        str(wheel),
        f"cffi=={cffi.__version__}",
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=TIMEOUT_S)
    page = tmp_path / "limits"
    pages.create_limits(page, Limits("far", allow_on_error=False, node_devices=1, devices=()))

    program = (
        "import os, pathlib, sys; from hamirt import region; limits = region.read_limits(pathlib.Path(sys.argv[1])); "
    )
    program += "print(os.uname().machine, limits.tenant)"
    command, env = [str(python), "-c", program, str(page)], {"PYTHONPATH": str(tmp_path / "lib")}
    told = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)

    assert (told.stdout, told.stderr) == ("aarch64 far\n", "")
