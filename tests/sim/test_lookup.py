"""Every entry point of the headers exists, and cuGetProcAddress finds the same ones as dlsym."""

from __future__ import annotations

import re
import subprocess
from ctypes import byref, c_int, c_uint64, c_void_p, cast
from pathlib import Path

import pytest

from tests.sim.conftest import Side, Sim, libraries
from tests.sim.driver import INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, SUCCESS

PER_THREAD = 2


def headers() -> Path:
    from hamirt import _build

    return Path(_build.header_dir())


def exported(library: str) -> set[str]:
    listing = subprocess.run(["nm", "-D", "--defined-only", libraries() / library], capture_output=True, text=True)
    return {line.split()[-1] for line in listing.stdout.splitlines()}


def declared(source: str, prefix: str) -> set[str]:
    command = ["cc", "-E", "-P", f"-I{headers()}", "-xc", "-"]
    text = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return set(re.findall(rf"\b({prefix}[A-Z]\w*)\s*\(", text))


@pytest.mark.parametrize(
    ("library", "prefix", "source"),
    [
        ("libcuda.so.1", "cu", "#define __CUDA_API_VERSION_INTERNAL\n#include <cuda.h>"),
        ("libnvidia-ml.so.1", "nvml", "#define NVML_NO_UNVERSIONED_FUNC_DEFS\n#include <nvml.h>"),
        ("libnvidia-ml.so.1", "nvml", "#include <nvml.h>"),
    ],
)
def test_exports_are_the_headers_functions(library: str, prefix: str, source: str) -> None:
    names = exported(library)

    assert declared(source, prefix) - names == set()
    assert [name for name in names if not name.startswith((prefix, "hm_sim_"))] == []


def typedefs() -> list[tuple[str, int, str]]:
    text = (headers() / "cudaTypedefs.h").read_text()
    found = set(re.findall(r"\*\s*PFN_(cu\w+?)_v(\d{4,5})(_ptsz|_ptds)?\)", text))
    return sorted((base, int(version), thread) for base, version, thread in found)


def test_get_proc_address_is_dlsym(sim: Sim) -> None:
    """Versions ascend as the suffixes do: the nth typedef of a name is its nth symbol."""

    def compare(side: Side) -> list[str]:
        wrong = []
        ranks: dict[tuple[str, str], int] = {}
        for base, version, thread in typedefs():
            rank = ranks[base, thread] = ranks.get((base, thread), 0) + 1
            names = [f"{base}_v{n}{thread}" for n in range(2, 9)]
            symbols = [base + thread, *names]
            present = [name for name in symbols if hasattr(side.cuda.lib, name)]
            expected = cast(side.cuda.lib[present[rank - 1]], c_void_p).value
            pointer, status = c_void_p(), c_int(-1)
            flags = c_uint64(PER_THREAD if thread else 0)
            side.cuda("cuGetProcAddress_v2", base.encode(), byref(pointer), version, flags, byref(status))
            if pointer.value != expected or status.value != 0:
                wrong.append(f"{base} {version} {thread}")
        return wrong

    assert len(typedefs()) > 600
    assert sim.run(compare) == []


@pytest.mark.parametrize(
    ("name", "version", "code", "status"),
    [
        ("cuMemAlloc", 13000, SUCCESS, 0),
        ("cuMemAlloc", 1000, NOT_FOUND, 2),
        ("cuMemAllocAsync", 11010, NOT_FOUND, 2),
        ("cuNoSuchThing", 13000, NOT_FOUND, 1),
        ("cuMemAlloc_v2", 13000, NOT_FOUND, 1),
        ("cuMemAlloc", 99000, INVALID_VALUE, -1),
    ],
)
def test_status_of_a_lookup(sim: Sim, name: str, version: int, code: int, status: int) -> None:
    def look_up(side: Side) -> tuple[int, int, bool]:
        pointer, seen = c_void_p(1), c_int(-1)
        answer = side.cuda.code("cuGetProcAddress_v2", name.encode(), byref(pointer), version, c_uint64(0), byref(seen))
        return answer, seen.value, pointer.value is not None

    assert sim.run(look_up) == (code, status, code != NOT_FOUND)


def test_stubs_are_counted_over_all_processes(sim: Sim) -> None:
    def call(side: Side) -> tuple[int, int, int]:
        code = side.cuda.code("cuMulticastCreate", None, None)
        side.nvml.code("nvmlDeviceGetBoardId", None, None)
        return code, side.cuda.stub_calls("cuMulticastCreate"), side.nvml.stub_calls("nvmlDeviceGetBoardId")

    assert sim.run(call) == (NOT_SUPPORTED, 1, 1)
    assert sim.run(call) == (NOT_SUPPORTED, 2, 2)


def test_export_tables_are_private(sim: Sim) -> None:
    def table(side: Side) -> int:
        return side.cuda.code("cuGetExportTable", byref(c_void_p()), bytes(16))

    assert sim.run(table) == NOT_FOUND
