"""`hamirt doctor` on this machine with the simulated cards, and with one thing broken at a time."""

import json
import os
import pty
import socket
from pathlib import Path

import pytest

from hamirt import config
from tests.node.conftest import HAMIRT, Node

NAMES = [
    "driver", "pids", "library", "preload", "ld.so.preload", "root", "cgroups", "clock", "daemon", "metrics",
]  # fmt: skip


def levels(node: Node, *arguments: str, **env: str) -> tuple[int, dict[str, str]]:
    """Return the exit code and each check's level; those of this machine itself are left out."""
    ended = node.hamirt("doctor", "--sim", "--json", *arguments, env=node.env | env)
    assert ended.stderr == ""
    checks = {check["name"]: check["level"] for check in json.loads(ended.stdout)}
    assert list(checks) == NAMES
    return ended.returncode, {name: checks[name] for name in NAMES if name not in ("ld.so.preload", "cgroups")}


def test_a_good_machine_without_a_supervisor(node: Node, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()

    code, checks = levels(node, TMPDIR=str(tmp_path / "tmp"))

    assert (code, checks) == (0, {
        "driver": "ok", "pids": "ok", "library": "ok", "preload": "ok", "root": "ok", "clock": "ok",
        "daemon": "warning", "metrics": "ok",
    })  # fmt: skip
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_root_that_others_can_write_to_is_bad(node: Node) -> None:
    node.root.mkdir()
    node.root.chmod(0o777)

    code, checks = levels(node)

    assert (code, checks["root"]) == (1, "bad")


def with_library(folder: Path, content: bytes) -> str:
    """Return a native folder with this for the shim, and the simulated driver."""
    (folder / "libhamirt.so").write_bytes(content)
    (folder / "sim").symlink_to(config.sim_dir())
    return str(folder)


@pytest.mark.parametrize("at", [0, 4, 18], ids=["no library", "32 bits", "another processor"])
def test_a_library_that_does_not_load_is_bad(node: Node, tmp_path: Path, at: int) -> None:
    content = bytearray(config.shim_path().read_bytes())
    content[at] ^= 3

    code, checks = levels(node, **{config.NATIVE_VARIABLE: with_library(tmp_path, bytes(content))})

    assert (code, checks["library"], checks["preload"]) == (1, "bad", "bad")


def test_a_library_that_does_nothing_is_bad(node: Node, tmp_path: Path) -> None:
    # given a library that loads, and hooks nothing that cuInit would meet
    idle = (config.sim_dir() / "libnvidia-ml.so.1").read_bytes()

    code, checks = levels(node, **{config.NATIVE_VARIABLE: with_library(tmp_path, idle)})

    assert (code, checks["library"], checks["preload"]) == (1, "ok", "bad")


def test_without_a_driver_it_is_bad(node: Node) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")

    ended = node.hamirt("doctor")

    lines = ended.stdout.splitlines()
    assert (ended.returncode, ended.stderr) == (1, "")
    assert lines[0].startswith("bad      driver         no NVIDIA driver answers on this machine")
    assert [line.split()[1] for line in lines] == NAMES
    assert all(line == line.rstrip() for line in lines)


def test_a_supervisor_that_does_not_answer_is_bad_and_one_that_is_gone_is_not(node: Node) -> None:
    node.root.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(node.root / "hamirt.sock"))
        silent.listen()

        code, checks = levels(node)

        assert (code, checks["daemon"], checks["metrics"]) == (1, "bad", "ok")
    code, checks = levels(node)
    assert (code, checks["daemon"], checks["metrics"]) == (0, "warning", "ok")


def test_it_refuses_to_look_from_inside_a_tenant(node: Node) -> None:
    ended = node.run("--", *HAMIRT, "doctor")

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "which sees its own GPUs only: ask on the node" in ended.stderr


def test_a_terminal_gets_colours_unless_told_not_to(node: Node) -> None:
    def on_terminal(env: dict[str, str]) -> bytes:
        ours, theirs = pty.openpty()
        try:
            node.hamirt("doctor", "--sim", env=node.env | env, capture_output=False, stdout=theirs)
            return os.read(ours, 65536)
        finally:
            os.close(ours)
            os.close(theirs)

    assert b"\x1b[32m\x1b[1mok" in on_terminal({"TERM": "xterm"})
    assert b"\x1b[" not in on_terminal({"TERM": "xterm", "NO_COLOR": "1"})
