"""The sampler over living tenants on simulated cards: who is who, footprints, and pages that mean ill."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hamirt import config, survey, tenants
from hamirt.daemon.sampler import Sampler
from hamirt.model import CardProcess, Enforcement, Level, Standing, TenantCard
from hamirt.units import MIB
from tests.node.conftest import PROGRAMS, Node
from tests.support import wait_for

CONTEXT = 520 * MIB
TAKER = (sys.executable, str(PROGRAMS / "taker.py"))
BARE = ("env", "-u", "LD_PRELOAD")


def take(node: Node, line_of: Any, name: str, mib: int, *prefix: str) -> int:
    """Start a tenant on the first card whose program takes `mib`; return the program's pid."""
    process = node.start("--name", name, "--gpu", "0", "--mem", "8GiB", "--", *prefix, *TAKER, str(mib))
    pid, answer = map(int, line_of(process).split())
    assert answer == 0
    return pid


@pytest.fixture
def sampler(seen_from_here: Node) -> Iterator[Sampler]:
    """A sampler of that node."""
    with Sampler(True, seen_from_here.root) as made:
        yield made


def on_card(node: Node, sampler: Sampler) -> tuple[dict[int, CardProcess], dict[str, TenantCard]]:
    """Return the first card's processes by pid, and the tenants on it by name."""
    seen = sampler.sample(tenants.list_pages(node.root))
    assert seen.driver is not None
    processes = {process.pid: process for process in seen.driver.cards[0].processes}
    return processes, {tenant.name: tenant.cards[0] for tenant in seen.tenants}


def settled(node: Node, sampler: Sampler, name: str) -> TenantCard:
    """Return a tenant on the first card, once its context was measured."""
    wait_for(lambda: on_card(node, sampler)[1][name].overhead_bytes == CONTEXT, "the context's measurement")
    return on_card(node, sampler)[1][name]


def test_registered_unshimmed_and_foreign_are_told_apart(node: Node, line_of: Any, sampler: Sampler) -> None:
    good = take(node, line_of, "good", 1000)
    bare = take(node, line_of, "bad", 4096, *BARE)
    env = node.env | {"LD_LIBRARY_PATH": str(config.sim_dir())}
    foreign = subprocess.Popen([*TAKER, "100"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    node.started.append(foreign)
    line_of(foreign)

    processes, cards = on_card(node, sampler)

    ids = {name.rpartition("-")[0]: name for name in node.folders()}
    assert processes == {
        good: CardProcess(good, CONTEXT + 1000 * MIB, Standing.REGISTERED, ids["good"], "python"),
        bare: CardProcess(bare, CONTEXT + 4096 * MIB, Standing.UNSHIMMED, ids["bad"], "python"),
        foreign.pid: CardProcess(foreign.pid, CONTEXT + 100 * MIB, Standing.FOREIGN, None, "python"),
    }
    assert cards["good"].enforcement == Enforcement(Level.FULL, None)
    assert (cards["good"].footprint_bytes, cards["good"].unshimmed) == (CONTEXT + 1000 * MIB, ())
    assert [view.pid for view in cards["good"].processes] == [good]
    says = f"process {bare} (python) holds 4616 MiB without the shim"
    assert cards["bad"].enforcement == Enforcement(Level.NONE, says)
    assert (cards["bad"].footprint_bytes, cards["bad"].unshimmed) == (CONTEXT + 4096 * MIB, (processes[bare],))


def test_a_program_without_the_shim_beyond_its_cap_is_over(node: Node, line_of: Any, sampler: Sampler) -> None:
    take(node, line_of, "bad", 9000, *BARE)

    _, cards = on_card(node, sampler)

    assert (cards["bad"].over, cards["bad"].over_bytes) == (True, CONTEXT + (9000 - 8192) * MIB)


def test_an_orphan_below_its_run_is_still_a_member(node: Node, line_of: Any, sampler: Sampler) -> None:
    script = '(setsid "$@" <&3 & ) 3<&0; sleep 60'  # its parent is gone at once
    pid = take(node, line_of, "bad", 100, *BARE, "sh", "-c", script, "sh")

    processes, _ = on_card(node, sampler)

    assert processes[pid].standing is Standing.UNSHIMMED


def test_a_process_whose_first_thread_has_ended_is_still_what_it_was(
    node: Node, line_of: Any, sampler: Sampler
) -> None:
    script = (
        "import ctypes, sys, threading; sys.argv = ['taker', '100']; "
        f"threading.Thread(target=lambda: exec(open({str(PROGRAMS / 'taker.py')!r}).read(), {{}})).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    process = node.start("--name", "t", "--gpu", "0", "--mem", "8GiB", "--", sys.executable, "-c", script)
    pid = int(line_of(process).split()[0])

    wait_for(lambda: f"{pid} (python) Z" in Path(f"/proc/{pid}/stat").read_text(), "its first thread to have ended")
    assert on_card(node, sampler)[0][pid].standing is Standing.REGISTERED


def test_a_page_that_names_its_neighbours_changes_nothing_for_them(node: Node, line_of: Any, sampler: Sampler) -> None:
    good = take(node, line_of, "good", 1000)
    before = settled(node, sampler, "good")
    (folder,) = node.folders()

    # a tenant writes the neighbour's pid and huge numbers into slots of its own page
    liar = node.start("--name", "liar", "--gpu", "0", "--mem", "8GiB", "--",
                      sys.executable, str(PROGRAMS / "liar.py"), str(good))  # fmt: skip
    assert line_of(liar) == "ready"
    processes, cards = on_card(node, sampler)

    assert cards["good"] == before
    assert processes[good].tenant == folder
    assert [view.pid for view in cards["liar"].processes] == [None] * 3
    assert (cards["liar"].over, cards["liar"].footprint_bytes) == (True, None)
    assert cards["liar"].denials == 3 << 40


def test_a_page_that_is_no_page_is_named(node: Node, line_of: Any, sampler: Sampler) -> None:
    take(node, line_of, "good", 1000)
    before = settled(node, sampler, "good")
    bad = node.start("--name", "bad", "--gpu", "0", "--mem", "8GiB", "--", "sh", "-c",
                     ': > "$HAMIRT_TENANT_DIR/rw/usage"; echo done; read line')  # fmt: skip
    assert line_of(bad) == "done"

    seen = sampler.sample(tenants.list_pages(node.root))

    problems = {tenant.name: tenant.problem for tenant in seen.tenants}
    assert problems.pop("good") is None
    assert "is damaged" in (problems["bad"] or "")
    assert [tenant.cards[0] for tenant in seen.tenants if tenant.name == "good"] == [before]
    assert survey.violations(seen) == [f"bad: {problems['bad']}"]


def test_denials_stay_counted_after_their_process_has_ended(node: Node, line_of: Any, sampler: Sampler) -> None:
    process = node.start("--name", "t", "--gpu", "0", "--mem", "8GiB", "--", "sh", "-c",
                         'read go; "$@" 9000; exec "$@" 100', "sh", *TAKER)  # fmt: skip
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert line_of(process).split()[1] == "2"
    first = on_card(node, sampler)[1]["t"]
    assert (first.denials, len(first.processes)) == (1, 1)
    pid = first.processes[0].pid
    assert pid is not None

    os.kill(pid, 9)
    line_of(process)

    wait_for(lambda: [one.pid for one in on_card(node, sampler)[1]["t"].processes] != [pid], "the second program")
    assert on_card(node, sampler)[1]["t"].denials == 1


def test_nvml_is_opened_again_after_a_failure(node: Node) -> None:
    script = (
        "import sys; from pathlib import Path; from hamirt.daemon.sampler import Sampler\n"
        "sampler = Sampler(True, Path(sys.argv[1]))\n"
        "for _ in range(3):\n"
        "    node = sampler.sample(())\n"
        "    print(len(node.driver.cards) if node.driver else None, node.problem)\n"
    )

    def looks(fault: str) -> list[str]:
        ended = subprocess.run(
            [sys.executable, "-c", script, str(node.root)], env=node.env | {"HAMIRT_SIM_FAULT": fault},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return ended.stdout.splitlines()

    config.make_root(node.root)

    lost = looks("nvmlDeviceGetMemoryInfo_v2:3=15")
    unknown = looks("nvmlDeviceGetComputeRunningProcesses_v3:3=999")
    gone = looks("nvmlInitWithFlags:1=9")

    assert [line.split()[0] for line in lost] == ["2", "1", "2"]
    assert "GPU 0 doesn't answer (GPU is lost)" in lost[1]
    assert [line.split()[0] for line in unknown] == ["2", "None", "2"]
    assert "NVML failed: Unknown Error" in unknown[1]
    assert [line.split()[0] for line in gone] == ["None", "2", "2"]
