"""`hamirt run`: the program's environment, its exit code, and what is left when it has ended."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hamirt import config, region
from hamirt.model import Limit, Limits
from hamirt.units import GIB, MIB
from tests.node.conftest import PROGRAMS, Node

TOTAL = 81559 * MIB


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 125", 125),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
        ("kill -PIPE $$", 128 + signal.SIGPIPE),
    ],
)
def test_it_ends_with_the_programs_status(node: Node, script: str, code: int) -> None:
    ended = node.run("--", "sh", "-c", script)

    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
    assert node.folders() == []


def test_the_program_gets_its_words_and_streams_as_they_are(node: Node) -> None:
    ended = node.run(
        "--", "sh", "-c", 'cat; printf "[%s]" "$0" "$@"; echo err >&2', "x", "--gpu", "--", "-h", input="in"
    )

    assert (ended.stdout, ended.stderr) == ("in[x][--gpu][--][-h]", "err\n")


def test_the_dashes_before_the_program_may_be_left_out(node: Node) -> None:
    assert node.run("echo", "--sim", "x").stdout == "--sim x\n"


def test_the_environment_of_the_program(node: Node) -> None:
    env = node.env | {"LD_PRELOAD": "", "LD_LIBRARY_PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": "1"}
    before = {name for name in env if not name.startswith(("HAMIRT", "LD_"))}

    ended = node.run("--name", "t", "--", "env", "-0", env=env)

    shown = dict(entry.split("=", 1) for entry in ended.stdout.split("\0")[:-1])
    assert shown["LD_PRELOAD"] == str(config.shim_path())
    assert shown["LD_LIBRARY_PATH"] == f"{config.sim_dir()}:/nowhere"
    assert shown["HAMIRT_SIM_STATE"] == str(node.root / "sim")
    assert Path(shown["HAMIRT_TENANT_DIR"]).parent == node.root / "tenants"
    assert {name: shown.get(name) for name in before} == {name: env[name] for name in before}


@pytest.mark.parametrize(("given", "kept"), [(("--gpu", "1"), "unset"), ((), "1")])
def test_a_choice_among_the_nodes_gpus_ends_where_gpus_are_given(node: Node, given: tuple[str, ...], kept: str) -> None:
    node.env["CUDA_VISIBLE_DEVICES"] = "1"

    ended = node.run(*given, "--", "sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-unset}")

    assert ended.stdout == f"{kept}\n"


def test_an_earlier_preload_stays_behind_ours(node: Node) -> None:
    ended = node.run("--", "env", env=node.env | {"LD_PRELOAD": "libm.so.6 libdl.so.2"})

    assert f"LD_PRELOAD={config.shim_path()}:libm.so.6 libdl.so.2" in ended.stdout.splitlines()


def test_the_pages_that_the_program_finds(node: Node) -> None:
    copy = node.root.parent / "limits"
    ended = node.run("--gpu", "1", "--mem", "25%", "--name", "train", "--on-error", "allow", "--", "sh", "-c",
                     f'cp "$HAMIRT_TENANT_DIR/ro/limits" {copy}; stat -c "%a" $HAMIRT_TENANT_DIR '
                     "$HAMIRT_TENANT_DIR/ro/limits $HAMIRT_TENANT_DIR/rw/usage")  # fmt: skip

    assert ended.stdout.split() == ["700", "644", "666"]
    uuid = node.status()["cards"][1]["uuid"]
    assert region.read_limits(copy) == Limits("train", True, 2, (Limit(uuid, TOTAL // 4, TOTAL, None),))


def test_descriptors_and_signals_are_as_without_it(node: Node) -> None:
    script = (
        "import os, signal; print(sorted(os.listdir('/proc/self/fd'))[:-1], signal.pthread_sigmask(0, []), "
        "[s for s in (13, 17, 25) if signal.getsignal(s) == signal.SIG_IGN], os.getpgrp() == os.getpid())"
    )
    command = [sys.executable, "-c", script]

    direct = subprocess.run(command, env=node.env, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    ended = node.run("--", *command, stdin=subprocess.DEVNULL)

    assert ended.stdout == direct.stdout


def test_a_script_without_an_interpreter_line_runs_as_under_env(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0" "$1"\n')
    script.chmod(0o755)

    assert node.run("--", str(script), "x").stdout == f"{script} x\n"


def test_names_are_the_commands_with_a_number(node: Node) -> None:
    show = ("sh", "-c", 'sed "s/.*\\"name\\": \\"\\([^\\"]*\\).*/\\1/" $HAMIRT_TENANT_DIR/tenant.json; read line')
    first = node.start("--", *show)
    assert first.stdout is not None
    assert first.stdout.readline() == "sh-1\n"

    assert node.run("--", *show, input="\n").stdout == "sh-2\n"
    refused = node.run("--name", "sh-1", "--", "true")
    first.communicate("\n")
    assert (refused.returncode, "a tenant named sh-1 is running already" in refused.stderr) == (125, True)
    assert node.run("--name", "sh-1", "--", "true").returncode == 0


def test_a_measured_context_is_remembered_for_the_next_tenant(node: Node) -> None:
    ended = node.run("--", sys.executable, str(PROGRAMS / "holder.py"), "0", "1", "0", "0", "333", "0", input="")
    assert (ended.returncode, ended.stdout) == (0, "ready\n")

    known = json.loads((node.root / "contexts.json").read_text())
    refused = node.run("--gpu", "1", "--mem", "350MiB", "--", "true")

    assert list(known["context_bytes"].values()) == [333 * MIB]
    assert "a CUDA context takes on this card 333MiB" in refused.stderr


def test_per_card_sizes(node: Node) -> None:
    copy = node.root.parent / "limits"

    node.run("--mem", "0=8GiB,1=16GiB", "--", "sh", "-c", f'cp "$HAMIRT_TENANT_DIR/ro/limits" {copy}')

    assert [limit.memory_bytes for limit in region.read_limits(copy).devices] == [8 * GIB, 16 * GIB]
