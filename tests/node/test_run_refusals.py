"""Bad input for `hamirt run`: each a sentence, the right exit code, and nothing left behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hamirt import config
from tests.node.conftest import HAMIRT, Node

NATIVE = config.native_dir()


def check_refused(node: Node, ended: "subprocess.CompletedProcess[str]", code: int, says: str) -> None:
    assert (ended.returncode, ended.stdout) == (code, "")
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert node.folders() == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--mem", "0", "--", "true"], 125, "a cap of '0' leaves no memory"),
        (["--mem", "-1", "--", "true"], 125, "'-1' is not a size"),
        (["--mem", "8X", "--", "true"], 125, "'8X' is not a size"),
        (["--mem", "120%", "--", "true"], 125, "more than the card has"),
        (["--mem", "82GiB", "--", "true"], 125, "more than GPU 0 has (81559MiB)"),
        (["--mem", "100MiB", "--", "true"], 125, "give more than 672MiB"),
        (["--gpu", "0", "--gpu", "0", "--", "true"], 125, "named twice"),
        (["--gpu", "7", "--", "true"], 125, "there is no GPU '7' on this node"),
        (["--gpu", "MIG-0123", "--", "true"], 125, "MIG instance"),
        (["--name", "a/b", "--", "true"], 125, "can't name a tenant"),
        (["--name", "..", "--", "true"], 125, "can't name a tenant"),
        (["--name", "x" * 64, "--", "true"], 125, "63 at most"),
        (["--on-error", "hope", "--", "true"], 125, "'hope' is not one of"),
        (["--no-such-option", "--", "true"], 125, "No such option"),
        (["--"], 125, "Missing argument"),
        ([], 125, "Missing argument"),
        (["--", "no-such-program"], 127, "no-such-program was not found: it is in no folder of PATH"),
        (["--", "/no/such/program"], 127, "was not found: there is no such file"),
        (["--", ""], 127, "the command is an empty word"),
        (["--", "/proc/version"], 126, "is not executable"),
        (["--", "/etc/"], 126, "is a folder"),
    ],
)
def test_bad_words(node: Node, arguments: list[str], code: int, says: str) -> None:
    check_refused(node, node.run(*arguments), code, says)


def test_an_interpreter_that_is_missing(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)

    check_refused(node, node.run("--", str(script)), 127, "can't be executed: No such file")


def test_no_driver(node: Node) -> None:
    ended = node.hamirt("run", "--", "true")

    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    check_refused(node, ended, 125, "no NVIDIA driver answers on this machine")


def test_no_library(node: Node, tmp_path: Path) -> None:
    shutil.copytree(NATIVE / "sim", tmp_path / "native" / "sim")
    env = node.env | {"HAMIRT_NATIVE": str(tmp_path / "native")}

    refused = node.run("--mem", "8GiB", "--", "true", env=env)
    allowed = node.run("--mem", "8GiB", "--on-error", "allow", "--", "sh", "-c", "echo $LD_PRELOAD.", env=env)

    check_refused(node, refused, 125, "libhamirt.so is missing")
    assert (allowed.returncode, allowed.stdout) == (0, ".\n")
    assert "no cap: the library" in allowed.stderr


def test_a_library_that_a_preload_cannot_name(node: Node, tmp_path: Path) -> None:
    shutil.copytree(NATIVE, tmp_path / "na tive")
    env = node.env | {"HAMIRT_NATIVE": str(tmp_path / "na tive")}

    check_refused(node, node.run("--mem", "8GiB", "--", "true", env=env), 125, "a space or a colon in its path")


def test_inside_a_tenant(node: Node) -> None:
    check_refused(
        node, node.run("--", "true", env=node.env | {"HAMIRT_TENANT_DIR": "/x"}), 125, "already runs in a tenant"
    )


def test_an_unwritable_root(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    ended = node.run("--", "true", env=node.env | {"HAMIRT_ROOT": str(tmp_path / "file" / "root")})

    check_refused(node, ended, 125, "can't be made")
    assert "HAMIRT_ROOT" in ended.stderr


def test_a_root_that_is_read_only(node: Node, unshare: str) -> None:
    node.root.mkdir(mode=0o700)
    script = 'mount -t tmpfs -o ro,mode=700 none "$HAMIRT_ROOT" && exec "$@"'
    command = [unshare, "-m", "sh", "-c", script, "sh", *HAMIRT, "run", "--sim", "--", "true"]

    ended = subprocess.run(command, env=node.env, capture_output=True, text=True, timeout=60)

    check_refused(node, ended, 125, "is not writable")


def test_a_full_disk(node: Node, unshare: str) -> None:
    node.root.mkdir(mode=0o700)
    script = 'mount -t tmpfs -o size=300k,mode=700 none "$HAMIRT_ROOT" && "$@"; echo "$?"; ls -A "$HAMIRT_ROOT/tenants"'
    sim_elsewhere = node.env | {"HAMIRT_SIM_STATE": str(node.root.parent / "sim")}
    command = [unshare, "-m", "sh", "-c", script, "sh", *HAMIRT, "run", "--sim", "--", "true"]

    ended = subprocess.run(command, env=sim_elsewhere, capture_output=True, text=True, timeout=60)

    assert ended.stdout == "125\n"
    assert "has no room for a tenant's pages (No space left on device): free 1MiB there" in ended.stderr


def test_a_limit_on_file_sizes(node: Node) -> None:
    node.run("--", "true")
    script = 'ulimit -f 100; exec "$@"'
    command = ["bash", "-c", script, "sh", *HAMIRT, "run", "--sim", "--", "true"]

    ended = subprocess.run(command, env=node.env, capture_output=True, text=True, timeout=60)

    check_refused(node, ended, 125, "has no room for a tenant's pages (File too large)")


@pytest.fixture
def static_program(tmp_path: Path) -> Path:
    path = tmp_path / "static"
    source = b'#include <stdio.h>\nint main(void) { return puts("static") < 0; }\n'
    subprocess.run(["gcc", "-static", "-x", "c", "-", "-o", str(path)], input=source, check=True, timeout=60)
    return path


def test_a_static_program_cannot_be_capped(node: Node, static_program: Path) -> None:
    refused = node.run("--mem", "8GiB", "--", str(static_program))
    allowed = node.run("--mem", "8GiB", "--on-error", "allow", "--", str(static_program))
    uncapped = node.run("--", str(static_program))

    check_refused(node, refused, 125, "is statically linked, so nothing can be preloaded into it; --on-error allow")
    assert (allowed.returncode, allowed.stdout) == (0, "static\n")
    assert "no cap: " in allowed.stderr
    assert (uncapped.returncode, uncapped.stdout, uncapped.stderr) == (0, "static\n", "")


def test_a_script_is_as_reachable_as_its_interpreter(node: Node, static_program: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{static_program}\n")
    script.chmod(0o755)

    check_refused(node, node.run("--mem", "8GiB", "--", str(script)), 125, "is statically linked")


def test_a_setuid_program_cannot_be_capped(node: Node, tmp_path: Path, root_user: None) -> None:
    program = tmp_path / "setuid"
    shutil.copy("/bin/true", program)
    os.chown(program, 1234, 1234)
    program.chmod(0o4755)

    check_refused(node, node.run("--mem", "8GiB", "--", str(program)), 125, "is setuid")
