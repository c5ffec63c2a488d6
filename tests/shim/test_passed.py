"""Every entry point that abi/passed.txt excuses leaves the card's free memory as it was.

The calls are made without the shim, so that NVML tells the card's own memory; and once more inside a tenant, where
they have to answer the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from abi import entries
from tests.shim.conftest import MIB, PROGRAMS, Build, Native, Node
from tests.shim.programs.passed_arguments import arguments
from tests.shim.steps import tenant_of

STUBS = PROGRAMS / "passed_stubs.txt"
# What the simulated driver refuses, and what a card answers too where there is but one.
REFUSED = {
    "cuCtxEnablePeerAccess": 101,  # there is no peer
    "cuCtxDisablePeerAccess": 705,
    "cuGetExportTable": 500,  # no such table
    "cuLinkAddFile": 301,  # no such file
    "cuLinkAddFile_v2": 301,
}
CONTROL = "cuMemAlloc_v2"  # an entry that is hooked: the same look at the card has to see what it takes


@dataclass(frozen=True, slots=True)
class Call:
    """What one call answered, whether the simulated driver implements it, and how much it took from the card."""

    code: int
    stub: bool
    taken_bytes: int


@pytest.fixture(scope="module")
def program(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passed")
    declared = {name: entry for library in entries.LIBRARIES for name, entry in entries.declared(library).items()}
    lines = [f"CALL({', '.join(filter(None, (name, arguments(declared[name]))))})" for name in entries.passed()]
    lines.append(f"CALL({CONTROL}, (CUdeviceptr *)scratch[0], BLOCK_BYTES)")
    (folder / "passed_generated.h").write_text("\n".join(lines) + "\n")
    return build("passed_calls", f"-I{folder}", str(PROGRAMS / "passed_things.c"))


@pytest.fixture(scope="module")
def module_node(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("root"), native)


@pytest.fixture(scope="module")
def calls(program: Path, module_node: Node) -> dict[str, Call]:
    return parse(module_node.run([program], shim=False).stdout)


def parse(output: str) -> dict[str, Call]:
    lines = [line.split() for line in output.splitlines()]
    return {name: Call(int(code), stub == "1", int(after) - int(before)) for name, code, stub, before, after in lines}


def test_every_excused_entry_was_called(calls: dict[str, Call]) -> None:
    assert set(calls) == set(entries.passed()) | {CONTROL}


def test_the_cards_free_memory_is_unchanged(calls: dict[str, Call]) -> None:
    changed = {name: call.taken_bytes for name, call in calls.items() if call.taken_bytes != 0}

    assert changed == {CONTROL: 2 * MIB}


def test_what_the_simulated_driver_only_stubs_is_listed(calls: dict[str, Call]) -> None:
    listed = [line for line in STUBS.read_text().splitlines() if not line.startswith("#")]

    stubbed = [name for name, call in sorted(calls.items()) if call.stub]

    assert stubbed == listed, f"change {STUBS.name}"


def test_what_it_implements_was_called_as_a_program_would(calls: dict[str, Call]) -> None:
    refused = {name: call.code for name, call in calls.items() if call.code != 0 and not call.stub}

    assert refused == REFUSED


def test_inside_a_tenant_they_answer_the_same(program: Path, node: Node, calls: dict[str, Call]) -> None:
    """...and take nothing: what changes between two calls in one run only was the context, measured at that moment."""
    runs = [parse(node.run([program], tenant_of(node, 8192 * MIB)).stdout) for _ in range(2)]

    for inside in runs:
        assert {name: call.code for name, call in inside.items()} == {name: call.code for name, call in calls.items()}
    assert {name for name in calls if all(inside[name].taken_bytes != 0 for inside in runs)} == {CONTROL}
