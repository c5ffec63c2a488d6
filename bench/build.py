"""Builds the test and measuring programs: with the C compiler, and with nvcc where there is one.

    python3 -m bench.build [--out build/gpu-programs] [--headers DIR]

Every C program of bench/probes and tests/gpu/programs gives a program of its name; those in VARIANTS also one for the
per-thread default stream (NAME_ptds) and one linked with libcuda.so.1 instead of looking it up (NAME_linked).
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SOURCES = (TOP / "bench" / "probes", TOP / "tests" / "gpu" / "programs")
GANG = TOP / "tests" / "shim" / "programs" / "gang_rank.c"  # for bench/gang.py on simulated cards
NOT_PROGRAMS = ("stub",)
VARIANTS = ("basic", "instructions", "pools", "graph_memory", "vmm_socket")
WARNINGS = ("-Wall", "-Wextra")
TIMEOUT_S = 300


class BuildError(Exception):
    """Why the programs cannot be built, in a sentence."""


def headers() -> Path:
    """Return the folder of cuda.h: the one that hamirt itself builds with, else the toolkit's. Raises BuildError."""
    try:
        return Path(importlib.import_module("hamirt._build").header_dir())
    except Exception as error:
        why = str(error)
    compiler = nvcc()
    for folder in [compiler.resolve().parent.parent / "include"] if compiler else []:
        if (folder / "cuda.h").exists():
            return folder
    raise BuildError(f"cuda.h is missing ({why}): name its folder with --headers")


def nvcc() -> Path | None:
    """Return the CUDA compiler, None where there is none."""
    for name in ("/usr/local/cuda/bin/nvcc", *sorted(map(str, Path("/usr/local").glob("cuda-*/bin/nvcc")))):
        if Path(name).exists():
            return Path(name)
    found = shutil.which("nvcc")
    return Path(found) if found else None


def build(out: Path, include: Path) -> list[str]:
    """Build everything into `out`; return the names of the .cu sources left out for want of nvcc."""
    out.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "gcc").split()
    common = [*compiler, "-std=gnu11", "-O2", *WARNINGS, f"-I{SOURCES[0]}", f"-isystem{include}"]
    stub = _stub(out, common)
    for folder in SOURCES:
        for source in sorted(folder.glob("*.c")):
            if source.stem not in NOT_PROGRAMS:
                _program(common, source, out, stub)
    _run([*common, str(GANG), "-o", str(out / GANG.stem), f"-L{stub.parent}", "-lcuda"])
    shutil.rmtree(stub.parent)
    return _runtime_programs(out)


def _stub(out: Path, common: Sequence[str]) -> Path:
    """Build the library that linked programs are linked against; its folder goes afterwards."""
    folder = out / "stub"
    folder.mkdir(exist_ok=True)
    source = str(SOURCES[0] / "stub.c")
    parts = []
    for name, flags in (("legacy", []), ("ptds", ["-DCUDA_API_PER_THREAD_DEFAULT_STREAM"])):
        part = str(folder / f"{name}.o")
        _run([*common, *flags, "-fPIC", "-c", source, "-o", part])
        parts.append(part)
    library = folder / "libcuda.so"
    _run([*common, "-shared", "-Wl,-soname,libcuda.so.1", *parts, "-o", str(library)])
    return library


def _program(common: Sequence[str], source: Path, out: Path, stub: Path) -> None:
    tail = ["-ldl", "-pthread", "-lm"]
    _run([*common, str(source), "-o", str(out / source.stem), *tail])
    if source.stem in VARIANTS:
        ptds = ["-DCUDA_API_PER_THREAD_DEFAULT_STREAM"]
        linked = ["-DHM_LINKED", f"-L{stub.parent}", "-lcuda"]
        _run([*common, *ptds, str(source), "-o", str(out / f"{source.stem}_ptds"), *tail])
        _run([*common, str(source), "-o", str(out / f"{source.stem}_linked"), *linked, *tail])


def _runtime_programs(out: Path) -> list[str]:
    compiler = nvcc()
    missing = []
    for folder in SOURCES:
        for source in sorted(folder.glob("*.cu")):
            if compiler is None:
                missing.append(source.name)
                continue
            target = str(out / source.stem)
            _run([str(compiler), "-O2", "-arch=sm_90", "-cudart", "static", str(source), "-o", target])
    return missing


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{argv[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(argv)}\n{done.stderr}")


def main() -> int:
    """Build what the options ask for; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", type=Path, default=TOP / "build" / "gpu-programs")
    options.add_argument("--headers", type=Path)
    asked = options.parse_args()
    try:
        missing = build(asked.out.resolve(), asked.headers or headers())
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if missing:
        print(f"left out, there is no nvcc: {', '.join(missing)}", file=sys.stderr)
    print(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
