"""Each hook by its own name through every route by which a program can reach the driver, and nothing but the hooks.

A program looks all names up by all routes and prints where each pointer leads. It runs once without the shim, once in
a tenant and once with the shim but without a tenant; the answers are compared name by name. So a few processes serve
a test for each hook.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from abi import entries
from tests.shim.conftest import MIB, PROGRAMS, SANITIZER, Build, Native, Node, Tenant

HOOKS = [name for library in entries.LIBRARIES for name in entries.hooked(library)]
NAMES = [name for library in entries.LIBRARIES for name in entries.listed(library)]
BASES = sorted({entries.family(name) for name in HOOKS if name.startswith("cu")})
SHIM, CUDA, NVML = "libhamirt.so", "libcuda.so.1", "libnvidia-ml.so.1"
BY_NAME = ("linked", "handle", "default", "next", "front", "local", "ctypes")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pointer leads: a library, and the name of the symbol there."""

    library: str
    symbols: frozenset[str]


Answers = dict[tuple[str, str], Place | None]  # by route and key


def symbols(library: Path) -> dict[int, frozenset[str]]:
    """Return the names at each address that a library exports."""
    found: dict[int, set[str]] = {}
    done = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True, timeout=60
    )
    for line in done.stdout.splitlines():
        address, _kind, name = line.split()
        found.setdefault(int(address, 16), set()).add(name.split("@")[0])
    return {address: frozenset(names) for address, names in found.items()}


def speak(command: Sequence[str | Path], env: dict[str, str], text: str = "") -> list[str]:
    """Run a program on some input, and return the lines it prints."""
    argv = list(map(str, command))
    done = subprocess.run(argv, env=env, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{argv[0]} ended with {done.returncode}: {done.stderr}"
    return done.stdout.splitlines()


class Routes:
    """The program's answers, made readable with the symbol tables of the three libraries."""

    def __init__(self, node: Node, build: Build) -> None:
        self.node = node
        native = node.native
        self.tables = {SHIM: symbols(native.shim), CUDA: symbols(native.cuda), NVML: symbols(native.nvml)}
        self.program = build("route_main", "-DLINKED")
        self.front = build("route_library", "-DLOOKUP=route_front", shared=True, driver=False)
        self.behind = build("route_library", "-DLOOKUP=route_behind", "-O0", shared=True, driver=False)
        self.local = build("route_library", "-DLOOKUP=route_local", "-DHANDLE=RTLD_DEFAULT", shared=True)

    def ask(self, tenant: Tenant | None, *, shim: bool) -> Answers:
        preload = [self.front, *([self.node.native.shim] if shim else []), self.behind]
        names = "\n".join([*NAMES, *(f"get {base}" for base in BASES)])
        env = self.node.env(tenant, preload=preload)
        in_c = speak([self.program, self.local], env, names)
        in_python = speak([sys.executable, PROGRAMS / "route_ctypes.py"], env, "\n".join(NAMES))
        return self.read(in_c + in_python)

    def read(self, lines: list[str]) -> Answers:
        answers: Answers = {}
        for line in lines:
            route, key, library, offset = line.split()
            answers[route, key] = self.place(library, offset)
        return answers

    def place(self, library: str, offset: str) -> Place | None:
        if library == "-":
            return None
        return Place(library, self.tables[library].get(int(offset, 16), frozenset({f"+{offset}"})))


@pytest.fixture(scope="module")
def routes(build: Build, native: Native, tmp_path_factory: pytest.TempPathFactory) -> Routes:
    return Routes(Node(tmp_path_factory.mktemp("routes"), native), build)


@pytest.fixture(scope="module")
def bare(routes: Routes) -> Answers:
    """Without the shim: what the driver itself gives."""
    return routes.ask(None, shim=False)


@pytest.fixture(scope="module")
def inside(routes: Routes) -> Answers:
    """In a tenant."""
    return routes.ask(routes.node.tenant(), shim=True)


@pytest.fixture(scope="module")
def inert(routes: Routes) -> Answers:
    """With the shim, without a tenant."""
    return routes.ask(None, shim=True)


def hook_of(place: Place | None) -> Place | None:
    """Return where a pointer of the driver has to lead in a tenant: to the hook of the same name, if there is one."""
    if place is None or place.library not in (CUDA, NVML):
        return place
    hooks = [name for name in sorted(place.symbols) if name in HOOKS]
    assert len(hooks) <= 1, f"the driver has one function for {hooks}: which one is meant?"
    return Place(SHIM, frozenset(hooks)) if hooks else place


@pytest.mark.parametrize("hook", HOOKS)
def test_every_route_by_name_leads_to_the_hook(hook: str, inside: Answers) -> None:
    found = {route: inside.get((route, hook)) for route in BY_NAME}

    assert found == dict.fromkeys(BY_NAME, Place(SHIM, frozenset({hook})))


@pytest.mark.parametrize("base", BASES)
def test_every_version_of_an_entry_leads_to_its_own_hook(base: str, bare: Answers, inside: Answers) -> None:
    asked = {key: place for key, place in bare.items() if key[0] in ("get", "get_v2") and key[1].startswith(f"{base}:")}

    expected = {key: hook_of(place) for key, place in asked.items()}

    assert expected, "the driver never gives it"
    assert {key: inside.get(key) for key in asked} == expected
    assert {key for key in inside if key[1].startswith(f"{base}:")} == set(asked)


def test_cu_get_proc_address_reaches_every_hook_of_cuda(inside: Answers) -> None:
    reached = {
        name
        for (route, _key), place in inside.items()
        if route == "get_v2" and place is not None and place.library == SHIM
        for name in place.symbols
    }

    assert {name for name in HOOKS if name.startswith("cu")} - reached == set()


def test_names_that_are_no_hooks_lead_where_they_do_without_the_shim(bare: Answers, inside: Answers) -> None:
    others = {key: place for key, place in bare.items() if key[0] in (*BY_NAME, "behind") and key[1] not in HOOKS}

    assert len(others) > 5000
    assert {key: inside[key] for key in others} == others


def test_a_library_behind_the_shim_gets_the_drivers_function(bare: Answers, inside: Answers) -> None:
    expected = {hook: bare["behind", hook] for hook in HOOKS}

    assert {place.library for place in expected.values() if place is not None} == {CUDA, NVML}
    assert {hook: inside["behind", hook] for hook in HOOKS} == expected


def test_without_a_tenant_every_pointer_is_the_drivers(bare: Answers, inert: Answers) -> None:
    asked = [key for key in bare if key[0] in ("handle", "behind", "ctypes", "get", "get_v2")]

    assert len(asked) > 5000
    assert {key: inert[key] for key in asked} == {key: bare[key] for key in asked}


def test_a_versioned_look_up_leads_to_the_hook(routes: Routes, build: Build, tmp_path: Path) -> None:
    # The simulated driver's symbols have no versions; this one's have, and do nothing.
    (tmp_path / "driver.map").write_text("DRIVER_1 { global: *; };\n")
    (tmp_path / "driver.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in NAMES))
    versioned = build(
        tmp_path / "driver.c", f"-Wl,--version-script={tmp_path / 'driver.map'}", "-w", shared=True, driver=False
    )
    for library in (CUDA, NVML):
        (tmp_path / library).symlink_to(versioned)
    program, text = build("route_main", driver=False), "\n".join(HOOKS)
    paths = {"LD_LIBRARY_PATH": str(tmp_path)}

    def ask(version: str) -> dict[str, str]:
        env = routes.node.env(routes.node.tenant(), extra=paths | {"ROUTE_VERSION": version})
        lines = [line.split() for line in speak([program], env, text)]
        return {name: f"{library} {offset}" for route, name, library, offset in lines if route == "versioned"}

    offsets = {name: offset for offset, names in routes.tables[SHIM].items() for name in names}
    assert ask("DRIVER_1") == {name: f"{SHIM} {offsets[name]:x}" for name in HOOKS}
    assert set(ask("DRIVER_2").values()) == {"- -"}


def test_a_module_that_is_linked_with_the_driver(routes: Routes, build: Build) -> None:
    program = build("route_plain", driver=False)
    flags = ("-DLOOKUP=route_local", "-DHANDLE=RTLD_DEFAULT", "-DLINKED")
    module = build("route_library", *flags, shared=True)

    bare = routes.read(speak([program, "module", module], routes.node.env(shim=False)))
    inside = routes.read(speak([program, "module", module], routes.node.env(routes.node.tenant())))

    assert bare["default", "cuMemAlloc_v2"] == Place(CUDA, frozenset({"cuMemAlloc_v2"}))
    assert inside == {key: hook_of(place) for key, place in bare.items()}


@pytest.mark.parametrize("tenant", [False, True], ids=["inert", "inside"])
def test_what_nobody_has_is_answered_as_without_the_shim(tenant: bool, build: Build, node: Node) -> None:
    program = build("route_plain", driver=False)

    bare = node.run([program, "errors"], shim=False).stdout.splitlines()
    shimmed = node.run([program, "errors"], node.tenant() if tenant else None).stdout.splitlines()

    assert bare[0].startswith("default cuInit: NULL, ")
    assert [without_file(line) for line in shimmed] == [without_file(line) for line in bare]


def without_file(line: str) -> str:
    """Leave out who was asked where a hook is missing: by dlerror that is the shim then."""
    name = line.split(":")[0].split()[-1]
    return re.sub(r", \S+: undefined", ", undefined", line) if name in HOOKS else line


@pytest.mark.parametrize("name", ["cuMemAllocAsync", "cuMemAlloc", "cuDevicePrimaryCtxRelease"])
def test_a_function_that_the_driver_does_not_give_is_not_found(name: str, routes: Routes, build: Build) -> None:
    node, tenant = routes.node, routes.node.tenant()
    program, text = build("route_main", driver=False), f"get {name}\n"

    def ask(fault: str) -> list[str]:
        return speak([program], node.env(tenant, extra={"HAMIRT_SIM_FAULT": fault}), text)

    given, refused = ask(""), ask(",".join(f"{twin}:absent" for twin in twins(name)))

    assert any(SHIM in line for line in given)
    assert not any(SHIM in line or CUDA in line for line in refused)


def twins(name: str) -> list[str]:
    return [other for other in NAMES if entries.family(other) == entries.family(name)]


def test_a_driver_that_lacks_the_hooks_answers_not_found(routes: Routes, build: Build, tmp_path: Path) -> None:
    # An older driver: its tables know the hooks under another name. What a context needs stays.
    needed = re.compile(r"cuInit|cuGetProcAddress|cuDevicePrimaryCtx|nvmlDeviceGet(Count|Handle|Memory)")
    lacking = [name for name in HOOKS if not needed.match(name)]
    program = build("route_absent")
    for library, prefix in ((routes.node.native.cuda, b"cu"), (routes.node.native.nvml, b"nvml")):
        content = library.read_bytes()
        for name in lacking:
            if name.encode().startswith(prefix):
                assert content.count(b"\0" + name.encode() + b"\0") >= 1, f"{name} shares its place in the table"
                content = content.replace(b"\0" + name.encode() + b"\0", b"\0x" + name.encode()[1:] + b"\0")
        (tmp_path / library.name).write_bytes(content)

    done = routes.node.run(
        [program, *lacking], routes.node.tenant(), extra={"LD_LIBRARY_PATH": str(tmp_path)}, check=False
    )

    not_found = {"cu": "500", "nv": "13"}
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr}"
    assert done.stdout.splitlines() == [f"{name} NULL {not_found[name[:2]]}" for name in lacking]


@pytest.mark.skipif(bool(SANITIZER), reason="the sanitizer stands in front of malloc itself")
@pytest.mark.parametrize("order", [("front", "shim", "behind"), ("shim", "behind"), ("front", "shim")])
def test_other_preloads_that_wrap_malloc_and_the_driver_work(order: tuple[str, ...], build: Build, node: Node) -> None:
    libraries = {
        "shim": node.native.shim,
        "front": build("route_library", "-DLOOKUP=route_front", "-DWRAP", shared=True, driver=False),
        "behind": build("route_library", "-DLOOKUP=route_behind", "-DWRAP", shared=True, driver=False),
    }
    tenant = node.tenant(mem=2048 * MIB)

    process = subprocess.Popen(
        [build("route_plain", driver=False), "alloc"],
        env=node.env(tenant, preload=[libraries[name] for name in order]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    node.running.append(process)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(3)]
    charged = tenant.used_bytes() if lines[0] else 0

    assert lines[0] == "result 0, pointer set"
    assert charged == 64 * MIB, "the shim has to be in the chain"
    if "front" in order:
        assert lines[1] == "front: malloc yes, open yes, alloc 1"
    if "behind" in order:
        assert lines[2].startswith("behind: malloc yes, open yes, ")
