"""Builds the native artefacts: the shim, the simulated driver and the cffi view of the shared pages.

The one build script: setup.py (and so pip) and `make build` both call `build()`. It is incremental: an artefact is
rebuilt when a source of it is newer or its flags changed.

    python hamirt/_build.py [--out DIR]     builds in place, or the shim and the simulated driver below DIR

Environment: CC, CFLAGS; HAMIRT_WERROR=1 turns warnings into errors; HAMIRT_SANITIZE=address|thread|undefined
instruments the shim and the simulated driver, which then go to build/SANITIZER unless --out names another folder.
HAMIRT_TARGET=x86_64|aarch64 builds with PyPI's ziglang for that machine, and for every glibc since 2.17; it goes to
build/TARGET, or into a wheel.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parent.parent
SHIM = TOP / "shim"
SIMGPU = TOP / "simgpu"

REGION = "_region.abi3.so"
SHIM_LIBRARY = "_native/libhamirt.so"
SIM_CUDA = "_native/sim/libcuda.so.1"
SIM_NVML = "_native/sim/libnvidia-ml.so.1"
ARTEFACTS = (REGION, SHIM_LIBRARY, SIM_CUDA, SIM_NVML)

BASE_FLAGS = (
    *("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g1", "-fPIC", "-shared"),
    *("-fvisibility=hidden", "-Wall", "-Wextra", "-Wl,-z,defs"),
)
SYSTEM_LIBRARIES = ("-lpthread", "-ldl")
SANITIZERS = ("address", "thread", "undefined")
TARGETS = ("x86_64", "aarch64")
TARGET_GLIBC = (2, 17)  # the first of aarch64, and manylinux2014's
COMPILE_TIMEOUT_S = 600

# The layout is shim/region.h and nothing else; these few lines are what Python can't do by itself without a copy of
# the kernel's struct flock.
REGION_SOURCE = """
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include "_arbitrate.h"

static int
hm_lock_held(int fd, int64_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}
"""
REGION_FUNCTIONS = """
int hm_lock_held(int fd, int64_t byte); /* 1, 0 or -errno */
"""
ARBITER = (
    *(SHIM / name for name in ("arbiter.c", "party.c", "turn.c", "futex.c")),
    TOP / "hamirt" / "_arbitrate.c",
)
ARBITER_HEADERS = (SHIM / "arbiter.h", TOP / "hamirt" / "_arbitrate.h")


class BuildError(Exception):
    """Why a build can't go on, in a sentence for the person who started it."""


def header_dir() -> Path:
    """Return the folder of the wheels' cuda.h and nvml.h.

    Raises BuildError where the wheels that [build-system] names are not installed.
    """
    try:
        spec = importlib.util.find_spec("nvidia.cu13")
    except ModuleNotFoundError:
        spec = None
    for root in (spec.submodule_search_locations or ()) if spec else ():
        include = Path(root) / "include"
        if (include / "cuda.h").exists() and (include / "nvml.h").exists():
            return include
    raise BuildError(
        "the CUDA headers are missing: install the wheels nvidia-cuda-runtime and nvidia-nvml-dev named in "
        "pyproject.toml, or build with `make build` or `pip install .`, which do"
    )


def cdef_text() -> str:
    """Return shim/region.h and the arbiter's headers without the preprocessor lines that cffi's cdef refuses."""
    headers = (SHIM / "region.h", *ARBITER_HEADERS)
    lines = [line for header in headers for line in header.read_text().splitlines()]
    return "\n".join(line for line in lines if not line.startswith(("#pragma", "#include")))


def build(package: Path) -> None:
    """Build all artefacts into `package`, a folder called hamirt."""
    sanitizer = _sanitizer()
    if sanitizer:
        raise BuildError(f"HAMIRT_SANITIZE={sanitizer} is not for an installed hamirt; use `make sanitize`")
    with _locked():
        _build_each((_build_region, _build_shim, _build_simulator), package)


def build_libraries(out: Path) -> None:
    """Build the shim and the simulated driver below `out`, with the instrumentation of HAMIRT_SANITIZE if set."""
    with _locked():
        _build_each((_build_shim, _build_simulator), out)


def _build_each(steps: Sequence[Callable[[Path], None]], package: Path) -> None:
    """Run every step, so that a part that can't be built doesn't keep the others from being up to date."""
    problems = []
    for step in steps:
        try:
            step(package)
        except BuildError as error:
            problems.append(str(error))
    if problems:
        raise BuildError("; ".join(problems))


def _build_region(package: Path) -> None:
    out = package / REGION
    flags = ["-O2", "-fPIC", "-shared", "-DPy_LIMITED_API=0x030a0000"]
    if _is_fresh(out, [SHIM / "region.h", SHIM / "futex.h", *ARBITER, *ARBITER_HEADERS], flags):
        return
    import cffi

    include = _python_include()
    ffi = cffi.FFI()
    ffi.cdef(cdef_text() + REGION_FUNCTIONS)
    ffi.set_source("hamirt._region", REGION_SOURCE, py_limited_api=True)
    source = _scratch_dir() / "_region.c"
    ffi.emit_c_code(str(source))
    flags += ["-std=gnu11", "-D_GNU_SOURCE"]
    _compile(out, [source, *ARBITER], flags, [f"-I{include}", f"-I{SHIM}", f"-I{TOP / 'hamirt'}"], ["-lpthread"])


def _python_include() -> Path:
    """Return the folder of Python.h.

    For a target that is a folder of links beside this Python's own pyconfig.h: what Debian has in that place is
    found by the compiler for this machine only. Our targets have types of the same sizes, and that is all that the
    stable ABI takes from pyconfig.h.
    """
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise BuildError(f"{include}/Python.h is missing: install Python's headers (Debian: python3-dev)")
    if not target():
        return include
    folder = _scratch_dir() / "python"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in include.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "pyconfig.h").unlink()
    shutil.copy(sysconfig.get_config_h_filename(), folder / "pyconfig.h")
    return folder


def _build_shim(package: Path) -> None:
    out = package / SHIM_LIBRARY
    sources = sorted([*SHIM.glob("*.c"), *SHIM.glob("*.S")])
    version_script = SHIM / "libhamirt.map"
    flags = [*BASE_FLAGS, *_variable_flags(), "-Wl,-soname,libhamirt.so"]
    flags.append(f"-Wl,--version-script={version_script}")
    if not _is_fresh(out, SHIM.iterdir(), flags):
        _compile(out, sources, flags, [f"-I{SHIM}", f"-I{header_dir()}"], SYSTEM_LIBRARIES)


def _build_simulator(package: Path) -> None:
    cuda, nvml = package / SIM_CUDA, package / SIM_NVML
    inputs = [path for path in SIMGPU.glob("*") if path.is_file()]
    flags = [*BASE_FLAGS, *_variable_flags(), "-Wl,-Bsymbolic"]
    cuda_flags = [*flags, "-Wl,-soname,libcuda.so.1"]
    nvml_flags = [*flags, "-Wl,-soname,libnvidia-ml.so.1"]
    if _is_fresh(cuda, inputs, cuda_flags) and _is_fresh(nvml, inputs, nvml_flags):
        return
    common, cuda_own, nvml_own = (sorted(SIMGPU.glob(f"{part}_*.c")) for part in ("sim", "cuda", "nvml"))
    cuda_stubs, nvml_stubs = _scratch_dir() / "cuda_stubs.c", _scratch_dir() / "nvml_stubs.c"
    headers = header_dir()
    stubs = _load_module(SIMGPU / "stubs.py")
    reader = _host_compiler()[0]  # NVIDIA's headers say the same for every target
    _require(reader)
    try:
        stubs.generate(headers, [*common, *cuda_own, *nvml_own], cuda_stubs, nvml_stubs, reader)
    except subprocess.SubprocessError as error:
        raise BuildError(f"NVIDIA's headers can't be read: {error}") from None
    include = [f"-I{SIMGPU}", f"-I{headers}"]
    libraries = [*SYSTEM_LIBRARIES, "-lm"]
    _compile(cuda, [*common, *cuda_own, cuda_stubs], cuda_flags, include, libraries)
    _compile(nvml, [*common, *nvml_own, nvml_stubs], nvml_flags, include, libraries)


def _variable_flags() -> list[str]:
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    if os.environ.get("HAMIRT_WERROR") == "1":
        flags.append("-Werror")
    sanitizer = _sanitizer()
    if sanitizer:
        flags += [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer"]
    return flags


def _sanitizer() -> str:
    name = os.environ.get("HAMIRT_SANITIZE", "")
    if name and name not in SANITIZERS:
        raise BuildError(f"HAMIRT_SANITIZE={name}: one of {', '.join(SANITIZERS)} is meant")
    return name


def target() -> str:
    """Return the machine that HAMIRT_TARGET asks to build for, "" for this one with its own compiler and glibc.

    Raises BuildError where the target is none of ours, or ziglang is missing.
    """
    name = os.environ.get("HAMIRT_TARGET", "")
    if name and name not in TARGETS:
        raise BuildError(f"HAMIRT_TARGET={name}: one of {', '.join(TARGETS)} is meant")
    if name and importlib.util.find_spec("ziglang") is None:
        raise BuildError("HAMIRT_TARGET needs the compiler of PyPI's ziglang: pip install ziglang")
    return name


def _compiler() -> list[str]:
    if not target():
        return _host_compiler()
    machine = f"{target()}-linux-gnu.{'.'.join(map(str, TARGET_GLIBC))}"
    return [sys.executable, "-m", "ziglang", "cc", "-target", machine, f"-ffile-prefix-map={TOP}=."]


def _host_compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def _require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        raise BuildError(f"there is no C compiler called {compiler}: install gcc, or name one with CC=...")


def _compile(
    out: Path, sources: Sequence[Path], flags: Sequence[str], include: Sequence[str], libraries: Sequence[str]
) -> None:
    """Compile and link `sources` in one go; `out` changes only by a rename, since programs may have it mapped."""
    if not sources:
        raise BuildError(f"there is no source for {out.name} in this tree")
    _require(_compiler()[0])
    print(f"building {out.name}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    command = [*_compiler(), *flags, *include, "-o", str(partial), *map(str, sources), *libraries]
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(TOP / "build" / "zig"), "ZIG_LOCAL_CACHE_DIR": str(TOP / "build" / "zig")}
    status = subprocess.run(command, env=cache | os.environ, timeout=COMPILE_TIMEOUT_S).returncode
    if status != 0:
        partial.unlink(missing_ok=True)
        raise BuildError(f"{out.name} was not built: {command[0]} ended with status {status}")
    partial.replace(out)
    _stamp(out).write_text(_stamp_text(flags))


def _is_fresh(out: Path, inputs: Iterable[Path], flags: Sequence[str]) -> bool:
    stamp = _stamp(out)
    if not out.exists() or not stamp.exists() or stamp.read_text() != _stamp_text(flags):
        return False
    return all(path.stat().st_mtime <= out.stat().st_mtime for path in [*inputs, Path(__file__)])


def _stamp(out: Path) -> Path:
    """Return the file that holds the flags `out` was built with; it lies outside of what a wheel carries."""
    folder = TOP / "build" / "stamps"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (str(out).strip("/").replace("/", "-") + ".flags")


def _stamp_text(flags: Sequence[str]) -> str:
    return shlex.join([*_compiler(), *flags])


def _scratch_dir() -> Path:
    folder = TOP / "build" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked() -> Iterator[None]:
    """Keep two builds in one tree apart."""
    import fcntl

    (TOP / "build").mkdir(exist_ok=True)
    with open(TOP / "build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _load_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise BuildError(f"{path} is missing from this tree")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Build as the command line says; the module's docstring is its help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="build the shim and the simulated driver below this folder")
    out = parser.parse_args().out
    try:
        if out is None and (_sanitizer() or target()):
            out = TOP / "build" / (_sanitizer() or target())
        if out is None:
            build(TOP / "hamirt")
        else:
            build_libraries(out.resolve())
    except BuildError as error:
        print(f"hamirt: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
