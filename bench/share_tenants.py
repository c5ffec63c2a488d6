"""The programs of a pool: a daemon on a root of its own, tenants of `hamirt run`, and loads beside them."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.guest import NOT_AVAILABLE
from bench.machine import MeasureError, Setup, environment
from bench.process import Program, run
from bench.share_load import QUIT, LoadFile
from bench.share_rows import Member, Pool
from bench.supervisor_daemon import Daemon, wait_until
from hamirt import region
from hamirt.errors import HamirtError

READY_S = 120.0
END_S = 15.0
CALIBRATE_S = 60.0


class NodeDaemon(Daemon):
    """The daemon of a real card too."""

    def __init__(self, setup: Setup, root: Path) -> None:
        super().__init__(setup, root)
        self._sim = setup.sim

    def start(self) -> None:
        if self._sim:
            super().start()
        else:
            argv = [sys.executable, "-m", "hamirt", "daemon", "--config", str(self._settings)]
            self._program = Program(argv, self._env)


class Load:
    """A program of the pool and the files of its processes."""

    def __init__(self, setup: Setup, member: Member, root: Path, rate: float, native: bool) -> None:
        """Start it; `rate`: what calibrate returned; `native`: not as a tenant, whatever it is otherwise."""
        self.name, self.member = member.name, member
        path = root / f"{member.name}.load"
        ends = [f".{number}" for number in range(member.processes)] if member.processes > 1 else [""]
        self.files = [LoadFile(path.with_name(path.name + end)) for end in ends]
        if member.torch:
            command = [sys.executable, "-m", "bench.share_torch", str(path)]
        else:
            command = [setup.program("load"), str(path), str(member.processes), repr(rate)]
        env = environment(setup, {"HAMIRT_ROOT": str(root)})
        if native or member.options is None:
            if setup.gpu:
                env |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(setup.gpu)}
        else:
            tenant = [sys.executable, "-m", "hamirt", "run", "--gpu", str(setup.gpu), "--name", member.name]
            command = [*tenant, *member.options, *(["--sim"] if setup.sim else []), "--", *command]
        self.program = Program(command, env)

    def ready(self) -> bool:
        """Tell whether all its processes take jobs. Raises MeasureError where it ended."""
        self.check()
        return all(file.ready() for file in self.files)

    def check(self) -> None:
        """Raise MeasureError if it has ended, with its reason."""
        if not self.program.running():
            ended = self.program.finish(1)
            result = ended.result() or {}
            if ended.status == NOT_AVAILABLE and "not_available" in result:
                raise MeasureError(f"not available: {result['not_available']}")
            raise MeasureError(f"{self.name}: {ended.why()}")


class Crew:
    """All that a pool needs; a context manager."""

    def __init__(self, setup: Setup, pool: Pool, folder: Path, rate: float, native: bool) -> None:
        self.pool = pool
        self.root = folder / pool.name
        self.daemon: Daemon | None = None
        self.loads: dict[str, Load] = {}
        self.setup, self._rate, self._native = setup, rate, native
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Crew:
        with contextlib.ExitStack() as stack:
            self.root.mkdir(mode=0o700, exist_ok=True)
            self.nvml = stack.enter_context(self.setup.nvml())
            if self.pool.daemon and not self._native:
                self.daemon = stack.enter_context(NodeDaemon(self.setup, self.root))
            stack.callback(self._end_loads)
            for member in self.pool.members:
                load = Load(self.setup, member, self.root, self._rate, self._native)
                self.loads[member.name] = load
                stack.push(load.program)
            wait_until(
                lambda: all(load.ready() for load in self.loads.values()), READY_S, f"{self.pool.name}: not all ready"
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def node(self) -> Daemon:
        """Return the daemon. Raises MeasureError in a pool without one."""
        if self.daemon is None:
            raise MeasureError(f"{self.pool.name} has no daemon")
        return self.daemon

    def is_tenant(self, name: str) -> bool:
        """Tell whether a program of the pool is in a tenant."""
        return not self._native and self.loads[name].member.options is not None

    def gates(self) -> dict[str, str]:
        """Return the supervisor's gates to the tenants as they are now: of several, all are free only where it has them
        run at the same time."""
        return {name: self.page(name, "ro/limits").gate() for name in self.loads if self.is_tenant(name)}

    def page(self, name: str, which: str) -> Page:
        """Return a page of a tenant: "ro/limits" or "rw/usage"."""
        folders = list((self.root / "tenants").glob(f"{name}-*"))
        if len(folders) != 1:
            raise MeasureError(f"{len(folders)} tenants are called {name}")
        return Page(folders[0] / which)

    def _end_loads(self) -> None:
        """Have all of them end by themselves; what does not is killed afterwards."""
        for load in self.loads.values():
            for file in load.files:
                file.set(QUIT, 1)
        with contextlib.suppress(MeasureError):
            wait_until(lambda: not any(load.program.running() for load in self.loads.values()), END_S, "")


class Page:
    """A shared page of a tenant, of which single fields are read by their names in shim/region.h."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def gate(self) -> str:
        """Return the supervisor's gate to the tenant's first device: closed, windowed or free."""
        names = {getattr(region.lib, f"HM_GATE_{name.upper()}"): name for name in ("closed", "windowed", "free")}
        value = self._number("=I", "struct hm_limits", "device", 0, "gate", "word")
        return names.get(value & region.lib.HM_GATE_STATES, "unknown")

    def charged_ns(self) -> int:
        """Return the GPU time that whoever writes the gate of this page charged the tenant on its first device."""
        whole = "struct hm_limits" if self.path.name == "limits" else "struct hm_usage"
        return self._number("=Q", whole, "device", 0, "gate", "charged_ns")

    def leader(self) -> int | None:
        """Return the pid of the process that arbitrates for the tenant, None while there is none."""
        slot = self._number("=I", "struct hm_usage", "device", 0, "gate", "leader")
        return self._number("=I", "struct hm_usage", "slot", slot - 1, "pid") if 0 < slot <= region.SLOTS else None

    def first_pid(self) -> int | None:
        """Return the pid of the first process that is listed, None where there is none."""
        try:
            slots = region.read_usage(self.path, 1).slots
        except HamirtError as error:
            raise MeasureError(str(error)) from None
        return slots[0].pid if slots else None

    def _number(self, form: str, struct_name: str, *fields: str | int) -> int:
        offset = region.ffi.offsetof(struct_name, *fields)
        with open(self.path, "rb") as file:
            return int(struct.unpack(form, os.pread(file.fileno(), struct.calcsize(form), offset))[0])


def calibrate(setup: Setup) -> float:
    """Return what the load takes as its rate: iterations in a microsecond; 0 on the simulated card."""
    if setup.sim:
        return 0.0
    ended = run([setup.program("load"), "calibrate"], environment(setup), CALIBRATE_S)
    result = ended.result()
    if result is None:
        raise MeasureError(f"the load cannot be calibrated: {ended.why()}")
    return float(result["iterations_per_us"])


@contextlib.contextmanager
def simulated_card(setup: Setup, folder: Path) -> Iterator[None]:
    """Have one simulated card, for tenants and others alike, whatever the root."""
    names = {"HAMIRT_SIM": "1", "HAMIRT_SIM_STATE": str(folder / "sim")} if setup.sim else {}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
