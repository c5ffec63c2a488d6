"""`hamirt status` of what a supervisor says, drawn for terminals of both widths; and `--check`."""

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hamirt import __version__, config
from hamirt.cli import table
from hamirt.metering import ALONE
from hamirt.model import (
    Card,
    CardProcess,
    Driver,
    Enforcement,
    GateState,
    LatencyClass,
    Level,
    Metering,
    Node,
    ProcessView,
    ShareSource,
    Standing,
    Supervisor,
    Tenant,
    TenantCard,
)
from hamirt.units import GIB, MIB
from hamirt.wire import node_to_json
from tests.node.conftest import PROGRAMS
from tests.node.conftest import Node as Root

BARE = CardProcess(1234, 4096 * MIB, Standing.UNSHIMMED, "train-1-abcdef", "python")
TRAIN = TenantCard(
    index=0,
    uuid="GPU-aa",
    cap_bytes=8 * GIB,
    card_bytes=81559 * MIB,
    allocation_bytes=3000 * MIB,
    pool_bytes=200 * MIB,
    overhead_bytes=520 * MIB,
    footprint_bytes=3720 * MIB,
    denials=4,
    over=False,
    enforcement=Enforcement(Level.FULL, None),
    processes=(ProcessView(7, 1, "python", 3720 * MIB, 3720 * MIB),),
    time_percent=25,
    busy_ratio=0.247,
    busy_source=ShareSource.METERED,
    throttled_seconds=1.5,
    time_enforcement=Enforcement(Level.FULL, ALONE),
    metering=Metering(GateState.WINDOWED, True, 12.5, slots=900, waits=(0,) * 24, wait_p99_seconds=16384e-6),
)
OVER = replace(
    TRAIN,
    footprint_bytes=8392 * MIB,
    over=True,
    enforcement=Enforcement(Level.PARTIAL, "process 1234 (python) holds 4096 MiB without the shim"),
    unshimmed=(BARE,),
    processes=(),
    time_percent=None,
    time_enforcement=None,
    weight=300,
    latency_class=LatencyClass.LATENCY,
    busy_ratio=1.0,
    busy_source=ShareSource.SAMPLED,
    metering=Metering(GateState.FREE, unpreemptible=True, ganged=True, wait_p99_seconds=4.194304),
)
CARD = Card(0, "GPU-aa", "NVIDIA H100 80GB HBM3", 81559 * MIB, 12000 * MIB, 0.5, False,
            (BARE, CardProcess(99, 512 * MIB, Standing.FOREIGN, None, "Xorg")))  # fmt: skip
NODE = Node(
    driver=Driver("580", (CARD,), simulated=True),
    tenants=(
        Tenant("train-1-abcdef", "train-1", True, None, (OVER,)),
        Tenant("web-abcdef", "web", True, None, (TRAIN,), "nginx", "shop/web-0"),
    ),
    inside=False,
    problem=None,
    supervisor=Supervisor(__version__, 12, 7300.0, "report"),
)


WIDE = f"""\
hamirt {__version__}   driver 580   SIMULATED GPU
from the daemon, pid 12, up 2 h, policy report

GPU 0  NVIDIA H100 80GB HBM3  ██░░░░░░░░░░░░░░  12000 / 81559 MiB   busy 50%
  tenant (MiB)                      used   cap  alloc  pools  overhead  denied   GPU time  p99 wait  throttled  enforced
  train-1         ████████████████  3720  8192   3000    200       520       4      ~100%       4 s      1.5 s  OVER
    weight 300, class latency, ganged, unpreemptible
  └ 1234 python                     4096                                                                        no shim
  web             ███████░░░░░░░░░  3720  8192   3000    200       520       4  25% / 25%     16 ms      1.5 s  full
    pod shop/web-0
    container nginx
  └ 7 (1) python                    3720
  train-1: over by 200 MiB
  train-1: process 1234 (python) holds 4096 MiB without the shim
  web: GPU time is not arbitrated against other tenants: no daemon runs
  outside hamirt: pid 99 Xorg (512 MiB)
"""
NARROW = f"""\
hamirt {__version__}   driver 580   SIMULATED GPU
from the daemon, pid 12, up 2 h, policy report

GPU 0  NVIDIA H100 80GB HBM3  ██░░░░░░░░░░░░░░  12000 / 81559 MiB   busy 50%
  tenant (MiB)    used   cap  denied   GPU time  p99 wait  throttled  enforced
  train-1         3720  8192       4      ~100%       4 s      1.5 s  OVER
    weight 300, class latency, ganged, unpreemptible
  └ 1234 python   4096                                                no shim
  web             3720  8192       4  25% / 25%     16 ms      1.5 s  full
    pod shop/web-0
    container nginx
  └ 7 (1) python  3720
  train-1: over by 200 MiB
  train-1: process 1234 (python) holds 4096 MiB without the shim
  web: GPU time is not arbitrated against other tenants: no daemon runs
  outside hamirt: pid 99 Xorg (512 MiB)
"""


@contextmanager
def supervisor(root: Path, answer: object) -> Iterator[None]:
    """Answer every request at the root's socket like this."""
    config.make_root(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.UnixStreamServer(str(config.socket_path(root)), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield
        server.shutdown()


def drawn(node: Node, columns: int) -> list[str]:
    console = Console(width=columns, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table.render(node, "", unicode=True, wide=columns >= 124))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_card_without_turns_is_told_of() -> None:
    assert NODE.supervisor is not None
    lines = drawn(replace(NODE, supervisor=replace(NODE.supervisor, open_cards=(CARD.uuid,))), 80)

    (said,) = set(lines) - set(NARROW.splitlines())
    assert said.strip() == "no turns: they left this GPU idle; weights and classes do not count meanwhile"


def test_the_supervisors_word_is_shown(node: Root) -> None:
    with supervisor(node.root, node_to_json(NODE)):
        shown = node.status()
        text = node.hamirt("status", "--sim").stdout

    assert shown == node_to_json(NODE)
    assert "from the daemon, pid 12, up 2 h, policy report" in text


def test_a_supervisor_that_makes_no_sense_is_told_of_and_not_believed(node: Root) -> None:
    with supervisor(node.root, {"schema": 99}):
        ended = node.hamirt("status", "--sim")

    assert ended.returncode == 0
    assert "read directly: the supervisor's answer makes no sense at schema, which is not 1" in ended.stdout
    assert "GPU 1" in ended.stdout


def test_a_supervisor_of_other_cards_is_not_asked(node: Root) -> None:
    with supervisor(node.root, node_to_json(replace(NODE, driver=Driver("580", (CARD,), simulated=False)))):
        shown = node.status()

    assert (shown["supervisor"], len(shown["cards"])) == (None, 2)


def test_a_socket_that_nobody_listens_on(node: Root) -> None:
    with supervisor(node.root, {}):
        pass

    assert node.status()["supervisor"] is None


def test_a_wide_terminal_shows_everything() -> None:
    assert drawn(NODE, 132) == WIDE.splitlines()


def test_a_narrow_terminal_shows_what_counts() -> None:
    assert drawn(NODE, 80) == NARROW.splitlines()


def test_over_is_red() -> None:
    console = Console(width=132, color_system="standard", force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(table.render(NODE, "", unicode=True, wide=True))

    assert "\x1b[1;31mtrain-1: over by 200 MiB\x1b[0m" in capture.get()


def test_check_says_what_is_amiss(node: Root) -> None:
    with supervisor(node.root, node_to_json(NODE)):
        amiss = node.hamirt("status", "--sim", "--check")
        as_json = node.hamirt("status", "--sim", "--check", "--json")
        one = node.hamirt("status", "--sim", "--check", "--tenant", "web")
    nothing = node.hamirt("status", "--sim", "--check")
    twice = node.hamirt("status", "--sim", "--check", "-w")

    assert (amiss.returncode, amiss.stdout.splitlines()) == (
        1,
        [
            "train-1 on GPU 0: process 1234 (python) holds 4096 MiB without the shim",
            "train-1 on GPU 0: over its cap by 200 MiB",
            "train-1 on GPU 0: unpreemptible: its work goes on when its turn is over",
        ],
    )
    assert (as_json.returncode, json.loads(as_json.stdout)) == (1, node_to_json(NODE))
    assert one.returncode == 0
    assert (nothing.returncode, nothing.stdout) == (0, "nothing is amiss: 0 tenants on 2 GPUs\n")
    assert (twice.returncode, "looks once" in twice.stderr) == (2, True)


@pytest.mark.parametrize("prefix", [(), ("env", "-u", "LD_PRELOAD")], ids=["with the shim", "without"])
def test_check_of_a_living_tenant(node: Root, line_of: Any, prefix: tuple[str, ...]) -> None:
    taker = (sys.executable, str(PROGRAMS / "taker.py"), "100")
    process = node.start("--name", "t", "--gpu", "0", "--mem", "8GiB", "--", *prefix, *taker)
    pid = line_of(process).split()[0]

    ended = node.hamirt("status", "--sim", "--check")

    bare = f"t on GPU 0: process {pid} (python) holds 620 MiB without the shim\n"
    assert (ended.returncode, ended.stdout) == ((1, bare) if prefix else (0, "nothing is amiss: 1 tenants on 2 GPUs\n"))
