"""vLLM's servers as a measurement needs them: natively or as tenants, their health, logs, memory and views.

    python3 -m bench.vllm_serve look|total

`look` prints memory and processes as NVML shows them, in nvidia-smi's form; `total` the card's bytes by CUDA. Both for
where there is no nvidia-smi and no PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import MIB, MeasureError, Setup, environment
from bench.nvml import Nvml
from bench.process import TOP, UNSHARE, Program, descendants, run
from bench.sampler import Family
from bench.supervisor_daemon import wait_until

START_S = 240.0
STOP_S = 20.0
ASK_S = 60.0
SERVER = "python3 -m vllm.entrypoints.openai.api_server"
# What vLLM needs where there is no network, and where FlashInfer and DeepGEMM are not installed.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_DEEP_GEMM": "0",
}
_TOKENS = re.compile(r"GPU KV cache size: ([\d,]+) tokens")
_COUNTER = re.compile(r"^vllm:generation_tokens_total(?:\{[^}]*\})? (\S+)", re.M)


@dataclass(frozen=True, slots=True)
class Site:
    """Where vLLM comes from: the folder it was unpacked into, the models' folder, the command of the server."""

    folder: Path | None
    """On PYTHONPATH; None: our own modules are, for a stand-in that answers as vLLM does."""
    models: Path
    server: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path | None, models: Path, server: str) -> Site:
        """Return the site that the options name. Raises MeasureError where vLLM is not there."""
        if folder is None and server == SERVER:
            raise MeasureError("--site is missing: the folder that vLLM and what it needs were unpacked into")
        if folder is not None and not (folder / "vllm").is_dir():
            raise MeasureError(
                f"there is no vLLM in {folder}: unpack it there, with what it needs, then --site {folder}"
            )
        return cls(None if folder is None else folder.resolve(), models, tuple(shlex.split(server)))

    def command(self, model: str, port: int, options: tuple[str, ...]) -> list[str]:
        """Return the command line of a server; its log goes to stdout."""
        path = f"PYTHONPATH={TOP if self.folder is None else self.folder}"
        serve = ["--model", str(self.models / model), "--served-model-name", model, "--load-format", "dummy"]
        serve += ["--host", "127.0.0.1", "--port", str(port), *options]
        return ["env", path, *self.server, *serve]


@dataclass(frozen=True, slots=True)
class Plan:
    """How an engine is to run."""

    name: str
    model: str
    options: tuple[str, ...] = ()
    tenant: tuple[str, ...] | None = None
    """Options of `hamirt run`; None: natively."""
    namespace: bool = False
    """In a PID namespace of its own, as in a container."""


class Engine:
    """A server that was started; a context manager that ends it. `ready` waits for it."""

    def __init__(self, setup: Setup, site: Site, root: Path, plan: Plan, gpus: tuple[int, ...]) -> None:
        self.plan, self.name = plan, plan.name
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._setup = setup
        command = site.command(plan.model, self.port, plan.options)
        if plan.namespace:
            command = [*UNSHARE, *command]
        extra = {**ENVIRONMENT, "HAMIRT_ROOT": str(root)}
        if plan.tenant is None:
            extra |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        else:
            given = [word for gpu in gpus for word in ("--gpu", str(gpu))]
            head = [sys.executable, "-m", "hamirt", "run", *given, "--name", plan.name, *plan.tenant]
            command = [*head, *(["--sim"] if setup.sim else []), "--", *command]
        self.argv = command
        self._begun = time.monotonic()
        self.ready_s: float | None = None
        one_log = ["sh", "-c", 'exec "$@" 2>&1', "sh", *command]
        self.program = Program(one_log, environment(setup, extra))
        self.family = Family(self.program.pid)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.program.finish(STOP_S)
        self.program.__exit__(None, None, None)

    def ready(self) -> Engine:
        """Wait until it answers. Raises MeasureError, with the log's end, where it does not come up."""
        left_s = min(START_S - (time.monotonic() - self._begun), self._setup.left_s())
        wait_until(self._healthy, left_s, f"{self.name} did not come up")
        self.ready_s = self.ready_s or round(time.monotonic() - self._begun, 1)
        return self

    def log(self) -> str:
        """Return what it wrote so far."""
        return self.program.stdout()

    def ask(self, path: str, body: object = None) -> Any:
        """Return the JSON that it answers. Raises MeasureError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ASK_S) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise MeasureError(f"{self.name} {path}: {error}") from None

    def tokens(self) -> tuple[float, float]:
        """Return the tokens that it generated so far, and when that was, by time.monotonic()."""
        before = time.monotonic()
        try:
            with urllib.request.urlopen(self.url + "/metrics", timeout=ASK_S) as answer:
                text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise MeasureError(f"{self.name} /metrics: {error}") from None
        found = _COUNTER.findall(text)
        if not found:
            raise MeasureError(f"{self.name}: /metrics has no vllm:generation_tokens_total")
        return sum(map(float, found)), (before + time.monotonic()) / 2

    def kv_tokens(self) -> int | None:
        """Return the size of its KV cache by its log, None while it does not say."""
        found = _TOKENS.findall(self.log())
        return int(found[-1].replace(",", "")) if found else None

    def on_card(self, nvml: Nvml, gpu: int) -> dict[int, int]:
        """Return the bytes of each of its processes on a card, by NVML."""
        processes = nvml.processes(nvml.handle(gpu))
        return {pid: used or 0 for pid, used in processes.items() if self.family.has(pid)}

    def cpu_s(self) -> dict[int, float]:
        """Return the processor seconds of each of its processes so far."""
        ticks = {pid: _ticks(pid) for pid in descendants(self.program.pid)}
        return {pid: count / os.sysconf("SC_CLK_TCK") for pid, count in ticks.items() if count is not None}

    def look(self) -> str:
        """Return what nvidia-smi prints for a process that joins it, as `podman exec` would. Raises MeasureError."""
        inside = self._innermost()
        command = ["nvidia-smi"] if shutil.which("nvidia-smi") else [sys.executable, "-m", "bench.vllm_serve", "look"]
        if self.plan.namespace:
            command = ["nsenter", "-t", str(inside), "-p", "-m", *command]
        try:
            words = Path(f"/proc/{inside}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError as error:
            raise MeasureError(f"{self.name} is gone: {error.strerror}") from None
        env = dict(word.split("=", 1) for word in words if "=" in word)
        # by itself the path is vLLM's, where the server's is
        env["PYTHONPATH"] = environment(self._setup)["PYTHONPATH"]
        ended = run(command, env, ASK_S)
        if ended.status != 0:
            raise MeasureError(f"{' '.join(command)} in {self.name}: {ended.why()}")
        return ended.stdout

    def kill(self) -> float:
        """Kill all its processes with SIGKILL, as a container's end does; return when, by time.monotonic()."""
        moment = time.monotonic()
        running = descendants(self.program.pid) if self.program.running() else []
        keep = self.program.pid  # `hamirt run` ends its tenant itself
        for pid in running if self.plan.tenant is not None else [*running, keep]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return moment

    def _innermost(self) -> int:
        """Return the server: the first of its processes that is neither hamirt's nor unshare's."""
        for pid in [self.program.pid, *descendants(self.program.pid)]:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(self.port) in words and "hamirt" not in words and UNSHARE[0] not in words[0]:
                    return pid
        raise MeasureError(f"{self.name} is gone: {self.log()[-500:]}")

    def _healthy(self) -> bool:
        if not self.program.running():
            raise MeasureError(f"{self.name} ended while it started: {self.log()[-1500:]}")
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False


def total_bytes(setup: Setup) -> int:
    """Return the card's memory as CUDA tells it, which vLLM takes its fraction of. Raises MeasureError."""
    chosen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(setup.gpu)}
    ended = run([sys.executable, "-m", "bench.vllm_serve", "total"], environment(setup, chosen), ASK_S)
    if ended.status != 0:
        raise MeasureError(f"CUDA does not tell the card's memory: {ended.why()}")
    return int(ended.stdout)


def _ticks(pid: int) -> int | None:
    """Return the clock ticks that a process has used, None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])


def _free_port() -> int:
    """Return a port below those that the kernel hands out, since it is taken only when the server has loaded."""
    luck = random.SystemRandom()
    while True:
        port = luck.randrange(10_000, 30_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def _look() -> str:
    with Nvml() as nvml:
        lines = []
        for index in range(nvml.count()):
            handle = nvml.handle(index)
            memory = nvml.memory(handle)
            lines.append(f"| {index}  {nvml.name(handle)} | {memory.used // MIB}MiB / {memory.total // MIB}MiB |")
            for pid, used in nvml.processes(handle).items():
                name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                lines.append(f"| {index}  N/A  N/A  {pid}  C  {name}  {(used or 0) // MIB}MiB |")
        return "\n".join(lines)


def _total() -> str:
    library = ctypes.CDLL("libcuda.so.1")
    device, total = ctypes.c_int(), ctypes.c_size_t()
    codes = [int(library.cuInit(ctypes.c_uint(0)))]
    codes.append(int(library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(0))))
    codes.append(int(library.cuDeviceTotalMem_v2(ctypes.byref(total), device)))
    if any(codes):
        raise MeasureError(f"cuInit, cuDeviceGet, cuDeviceTotalMem answered {codes}")
    return str(total.value)


def main() -> int:
    """Print what the command line asks for; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("what", choices=["look", "total"])
    try:
        print(_look() if options.parse_args().what == "look" else _total())
    except (MeasureError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
