"""Physical memory of cuMemCreate: charged from its making until the last handle and the last mapping are gone."""

from __future__ import annotations

import pytest

from tests.shim.conftest import MIB, Build, Node
from tests.shim.steps import CONTEXT_BYTES, RESERVE_BYTES, tenant_of, walk

LIFETIMES = {
    "created": 6,
    "mapped": 6,
    "released": 6,
    "unmapped": 0,
    "handle-left": 4,
    "handle-gone": 0,
    "retained": 8,
    "retained-again": 8,
    "retained-gone": 0,
    "several": 6,
    "one-unmapped": 6,
    "all-unmapped": 0,
}


def test_it_is_charged_as_long_as_it_lives(node: Node, build: Build) -> None:
    native = walk(node, build, "vmm_steps", "lifetimes", tenant=None)

    limited = walk(node, build, "vmm_steps", "lifetimes", tenant=tenant_of(node, 4096 * MIB))

    assert limited.mib("virtual") == LIFETIMES
    assert limited.told() == native.told()


def test_refusals_at_the_cap(node: Node, build: Build) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 400 * MIB)

    limited = walk(node, build, "vmm_steps", "refusals", tenant=tenant)

    assert limited.mib("virtual") == {"full": 384, "host-memory": 384, "full-again": 384, "empty": 0}
    assert limited.answers() == [
        "over: ERROR_OUT_OF_MEMORY",
        "no-device: ERROR_INVALID_DEVICE",
        "no-prop: ERROR_INVALID_VALUE",
        "odd-size: ERROR_INVALID_VALUE",
        "mapped-twice: ERROR_INVALID_VALUE",
    ]
    assert limited["empty"].use.denials == 2


def test_many_threads_leave_nothing_behind(node: Node, build: Build) -> None:
    limited = walk(node, build, "vmm_steps", "threads", tenant=tenant_of(node, 4096 * MIB))

    assert limited["all-back"].fell_kib == 0
    assert limited["all-back"].use.used_bytes == 0


@pytest.mark.parametrize("program", ["vmm_steps", "array_steps", "graph_steps", "module_steps"])
def test_without_a_tenant_nothing_changes(node: Node, build: Build, program: str) -> None:
    native = walk(node, build, program, tenant=None)

    process = node.run([build(program)])

    assert [line.split()[0] for line in process.stdout.splitlines()] == [step.name for step in native.steps]
    assert [line.split()[1] for line in process.stdout.splitlines()] == [
        step.answer or str(step.fell_kib) for step in native.steps
    ]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param("emake emap eexport iimport imap erelease eunmap iunmap irelease", id="exporter-drops-it"),
        pytest.param("emake emap eexport iimport imap iunmap irelease erelease eunmap", id="importer-drops-it"),
        pytest.param("emake eexport iimport imap irelease edie iunmap", id="exporter-dies"),
        pytest.param("emake emap eexport iimport imap idie eunmap erelease", id="importer-dies"),
        pytest.param("emake eexport iimport irelease erelease", id="never-mapped"),
    ],
)
def test_the_living_pay_for_what_is_shared(node: Node, build: Build, steps: str) -> None:
    native = walk(node, build, "vmm_share", *steps.split(), tenant=None)

    limited = walk(node, build, "vmm_share", *steps.split(), tenant=tenant_of(node, 4096 * MIB))

    assert limited.told() == native.told()
    assert limited.steps[0].fell_kib == 512 * 1024
    assert sum(slot.uses[0].used_bytes for slot in limited.steps[-1].slots) == 0


def test_nvml_does_not_make_it_pay_twice(node: Node, build: Build) -> None:
    steps = [
        "emake",
        "emap",
        "eexport",
        "iimport",
        "imap",
        "ifill",
        "erelease",
        "eunmap",
        "ifill",
        "iunmap",
        "irelease",
        "ifill",
    ]

    limited = walk(node, build, "vmm_share", *steps, tenant=tenant_of(node, 4096 * MIB))

    assert [step.fell_kib // 1024 for step in limited.steps if step.fell_kib is not None] == [512] * 10 + [0, 0]
