"""Looks at the GPU by every way there is, while holding memory on it: run natively, in a tenant, in a PID namespace.

    python3 -m tests.gpu.views_inside HOLD_MIB

The last line is "HMRESULT " and JSON: the raw text of each command, and the figures of each library in bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.nvml import Nvml
from tests.gpu.cuda import Cuda

MIB = 1 << 20
TIMEOUT_S = 120

COMMANDS: dict[str, list[str]] = {
    "nvidia-smi": ["nvidia-smi"],
    "nvidia-smi -L": ["nvidia-smi", "-L"],
    "nvidia-smi -q": ["nvidia-smi", "-q"],
    "nvidia-smi -q -d MEMORY": ["nvidia-smi", "-q", "-d", "MEMORY"],
    "nvidia-smi --query-gpu": [
        "nvidia-smi",
        "--query-gpu=index,uuid,memory.total,memory.used,memory.free",
        "--format=csv,noheader,nounits",
    ],
    "nvidia-smi --query-compute-apps": [
        "nvidia-smi",
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
    ],
    "hamirt status --json": [sys.executable, "-m", "hamirt", "status", "--json"],
}

PYNVML = """
import json, pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
one, two = n.nvmlDeviceGetMemoryInfo(h), n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2)
print(json.dumps({"count": n.nvmlDeviceGetCount(), "uuid": n.nvmlDeviceGetUUID(h), "total": one.total,
    "used": one.used, "free": one.free, "total_v2": two.total, "used_v2": two.used, "reserved_v2": two.reserved,
    "processes": {str(p.pid): p.usedGpuMemory for p in n.nvmlDeviceGetComputeRunningProcesses(h)}}))
"""

TORCH = """
import json, torch
free, total = torch.cuda.mem_get_info()
properties = torch.cuda.get_device_properties(0)
found = {"count": torch.cuda.device_count(), "uuid": f"GPU-{properties.uuid}", "free": free, "total": total,
    "total_properties": properties.total_memory}
try:
    found["list_gpu_processes"] = torch.cuda.list_gpu_processes()
    found["used_nvml"] = torch.cuda.device_memory_used()
except Exception as error:
    found["list_gpu_processes"] = repr(error)
print(json.dumps(found))
"""

NVITOP = """
import json
from nvitop import Device
devices = Device.all()
device = devices[0]
print(json.dumps({"count": len(devices), "uuid": device.uuid(), "total": device.memory_total(),
    "used": device.memory_used(), "free": device.memory_free(),
    "processes": {str(pid): process.gpu_memory() for pid, process in device.processes().items()}}, default=str))
"""

GPUSTAT = """
import json, gpustat
found = gpustat.new_query().jsonify()["gpus"]
gpu = found[0]
print(json.dumps({"count": len(found), "uuid": gpu["uuid"], "total": gpu["memory.total"] << 20,
    "used": gpu["memory.used"] << 20,
    "processes": {str(p["pid"]): p["gpu_memory_usage"] << 20 for p in gpu["processes"] or []}}))
"""

SNIPPETS = {"pynvml": PYNVML, "torch": TORCH, "nvitop": NVITOP, "gpustat": GPUSTAT}


def command(argv: list[str]) -> dict[str, Any]:
    """Run a command; return its status and text. An absent one says so."""
    if shutil.which(argv[0]) is None:
        return {"status": None, "text": None, "error": f"{argv[0]} is not available"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"status": None, "text": None, "error": f"no answer in {TIMEOUT_S} s"}
    return {"status": done.returncode, "text": done.stdout, "error": done.stderr[-1500:]}


def snippet(source: str) -> dict[str, Any]:
    """Run a few lines of Python in a process of their own; return the object that they print, or why not."""
    done = command([sys.executable, "-c", source])
    try:
        found = json.loads((done["text"] or "").strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"not_available": (done["error"] or "").strip().splitlines()[-1:] or done["status"]}
    return found if isinstance(found, dict) else {"not_available": "printed something else"}


def attempt(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a look gives, or why it failed."""
    try:
        return look()
    except Exception as error:
        return {"not_available": repr(error)}


def driver_view(cuda: Cuda) -> dict[str, Any]:
    """Return what the CUDA driver says."""
    free, total = cuda.info()
    return {"count": cuda.count(), "uuid": cuda.uuid(), "free": free, "total": total, "total_device": cuda.total()}


def nvml_view() -> dict[str, Any]:
    """Return what NVML says, loaded by ctypes."""
    with Nvml() as nvml:
        handle = nvml.handle(0)
        memory = nvml.memory(handle)
        return {
            "count": nvml.count(),
            "uuid": nvml.uuid(handle),
            "total": memory.total,
            "used": memory.used,
            "free": memory.free,
            "processes": {str(pid): used for pid, used in nvml.processes(handle).items()},
        }


def main() -> int:
    """Hold memory and look; return the exit status."""
    hold = int(sys.argv[1]) * MIB
    cuda = Cuda()
    pointer = cuda.allocate(hold)
    found: dict[str, Any] = {"pid": os.getpid(), "hold_bytes": hold, "pid_namespace": os.readlink("/proc/self/ns/pid")}
    found["libraries"] = {"cuda": attempt(lambda: driver_view(cuda)), "nvml": attempt(nvml_view)}
    for name, source in SNIPPETS.items():
        found["libraries"][name] = snippet(source)
    found["commands"] = {name: command(argv) for name, argv in COMMANDS.items()}
    found["visible_pids"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    cuda.free(pointer)
    print("\nHMRESULT " + json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
