"""The physical truth: a few NVML calls through ctypes, in a process that no shim was loaded into.

Kept apart from hamirt's own NVML module, so that the measure does not share a mistake with what it measures. Loads the
simulated driver's library by path where the measurement is simulated.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0
INSUFFICIENT_SIZE = 7
NOT_AVAILABLE = 0xFFFF_FFFF_FFFF_FFFF
TEXT_BYTES = 96


class NvmlError(Exception):
    """NVML is not there or refused a call; the text names the call and NVML's code."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a card."""

    total: int
    free: int
    used: int


class Nvml:
    """NVML, initialized; a context manager. `folder` holds the simulated library; None: the machine's own."""

    def __init__(self, folder: Path | None = None) -> None:
        name = LIBRARY if folder is None else str(folder / LIBRARY)
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise NvmlError(f"{name} cannot be loaded: {error}") from None
        self._call("nvmlInit_v2")
        self._room = 256

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("nvmlShutdown")

    def handle(self, index: int) -> Any:
        """Return the card's handle by its index on the node."""
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def count(self) -> int:
        """Return how many cards the node has."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def name(self, handle: Any) -> str:
        """Return the card's product name."""
        return self._text("nvmlDeviceGetName", handle)

    def uuid(self, handle: Any) -> str:
        """Return the card's UUID as nvidia-smi -L prints it."""
        return self._text("nvmlDeviceGetUUID", handle)

    def driver(self) -> str:
        """Return the driver's version."""
        return self._text("nvmlSystemGetDriverVersion")

    def memory(self, handle: Any) -> Memory:
        """Return the card's memory in bytes."""
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        return Memory(memory.total, memory.free, memory.used)

    def processes(self, handle: Any) -> dict[int, int | None]:
        """Return the bytes of each process with a compute context on the card, by pid; None: not told."""
        while True:
            count = ctypes.c_uint(self._room)
            infos = (_Process * self._room)()
            code = self._code("nvmlDeviceGetComputeRunningProcesses_v3", handle, ctypes.byref(count), infos)
            if code == SUCCESS:
                break
            if code != INSUFFICIENT_SIZE:
                raise NvmlError(f"nvmlDeviceGetComputeRunningProcesses_v3 answered {code}")
            self._room = max(self._room * 2, count.value * 2)
        return {info.pid: None if info.used == NOT_AVAILABLE else int(info.used) for info in infos[: count.value]}

    def _text(self, name: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        self._call(name, *arguments, buffer, ctypes.c_uint(TEXT_BYTES))
        return buffer.value.decode()

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._code(name, *arguments)
        if code != SUCCESS:
            raise NvmlError(f"{name} answered {code}")

    def _code(self, name: str, *arguments: Any) -> int:
        return int(getattr(self._library, name)(*arguments))
