"""Tenants over the daemon's socket: made once, changed and removed by who may, and every no is a sentence."""

import fcntl
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hamirt import config, tenants, wire
from hamirt.cli import main, run
from hamirt.client import Client
from hamirt.members import read_process
from tests.node.conftest import Node
from tests.node.daemons import UUIDS, Daemon, Program, as_user, device, wish
from tests.support import need, wait_for

USER, OTHER = 1234, 1235
CREATE = os.O_WRONLY | os.O_CREAT


@pytest.fixture
def reachable(node: Node, root_user: None) -> Iterator[Node]:
    """The node at a place that other users can reach, as the shim has to be."""
    need("readable-tree", all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(config.__file__).parents))
    with tempfile.TemporaryDirectory(prefix="hamirt-test-") as folder:
        os.chmod(folder, 0o711)
        node.root = Path(folder) / "root"
        node.env["HAMIRT_ROOT"] = str(node.root)
        yield node
        for process in node.started:
            process.kill()
            process.wait(30)


def put(daemon: Daemon, identity: str, body: object) -> tuple[int, Any]:
    return daemon.ask("PUT", f"/v1/tenants/{identity}", body)


def test_the_same_request_again_gives_the_same_answer(daemon: Daemon) -> None:
    made = {"id": "web-00ab12", "name": "web", "folder": f"{daemon.root}/tenants/web-00ab12"}

    assert [put(daemon, "web-00ab12", wish()) for _ in range(2)] == [(200, made)] * 2
    with open(f"{made['folder']}/alive") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)  # as `hamirt run` does, or the next daemon takes it for dead
        daemon.end(signal.SIGKILL)
        daemon.start()

        assert put(daemon, "web-00ab12", wish()) == (200, made)
        assert put(daemon, "web-00ab12", wish(9000)) == (
            409,
            {"error": "there is a tenant web-00ab12 already, made by another request"},
        )
        assert daemon.ids() == ["web-00ab12"]


def test_a_name_is_one_tenants_and_is_found_where_none_is_given(daemon: Daemon) -> None:
    assert put(daemon, "web-000001", wish())[0] == 200

    taken = put(daemon, "web-000002", wish())
    found = put(daemon, "web-000003", wish(name=None))
    daemon_took = put(daemon, "x-000004", wish(name="web-000001"))

    error = "a tenant named web is running already: choose another --name"
    assert (taken, found[1]["name"]) == ((409, {"error": error}), "web-1")
    assert daemon_took[0] == 409
    assert daemon.ids() == ["web-000001", "web-000003"]


def test_one_id_twice_at_once_makes_one_tenant(daemon: Daemon) -> None:
    answers: list[tuple[int, Any]] = []
    bodies = [wish(), wish(), wish(9000), wish(9000)]
    threads = [
        threading.Thread(target=lambda body=body: answers.append(put(daemon, "web-00ab12", body))) for body in bodies
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(status for status, _ in answers) == [200, 200, 409, 409]
    assert daemon.ids() == ["web-00ab12"]


@pytest.mark.parametrize(
    ("identity", "body", "status", "says"),
    [
        ("web", wish(), 400, "can't be a tenant's id"),
        ("a%2Fb-000001", wish(), 400, "can't name a tenant"),
        ("x" * 300 + "-000001", wish(), 400, "can't name a tenant"),
        ("-000001", wish(), 400, "can't be a tenant's id"),
        ("..-000001", wish(), 400, "can't name a tenant"),
        ("web-000001", wish(name="a/b"), 400, "can't name a tenant"),
        ("web-000001", wish(name="x" * 300), 400, "can't name a tenant"),
        ("web-000001", wish(name=""), 400, "name has to be printable text"),
        ("web-000001", b"{", 400, "the request's body is no JSON"),
        ("web-000001", b"[" * 60000, 400, "the request's body is no JSON"),
        ("web-000001", b"\xff", 400, "the request's body is no JSON"),
        ("web-000001", [], 400, "has to be a JSON object"),
        ("web-000001", {}, 400, "devices is missing"),
        ("web-000001", wish(colour="red"), 400, "there is no field 'colour'; there are: name, command"),
        ("web-000001", wish(command=[1]), 400, "command has to be a list of texts"),
        ("web-000001", wish(devices=[]), 400, "devices has to be a list with an object for each GPU"),
        ("web-000001", wish(devices=[device(8192)] * 2), 400, "devices names a GPU twice"),
        ("web-000001", wish(devices=[device(8192, f"GPU-{i}") for i in range(17)]), 400, "16 GPUs at most, not 17"),
        ("web-000001", wish(devices=[device(8192, "GPU-ff")]), 400, "there is no GPU 'GPU-ff' on this node: there is"),
        ("web-000001", wish(devices=[device(8192, weight=0)]), 400, "devices[0].weight has to be a whole number"),
        ("web-000001", wish(devices=[device(8192, weight=True)]), 400, "devices[0].weight has to be a whole number"),
        ("web-000001", wish(devices=[device(8192, time_percent=101)]), 400, "time_percent has to be a whole number"),
        ("web-000001", wish(devices=[device(8192, latency_class="x")]), 400, "has to be latency, normal, batch"),
        ("web-000001", wish(90000), 400, "is more than GPU 0 has"),
        ("web-000001", wish(100), 400, "leaves no memory on GPU 0"),
        ("web-000001", wish(simulated=False), 409, "serves simulated GPUs: use --sim"),
        ("web-000001", b" " * (1 << 16) + b"{}", 413, "a body has 65536 bytes at most"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing_behind(
    daemon: Daemon, identity: str, body: object, status: int, says: str
) -> None:
    answer = put(daemon, identity, body)

    assert answer[0] == status
    assert list(answer[1]) == ["error"]
    assert says in answer[1]["error"]
    assert daemon.ids() == []


def test_what_there_is_not(daemon: Daemon) -> None:
    put(daemon, "web-000001", wish())

    for method in ("PATCH", "DELETE"):
        body = {"devices": {UUIDS[0]: {"weight": 5}}} if method == "PATCH" else None
        error = "no tenant is called 'nobody': there is web"
        assert daemon.ask(method, "/v1/tenants/nobody", body) == (404, {"error": error})
    assert daemon.ask("GET", "/v1/tenants/web") == (405, {"error": "GET '/v1/tenants/web': method not allowed"})
    assert daemon.ask("GET", "/x") == (404, {"error": "GET '/x': not found"})
    assert daemon.ask("DELETE", "/v1/tenants/web?force=yes")[0] == 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "devices has to be an object"),
        ({"devices": {}}, "devices has to be an object"),
        ({"devices": {"GPU-ff": {}}}, "web has no GPU 'GPU-ff'"),
        ({"devices": {UUIDS[0]: {"uuid": "x"}}}, f"there is no field devices['{UUIDS[0]}'].'uuid'"),
        ({"devices": {UUIDS[0]: {"memory_bytes": 1.5}}}, "memory_bytes has to be a whole number"),
        ({"devices": {UUIDS[0]: {"memory_bytes": 1 << 20}}}, "leaves no memory on GPU 0"),
        ({"weight": 3}, "there is no field 'weight'"),
    ],
)  # fmt: skip
def test_a_change_that_is_refused_changes_nothing(daemon: Daemon, body: object, says: str) -> None:
    put(daemon, "web-000001", wish())
    before = daemon.limits("web").devices

    status, answer = daemon.ask("PATCH", "/v1/tenants/web", body)

    assert (status, list(answer)) == (400, ["error"])
    assert says in answer["error"]
    assert daemon.limits("web").devices == before


def test_a_tenant_with_living_processes_is_removed_by_force_only(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--mem", "8GiB")
    (child,) = psutil.Process(program.process.pid).children()
    pid, command = child.pid, child.name()

    refused = daemon.node.hamirt("rm", "web")
    removed = daemon.node.hamirt("rm", "web", "--force")

    sentence = f"hamirt: web has living processes, {pid} ({command}): end them, or give --force\n"
    assert (refused.returncode, refused.stderr) == (1, sentence)
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "web is removed\n", "")
    assert program.process.wait(30) == 128 + signal.SIGTERM
    assert daemon.ids() == []


def test_force_ends_what_ignores_sigterm_and_what_left_its_parent(daemon: Daemon, line_of: Any) -> None:
    daemon.configure(kill_after_seconds=0.2)
    daemon.send(signal.SIGHUP)
    wait_for(lambda: daemon.events("settings_loaded"), "the settings")
    script = "trap '' TERM; sh -c 'setsid sleep 1000 & echo $!'; echo $$; while :; do sleep 0.1; done"
    tenant = daemon.node.start("--name", "web", "--", "sh", "-c", script)
    pids = [int(line_of(tenant)), int(line_of(tenant))]

    removed = daemon.node.hamirt("rm", "web", "--force")

    assert (removed.returncode, removed.stderr) == (0, "")
    assert tenant.wait(30) == 128 + signal.SIGKILL
    assert [read_process(pid) for pid in pids] == [None, None]


def test_what_another_user_may(reachable: Node) -> None:
    daemon = Daemon(reachable).start()
    client = Client(reachable.root)

    def be(identity: str, **fields: object) -> tuple[int, Any]:
        return as_user(USER, lambda: put(daemon, identity, wish(1024, identity[:-7], **fields)))

    put(daemon, "root-000001", wish(1024, "root"))
    made = be("mine-000002")
    contained = be("other-000003", container="abc")
    change = {"devices": {UUIDS[0]: {"weight": 5}}}

    def tries() -> dict[str, int]:
        return {
            f"{method} {name}": daemon.ask(method, f"/v1/tenants/{name}", change)[0]
            for name in ("root", "mine")
            for method in ("PATCH", "DELETE")
        }

    others, mine = as_user(OTHER, tries), as_user(USER, tries)

    assert (made[0], contained) == (200, (403, {"error": "only administrators may say which container a tenant is"}))
    assert others == {"PATCH root": 403, "DELETE root": 403, "PATCH mine": 403, "DELETE mine": 403}
    assert mine == {"PATCH root": 403, "DELETE root": 403, "PATCH mine": 200, "DELETE mine": 200}
    assert as_user(USER, client.health)["nvml_answers"] is True
    assert daemon.ids() == ["root-000001"]


def test_what_the_folder_lets_its_user_and_others_do(reachable: Node) -> None:
    daemon = Daemon(reachable).start()
    as_user(USER, lambda: put(daemon, "mine-000001", wish(1024, "mine")))
    folder = daemon.root / "tenants" / "mine-000001"

    def tries() -> dict[str, bool]:
        found = {}
        for name, flags in (
            ("ro/limits", os.O_RDONLY), ("ro/limits", os.O_RDWR), ("rw/usage", os.O_RDWR), ("alive", os.O_RDWR),
            ("rw/new", CREATE), ("new", CREATE), ("../new", CREATE),
        ):  # fmt: skip
            try:
                os.close(os.open(folder / name, flags))
                found[f"{name} {flags}"] = True
            except OSError:
                found[f"{name} {flags}"] = False
        for name in ("rw/usage", "ro/limits", "alive"):
            try:
                os.rename(folder / name, folder / f"{name}2")
                found[f"rename {name}"] = True
            except OSError:
                found[f"rename {name}"] = False
        return found

    modes = {
        str(path.relative_to(daemon.root)): (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid)
        for path in [daemon.root, daemon.root / "tenants", folder, *folder.rglob("*")]
    }
    assert modes == {
        ".": (0o711, 0), "tenants": (0o711, 0), "tenants/mine-000001": (0o711, 0),
        "tenants/mine-000001/ro": (0o755, 0), "tenants/mine-000001/rw": (0o755, 0),
        "tenants/mine-000001/ro/limits": (0o644, 0), "tenants/mine-000001/rw/usage": (0o600, USER),
        "tenants/mine-000001/alive": (0o600, USER), "tenants/mine-000001/tenant.json": (0o644, 0),
    }  # fmt: skip
    mine = as_user(USER, tries)
    others = as_user(OTHER, tries)
    assert [name for name, good in mine.items() if good] == [
        f"ro/limits {os.O_RDONLY}", f"rw/usage {os.O_RDWR}", f"alive {os.O_RDWR}"
    ]  # fmt: skip
    assert [name for name, good in others.items() if good] == [f"ro/limits {os.O_RDONLY}"]


def test_a_member_of_the_admin_group_may_do_what_root_may(reachable: Node) -> None:
    daemon = Daemon(reachable, {"admin_group": "daemon"}).start()
    put(daemon, "root-000001", wish(1024, "root"))

    def as_member() -> int:
        return daemon.ask("DELETE", "/v1/tenants/root")[0]

    group = next(
        int(line.split(":")[2]) for line in Path("/etc/group").read_text().splitlines() if line[:7] == "daemon:"
    )

    assert as_user(USER, as_member) == 403
    assert as_user(USER, as_member, groups=[group]) == 200


def test_a_user_has_a_number_of_tenants_and_no_more(reachable: Node) -> None:
    daemon = Daemon(reachable, {"tenants_per_user": 2}).start()

    def three() -> list[int]:
        return [put(daemon, f"t{index}-000001", wish(1024, f"t{index}"))[0] for index in range(3)]

    assert as_user(USER, three) == [200, 200, 409]
    assert three() == [409, 409, 200]


def test_a_damaged_note_is_a_problem_and_no_crash(daemon: Daemon) -> None:
    put(daemon, "web-000001", wish())
    put(daemon, "db-000002", wish(1024, "db"))
    alive = [tenants.hold(daemon.root / "tenants" / name) for name in daemon.ids()]
    daemon.end(signal.SIGKILL)
    (daemon.root / "tenants" / "web-000001" / "tenant.json").write_text('{"id": "db-000002", "name": []}')

    daemon.start()

    shown = {one.id: (one.name, one.problem) for one in wire.node_from_json(daemon.client.node()).tenants}
    file = daemon.root / "tenants" / "web-000001" / "tenant.json"
    assert shown == {
        "web-000001": ("web", f"{file} is damaged: end that tenant with hamirt rm --force web-000001"),
        "db-000002": ("db", None),
    }
    assert daemon.node.hamirt("rm", "web-000001", "--force").returncode == 0
    assert daemon.ids() == ["db-000002"]
    for fd in alive:
        os.close(fd)


def test_a_long_command_line_is_noted_in_part(daemon: Daemon) -> None:
    ended = daemon.node.run("--name", "web", "--", sys.executable, "-c", "pass", *["x" * 1000] * 1000)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert [event["event"] for event in daemon.events()] == ["started", "tenant_created", "tenant_removed"]
    assert daemon.ids() == []


def test_a_user_runs_a_tenant_under_roots_daemon(reachable: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(reachable).start()
    for name, value in (reachable.env | {config.SIM_STATE_VARIABLE: str(daemon.root / "sim")}).items():
        monkeypatch.setenv(name, value)
    said = daemon.root.parent / "said"
    said.touch()
    os.chown(said, USER, USER)
    script = (
        f'cd "$HAMIRT_TENANT_DIR"; for f in ro/limits rw/usage ro rw .; do test -w $f && echo $f; done >{said}; true'
    )

    def run_it() -> object:
        assert run.command.name == "run"  # imported already: the user may not be able to read where Python lies
        try:
            main.main(["run", "--sim", "--mem", "8GiB", "--name", "mine", "--", "/bin/sh", "-c", script])
        except SystemExit as ended:
            return ended.code

    code = as_user(USER, run_it)

    assert (code, said.read_text()) == (0, "rw/usage\n")
    assert [(event["event"], event.get("uid")) for event in daemon.events()] == [
        ("started", None),
        ("tenant_created", USER),
        ("tenant_removed", None),
    ]
    assert daemon.ids() == []


def test_tenants_that_come_and_go_leave_no_descriptor_behind(daemon: Daemon) -> None:
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)

    def come_and_go() -> int:
        assert put(daemon, "web-000001", wish())[0] == 200
        assert daemon.ask("DELETE", "/v1/tenants/web")[0] == 200
        return process.num_fds()

    come_and_go()
    wait_for(lambda: not daemon.client.node()["tenants"], "a sample without it")
    before = process.num_fds()
    for _ in range(50):
        come_and_go()

    wait_for(lambda: process.num_fds() <= before, "the descriptors to be closed")
