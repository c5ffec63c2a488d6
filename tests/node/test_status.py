"""`hamirt status`: what it shows of cards and tenants, as JSON and to a person."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hamirt import __version__, region
from hamirt._region import lib
from hamirt.units import GIB, MIB
from tests.node.conftest import HAMIRT, PROGRAMS, Node

TOTAL = 81559 * MIB


def hold(node: Node, line_of: Any, name: str, *arguments: str, options: tuple[str, ...] = ()) -> int:
    """Start a tenant whose program holds what holder.py is told to; return the program's pid."""
    holder = [sys.executable, str(PROGRAMS / "holder.py"), *arguments]
    process = node.start("--name", name, *options, "--", "sh", "-c", 'echo $$; exec "$@"', "sh", *holder)
    pid = int(line_of(process))
    assert line_of(process) == "ready"
    return pid


def test_a_node_without_tenants(node: Node) -> None:
    status = node.status()

    uuids = [card.pop("uuid") for card in status["cards"]]
    assert len(set(uuids)) == 2
    assert all(uuid.startswith("GPU-") and len(uuid) == 40 for uuid in uuids)
    for card in status["cards"]:
        assert isinstance(card.pop("used_bytes"), int)
        assert card.pop("busy_ratio") in (None, 0.0)
    card = {"name": "NVIDIA H100 80GB HBM3", "total_bytes": TOTAL, "mig": False, "processes": []}
    assert isinstance(status.pop("driver"), str)
    assert status == {
        "schema": 1,
        "hamirt": __version__,
        "simulated": True,
        "inside_tenant": False,
        "problem": None,
        "gpu_time": "metered",
        "supervisor": None,
        "cards": [{"index": 0, **card}, {"index": 1, **card}],
        "tenants": [],
    }


def test_a_tenant_and_what_it_holds(node: Node, line_of: Any) -> None:
    pid = hold(node, line_of, "train", "3", "0", "1000", "200", "520", "4", options=("--gpu", "1", "--mem", "8GiB"))

    status = node.status()

    (tenant,) = status["tenants"]
    assert tenant.pop("id").startswith("train-")
    process = {"pid": pid, "pid_inside": pid, "command": "holder", "charged_bytes": 1720 * MIB, "card_bytes": None}
    full = {"memory": "full", "reason": None, "gpu_time": None, "gpu_time_reason": None}
    assert tenant == {
        "name": "train",
        "simulated": True,
        "problem": None,
        "container": None,
        "pod": None,
        "cards": [
            {
                "index": 1,
                "uuid": status["cards"][1]["uuid"],
                "cap_bytes": 8 * GIB,
                "card_bytes": TOTAL,
                "used_bytes": 1720 * MIB,
                "allocation_bytes": 1000 * MIB,
                "pool_bytes": 200 * MIB,
                "overhead_bytes": 520 * MIB,
                "ahead_bytes": 0,
                "footprint_bytes": None,
                "denials": 4,
                "over": False,
                "over_bytes": 0,
                "enforcement": full,
                "processes": [process],
                "unshimmed": [],
                "time_percent": None,
                "weight": 100,
                "latency_class": "normal",
                "busy_ratio": None,  # NVML does not show the holder, so whose its utilization is nobody knows
                "busy_source": None,
                "throttled_seconds": 0.0,
                "bus_bytes": 0,
                "metering": {
                    "gate": "free",
                    "supervised": False,
                    "charged_seconds": 0.0,
                    "supervised_seconds": 0.0,
                    "free_seconds": 0.0,
                    "slots": 0,
                    "misses": 0,
                    "unpreemptible": False,
                    "ganged": False,
                    "waiting": 0,
                    "waits": [0] * lib.HM_WAITS,
                    "wait_p50_seconds": None,
                    "wait_p99_seconds": None,
                },
            }
        ],
    }


def test_a_process_of_another_namespace_is_found(node: Node, unshare: str, line_of: Any) -> None:
    holder = [sys.executable, str(PROGRAMS / "holder.py"), "0", "0", "1", "0", "0", "0"]
    process = node.start("--name", "t", "--", unshare, "--pid", "--fork", "--kill-child", *holder)
    assert line_of(process) == "ready"

    (shown,) = node.status()["tenants"][0]["cards"][0]["processes"]

    assert shown["pid_inside"] == 1
    assert Path(f"/proc/{shown['pid']}/cmdline").read_bytes().split(b"\0")[1] == os.fsencode(PROGRAMS / "holder.py")


def test_selection_and_its_errors(node: Node, line_of: Any) -> None:
    hold(node, line_of, "a", "0", "0", "1", "0", "0", "0", options=("--gpu", "0"))
    hold(node, line_of, "b", "0", "0", "1", "0", "0", "0", options=("--gpu", "1"))

    def names(*arguments: str) -> tuple[list[str], list[int]]:
        status = node.status(*arguments)
        return [tenant["name"] for tenant in status["tenants"]], [card["index"] for card in status["cards"]]

    assert names() == (["a", "b"], [0, 1])
    assert names("-i", "1") == (["b"], [1])
    assert names("--tenant", "a") == (["a"], [0, 1])
    assert names("--tenant", "a", "-i", "1") == ([], [1])
    for arguments, code, says in (
        (("-i", "5"), 1, "there is no GPU '5' on this node"),
        (("--tenant", "c"), 1, "no tenant is called 'c': there is a, b"),
        (("--no-such-option",), 2, "No such option"),
    ):
        ended = node.hamirt("status", "--sim", *arguments)
        assert (ended.returncode, ended.stdout) == (code, "")
        assert says in ended.stderr


def usage_head(version: int, high_slot: int) -> bytes:
    """Return a usage page of the right size that begins like this and is empty otherwise."""
    head = struct.pack("<QIII", lib.HM_USAGE_MAGIC, version, region.USAGE_BYTES, high_slot)
    return head.ljust(region.USAGE_BYTES, b"\0")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "is damaged (it is not", id="empty"),
        pytest.param(b"\xa5" * region.USAGE_BYTES, "is damaged", id="noise"),
        pytest.param(usage_head(lib.HM_VERSION + 1, 0), f"has version {lib.HM_VERSION + 1}", id="version"),
        pytest.param(usage_head(lib.HM_VERSION, 1 << 31), "it counts 2147483648 slots of 512", id="count"),
    ],
)
def test_a_hostile_page_harms_nobody_but_its_writer(node: Node, line_of: Any, content: bytes, says: str) -> None:
    hold(node, line_of, "good", "0", "0", "1000", "0", "0", "0", options=("--gpu", "0", "--mem", "8GiB"))
    page = node.root.parent / "page"
    page.write_bytes(content)
    bad = node.start("--name", "bad", "--gpu", "0", "--mem", "8GiB", "--", "sh", "-c",
                     f'cat {page} > "$HAMIRT_TENANT_DIR/rw/usage"; echo done; read line')  # fmt: skip
    assert line_of(bad) == "done"

    harmed, unharmed = node.status()["tenants"]

    assert (harmed["name"], unharmed["name"]) == ("bad", "good")
    assert says in harmed["problem"]
    enforcement = harmed["cards"][0]["enforcement"]
    assert (enforcement["memory"], enforcement["reason"]) == ("none", harmed["problem"])
    assert unharmed["cards"][0]["used_bytes"] == 1000 * MIB
    bad.communicate("\n", timeout=30)
    assert bad.returncode == 0


def test_inside_a_tenant_it_shows_that_tenant(node: Node, line_of: Any) -> None:
    hold(node, line_of, "other", "0", "0", "1", "0", "0", "0")

    ended = node.run("--name", "me", "--mem", "8GiB", "--", *HAMIRT, "status", "--json")

    status = json.loads(ended.stdout)
    assert (status["inside_tenant"], status["simulated"]) == (True, True)
    assert [tenant["name"] for tenant in status["tenants"]] == ["me"]


def test_in_a_container_it_finds_the_tenant_by_its_mounts(node: Node, unshare: str, line_of: Any) -> None:
    # given the pages of a tenant, mounted where a container has them
    hold(node, line_of, "boxed", "0", "0", "1000", "0", "0", "0", options=("--gpu", "0", "--mem", "8GiB"))
    (folder,) = node.folders()
    script = (
        "mount -t tmpfs none /run && mkdir -p /run/hamirt/ro /run/hamirt/rw && cd $0 && "
        "mount --bind ro /run/hamirt/ro && mount --bind rw /run/hamirt/rw && "
        '"$@" status --json; "$@" run -- true; echo $?'
    )
    command = [unshare, "-m", "sh", "-c", script, str(node.root / "tenants" / folder), *HAMIRT]

    ended = subprocess.run(command, env=node.env, capture_output=True, text=True, timeout=60)

    shown, code = ended.stdout.rsplit("}", 1)
    status = json.loads(shown + "}")
    assert status["inside_tenant"]
    assert [(one["name"], one["cards"][0]["used_bytes"]) for one in status["tenants"]] == [("boxed", 1000 * MIB)]
    assert code.strip() == "125"
    assert "this already runs in a tenant (/run/hamirt)" in ended.stderr


def test_without_a_driver_the_tenants_are_shown(node: Node, line_of: Any) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    hold(node, line_of, "train", "0", "0", "1000", "0", "0", "0", options=("--gpu", "1"))

    ended = node.hamirt("status", "--json")

    status = json.loads(ended.stdout)
    assert (ended.returncode, status["driver"], status["cards"]) == (0, None, [])
    assert "no NVIDIA driver answers" in status["problem"]
    (tenant,) = status["tenants"]
    assert (tenant["simulated"], tenant["cards"][0]["index"]) == (True, None)
    assert tenant["cards"][0]["used_bytes"] == 1000 * MIB


def test_a_pipe_gets_plain_text(node: Node, line_of: Any) -> None:
    pid = hold(node, line_of, "train", "0", "0", "3000", "200", "520", "4", options=("--gpu", "0", "--mem", "8GiB"))
    hold(node, line_of, "x", "0", "0", "3000", "200", "520", "4", options=("--gpu", "0"))

    shown = node.hamirt("status", "--sim", env=node.env | {"PYTHONIOENCODING": "utf-8"}).stdout

    assert "\x1b" not in shown
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    assert "SIMULATED GPU" in shown.splitlines()[0]
    assert rows["train"][2:] == ["3720", "8192", "3000", "200", "520", "4", "-", "-", "0", "full"]
    assert rows["x"][2:] == ["3720", "uncapped", "3000", "200", "520", "4", "-", "-", "0", "none"]
    assert "read directly: no supervisor answers" in shown
    assert f"└ {pid} holder" in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


def test_a_terminal_gets_colours_unless_told_not_to(node: Node) -> None:
    def on_terminal(env: dict[str, str]) -> bytes:
        ours, theirs = pty.openpty()
        try:
            node.hamirt("status", "--sim", env=node.env | env, capture_output=False, stdout=theirs)
            return os.read(ours, 65536)
        finally:
            os.close(ours)
            os.close(theirs)

    assert b"\x1b[" in on_terminal({"TERM": "xterm"})
    assert b"\x1b[" not in on_terminal({"TERM": "xterm", "NO_COLOR": "1"})


def test_an_ascii_pipe_gets_ascii(node: Node, line_of: Any) -> None:
    hold(node, line_of, "train", "0", "0", "3000", "200", "520", "4", options=("--mem", "8GiB"))

    ended = node.hamirt("status", "--sim", env=node.env | {"PYTHONIOENCODING": "ascii"})

    assert (ended.returncode, ended.stdout.isascii()) == (0, True)


def test_watching_shows_it_again_until_it_is_interrupted(node: Node) -> None:
    process = subprocess.Popen(
        [*HAMIRT, "status", "--sim", "--json", "-w", "0.1"], env=node.env, stdout=subprocess.PIPE, text=True
    )
    node.started.append(process)
    assert process.stdout is not None

    looks = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)

    assert [look["schema"] for look in looks] == [1, 1, 1]
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_reader_that_has_seen_enough_is_no_error(node: Node) -> None:
    ended = subprocess.run(
        ["sh", "-c", 'set -o pipefail 2>/dev/null; "$@" | true', "sh", *HAMIRT, "status", "--sim"],
        env=node.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert ended.stderr == ""


def test_output_that_goes_nowhere(node: Node) -> None:
    def shell(redirection: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = ["sh", "-c", f'"$@" {redirection}', "sh", *HAMIRT, *arguments]
        return subprocess.run(command, env=node.env, capture_output=True, text=True, timeout=60)

    closed = shell(">&-", "status", "--sim")
    full = shell(">/dev/full", "status", "--sim")
    run = shell(">&- 2>&- <&-", "run", "--sim", "--", "sh", "-c", "exit 3")

    assert (closed.returncode, closed.stderr) == (0, "")
    assert (full.returncode, full.stderr) == (1, "hamirt: [Errno 28] No space left on device\n")
    assert run.returncode == 3
