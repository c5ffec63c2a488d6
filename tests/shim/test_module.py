"""Code: the variables of modules and libraries, the local memory of kernels, and images that lie about themselves."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.shim.conftest import MIB, TIMEOUT_S, Build, Node
from tests.shim.steps import CONTEXT_BYTES, RESERVE_BYTES, Walk, tenant_of, walk

UNKNOWN = (1 << 64) - 1
SHF_ALLOC, SHT_PROGBITS, SHT_NOBITS = 2, 1, 8
LOCAL_THREADS = 132 * 2048  # of the simulated card
STACK_BYTES = 1024  # what a context starts with
CODE_KIB = 2048  # of a module on the simulated card: overhead, which whoever asks sees at once


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


def compressed(payload: bytes) -> bytes:
    """Return a fatbin of a cubin that says of itself that it is compressed."""
    entry = struct.pack("<HHIQI", 2, 0x101, 64, len(payload), len(payload)) + bytes(44) + payload
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry)) + entry


BIG = elf(
    (".text.kernel", SHT_PROGBITS, SHF_ALLOC, 1 << 20),
    (".nv.shared.kernel", SHT_NOBITS, SHF_ALLOC, 1 << 17),
    (".nv.global", SHT_NOBITS, SHF_ALLOC, 64 * MIB),
    (".nv.global.init", SHT_PROGBITS, SHF_ALLOC, 8192),
    (".nv.globalish", SHT_NOBITS, 0, 1 << 40),
)
PTX = b".version 8.0\n.target sm_90\n.address_size 64\n.global .align 1 .b8 big[4096];\n"
PTX_BYTES = 4096
SMALL = elf((".nv.global", SHT_NOBITS, SHF_ALLOC, 8192))


def fell(walked: Walk) -> list[int]:
    """By how much free memory had fallen at each stop, in KiB."""
    return [step.fell_kib for step in walked.steps if step.fell_kib is not None]


@pytest.fixture(scope="module")
def harness(build: Build) -> Path:
    return build("image_harness", driver=False)


def variables(harness: Path, images: list[bytes]) -> list[int]:
    given = b"".join(struct.pack("<Q", len(image)) + image for image in images)
    done = subprocess.run([harness], input=given, capture_output=True, timeout=TIMEOUT_S, check=True)
    return [int(line.split()[0]) for line in done.stdout.splitlines()]


ASSERT, PRINTF, MALLOC = 1, 2, 4


@pytest.mark.parametrize(
    ("image", "services"),
    [
        (SMALL, 0),
        (elf((".nv.global", SHT_NOBITS, SHF_ALLOC, 8192), ("__assertfail", SHT_NOBITS, 0, 0)), ASSERT),
        (elf(("vprintf", SHT_NOBITS, 0, 0), ("malloc", SHT_NOBITS, 0, 0)), PRINTF | MALLOC),
        (elf(("mallocator", SHT_NOBITS, 0, 0)), 0),
        (fatbin((2, elf(("vprintf", SHT_NOBITS, 0, 0))), (1, PTX)), PRINTF),
        (compressed(SMALL), ASSERT),  # nobody can look into it
    ],
)
def test_what_services_an_image_may_call(harness: Path, image: bytes, services: int) -> None:
    given = struct.pack("<Q", len(image)) + image

    done = subprocess.run([harness], input=given, capture_output=True, timeout=TIMEOUT_S, check=True)

    assert int(done.stdout.split()[1]) == services


def test_what_an_image_says_of_its_variables(harness: Path) -> None:
    images = {
        BIG: 64 * MIB + 8192,
        SMALL: 8192,
        fatbin((2, SMALL), (2, BIG), (1, PTX)): 64 * MIB + 8192,
        fatbin((1, PTX)): PTX_BYTES,
        fatbin((1, PTX), (2, SMALL)): 8192,
        fatbin((3, b"something new")): 0,
        elf((".nv.global", SHT_NOBITS, SHF_ALLOC, 1 << 63), (".nv.global.init", SHT_NOBITS, SHF_ALLOC, 1 << 63)): (
            UNKNOWN - 1
        ),
        b"\x7fELF": 0,
        BIG[:-64]: 0,
        BIG[:64]: 0,
        b"": 0,
    }

    assert variables(harness, list(images)) == list(images.values())


@pytest.mark.parametrize("end", [b"\0", b""])
def test_what_ptx_says_of_its_variables(harness: Path, end: bytes) -> None:
    texts = {
        PTX: PTX_BYTES,
        b".visible .global .align 4 .b8 big[268435456];\n": 268435456,
        b".global .u32 a;.global .f64 b;": 12,
        b".global .align 16 .v4 .f32 a[0x10][2] = {1, 2};": 512,
        b".global .attribute(.managed) .align 8 .u64 a;": 8,
        b".global .texref t;": 8,
        b".extern .global .b8 elsewhere[];": 0,
        b".entry k(.param .u64 .ptr .global .align 16 p, .param .u32 n) { ld.global.u32 %r1, [p]; }": 0,
        b".global .b64 a[18446744073709551615][18446744073709551615];": (1 << 63) - 1,
        b".global .b8 never_ends[5": 0,
        b"\xff\xfe.global \x80": 0,
        b" " * 10000 + b".global .b8 far[77];": 77,
    }

    assert variables(harness, [text + end for text in texts]) == list(texts.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([BIG, SMALL, PTX, fatbin((2, BIG), (1, PTX), (2, SMALL))]),
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
    assert fell(limited) == fell(native)
    assert max(limited.mib("linear").values()) == 256
    assert list(limited.mib("linear").values())[-1] == 0


@pytest.mark.parametrize("scenario", ["variables", "library"])
def test_variables_that_do_not_fit_are_refused(node: Node, build: Build, scenario: str) -> None:
    tenant = tenant_of(node, CONTEXT_BYTES + RESERVE_BYTES + 400 * MIB)

    limited = walk(node, build, "module_steps", scenario, tenant=tenant)

    refused = {"variables": ["second"], "library": ["second-kernel", "second-global"]}[scenario]
    assert [limited[name].answer for name in refused] == ["ERROR_OUT_OF_MEMORY"] * len(refused)
    assert max(fell(limited)) == 256 * 1024 + CODE_KIB
    assert limited.mib("linear")["unloaded" if scenario == "variables" else "library-unloaded"] == 0
    assert limited.steps[-1].slots == () or limited.steps[-1].use.denials == len(refused)


def test_code_that_does_not_fit_is_unloaded_again(node: Node, build: Build) -> None:
    limited = walk(node, build, "module_steps", "code", tenant=tenant_of(node, 1024 * MIB))

    use = limited["loaded"].use
    assert limited["module"].answer == "ERROR_OUT_OF_MEMORY"
    assert 1020 * MIB < use.used_bytes + use.overhead_bytes <= 1024 * MIB


def test_local_memory_is_charged_when_a_function_is_found(node: Node, build: Build) -> None:
    native = walk(node, build, "module_steps", "local", tenant=None)

    limited = walk(node, build, "module_steps", "local", tenant=tenant_of(node, 8192 * MIB))

    found = [step.fell_kib or 0 for step in limited.steps if step.name == "found"]
    run = [step.fell_kib or 0 for step in native.steps if step.name == "run"]
    assert found == run[: len(found)]
    assert found[3] - found[0] == LOCAL_THREADS * (16384 - STACK_BYTES) // 1024
    ahead = [step.use.ahead_bytes for step in limited.steps if step.name == "found"]
    assert ahead[1] == LOCAL_THREADS * (4096 - STACK_BYTES)
    assert ahead[3] == LOCAL_THREADS * (16384 - 4096), "what ran is seen on the card"
    assert limited["local_256k"].answer == "ERROR_OUT_OF_MEMORY"
    assert limited.answers()[:4] == native.answers()[:4]


def test_what_a_function_needs_is_kept_for_it(node: Node, build: Build) -> None:
    limited = walk(node, build, "module_steps", "claim", tenant=tenant_of(node, 6144 * MIB))

    use = limited["run-full"].use
    assert limited["over"].answer == "ERROR_OUT_OF_MEMORY"
    assert use.used_bytes > 1024 * MIB
    assert use.used_bytes + use.overhead_bytes <= 6144 * MIB
