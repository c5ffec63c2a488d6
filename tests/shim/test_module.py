"""Code: the variables of modules and libraries, the local memory of kernels, and images that lie about themselves."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.shim.conftest import MIB, TIMEOUT_S, Build, Node
from tests.shim.steps import CONTEXT_BYTES, RESERVE_BYTES, tenant_of, walk

UNKNOWN = (1 << 64) - 1
SHF_ALLOC, SHT_PROGBITS, SHT_NOBITS = 2, 1, 8
LOCAL_THREADS = 132 * 2048  # of the simulated card
STACK_BYTES = 1024  # what a context starts with


def elf(*sections: tuple[str, int, int, int]) -> bytes:
    """Return a cubin with sections (name, type, flags, bytes) that have no content."""
    names = b"\0.shstrtab\0" + b"".join(name.encode() + b"\0" for name, *_ in sections)
    headers = [struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    headers.append(struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 1, 0))
    for name, kind, flags, size in sections:
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        headers.append(struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, 64, size, 0, 0, 1, 0))
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    shoff = 64 + len(names)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, shoff, 0, 64, 56, 0, 64, len(headers), 1)
    return head + names + b"".join(headers)


def fatbin(*entries: tuple[int, bytes]) -> bytes:
    """Return a fatbin of (kind, payload): 1 is PTX, 2 a cubin."""
    body = b"".join(
        struct.pack("<HHIQ", kind, 0x101, 64, len(payload)) + bytes(48) + payload for kind, payload in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


BIG = elf(
    (".text.kernel", SHT_PROGBITS, SHF_ALLOC, 1 << 20),
    (".nv.shared.kernel", SHT_NOBITS, SHF_ALLOC, 1 << 17),
    (".nv.global", SHT_NOBITS, SHF_ALLOC, 64 * MIB),
    (".nv.global.init", SHT_PROGBITS, SHF_ALLOC, 8192),
    (".nv.globalish", SHT_NOBITS, 0, 1 << 40),
)
SMALL = elf((".nv.global", SHT_NOBITS, SHF_ALLOC, 8192))


@pytest.fixture(scope="module")
def harness(build: Build) -> Path:
    return build("image_harness", driver=False)


def variables(harness: Path, images: list[bytes]) -> list[int]:
    given = b"".join(struct.pack("<Q", len(image)) + image for image in images)
    done = subprocess.run([harness], input=given, capture_output=True, timeout=TIMEOUT_S, check=True)
    return [int(line) for line in done.stdout.split()]


def test_what_an_image_says_of_its_variables(harness: Path) -> None:
    images = {
        BIG: 64 * MIB + 8192,
        SMALL: 8192,
        fatbin((2, SMALL), (2, BIG), (1, b".version 8.0")): 64 * MIB + 8192,
        fatbin((1, b".version 8.0")): UNKNOWN,
        b".version 8.0\n.target sm_90\n\0": UNKNOWN,
        elf((".nv.global", SHT_NOBITS, SHF_ALLOC, 1 << 63), (".nv.global.init", SHT_NOBITS, SHF_ALLOC, 1 << 63)): (
            UNKNOWN - 1
        ),
        b"\x7fELF": 0,
        BIG[:-64]: 0,
        BIG[:64]: 0,
        b"": 0,
    }

    assert variables(harness, list(images)) == list(images.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([BIG, SMALL, fatbin((2, BIG), (2, SMALL))]),
            st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7), st.integers(0, (1 << 64) - 1)), max_size=6),
            st.integers(0, 1 << 10),
        ),
        min_size=20,
        max_size=20,
    )
)
def test_no_image_harms(harness: Path, recipes: list[tuple[bytes, list[tuple[int, int, int]], int]]) -> None:
    images = []
    for image, changes, cut in recipes:
        changed = bytearray(image)
        for at, width, value in changes:
            at %= len(changed)
            changed[at : at + width + 1] = value.to_bytes(8, "little")[: min(width + 1, len(changed) - at)]
        images.append(bytes(changed[: len(changed) - cut % len(changed)]))

    assert len(variables(harness, images)) == len(images)


def test_a_module_too_large_is_refused_before_the_driver_sees_it(node: Node, build: Build, tmp_path: Path) -> None:
    answers = {}
    for name, image in {"large": elf((".nv.global", SHT_NOBITS, SHF_ALLOC, 2048 * MIB)), "small": SMALL}.items():
        path = tmp_path / name
        path.write_bytes(image)
        limited = walk(node, build, "module_steps", "file", str(path), tenant=tenant_of(node, 1024 * MIB))
        answers[name] = limited["module-file"].answer

    assert answers["large"] == "ERROR_OUT_OF_MEMORY"
    assert answers["small"] not in ("SUCCESS", "ERROR_OUT_OF_MEMORY")


@pytest.mark.parametrize("scenario", ["variables", "library"])
def test_variables_are_charged_while_they_are_loaded(node: Node, build: Build, scenario: str) -> None:
    native = walk(node, build, "module_steps", scenario, tenant=None)

    limited = walk(node, build, "module_steps", scenario, tenant=tenant_of(node, 4096 * MIB))

    assert limited.answers() == native.answers()
    for step in native.steps:
        if step.fell_kib is not None:
            assert (step.name, limited[step.name].fell_kib) == (step.name, step.fell_kib)
    assert native.steps[1].fell_kib in range(256 * 1024, 260 * 1024)


def test_a_module_that_turns_out_too_large_is_unloaded_again(node: Node, build: Build) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 400 * MIB)

    limited = walk(node, build, "module_steps", "variables", tenant=tenant)

    assert limited["second"].answer == "ERROR_OUT_OF_MEMORY"
    assert limited["second-unloaded"].fell_kib == limited["used"].fell_kib
    assert limited["unloaded"].fell_kib == 0
    assert limited["unloaded"].use.denials == 1


def test_a_library_that_turns_out_too_large_is_refused(node: Node, build: Build) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 400 * MIB)

    limited = walk(node, build, "module_steps", "library", tenant=tenant)

    assert "ERROR_OUT_OF_MEMORY" in {
        limited[name].answer for name in ("second-library", "second-kernel") if name in limited
    }
    assert limited["library-unloaded"].fell_kib == 0


def test_local_memory_is_charged_when_a_function_is_found(node: Node, build: Build) -> None:
    native = walk(node, build, "module_steps", "local", tenant=None)

    limited = walk(node, build, "module_steps", "local", tenant=tenant_of(node, 8192 * MIB))

    fell = [step.fell_kib or 0 for step in limited.steps if step.name == "found"]
    run = [step.fell_kib or 0 for step in native.steps if step.name == "run"]
    assert fell == run[: len(fell)]
    assert fell[3] - fell[0] == LOCAL_THREADS * (16384 - STACK_BYTES) // 1024
    assert limited["local_256k"].answer == "ERROR_OUT_OF_MEMORY"
    assert limited.answers()[:4] == native.answers()[:4]


def test_what_a_function_needs_is_kept_for_it(node: Node, build: Build) -> None:
    tenant = tenant_of(node, 6144 * MIB)

    limited = walk(node, build, "module_steps", "claim", tenant=tenant)

    use = limited["run-full"].use
    assert limited["over"].answer == "ERROR_OUT_OF_MEMORY"
    assert use.used_bytes > 1024 * MIB
    assert use.used_bytes + use.overhead_bytes <= 6144 * MIB
