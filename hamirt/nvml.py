"""What NVML says of the driver, the cards and the processes on them. The only user of pynvml.

The simulated NVML stands in by its absolute path; one process uses either it or the driver's, never both.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pynvml

from hamirt.errors import HamirtError
from hamirt.model import Card, CardProcess, Driver

SIM_LIBRARY = "libnvidia-ml.so.1"
NO_DRIVER = "no NVIDIA driver answers on this machine"


@contextmanager
def _session(sim_dir: Path | None) -> Iterator[None]:
    if sim_dir is not None:
        path = sim_dir / SIM_LIBRARY
        assert pynvml.nvmlLib is None or pynvml.nvmlLib._name == str(path)
        try:
            pynvml.nvmlLib = ctypes.CDLL(str(path))
        except OSError as error:
            raise HamirtError(f"the simulated driver {path} can't be loaded ({error}): run make build") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise HamirtError(_why_no_driver(error)) from None
    try:
        yield
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def read_driver(sim_dir: Path | None = None) -> Driver:
    """Return the driver and its cards as they are now, of the simulated driver in `sim_dir` if one is named.

    Raises HamirtError where no driver answers.
    """
    with _session(sim_dir):
        try:
            count: int = pynvml.nvmlDeviceGetCount()
            cards = tuple(_card(index) for index in range(count))
            return Driver(_text(pynvml.nvmlSystemGetDriverVersion()), cards, simulated=sim_dir is not None)
        except pynvml.NVMLError as error:
            raise HamirtError(f"NVML failed: {error}; see what nvidia-smi says") from None


def _card(index: int) -> Card:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _memory(handle)
    return Card(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=memory.total,
        used_bytes=memory.used,
        busy_ratio=_busy(handle),
        mig=_mig(handle),
        processes=_processes(handle),
    )


def _memory(handle: Any) -> Any:
    try:  # version 2 leaves what the driver keeps for itself out of `used`, as nvidia-smi does
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _busy(handle: Any) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError:
        return None


def _mig(handle: Any) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _processes(handle: Any) -> tuple[CardProcess, ...]:
    found: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics"):
        for version in ("v3", "v2"):  # the older one for drivers before 510
            with suppress(pynvml.NVMLError):  # a list that this driver or card doesn't have
                ask = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}")
                found |= {process.pid: process.usedGpuMemory for process in ask(handle)}
                break
    return tuple(CardProcess(pid, used) for pid, used in sorted(found.items()))


def _why_no_driver(error: Any) -> str:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return f"{NO_DRIVER} (libnvidia-ml.so.1 was not found): install it, or try --sim"
    if error.value in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_NO_PERMISSION):
        return f"{NO_DRIVER} ({error}): load its kernel module, or give this container the devices; or try --sim"
    return f"{NO_DRIVER} (NVML says: {error}); see what nvidia-smi says, or try --sim"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
