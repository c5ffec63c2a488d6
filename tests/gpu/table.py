"""The programs whose output has to be the same natively and in a tenant: one table, one line each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPILED = "compiled:"


@dataclass(frozen=True, slots=True)
class Entry:
    """One program. Its output is the lines that begin with RESULT."""

    name: str
    argv: tuple[str, ...]
    """A first word compiled:NAME stands for a program that bench/build.py builds."""
    env: Mapping[str, str] = field(default_factory=dict)
    needs: str = "driver"
    """What it stands on; a machine without it says so in the result."""
    sim: bool = False
    """It runs on the simulated card too."""
    all_cards: bool = False
    """It takes every card of the node."""
    timeout_s: float = 150.0

    def command(self, programs: Path) -> list[str]:
        """Return its command line, with compiled programs in the folder `programs`."""
        if self.argv[0].startswith(COMPILED):
            return [str(programs / self.argv[0].removeprefix(COMPILED)), *self.argv[1:]]
        return [sys.executable, str(HERE / "programs" / self.argv[0]), *self.argv[1:]]


def driver(program: str, route: str = "", sim: bool = True) -> Entry:
    """Return the entry of a compiled driver-API program; `route` is how it looks the driver up."""
    env = {"HM_ROUTE": route} if route else {}
    return Entry(f"{program} {route}".strip(), (COMPILED + program,), env, "driver", sim=sim, timeout_s=60.0)


def torch(name: str, script: str, conf: str = "", **more: str) -> Entry:
    """Return the entry of a PyTorch program; `conf` is its allocator's configuration."""
    env = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **more}
    if conf:
        env["PYTORCH_CUDA_ALLOC_CONF"] = conf
    return Entry(name, (script,), env, "torch")


JAX = {
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops=true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}

PROGRAMS = (
    driver("basic"),
    driver("basic", "proc"),
    driver("basic_ptds"),
    driver("basic_ptds", "proc"),
    driver("basic_linked"),
    driver("graph_memory"),
    driver("graph_memory", "proc"),
    driver("graph_memory_ptds"),
    driver("graph_memory_linked"),
    driver("pools"),
    driver("pools", "proc"),
    driver("pools_ptds"),
    driver("pools_linked"),
    driver("vmm_socket"),
    driver("vmm_socket", "proc"),
    driver("vmm_socket_linked"),
    driver("ipc_legacy"),
    driver("arrays"),
    driver("processes"),
    driver("managed"),
    driver("refused"),
    driver("refused", "proc"),
    Entry("cudart", (COMPILED + "runtime",), needs="a build with nvcc", timeout_s=60.0),
    Entry("cuda-python", ("cuda_python.py",), needs="cuda-bindings", sim=True, timeout_s=60.0),
    Entry("cublas", ("libraries.py", "cublas"), needs="libcublas"),
    Entry("cufft", ("libraries.py", "cufft"), needs="libcufft"),
    torch("torch", "torch_train.py"),
    torch("torch expandable_segments", "torch_train.py", "expandable_segments:True"),
    torch("torch cudaMallocAsync", "torch_train.py", "backend:cudaMallocAsync"),
    torch("torch.compile", "torch_compile.py"),
    torch("torch CUDA graphs", "torch_graphs.py"),
    torch("torch fork and spawn, IPC", "torch_processes.py"),
    Entry("triton", ("triton_program.py",), needs="triton"),
    Entry("cupy", ("cupy_program.py",), needs="cupy"),
    Entry("jax", ("jax_program.py",), JAX, needs="jax"),
    Entry("nccl", ("nccl_program.py",), needs="torch with NCCL", all_cards=True, timeout_s=200.0),
)
