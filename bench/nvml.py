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
GPM_VERSION, GPM_ROOM = 1, 210
GRAPHICS_UTIL, SM_UTIL = 1, 2
"""Of the counters over time (GPM), nvml.h's NVML_GPM_METRIC_..."""


class NvmlError(Exception):
    """NVML is not there or refused a call; the text names the call and NVML's code."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _GpmMetric(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint),
        ("code", ctypes.c_uint),
        ("value", ctypes.c_double),
        ("names", ctypes.c_char_p * 3),
    )


class _GpmMetrics(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("first", ctypes.c_void_p),
        ("last", ctypes.c_void_p),
        ("metrics", _GpmMetric * GPM_ROOM),
    )


@dataclass(frozen=True, slots=True)
class Busy:
    """How busy a card was between two moments, as ratios."""

    engine: float
    """The time in which any program was at work on it."""
    sm: float
    """The mean over its multiprocessors of the time in which each was at work."""


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

    def busy_mark(self, handle: Any) -> Any:
        """Return a mark of the card's counters for `busy_between`, None where the driver or the card has none."""
        mark = ctypes.c_void_p()
        if self._code("nvmlGpmSampleAlloc", ctypes.byref(mark)) != SUCCESS:
            return None
        if self._code("nvmlGpmSampleGet", handle, mark) != SUCCESS:
            self._code("nvmlGpmSampleFree", mark)
            return None
        return mark

    def busy_between(self, first: Any, last: Any) -> Busy | None:
        """Return how busy the card was between two marks, 100 ms apart or more, and free them; None: not known."""
        asked = _GpmMetrics(GPM_VERSION, 2, first, last)
        asked.metrics[0].id, asked.metrics[1].id = GRAPHICS_UTIL, SM_UTIL
        known = first is not None and last is not None
        known = known and self._code("nvmlGpmMetricsGet", ctypes.byref(asked)) == SUCCESS
        for mark in (first, last):
            if mark is not None:
                self._code("nvmlGpmSampleFree", mark)
        if not known or any(asked.metrics[at].code != SUCCESS for at in (0, 1)):
            return None
        return Busy(asked.metrics[0].value / 100, asked.metrics[1].value / 100)

    def utilization(self, handle: Any) -> float:
        """Return the ratio of the last sixth of a second, or second, in which a kernel was running."""
        rates = _Rates()
        self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates))
        return float(rates.gpu) / 100

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
