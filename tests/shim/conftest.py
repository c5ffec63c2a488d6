"""What the shim's tests share: C programs built on demand, simulated cards, tenants, and programs run in them.

HAMIRT_SANITIZE=address|thread runs everything with the instrumented libraries of `make sanitize`; HAMIRT_NATIVE names
another folder with libhamirt.so and sim/.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).resolve().parent / "programs"
sys.path.insert(0, str(TOP))  # abi/ is no installed package

from hamirt import _build, pages, region  # noqa: E402
from hamirt.model import Limit, Limits, Usage  # noqa: E402

MIB = 1 << 20
CARD_BYTES = 81559 * MIB
TIMEOUT_S = 60
SANITIZER = os.environ.get("HAMIRT_SANITIZE", "")

# The shim holds more locks at a fork than the deadlock detector can count.
SANITIZER_OPTIONS = {
    "address": {"ASAN_OPTIONS": "exitcode=77:detect_leaks=0:detect_stack_use_after_return=1"},
    "thread": {"TSAN_OPTIONS": "exitcode=77:detect_deadlocks=0"},
}

# A run must not inherit a tenant, a driver's settings or a preload from whoever runs the tests.
_FOREIGN = ("HAMIRT_", "CUDA_", "LD_", "GPU_CORE", "NVIDIA_", "ASAN_", "TSAN_")


def card_uuid(index: int) -> str:
    """Return the UUID of a simulated card."""
    return f"GPU-5a1e0000-0000-4000-8000-{index:012x}"


@dataclass(frozen=True, slots=True)
class Native:
    """The libraries under test."""

    folder: Path

    @property
    def shim(self) -> Path:
        return self.folder / "libhamirt.so"

    @property
    def cuda(self) -> Path:
        return self.folder / "sim" / "libcuda.so.1"

    @property
    def nvml(self) -> Path:
        return self.folder / "sim" / "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as `hamirt run` would set it up, without its parent process."""

    folder: Path
    limits: Limits

    @property
    def limits_page(self) -> Path:
        return self.folder / "ro" / "limits"

    @property
    def usage_page(self) -> Path:
        return self.folder / "rw" / "usage"

    def usage(self) -> Usage:
        """Read the usage page: the slots of living processes."""
        return region.read_usage(self.usage_page, len(self.limits.devices))

    def used_bytes(self, device: int = 0) -> int:
        """Return what the living hold of a device in allocations."""
        return sum(slot.uses[device].used_bytes for slot in self.usage().slots)


@dataclass(slots=True)
class Node:
    """Simulated cards in a folder of their own, and the programs that run on them."""

    root: Path
    native: Native
    cards: int = 1
    tenants: int = 0
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def tenant(
        self, mem: int | None = 8192 * MIB, devices: Sequence[int] = (0,), *, allow_on_error: bool = False
    ) -> Tenant:
        """Make a tenant with `mem` bytes of each of `devices`."""
        folder = self.root / "tenants" / f"t{self.tenants}"
        self.tenants += 1
        (folder / "ro").mkdir(parents=True)
        (folder / "rw").mkdir()
        limits = Limits(
            tenant=folder.name,
            allow_on_error=allow_on_error,
            node_devices=self.cards,
            devices=tuple(Limit(card_uuid(index), mem, CARD_BYTES, None) for index in devices),
        )
        tenant = Tenant(folder, limits)
        pages.create_limits(tenant.limits_page, limits)
        pages.create_usage(tenant.usage_page)
        return tenant

    def env(
        self,
        tenant: Tenant | None = None,
        *,
        shim: bool = True,
        preload: Sequence[Path] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Return the environment of a program; `preload` replaces the shim as the list of preloaded libraries."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        env |= {"HAMIRT_ROOT": str(self.root), "HAMIRT_SIM": str(self.cards)}
        env["LD_LIBRARY_PATH"] = str(self.native.cuda.parent)
        libraries = list(preload) if preload is not None else [self.native.shim] if shim else []
        libraries = [*sanitizer_runtime(), *libraries]
        if libraries:
            env["LD_PRELOAD"] = ":".join(map(str, libraries))
        env |= SANITIZER_OPTIONS.get(SANITIZER, {})
        if tenant is not None:
            env["HAMIRT_TENANT_DIR"] = str(tenant.folder)
        return env | dict(extra or {})

    def run(
        self,
        command: Sequence[str | Path],
        tenant: Tenant | None = None,
        *,
        shim: bool = True,
        preload: Sequence[Path] | None = None,
        extra: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; with `check` a failure shows what it printed."""
        env = self.env(tenant, shim=shim, preload=preload, extra=extra)
        argv = list(map(str, command))
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout, errors="replace")
        if check and done.returncode != 0:
            pytest.fail(f"{argv[0]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start(
        self,
        command: Sequence[str | Path],
        tenant: Tenant | None = None,
        *,
        shim: bool = True,
        extra: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program with pipes to its standard input and output; it is killed when the test ends."""
        process = subprocess.Popen(
            list(map(str, command)),
            env=self.env(tenant, shim=shim, extra=extra),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            errors="replace",
        )
        self.running.append(process)
        return process

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.running:
            process.kill()
            process.wait(TIMEOUT_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


@functools.cache
def sanitizer_runtime(sanitizer: str = SANITIZER) -> tuple[Path, ...]:
    """Return what has to be preloaded in front of a shim that is instrumented for a sanitizer: its own library, and
    programs/hostile_early.c, which says why.
    """
    if not sanitizer:
        return ()
    name = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}[sanitizer]
    found = subprocess.run(["cc", f"-print-file-name={name}"], check=True, capture_output=True, text=True, timeout=60)
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip(f"the compiler has no {name}")
    early = Path(tempfile.mkdtemp(prefix="hamirt-test-")) / "early.so"
    source = PROGRAMS / "hostile_early.c"
    command = ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-shared", "-o", str(early), str(source)]
    subprocess.run(command, check=True, timeout=60)
    atexit.register(shutil.rmtree, early.parent, ignore_errors=True)
    return (runtime.resolve(), early)


@pytest.fixture(scope="session")
def native() -> Native:
    """The shim and the simulated driver, as built by `make build` or `make sanitize`."""
    built = TOP / "build" / SANITIZER / "_native" if SANITIZER else TOP / "hamirt" / "_native"
    native = Native(Path(os.environ.get("HAMIRT_NATIVE", built)))
    for library in (native.shim, native.cuda, native.nvml):
        if not library.exists():
            pytest.fail(f"{library} is not built: run make build")
    return native


Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(native: Native, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile programs/NAME.c, linked with the simulated driver, or a library of it; once for each name and flags."""
    folder = tmp_path_factory.mktemp("programs")
    built: dict[tuple[str | Path, ...], Path] = {}

    def compile_program(source: str | Path, *flags: str, shared: bool = False, driver: bool = True) -> Path:
        path = source if isinstance(source, Path) else PROGRAMS / f"{source}.c"
        key: tuple[str | Path, ...] = (path, str(shared), str(driver), *flags)
        if key not in built:
            out = folder / f"{len(built)}-{path.stem}{'.so' if shared else ''}"
            command = ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra"]
            command += ["-shared", "-fPIC"] if shared else ["-fPIE", "-fno-plt"]
            command += [f"-I{_build.header_dir()}", f"-I{TOP / 'shim'}", f"-I{PROGRAMS}", *flags]
            command += ["-o", str(out), str(path)]
            command += [str(native.cuda), str(native.nvml)] if driver else []
            command += ["-lpthread", "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode != 0:
                pytest.fail(f"{path.name} does not compile\n{done.stderr}")
            built[key] = out
        return built[key]

    return compile_program


@pytest.fixture
def node(native: Native, tmp_path: Path) -> Iterator[Node]:
    """One simulated card; set `cards` before the first program for more."""
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    node = Node(root, native)
    yield node
    node.end()
