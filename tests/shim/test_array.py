"""Arrays and mipmapped arrays are charged with what the driver takes for them."""

from __future__ import annotations

from tests.shim.conftest import MIB, Build, Node
from tests.shim.steps import CONTEXT_BYTES, RESERVE_BYTES, tenant_of, walk


def test_each_kind_is_charged_as_it_is_taken(node: Node, build: Build) -> None:
    native = walk(node, build, "array_steps", tenant=None)

    limited = walk(node, build, "array_steps", tenant=tenant_of(node, 4096 * MIB))

    taken = {step.name: step.fell_kib / 1024 for step in native.steps if step.fell_kib is not None}
    taken["sparse"] = 0  # by the card; the simulated one takes memory for it
    assert limited.mib("array") == taken
    assert limited.answers() == native.answers()
    assert taken["plane"] == 16


def test_small_ones_are_charged_less_than_a_block(node: Node, build: Build) -> None:
    limited = walk(node, build, "array_steps", "tiny", tenant=tenant_of(node, 4096 * MIB))

    assert 0 < limited.mib("array")["tiny"] <= 200 * 64 / 1024
    assert limited.mib("array")["tiny-gone"] == 0


def test_refusals_at_the_cap(node: Node, build: Build) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 400 * MIB)

    limited = walk(node, build, "array_steps", "fill", tenant=tenant)

    assert limited.mib("array") == {"full": 384, "full-again": 384, "empty": 0}
    assert limited.answers() == ["over: ERROR_OUT_OF_MEMORY", "mipmap-over: ERROR_OUT_OF_MEMORY"]
    assert limited["empty"].use.denials == 3
