"""Limits that change while the tenant runs, and what a card has room for."""

import signal
import subprocess
import sys
import time

import pytest

from hamirt import config, wire
from hamirt.client import Client
from hamirt.metering import ALONE_WITH_WISHES
from hamirt.model import LatencyClass, Limit
from hamirt.units import GIB, MIB
from tests.node.conftest import PROGRAMS, Node
from tests.node.daemons import CARD_MIB, UUIDS, Daemon, Program, wish
from tests.support import wait_for

OUT_OF_MEMORY = 2
TOTAL = CARD_MIB * MIB


def cap(daemon: Daemon, mib: int, name: str = "web") -> int:
    """Change the cap as `hamirt set` does; return by how much the tenant is over it."""
    answer = Client(daemon.root).change(name, {UUIDS[0]: {"memory_bytes": mib * MIB}})
    over: int = answer["devices"][0]["over_bytes"]
    return over


def test_a_cap_that_grows_or_shrinks_holds_for_the_next_allocation(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--gpu", "0", "--mem", "4GiB")
    assert program("alloc 3000") == 0

    for _ in range(10):
        assert program("alloc 1000") == OUT_OF_MEMORY
        assert cap(daemon, 8 * 1024) == 0
        assert program("alloc 1000") == 0
        assert program("free") == 0
        assert cap(daemon, 4 * 1024) == 0

    assert program.end() == 0


def test_a_cap_below_use_takes_nothing_away_and_gives_nothing_more(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--gpu", "0", "--mem", "8GiB")
    assert [program("alloc 3000"), program("alloc 100")] == [0, 0]

    ended = daemon.node.hamirt("set", "web", "--mem", "2GiB")

    assert (ended.returncode, ended.stdout, ended.stderr) == (
        0,
        "web on GPU 0: memory 2GiB, GPU time no cap, weight 100, class normal\n",
        f"hamirt: web on GPU 0 is over its cap by {3100 + 520 - 2048} MiB: it gets no more until it fits\n",
    )
    assert program("alloc 1") == OUT_OF_MEMORY
    assert [program("free"), program("alloc 1")] == [0, OUT_OF_MEMORY]
    assert [program("free"), program("alloc 100")] == [0, 0]
    assert program.end() == 0


def test_pools_give_back_what_they_hold_unused_when_the_cap_shrinks(daemon: Daemon) -> None:
    program = Program(daemon.node, "web", "--gpu", "0", "--mem", "8GiB")
    assert program("pool 4000") == 0

    def pools() -> int:
        return sum(card.pool_bytes for one in wire.node_from_json(daemon.client.node()).tenants for card in one.cards)

    wait_for(lambda: pools() == 4000 * MIB, "the pool in a sample")

    cap(daemon, 2048)

    wait_for(lambda: pools() == 0, "the pool to be trimmed")
    assert program("alloc 1000") == 0
    assert program.end() == 0


def test_run_and_set_write_every_limit(daemon: Daemon) -> None:
    options = ("--mem", "0=8GiB,1=50%", "--sm", "30", "--weight", "7", "--class", "batch")
    tenant = daemon.node.start("--name", "web", *options, "--", "sleep", "60")
    wait_for(lambda: wire.node_from_json(daemon.client.node()).tenants, "the tenant in a sample")
    epoch, first = daemon.limits("web").epoch, daemon.limits("web").devices

    ended = daemon.node.hamirt("set", "web", "--gpu", "1", "--sm", "none", "--weight", "9", "--class", "latency")

    half = TOTAL // 2
    both = Limit(UUIDS[0], 8 * GIB, TOTAL, None, 30, 7, LatencyClass.BATCH)
    assert first == (both, Limit(UUIDS[1], half, TOTAL, None, 30, 7, LatencyClass.BATCH))
    assert (ended.returncode, ended.stderr) == (0, "")
    limits = daemon.limits("web")
    assert limits.devices == (both, Limit(UUIDS[1], half, TOTAL, None, None, 9, LatencyClass.LATENCY))
    assert limits.epoch == epoch + 1
    tenant.send_signal(signal.SIGTERM)
    assert tenant.wait(30) == 128 + signal.SIGTERM


def test_a_time_cap_is_shown_and_all_of_the_time_is_none(daemon: Daemon) -> None:
    tenant = daemon.node.start("--name", "web", "--gpu", "0", "--sm", "30", "--", "sleep", "60")
    wait_for(lambda: wire.node_from_json(daemon.client.node()).tenants, "the tenant in a sample")
    before = daemon.limits("web").devices[0].time_percent

    less = daemon.node.hamirt("set", "web", "--sm", "20")
    none = daemon.node.hamirt("set", "web", "--sm", "100")

    assert (before, less.stderr, none.stderr) == (30, "", "")
    assert less.stdout == "web on GPU 0: memory no cap, GPU time 20%, weight 100, class normal\n"
    assert none.stdout == "web on GPU 0: memory no cap, GPU time no cap, weight 100, class normal\n"
    assert daemon.limits("web").devices[0].time_percent is None
    tenant.send_signal(signal.SIGTERM)
    assert tenant.wait(30) == 128 + signal.SIGTERM


def test_what_needs_a_daemon_is_said_where_there_is_none(node: Node) -> None:
    capped = node.run("--sm", "30", "--", "true")
    weighted = node.run("--sm", "30", "--weight", "300", "--", "true")

    assert (capped.returncode, capped.stderr) == (0, "")
    assert (weighted.returncode, weighted.stderr) == (0, f"hamirt: {ALONE_WITH_WISHES}\n")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("nobody", "--mem", "8GiB"), 1, "no tenant is called 'nobody': there is web\n"),
        (("web", "--mem", "90GiB"), 1, "is more than GPU 0 has (81559MiB)"),
        (("web", "--mem", "1MiB"), 1, "leaves no memory on GPU 0"),
        (("web", "--mem", "lots"), 1, "'lots' is not a size"),
        (("web", "--gpu", "7", "--weight", "1"), 1, "web has no GPU '7': it has 0 (GPU-"),
        (("web", "--sm", "0"), 2, "neither a whole number from 1 to 100 nor 'none'"),
        (("web",), 2, "nothing to change: give --mem, --sm, --weight or --class"),
    ],
)
def test_what_set_refuses(daemon: Daemon, options: tuple[str, ...], code: int, says: str) -> None:
    daemon.ask("PUT", "/v1/tenants/web-000001", wish())
    wait_for(lambda: wire.node_from_json(daemon.client.node()).tenants, "the tenant in a sample")
    before = daemon.limits("web").devices

    ended = daemon.node.hamirt("set", *options)

    assert ended.returncode == code
    assert says in ended.stderr
    assert daemon.limits("web").devices == before


def test_caps_may_not_add_up_to_more_than_the_card(daemon: Daemon) -> None:
    first = daemon.ask("PUT", "/v1/tenants/a-000001", wish(50000, "a"))
    second = daemon.ask("PUT", "/v1/tenants/b-000002", wish(31560, "b"))
    third = daemon.ask("PUT", "/v1/tenants/c-000003", wish(None, "c"))
    fits = daemon.ask("PUT", "/v1/tenants/d-000004", wish(31559, "d"))
    grown = daemon.ask("PATCH", "/v1/tenants/a", {"devices": {UUIDS[0]: {"memory_bytes": 50001 * MIB}}})
    shrunk = daemon.ask("PATCH", "/v1/tenants/a", {"devices": {UUIDS[0]: {"memory_bytes": 49999 * MIB}}})

    advice = "ask for less with --mem, end or shrink another tenant, or raise overcommit_ratio in the daemon's settings"
    assert [first[0], fits[0], shrunk[0]] == [200] * 3
    assert second == (
        409,
        {"error": f"GPU 0 has 81559MiB: a has 50000MiB; 31559MiB are left, and this asks for 31560MiB: {advice}"},
    )
    assert (third[0], "this asks for the whole card" in third[1]["error"]) == (409, True)
    assert (grown[0], "a has" in grown[1]["error"], "d has 31559MiB; 50000MiB are left" in grown[1]["error"]) == (
        409, False, True,
    )  # fmt: skip


def test_what_foreign_processes_hold_is_no_room_for_tenants(daemon: Daemon) -> None:
    env = daemon.node.env | {
        "LD_LIBRARY_PATH": str(config.sim_dir()), config.SIM_STATE_VARIABLE: str(daemon.root / "sim"),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "allocator.py")],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    daemon.node.started.append(process)
    foreign = Program.of(process)
    assert foreign("alloc 10000") == 0
    wait_for(lambda: daemon.client.node()["cards"][0]["processes"], "the foreign process in a sample")
    wait_for(lambda: daemon.client.node()["cards"][0]["processes"][0]["used_bytes"] > 10000 * MIB, "all it holds")

    status, answer = daemon.ask("PUT", "/v1/tenants/a-000001", wish(75000, "a"))

    assert (status, answer["error"].split(":")[1].split(";")) == (
        409,
        [
            f" processes outside hamirt hold 10520MiB (pid {process.pid})",
            " 71039MiB are left, and this asks for 75000MiB",
        ],
    )
    assert daemon.ask("PUT", "/v1/tenants/a-000001", wish(71039, "a"))[0] == 200


def test_nvml_that_vanishes_costs_nobody_anything_and_comes_back(node: Node) -> None:
    daemon = Daemon(node).start(HAMIRT_SIM_FAULT=",".join(f"nvmlDeviceGetCount_v2:{nth}=15" for nth in (2, 3)))
    assert daemon.ask("PUT", "/v1/tenants/a-000001", wish(1024, "a"))[0] == 200
    wait_for(lambda: not daemon.client.health()["nvml_answers"], "NVML to vanish")

    refused = daemon.ask("PUT", "/v1/tenants/b-000002", wish(1024, "b"))
    weight = daemon.ask("PATCH", "/v1/tenants/a", {"devices": {UUIDS[0]: {"weight": 5}}})

    error = "NVML does not answer the daemon, so nobody knows what is free: try again soon"
    assert (refused, weight[0]) == ((503, {"error": error}), 200)
    wait_for(lambda: daemon.client.health()["nvml_answers"], "NVML to come back")
    assert daemon.ask("PUT", "/v1/tenants/b-000002", wish(1024, "b"))[0] == 200


def test_nvml_that_takes_its_time_holds_nothing_up(node: Node) -> None:
    daemon = Daemon(node).start(HAMIRT_SIM_FAULT="nvmlDeviceGetMemoryInfo_v2:delay=400000")
    assert daemon.ask("PUT", "/v1/tenants/a-000001", wish(1024, "a"))[0] == 200
    least, asked = 1.0, 0
    until = time.monotonic() + 3

    while time.monotonic() < until:
        least = min(least, (daemon.limits("a").lease_ns or 0) / 1e9 - time.monotonic())
        began = time.monotonic()
        daemon.client.health()
        asked += time.monotonic() - began < 0.2

    assert least > 0.25
    assert asked > 20
    assert daemon.end() == 0
