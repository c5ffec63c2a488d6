"""Two containers of a real runc on one card, each with its own cap by annotation, and what both sides see.

It takes root, overlayfs and runc. A container's root file system is this machine's, under an overlay of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import GIB, MIB, MeasureError, Setup, environment, package_folder, print_bars, write
from bench.measure import Bar
from bench.process import TOP, Program, run
from bench.sampler import Sampler, Trace
from bench.share_tenants import NodeDaemon, simulated_card
from bench.supervisor_daemon import Daemon, wait_until

CAPS_BYTES = {"one": 8 * GIB, "two": 4 * GIB}
START_S, END_S, GONE_S = 120.0, 20.0, 2.0
ROOM_BYTES = 64 * MIB
CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD")
HOOK = """#!{python}
import sys
sys.path[:0] = {path!r}
from hamirt.oci import main
sys.exit(main())
"""


class Site:
    """What the containers' engine would be: the hook, the GPU's nodes, and a root file system for each container."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup, self.folder, self.root = setup, folder, folder / "root"
        self.root.mkdir(mode=0o755)
        given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        self._python = [str(package_folder().parent), str(TOP), *given]
        self._hook = folder / "hamirt-oci-hook"
        self._hook.write_text(HOOK.format(python=sys.executable, path=self._python))
        self._hook.chmod(0o755)

    def describe_card(self) -> None:
        """Write the GPU's nodes for the runc wrapper, as `hamirt cdi generate` does for an engine."""
        env = environment(self.setup, {"HAMIRT_ROOT": str(self.root), "PATH": f"{self.folder}:{os.environ['PATH']}"})
        argv = [sys.executable, "-m", "hamirt", "cdi", "generate", "--output", str(self.folder)]
        ended = run([*argv, *(["--sim"] if self.setup.sim else [])], env, START_S)
        if ended.status != 0:
            raise MeasureError(f"hamirt cdi generate: {ended.why()}")

    def runc(self, *words: str) -> list[str]:
        """Return a command line of runc's, through the wrapper."""
        wrapper = [str(self._hook), "runc", "--root", str(self.root), "--devices", str(self.folder / "hamirt.json")]
        return [*wrapper, "--", "--root", str(self.folder / "runc"), *words]

    @contextlib.contextmanager
    def container(self, name: str, cap_bytes: int) -> Iterator[Container]:
        """Have a container that fills its GPU and stays."""
        bundle = self.folder / name
        with overlay(bundle) as rootfs:
            identity = f"hamirt-{name}-{os.getpid()}"
            (bundle / "config.json").write_text(json.dumps(self._specification(rootfs, cap_bytes)))
            argv = self.runc("run", "--bundle", str(bundle), identity)
            with Program(argv, environment(self.setup)) as program:
                try:
                    yield Container(name, identity, cap_bytes, program)
                finally:
                    program.finish(END_S)
                    run(self.runc("delete", "--force", identity), environment(self.setup), END_S)

    def _specification(self, rootfs: Path, cap_bytes: int) -> dict[str, Any]:
        env = environment(self.setup)
        names = ("PATH", "HOME") if self.setup.sim else ("PATH", "HOME", "LD_LIBRARY_PATH")
        kept = [f"{name}={env[name]}" for name in names if name in env]
        bound = {*self._python, str(self.setup.programs), os.path.dirname(sys.executable)}
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
        ]
        mounts += [
            {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
            for path in sorted(bound)
            if os.path.isdir(path)
        ]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": str(rootfs)},
            "annotations": {"hamirt.io/memory": f"{cap_bytes // MIB}MiB", "hamirt.io/gpu": str(self.setup.gpu)},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [sys.executable, "-m", "tests.gpu.contained_inside"],
                "env": [*kept, f"PYTHONPATH={':'.join(self._python)}", "PYTHONUNBUFFERED=1"],
                "cwd": str(TOP),
                "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            },
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            },
        }


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs, and what is known of it."""

    name: str
    id: str
    cap_bytes: int
    program: Program

    def found(self) -> dict[str, Any] | None:
        """Return what it saw once its card is full. Raises MeasureError where it has ended."""
        for line in self.program.stdout().splitlines():
            if line.startswith("HMRESULT "):
                return dict(json.loads(line.removeprefix("HMRESULT ")))
        if not self.program.running():
            raise MeasureError(f"container {self.name}: {self.program.finish(1).why()}")
        return None

    def init(self, site: Site) -> int:
        """Return the pid of its first process, as the node sees it."""
        ended = run(site.runc("state", self.id), environment(site.setup), END_S)
        return int(json.loads(ended.stdout)["pid"]) if ended.status == 0 else 0

    def bars(self, site: Site, held_bytes: int, trace: Trace, pids: list[int]) -> list[Bar]:
        """Judge what it saw, what it held, and the pids that status shows for it."""
        inside, cap, init = self.found() or {}, self.cap_bytes, self.init(site)
        room = cap - held_bytes
        totals = {inside.get("total"), inside.get("nvml", {}).get("total")}
        smi = re.search(r"\d+MiB\s*/\s*(\d+)MiB", inside.get("smi", ""))
        own = inside.get("nvml", {}).get("pids")
        peak = trace.peak_sure()
        error = "OutOfMemoryError" if inside.get("by") == "torch" else "cuMemAlloc_v2 answered 2"
        bars = [
            _bar(f"{self.name}: footprint", f"never above {cap // MIB} MiB", f"{peak // MIB} MiB", peak <= cap),
            _bar(f"{self.name}: filled", "all but 64 MiB", f"all but {room // MIB} MiB", 0 <= room <= ROOM_BYTES),
            _bar(f"{self.name}: out of memory", error, str(inside.get("error")), inside.get("error") == error),
            _bar(f"{self.name}: size of the card in it", f"{cap // MIB} MiB", f"{totals}", totals == {cap}),
            _bar(f"{self.name}: processes in it", "[1]", str(own), own == [1]),
            _bar(f"{self.name}: status on the node", f"[{init}]", str(pids), pids == [init]),
        ]
        if site.setup.sim:
            return bars
        fits, shown = smi is not None and int(smi[1]) == cap // MIB, smi.group() if smi else "none"
        return [*bars, _bar(f"{self.name}: nvidia-smi in it", f"/ {cap // MIB}MiB", shown, fits)]


@contextlib.contextmanager
def overlay(bundle: Path) -> Iterator[Path]:
    """Have a root file system for a container: this machine's, what is written to it apart."""
    parts = {name: bundle / name for name in ("rootfs", "changes")}
    for part in parts.values():
        part.mkdir(parents=True)
    with mounted(["-t", "tmpfs", "tmpfs", str(parts["changes"])]):
        upper, work = parts["changes"] / "upper", parts["changes"] / "work"
        upper.mkdir()
        work.mkdir()
        options = f"lowerdir=/,upperdir={upper},workdir={work}"
        with mounted(["-t", "overlay", "overlay", "-o", options, str(parts["rootfs"])]):
            yield parts["rootfs"]


@contextlib.contextmanager
def mounted(words: list[str]) -> Iterator[None]:
    """Have something mounted. Raises MeasureError where it can't be."""
    ended = run(["mount", *words], dict(os.environ), END_S)
    if ended.status != 0:
        raise MeasureError(f"mount {' '.join(words)}: {ended.why()}")
    try:
        yield
    finally:
        run(["umount", "-l", words[-1]], dict(os.environ), END_S)


def run_contained(setup: Setup) -> int:
    """Run it, write containers.json and return the exit status."""
    if os.geteuid() != 0 or shutil.which("runc") is None:
        raise MeasureError("containers take root and runc: put runc into PATH")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hamirt-containers-")))
        folder.chmod(0o755)
        stack.enter_context(simulated_card(setup, folder))
        site = Site(setup, folder)
        daemon = stack.enter_context(NodeDaemon(setup, site.root))
        site.describe_card()
        nvml = stack.enter_context(setup.nvml())
        baseline = nvml.memory(nvml.handle(setup.gpu)).used
        containers = [stack.enter_context(site.container(name, cap)) for name, cap in CAPS_BYTES.items()]
        samplers = [stack.enter_context(Sampler(nvml, setup.gpu, one.program.pid, baseline)) for one in containers]
        wait_until(lambda: all(one.found() for one in containers), START_S, "the containers did not fill up")
        wait_until(lambda: all(pids_of(daemon, one) for one in containers), START_S, "status shows nobody")
        bars = []
        for one, sampler in zip(containers, samplers, strict=True):
            bars += one.bars(site, sampler.tree_bytes(), sampler.trace, pids_of(daemon, one))
        bars += killed(site, daemon, *containers)
        found = {one.name: one.found() for one in containers if one.program.running()}
        traces = {one.name: sampler.trace.summary() for one, sampler in zip(containers, samplers, strict=True)}
        path = write(setup, "containers", bars, {"inside": found, "traces": traces})
    print_bars(bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def killed(site: Site, daemon: Daemon, first: Container, second: Container) -> list[Bar]:
    """Kill one container, and see its tenant go and the other stay."""
    run(site.runc("kill", first.id, "KILL"), environment(site.setup), END_S)
    start = time.monotonic()
    wait_until(lambda: first.id not in _containers(daemon), END_S, "the tenant of a killed container stays")
    took = time.monotonic() - start
    left = _containers(daemon)
    return [
        _bar("a killed container's tenant", f"gone in {GONE_S:.0f} s", f"{took:.2f} s", took <= GONE_S),
        _bar("the other one", "goes on", str(left == [second.id]), left == [second.id] and second.program.running()),
    ]


def pids_of(daemon: Daemon, one: Container) -> list[int]:
    """Return the pids that status shows for a container's tenant, as far as it knows them yet."""
    tenants = [tenant for tenant in daemon.client().node()["tenants"] if tenant["container"] == one.id]
    processes = [process for tenant in tenants for card in tenant["cards"] for process in card["processes"]]
    return [process["pid"] for process in processes if process["pid"] is not None]


def _containers(daemon: Daemon) -> list[str]:
    return [tenant["container"] for tenant in daemon.client().node()["tenants"]]


def _bar(name: str, bar: str, measured: str, reached: bool) -> Bar:
    return Bar(name, bar, measured, "pass" if reached else "fail")
