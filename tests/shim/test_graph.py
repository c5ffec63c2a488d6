"""Memory that graphs allocate is charged while the device's graph pool holds it, and refused before it is taken."""

from __future__ import annotations

import pytest

from tests.shim.conftest import MIB, Build, Node
from tests.shim.steps import CONTEXT_BYTES, RESERVE_BYTES, tenant_of, walk

PIECE_BYTES = 32 * MIB  # HM_GRAPH_PIECE_BYTES: a graph is taken for so much larger at most


@pytest.mark.parametrize("scenario", ["nodes", "capture", "plain", "sharing"])
def test_the_pool_is_charged_with_what_it_holds(node: Node, build: Build, scenario: str) -> None:
    native = walk(node, build, "graph_steps", scenario, tenant=None)

    limited = walk(node, build, "graph_steps", scenario, tenant=tenant_of(node, 8192 * MIB))

    assert limited.told() == native.told()
    assert limited.mib("graph") == {
        step.name: step.fell_kib / 1024 for step in native.steps if step.fell_kib is not None
    }


def test_memory_nodes_are_charged_from_the_launch_to_the_trim(node: Node, build: Build) -> None:
    limited = walk(node, build, "graph_steps", "nodes", tenant=tenant_of(node, 4096 * MIB))

    assert limited.mib("graph") == {
        "instantiated": 0,
        "launched": 100,
        "launched-again": 100,
        "just-trimmed": 0,
        "trimmed": 0,
        "uploaded": 100,
        "other-stream": 100,
        "kept": 100,
        "kept-alone": 64,
        "gone": 0,
    }


def test_refusals_at_the_cap(node: Node, build: Build) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 2 * 512 * MIB + 500 * MIB)

    limited = walk(node, build, "graph_steps", "fill", tenant=tenant)

    assert limited.mib("graph") == {"full": 1024, "full-again": 1024}
    assert limited.answers() == [
        "launch-over: ERROR_OUT_OF_MEMORY",
        "upload-over: ERROR_OUT_OF_MEMORY",
        "instantiate-over: ERROR_OUT_OF_MEMORY",
        "launch-after-free: SUCCESS",
    ]
    assert limited["full-again"].use.denials == 3


def test_graphs_of_one_stream_share_memory_below_the_cap(node: Node, build: Build) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 512 * MIB + 2 * PIECE_BYTES)

    limited = walk(node, build, "graph_steps", "sharing", tenant=tenant)

    assert limited.answers()[:8] == ["one: SUCCESS", "two: SUCCESS"] * 4
    assert limited.mib("graph")["shared"] == 512
