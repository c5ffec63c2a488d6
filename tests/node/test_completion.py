"""Completion as a shell asks for it: commands, options and tenants' names, and silence where there are none."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from hamirt import client, model, wire
from hamirt.cli import completion
from hamirt.model import Tenant
from tests.node.conftest import PROGRAMS, Node
from tests.support import need

# A command of one tenant's, and what a shell asks it.
PROGRAM = (
    "import click; from hamirt.cli.completion import complete_tenant as names; "
    "click.Command('one', params=[click.Argument(['tenant'], shell_complete=names)]).main(prog_name='one')"
)


@pytest.fixture
def bash(node: Node, tmp_path: Path) -> Path:
    """A bash, and `hamirt` in the node's PATH."""
    need("bash", os.path.exists("/bin/bash"))
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "hamirt").write_text(f'#!/bin/sh\nexec {sys.executable} -m hamirt "$@"\n')
    (folder / "hamirt").chmod(0o755)
    node.env["PATH"] = f"{folder}:{node.env['PATH']}"
    return Path("/bin/bash")


def completed(node: Node, bash: Path, *words: str) -> list[str]:
    """Return what TAB offers after these words, the last of which is being typed."""
    script = (
        'eval "$(hamirt completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "_hamirt_completion hamirt; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    ended = subprocess.run(
        [bash, "--norc", "-c", script, "bash", "hamirt", *words],
        env=node.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


def names(node: Node, incomplete: str) -> list[str]:
    """Return the tenants that are offered."""
    env = node.env | {"_ONE_COMPLETE": "bash_complete", "COMP_WORDS": f"one {incomplete}", "COMP_CWORD": "1"}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in ended.stdout.splitlines() if line]


def hold(node: Node, line_of: Any, name: str) -> None:
    """Start a tenant that lives until the test ends."""
    holder = (sys.executable, str(PROGRAMS / "holder.py"), "0", "0", "1", "0", "0", "0")
    assert line_of(node.start("--name", name, "--", *holder)) == "ready"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(node: Node, shell: str) -> None:
    ended = node.hamirt("completion", shell)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"_HAMIRT_COMPLETE={shell}_complete" in ended.stdout


def test_another_shell_is_refused_with_those_there_are(node: Node) -> None:
    ended = node.hamirt("completion", "tcsh")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "'bash', 'zsh', 'fish'" in ended.stderr


def test_bash_completes_commands_and_options(node: Node, bash: Path) -> None:
    assert completed(node, bash, "sta") == ["status"]
    assert completed(node, bash, "completion", "") == ["bash", "zsh", "fish"]
    assert "--tenant" in completed(node, bash, "status", "--t")


def test_bash_completes_the_tenants_of_status(node: Node, bash: Path, line_of: Any) -> None:
    hold(node, line_of, "train")

    assert completed(node, bash, "status", "--tenant", "t") == ["train"]


def test_the_living_tenants_are_offered(node: Node, line_of: Any) -> None:
    hold(node, line_of, "train-a")
    hold(node, line_of, "train-b")
    hold(node, line_of, "web")

    assert names(node, "") == ["train-a", "train-b", "web"]
    assert names(node, "train") == ["train-a", "train-b"]
    assert names(node, "x") == []


def test_without_a_root_nothing_is_offered(node: Node) -> None:
    assert names(node, "") == []


def test_a_record_that_is_damaged_or_would_split_is_left_out(node: Node) -> None:
    tenants = node.root / "tenants"
    records = {"good-1": '{"name": "good"}', "x-1": "{", "x-2": "[]", "x-3": json.dumps({"name": "a b; $(id)\n*"})}
    for identity, text in records.items():
        (tenants / identity).mkdir(parents=True)
        (tenants / identity / "tenant.json").write_text(text)
    (tenants / "x-4").mkdir()
    os.mkfifo(tenants / "x-4" / "tenant.json")
    (tenants / "x-5").mkdir()
    (node.root / "linked").write_text('{"name": "linked"}')
    (tenants / "x-5" / "tenant.json").symlink_to(node.root / "linked")
    (tenants / ".y-6").mkdir()
    (tenants / ".y-6" / "tenant.json").write_text('{"name": "partial"}')
    (tenants / "file").touch()

    assert names(node, "") == ["good"]


def test_a_user_who_may_not_list_the_tenants_is_told_by_the_supervisor(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Supervisor:
        def __init__(self, root: Path, seconds: float) -> None:
            assert (root, seconds < 1) == (node.root, True)

        def node(self) -> dict[str, Any]:
            tenants = tuple(Tenant(f"{name}-1", name, False, None, ()) for name in ("web", "train", "a b"))
            return wire.node_to_json(model.Node(None, tenants, False, None))

    def refuse(_folder: Path) -> None:
        raise PermissionError

    monkeypatch.setenv("HAMIRT_ROOT", str(node.root))
    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(client, "Client", Supervisor)
    command = click.Command("one")

    offered = completion.complete_tenant(click.Context(command), click.Argument(["tenant"]), "")

    assert offered == ["train", "web"]
