"""What is left of the dead is removed, and nothing of the living ever is."""

import json
import os
import random
import shutil
import signal
import sys
import time
from typing import Any

import psutil
import pytest

from hamirt import tenants
from hamirt.members import read_process
from tests.node.conftest import PROGRAMS, Node
from tests.node.daemons import Daemon, Program, wish
from tests.support import wait_for


def hold(node: Node, line_of: Any, name: str) -> tuple[int, int]:
    """Start a tenant whose program holds a slot; return the pids of its `hamirt run` and of the program."""
    holder = [sys.executable, str(PROGRAMS / "holder.py"), "0", "0", "100", "0", "520", "0"]
    process = node.start(
        "--gpu", "0", "--mem", "2GiB", "--name", name, "--", "sh", "-c", 'echo $$; exec "$@"', "sh", *holder
    )
    pid = int(line_of(process))
    assert line_of(process) == "ready"
    return process.pid, pid


def test_a_tenant_goes_with_its_last_process(daemon: Daemon, line_of: Any) -> None:
    parent, program = hold(daemon.node, line_of, "web")

    os.kill(parent, signal.SIGKILL)
    reaped = len(daemon.events("tenant_removed"))
    began = time.monotonic()
    while time.monotonic() < began + 2.5:  # two rounds of the reaper
        assert len(daemon.ids()) == 1
        time.sleep(0.05)
    os.kill(program, signal.SIGKILL)

    wait_for(lambda: not daemon.ids(), "the folder to be removed")
    assert (reaped, len(daemon.events("tenant_removed"))) == (0, 1)


def test_a_tenant_lives_on_with_a_process_that_never_uses_the_gpu(daemon: Daemon) -> None:
    process = daemon.node.start("--mem", "2GiB", "--name", "web", "--", "sleep", "1000")
    wait_for(lambda: psutil.Process(process.pid).children(), "the program")
    (program,) = psutil.Process(process.pid).children()

    process.kill()
    began = time.monotonic()
    while time.monotonic() < began + 2.5:
        assert len(daemon.ids()) == 1
        time.sleep(0.05)
    program.kill()

    wait_for(lambda: not daemon.ids(), "the folder to be removed")


def test_one_that_was_asked_for_by_a_process_that_died_is_removed(daemon: Daemon) -> None:
    script = (
        "import json, pathlib, sys; from hamirt.client import Client; "
        "Client(pathlib.Path(sys.argv[1]))._ask('PUT', '/v1/tenants/web-000001', json.loads(sys.argv[2]))"
    )
    ended = psutil.Popen([sys.executable, "-c", script, str(daemon.root), json.dumps(wish())]).wait(30)

    assert ended == 0
    wait_for(lambda: not daemon.ids(), "the folder to be removed")


def test_what_ended_while_no_daemon_was_there_is_swept_at_the_next_start(daemon: Daemon, line_of: Any) -> None:
    dead, living = hold(daemon.node, line_of, "dead"), hold(daemon.node, line_of, "living")
    daemon.end(signal.SIGKILL)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    (daemon.root / "tenants" / ".half-000001" / "rw").mkdir(parents=True)

    daemon.start()

    wait_for(lambda: [name.rpartition("-")[0] for name in daemon.ids()] == ["living"], "the dead to be removed")
    assert read_process(living[1]) is not None


def test_folders_of_an_earlier_boot_are_swept(node: Node) -> None:
    """A lock ends with its machine: what is left is a folder whose pids belong to anybody."""
    first = Daemon(node).start()
    first.ask("PUT", "/v1/tenants/old-000001", wish(name="old"))
    first.end(signal.SIGKILL)
    note = node.root / "tenants" / "old-000001" / "tenant.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"pid": os.getpid()}))

    first.start()

    wait_for(lambda: not first.ids(), "the folder to be removed")


def test_while_a_daemon_serves_a_root_nobody_else_sweeps_it(daemon: Daemon) -> None:
    daemon.ask("PUT", "/v1/tenants/web-000001", wish())
    folder = daemon.root / "tenants" / "web-000001"
    daemon.send(signal.SIGSTOP)
    shutil.copytree(folder, folder.with_name("dead-000002"))

    listed = [pages.id for pages in tenants.list_pages(daemon.root)]

    assert listed == ["dead-000002", "web-000001"]
    daemon.send(signal.SIGCONT)
    wait_for(lambda: daemon.ids() == ["web-000001"], "the dead one to be removed")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_killed_nothing_living_is_removed_and_nothing_dead_stays(
    daemon: Daemon, line_of: Any, seed: int
) -> None:
    chance = random.Random(seed)
    running = {f"t{index}": hold(daemon.node, line_of, f"t{index}") for index in range(6)}
    victims = [(name, which) for name in running for which in (0, 1)]
    chance.shuffle(victims)

    def living() -> set[str]:
        return {name for name, (_parent, program) in running.items() if read_process(program)}

    def shown() -> set[str]:
        return {name.rpartition("-")[0] for name in daemon.ids() if not name.startswith(".")}

    for name, which in victims[: chance.randrange(4, 11)]:
        if chance.random() < 0.4:
            daemon.end(signal.SIGKILL)
            daemon.start()
        try:
            os.kill(running[name][which], signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended with its program
        assert living() <= shown()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert living() <= shown()
        time.sleep(0.02)

    wait_for(lambda: shown() == living(), "what is dead to be removed", 15)


def test_a_program_that_is_told_to_leave_leaves_nothing(daemon: Daemon) -> None:
    for _ in range(5):
        assert Program(daemon.node, "web", "--mem", "8GiB").end() == 0

    assert daemon.ids() == []
    kinds = [event["event"] for event in daemon.events() if event["event"] != "started"]
    assert kinds == ["tenant_created", "tenant_removed"] * 5


def test_what_holds_a_slot_and_shows_nothing_else_keeps_its_tenant(daemon: Daemon, line_of: Any) -> None:
    script = f'exec env -i {sys.executable} {PROGRAMS / "holder.py"} 0 0 100 0 520 0 "$HAMIRT_TENANT_DIR"'
    parent = daemon.node.start("--gpu", "0", "--mem", "2GiB", "--name", "web", "--", "sh", "-c", script)
    assert line_of(parent) == "ready"
    (program,) = psutil.Process(parent.pid).children()

    parent.kill()
    began = time.monotonic()
    while time.monotonic() < began + 2.5:
        assert len(daemon.ids()) == 1
        time.sleep(0.05)
    forced = daemon.node.hamirt("rm", "web", "--force")
    program.kill()

    assert (forced.returncode, "they can't be ended from here: end them by hand" in forced.stderr) == (1, True)
    wait_for(lambda: not daemon.ids(), "the folder to be removed")


def test_force_ends_what_its_hamirt_run_left_behind(daemon: Daemon, line_of: Any) -> None:
    parent, program = hold(daemon.node, line_of, "web")
    os.kill(parent, signal.SIGKILL)

    removed = daemon.node.hamirt("rm", "web", "--force")

    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "web is removed\n", "")
    assert read_process(program) is None
