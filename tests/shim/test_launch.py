"""Every way to launch, by its own name and through every route: at a closed gate it waits, and goes on when that opens.

What goes over the bus does not wait, and neither does what is captured. All of it has the results that it has without
the shim.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abi import entries
from tests.shim.conftest import TIMEOUT_S, Build, Native, Node, Tenant
from tests.shim.gates import Gates
from tests.shim.programs.passed_arguments import arguments
from tests.support import wait_for

CUDA = entries.LIBRARIES[0]
FILES = ("hook_launch.c", "hook_memset.c", "hook_copy.c", "hook_copy_box.c")
GRAPHS = ["cuGraphLaunch", "cuGraphLaunch_ptsz"]
ROUTES = ("linked", "handle", "get")
HOST, DEVICE, ARRAY, UNIFIED = 1, 2, 3, 4  # enum CUmemorytype
ON_CARD = (DEVICE, DEVICE)


def hooks_of(*files: str) -> list[str]:
    """Return the hooks under the headings of these files."""
    parts = re.split(r"^/\* (\w+\.c) \*/$", entries.HOOKS.read_text(), flags=re.MULTILINE)
    by_file = dict(zip(parts[1::2], parts[2::2], strict=True))
    return [name for file in files for name in re.findall(r"^CUDA_HOOK\((\w+)\)", by_file[file], re.MULTILINE)]


NAMES = GRAPHS + hooks_of(*FILES)
BOXES = [name for name in NAMES if re.match(r"cuMemcpy[23]D(?!Peer|Batch)", name)]
GATED = [name for name in NAMES if re.match(r"cuLaunch|cuGraph|cuMemset|cuMemcpy[DA]to[DA]", name)] + BOXES
BUS = [name for name in NAMES if name not in GATED]
STREAMED = [name for name in GATED if re.search(r"(Async|Kernel|Launch|KernelEx)(_v2)?(_ptsz)?$", name)]
STREAMED.remove("cuLaunch")  # which has none


@dataclass(frozen=True, slots=True)
class Case:
    """One call of launch_calls.c, whose head explains these."""

    name: str
    way: str = "plain"
    sides: tuple[int, int] = ON_CARD
    kernel: bool = False
    memory: bool = False
    cooperate: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: the driver's answer, what was captured, and what memory held then."""

    code: int
    graph: str
    memory: str


class Probe:
    """launch_calls.c at work."""

    def __init__(self, node: Node, program: Path, route: str, tenant: Tenant | None) -> None:
        self.gates = Gates(tenant) if tenant is not None else None
        self.process = node.start([program, route], tenant, shim=tenant is not None)
        self.lines: queue.Queue[str] = queue.Queue()
        self.idle = True
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put("ended")

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        line = self.lines.get(timeout=TIMEOUT_S)
        assert line != "ended", f"the program ended with {self.process.wait(TIMEOUT_S)}"
        return line

    def prepare(self, case: Case) -> None:
        """Bring it before the call."""
        self.idle = False
        self.say(f"sides {case.sides[0]} {case.sides[1]}")
        self.say(f"kernel {int(case.kernel)}")
        self.say(f"memory {int(case.memory)}")
        self.say(f"cooperate {int(case.cooperate)}")
        self.say(f"{case.way} {case.name}")
        assert self.hear() == "ready"

    def use(self) -> Any:
        assert self.gates is not None
        return self.gates.use(self.process.pid)

    def finish(self, code: str) -> Outcome:
        """Go on after the call, with the gate open."""
        self.say()
        graph = self.hear()
        self.say()
        outcome = Outcome(int(code), graph, self.hear())
        self.idle = True
        return outcome


Probes = Callable[[str], Probe]
Bare = Callable[[Case], Outcome]


@pytest.fixture(scope="module")
def module_node(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("launch"), native, cards=2)
    yield node
    node.end()


@pytest.fixture(scope="module")
def program(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    declared = entries.declared(CUDA)
    lines = [f'CALL({name}, "{entries.family(name)}", {arguments(declared[name])})\n' for name in NAMES]
    untyped = "things.device, things.device"  # onto itself
    header = "".join(lines).replace(untyped, "things.other, things.device")
    (folder / "launch_generated.h").write_text(header)
    return build("launch_calls", f"-I{folder}", str(Path(__file__).parent / "programs/passed_things.c"))


@pytest.fixture(scope="module")
def probes(module_node: Node, program: Path) -> Probes:
    """A program in a tenant for each route; another one where a test left it in the middle of a call."""
    known: dict[str, Probe] = {}

    def probe(route: str) -> Probe:
        if route not in known or not known[route].idle:
            known[route] = Probe(module_node, program, route, module_node.tenant())
        return known[route]

    return probe


@pytest.fixture(scope="module")
def bare(module_node: Node, program: Path) -> Bare:
    """What comes of a call without the shim."""
    probe = Probe(module_node, program, "linked", None)
    known: dict[Case, Outcome] = {}

    def outcome(case: Case) -> Outcome:
        if case not in known:
            probe.prepare(case)
            probe.say()
            known[case] = probe.finish(probe.hear())
        return known[case]

    return outcome


@dataclass(frozen=True, slots=True)
class Called:
    """A call at a closed gate, which was opened when it waited or was over."""

    waited: bool
    bus_bytes: int
    outcome: Outcome
    collectives: int = 0


def call(probe: Probe, case: Case) -> Called:
    assert probe.gates is not None
    probe.prepare(case)
    probe.gates.close()
    bus_bytes, collectives = probe.use().bus_bytes, probe.use().collectives
    probe.say()
    wait_for(lambda: probe.use().waiting == 1 or not probe.lines.empty(), f"{case.name} at the gate or behind it")
    waited = probe.lines.empty()
    probe.gates.open()
    code = probe.hear()
    bus_bytes, collectives = probe.use().bus_bytes - bus_bytes, probe.use().collectives - collectives
    return Called(waited, bus_bytes, probe.finish(code), collectives)


def test_every_entry_that_launches_fills_or_copies_is_here() -> None:
    launches = re.compile(r"cuLaunch(?!HostFunc)|cuGraphLaunch|cuMemset|cuMemcpy")

    assert sorted(name for name in entries.listed(CUDA) if launches.match(name)) == sorted(NAMES)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", GATED)
def test_it_waits(name: str, route: str, probes: Probes, bare: Bare) -> None:
    case = Case(name)

    assert call(probes(route), case) == Called(True, 0, bare(case))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BUS)
def test_over_the_bus_it_is_counted_and_does_not_wait(name: str, route: str, probes: Probes, bare: Bare) -> None:
    case = Case(name)
    size = 1024 if "3DPeer" in name else 256 if "3DBatch" in name else 4096

    expected = bare(case)

    assert call(probes(route), case) == Called(False, size if expected.code == 0 else 0, expected)


@pytest.mark.parametrize("sides", [(ARRAY, DEVICE), (DEVICE, ARRAY), (ARRAY, ARRAY)])
@pytest.mark.parametrize("name", BOXES)
def test_arrays_are_on_the_card(name: str, sides: tuple[int, int], probes: Probes, bare: Bare) -> None:
    case = Case(name, sides=sides)

    assert call(probes("linked"), case) == Called(True, 0, bare(case))


@pytest.mark.parametrize("sides", [(HOST, DEVICE), (DEVICE, HOST), (ARRAY, HOST), (HOST, HOST), (UNIFIED, DEVICE)])
@pytest.mark.parametrize("name", BOXES)
def test_an_end_that_may_be_elsewhere(name: str, sides: tuple[int, int], probes: Probes, bare: Bare) -> None:
    case = Case(name, sides=sides)

    expected = bare(case)

    assert call(probes("linked"), case) == Called(False, 256 if expected.code == 0 else 0, expected)


@pytest.mark.parametrize("way", ["own", "joined", "per-thread"])
@pytest.mark.parametrize("name", STREAMED)
def test_in_a_capture_it_does_not_wait(name: str, way: str, probes: Probes, bare: Bare) -> None:
    case = Case(name, way)

    expected = bare(case)

    assert (expected.graph == "") == (expected.code != 0)
    assert call(probes("linked"), case) == Called(False, 0, expected)


@pytest.mark.parametrize("name", STREAMED)
def test_beside_a_capture_it_waits(name: str, probes: Probes, bare: Bare) -> None:
    case = Case(name, "beside")

    assert call(probes("linked"), case) == Called(True, 0, bare(case))


@pytest.mark.parametrize("name", GATED)
def test_the_default_stream_is_the_threads_own_for_the_twins(name: str, probes: Probes, bare: Bare) -> None:
    case = Case(name, "default")

    own = name.endswith(("_ptsz", "_ptds"))

    assert call(probes("linked"), case) == Called(not own, 0, bare(case))


@pytest.mark.parametrize("name", [name for name in STREAMED if name.startswith("cuLaunchKernel")])
def test_a_kernel_may_be_named_by_its_library_handle(name: str, probes: Probes, bare: Bare) -> None:
    case = Case(name, kernel=True)

    assert call(probes("linked"), case) == Called(True, 0, bare(Case(name)))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_allocates_memory_waits(name: str, probes: Probes, bare: Bare) -> None:
    case = Case(name, memory=True)

    assert call(probes("linked"), case) == Called(True, 0, bare(case))


@pytest.mark.parametrize("devices", [1, 2])
def test_cooperative_launches_of_several_devices_are_told(
    devices: int, module_node: Node, program: Path, bare: Bare
) -> None:
    probe = Probe(module_node, program, "linked", module_node.tenant(devices=range(devices)))
    cases = [Case(name) for name in STREAMED if name.startswith("cuLaunch")]
    cases += [Case(name, cooperate=True) for name in STREAMED if name.startswith("cuLaunchKernelEx")]

    told = [case for case in cases if call(probe, case) == Called(True, 0, bare(case), collectives=1)]

    assert told == [case for case in cases if devices > 1 and (case.cooperate or "Cooperative" in case.name)]
