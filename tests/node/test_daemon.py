"""The daemon's life: one for each root, ended and killed and started again, and what its tenants notice of it."""

import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from hamirt import __version__, client, region, wire
from hamirt.client import Reach
from hamirt.model import LatencyClass, Limits, Tenant
from hamirt.units import MIB
from tests.node.conftest import HAMIRT, Node
from tests.node.daemons import UUIDS, Daemon, Program, wish
from tests.support import need, wait_for


def without_lease(daemon: Daemon) -> dict[str, Limits]:
    """Return all limits, without their leases."""
    paths = sorted((daemon.root / "tenants").glob("*/ro/limits"))
    return {str(path): replace(region.read_limits(path), lease_ns=None) for path in paths}


def seen(daemon: Daemon) -> tuple[Tenant, ...]:
    """Return the tenants of the last sample, without what was metered since the one before."""
    tenants = wire.node_from_json(daemon.client.node()).tenants
    metered = {"busy_ratio": None, "busy_source": None, "metering": None}
    return tuple(
        replace(tenant, cards=tuple(replace(card, **metered) for card in tenant.cards))  # type: ignore[arg-type]
        for tenant in tenants
    )


def test_it_says_who_it_is(daemon: Daemon) -> None:
    node = wire.node_from_json(daemon.client.node())

    assert node.supervisor is not None
    assert daemon.process is not None
    assert (node.supervisor.version, node.supervisor.pid, node.supervisor.policy) == (
        __version__,
        daemon.process.pid,
        "report",
    )
    assert node.driver is not None
    assert tuple(card.uuid for card in node.driver.cards) == UUIDS


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(daemon: Daemon) -> None:
    assert daemon.process is not None

    second = daemon.node.hamirt("daemon", "--sim")

    assert (second.returncode, second.stderr) == (
        1,
        f"hamirt: a daemon serves {daemon.root} already (pid {daemon.process.pid}): stop that one, "
        "or name another folder with HAMIRT_ROOT\n",
    )
    assert client.reach(daemon.root) is Reach.ANSWERS


def test_sigterm_ends_it_and_the_tenants_go_on(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--mem", "8GiB")
    assert daemon.limits("web").lease_ns is not None

    code = daemon.end(signal.SIGTERM)

    assert code == 0
    assert not (daemon.root / "hamirt.sock").exists()
    assert daemon.limits("web").lease_ns is None
    assert [event["event"] for event in daemon.events()] == ["started", "tenant_created", "stopped"]
    assert program("alloc 100") == 0
    assert program.end() == 0
    assert daemon.ids() == []


def test_the_socket_of_a_dead_daemon_is_replaced(daemon: Daemon) -> None:
    daemon.end(signal.SIGKILL)
    assert (daemon.root / "hamirt.sock").exists()
    assert client.reach(daemon.root) is Reach.ABSENT

    daemon.start()

    assert client.reach(daemon.root) is Reach.ANSWERS


def test_the_lease_is_renewed_as_long_as_it_lives(daemon: Daemon) -> None:
    daemon.ask("PUT", "/v1/tenants/web-00ab12", wish())

    first = daemon.limits("web").lease_ns
    wait_for(lambda: daemon.limits("web").lease_ns != first, "another lease", 1.0)
    second = daemon.limits("web").lease_ns
    left = (second or 0) / 1e9 - time.monotonic()

    assert 0.5 < left <= 1.0


def test_what_it_knows_outlives_it(daemon: Daemon) -> None:
    programs = [Program(daemon.node, name, "--mem", "8GiB", "--weight", "7") for name in ("a", "b")]
    assert daemon.node.hamirt("set", "a", "--mem", "9GiB", "--class", "latency").returncode == 0
    pages, ids = without_lease(daemon), daemon.ids()
    wait_for(lambda: seen(daemon)[0].cards[0].latency_class is LatencyClass.LATENCY, "the next sample")
    wait_for(lambda: {one.cards[0].overhead_bytes for one in seen(daemon)} == {520 * MIB}, "the contexts' measurement")
    before = seen(daemon)

    daemon.end(signal.SIGKILL)
    daemon.start()

    assert (without_lease(daemon), daemon.ids()) == (pages, ids)
    assert seen(daemon) == before
    assert [program.end() for program in programs] == [0, 0]
    assert daemon.ids() == []


def test_a_tenant_does_not_notice_that_it_is_killed_again_and_again(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--mem", "8GiB")
    slowest, over = [0.0], threading.Event()

    def work() -> None:
        while not over.is_set():
            began = time.monotonic()
            assert (program("alloc 64"), program("free")) == (0, 0)
            slowest.append(time.monotonic() - began)

    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(5):
        daemon.end(signal.SIGKILL)
        daemon.start()
    over.set()
    worker.join()

    assert len(slowest) > 100
    assert max(slowest) < 1.5
    assert program.end() == 0


def test_sighup_reads_the_settings_again_and_a_bad_file_changes_nothing(daemon: Daemon) -> None:
    daemon.configure(overcommit_ratio=1.5)
    daemon.send(signal.SIGHUP)
    wait_for(lambda: daemon.events("settings_loaded"), "the settings")
    assert daemon.ask("PUT", "/v1/tenants/a-000001", wish(81000, "a"))[0] == 200

    daemon.config.write_text('overcommit_ratio = 1.0\npolicy = "shout"\n')
    daemon.send(signal.SIGHUP)
    wait_for(lambda: daemon.events("settings_refused"), "the refusal")

    assert daemon.events("settings_refused")[0]["message"] == (
        f"{daemon.config}, line 2: policy has to be 'report' or 'kill', not 'shout'; the settings stay as they were"
    )
    assert daemon.ask("PUT", "/v1/tenants/b-000002", wish(30000, "b"))[0] == 200


def test_bad_settings_are_no_start(node: Node) -> None:
    file = node.root.parent / "bad.toml"
    file.write_text("sample_seconds = \n")

    ended = node.hamirt("daemon", "--sim", "--config", str(file))

    assert (ended.returncode, ended.stderr) == (1, f"hamirt: {file}, line 1: Invalid value\n")


def test_prometheus_is_answered_where_the_settings_say(daemon: Daemon) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    daemon.configure(metrics_address=address)
    daemon.send(signal.SIGHUP)
    wait_for(lambda: daemon.events("settings_loaded"), "the settings")

    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        assert b"hamirt_gpu_info{" in answer.read()
    daemon.configure(metrics_address="127.0.0.1:1", metrics_tls_cert="/nowhere", metrics_tls_key="/nowhere")
    daemon.send(signal.SIGHUP)
    wait_for(lambda: daemon.events("settings_refused"), "the refusal")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        assert answer.status == 200


def test_systemd_hears_that_it_is_ready_alive_and_stopping(node: Node, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)

        daemon = Daemon(node).start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        heard = {systemd.recv(64) for _ in range(5)}
        daemon.end()
        systemd.setblocking(False)
        while (last := systemd.recv(64)) == b"WATCHDOG=1":
            pass

    assert (heard, last) == ({b"READY=1", b"WATCHDOG=1"}, b"STOPPING=1")


def test_run_says_within_two_seconds_that_a_stopped_daemon_does_not_answer(daemon: Daemon) -> None:
    daemon.send(signal.SIGSTOP)

    began = time.monotonic()
    ended = daemon.node.run("--mem", "8GiB", "--", "true")
    took = time.monotonic() - began

    daemon.send(signal.SIGCONT)
    assert (ended.returncode, ended.stderr) == (
        0,
        f"hamirt: the daemon of {daemon.root} does not answer: going on without it\n",
    )
    assert took < 3.0
    assert daemon.ids() == []


def test_a_tenant_made_beside_a_stopped_daemon_is_taken_over(daemon: Daemon) -> None:
    daemon.send(signal.SIGSTOP)
    program = Program(daemon.node, "aside", "--mem", "8GiB")
    assert daemon.limits("aside").lease_ns is None

    daemon.send(signal.SIGCONT)

    wait_for(lambda: daemon.limits("aside").lease_ns is not None, "a lease")
    assert daemon.node.hamirt("set", "aside", "--mem", "9GiB").returncode == 0
    assert program.end() == 0
    assert daemon.ids() == []


@pytest.mark.parametrize("command", [("set", "web", "--mem", "1GiB"), ("rm", "web")])
def test_without_a_daemon_set_and_rm_say_to_start_one(node: Node, command: tuple[str, ...]) -> None:
    node.root.mkdir(mode=0o700)

    ended = node.hamirt(*command)

    assert (ended.returncode, ended.stderr) == (
        1,
        f"hamirt: no daemon answers at {node.root}/hamirt.sock: start one with hamirt daemon\n",
    )


def test_a_root_that_cannot_be_written_to_is_a_sentence(node: Node) -> None:
    node.root.mkdir(mode=0o700)
    (node.root / "daemon.lock").mkdir()

    ended = node.hamirt("daemon", "--sim")

    assert ended.returncode == 1
    assert f"hamirt: {node.root} can't be served (Is a directory)" in ended.stderr


@pytest.mark.parametrize("options", ["ro", "size=64k"])
def test_a_full_or_read_only_disk_is_a_sentence(node: Node, unshare: str, options: str) -> None:
    mount = shutil.which("mount")
    need("mount", mount is not None)
    node.root.mkdir(mode=0o700)
    script = (
        f'{mount} -t tmpfs -o {options},mode=700 none "$HAMIRT_ROOT" || exit 77\n'
        'shift; "$@" daemon --sim --config "$0" & '
        'while kill -0 $! && ! [ -S "$HAMIRT_ROOT/hamirt.sock" ]; do sleep 0.1; done 2>/dev/null\n'
        '"$@" run --sim --mem 8GiB -- true; echo "run $?"; ls -A "$HAMIRT_ROOT/tenants"; kill $! 2>/dev/null; wait $!\n'
    )
    config = node.root.parent / "off.toml"
    config.write_text('metrics_address = ""\n')
    state = node.root.parent / "sim"

    ended = subprocess.run(
        [unshare, "-m", "sh", "-c", script, str(config), "x", *HAMIRT],
        env=node.env | {"HAMIRT_SIM_STATE": str(state)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert ended.returncode != 77, ended.stderr
    if options == "ro":
        assert f"hamirt: the state folder {node.root} is not writable: name a writable one" in ended.stderr
    else:
        assert f"{node.root} has no room for a tenant's pages (No space left on device)" in ended.stderr
    assert ended.stdout == "run 125\n"


def test_the_health_counts(daemon: Daemon) -> None:
    daemon.ask("PUT", "/v1/tenants/web-000001", wish())
    daemon.ask("GET", "/v1/nowhere")

    health = daemon.client.health()

    assert health["nvml_answers"] is True
    assert health["samples"] >= 1
    assert health["requests"]["404"] == 1
    assert health["events"] == {"tenant_created": 1}
