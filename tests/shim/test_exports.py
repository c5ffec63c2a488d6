"""What libhamirt.so shows to the programs it is loaded into, read out of the file with nm and readelf."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from abi import entries
from tests.shim.conftest import SANITIZER, Build, Native

pytestmark = pytest.mark.skipif(bool(SANITIZER), reason="an instrumented library has its sanitizer's needs")

GLIBC = {"libc.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
# Of a library inside of somebody else's process: it ends nothing, prints nothing, and leaves its settings alone.
# (atexit is called once, by reaper.c: its thread must not call a driver that is being taken down.)
FORBIDDEN = {
    *("exit", "_exit", "_Exit", "quick_exit", "abort", "__assert_fail", "raise", "kill"),
    *("signal", "sigaction", "sigprocmask", "umask", "chdir"),
    *("printf", "__printf_chk", "vprintf", "puts", "putchar", "perror", "stdout"),
    *("malloc_usable_size", "dlsym", "dlvsym", "system", "popen"),
}


def tool(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=60).stdout


def defined(library: Path) -> set[str]:
    return {line.split()[-1].split("@")[0] for line in tool("nm", "-D", "--defined-only", library).splitlines()}


def undefined(library: Path) -> set[str]:
    return {line.split()[-1].split("@")[0] for line in tool("nm", "-D", "--undefined-only", library).splitlines()}


def dynamic(library: Path) -> str:
    return tool("readelf", "--wide", "--dynamic", library)


def section_bytes(library: Path, name: str) -> int:
    found = re.search(rf"\] {re.escape(name)}\s+\S+\s+\S+\s+\S+\s+(\w+)", tool("readelf", "--wide", "-S", library))
    return int(found[1], 16) if found else 0


def test_exports_are_the_hooks_and_two_lookups(native: Native) -> None:
    hooks = {name for library in entries.LIBRARIES for name in entries.hooked(library)}

    assert defined(native.shim) == hooks | {"dlsym", "dlvsym"}


def test_needs_only_libraries_of_glibc(native: Native) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic(native.shim)))

    assert needed <= GLIBC
    assert "libc.so.6" in needed


def test_uses_nothing_of_python_the_driver_or_what_is_forbidden(native: Native) -> None:
    used = undefined(native.shim)

    assert {name for name in used if re.match(r"_?Py|cu[A-Z]|nvml[A-Z]", name)} == set()
    assert used & FORBIDDEN == set()


def test_has_no_constructor_of_its_own(native: Native, build: Build, tmp_path: Path) -> None:
    (tmp_path / "trivial.c").write_text("int trivial(void);\nint trivial(void) { return 1; }\n")
    trivial = build(tmp_path / "trivial.c", shared=True, driver=False)

    for section in (".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors", ".init", ".fini"):
        assert section_bytes(native.shim, section) == section_bytes(trivial, section), section


def test_the_constructor_check_can_fail(build: Build, tmp_path: Path) -> None:
    (tmp_path / "eager.c").write_text(
        "int eaten;\nstatic void __attribute__((constructor)) eager(void) { eaten = 1; }\n"
    )
    (tmp_path / "trivial.c").write_text("int trivial(void);\nint trivial(void) { return 1; }\n")
    eager = build(tmp_path / "eager.c", shared=True, driver=False)
    trivial = build(tmp_path / "trivial.c", shared=True, driver=False)

    assert section_bytes(eager, ".init_array") > section_bytes(trivial, ".init_array") > 0


def test_is_safe_to_map(native: Native) -> None:
    segments = tool("readelf", "--wide", "--segments", native.shim)
    tags = dynamic(native.shim)

    stack = re.search(r"GNU_STACK\s+(?:0x\w+\s+){5}(\S+)", segments)
    assert stack is not None
    assert stack[1] == "RW"
    assert re.search(r"LOAD .* RWE ", segments) is None
    assert "TEXTREL" not in tags
    assert "RPATH" not in tags
    assert "RUNPATH" not in tags
    assert "(SONAME)             Library soname: [libhamirt.so]" in tags


def test_its_thread_local_data_fits_into_what_a_preload_gets(native: Native) -> None:
    found = re.search(r"^\s+TLS\s+(?:0x\w+\s+){3}0x(\w+)\s+0x(\w+)", tool("readelf", "-lW", native.shim), re.MULTILINE)

    assert found is not None, "hm_depth is thread-local"
    assert int(found[2], 16) <= 256


@pytest.mark.parametrize("library", entries.LIBRARIES, ids=lambda library: library.name)
def test_the_simulated_driver_has_every_entry_and_calls_itself(native: Native, library: entries.Library) -> None:
    simulated = {"cuda": native.cuda, "nvml": native.nvml}[library.name]

    own = {name for name in defined(simulated) if re.match(r"cu[A-Z]|nvml[A-Z]", name)}

    assert own >= set(entries.listed(library))
    assert "SYMBOLIC" in dynamic(simulated), "or its own calls go through the shim"
