"""What NVML says of the driver, the cards and the processes on them. The only user of pynvml.

The simulated NVML stands in by its absolute path; one process uses either it or the driver's, never both.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pynvml

from hamirt.errors import HamirtError
from hamirt.model import Card, CardProcess, Driver
from hamirt.topology import Link, Topology

SIM_LIBRARY = "libnvidia-ml.so.1"
_CARD_IS_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_FAILURES = (
    *_CARD_IS_GONE,
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_TIMEOUT,
    pynvml.NVML_ERROR_IRQ_ISSUE,
    pynvml.NVML_ERROR_OPERATING_SYSTEM,
    pynvml.NVML_ERROR_UNKNOWN,
)
_LINKS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: Link.SWITCH,  # on one board
    pynvml.NVML_TOPOLOGY_SINGLE: Link.SWITCH,
    pynvml.NVML_TOPOLOGY_MULTIPLE: Link.SWITCH,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: Link.BRIDGE,
    pynvml.NVML_TOPOLOGY_NODE: Link.NODE,
    pynvml.NVML_TOPOLOGY_SYSTEM: Link.ACROSS,
}
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_PCI_ADDRESS_CHARS = len("0000:17:00.0")  # NVML's domains have four digits more
_ROOM = 64  # processes on a card that are asked for at first
NO_DRIVER = "no NVIDIA driver answers on this machine"


class Session:
    """NVML kept open from one reading to the next. After a failure the next reading opens it afresh.

    It opens itself at the first reading, in whatever thread that is; use it in one thread at a time.
    """

    def __init__(self, sim_dir: Path | None = None) -> None:
        self.lost: tuple[str, ...] = ()
        """A sentence for each card that did not answer the last reading and is missing from it."""
        self._sim_dir = sim_dir
        self._open = False
        self._version = ""
        self._known: dict[int, _Known] = {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> Driver:
        """Return the driver and its cards as they are now.

        Raises HamirtError where no driver answers.
        """
        if self.lost:
            self.close()
        if not self._open:
            self._init()
        try:
            found = [self._card(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.close()
            raise HamirtError(f"NVML failed: {error}; see what nvidia-smi says") from None
        self.lost = tuple(card for card in found if isinstance(card, str))
        cards = tuple(card for card in found if isinstance(card, Card))
        return Driver(self._version, cards, simulated=self._sim_dir is not None)

    def topology(self) -> Topology:
        """Return how close the cards of the last reading are to each other; what NVML does not say is missing."""
        cards = list(self._known.values())
        nodes = {card.uuid: node for card in cards if (node := self._numa_node(card)) is not None}
        links = {
            frozenset((one.uuid, other.uuid)): link
            for one, other in combinations(cards, 2)
            if (link := _link(one.handle, other.handle)) is not None
        }
        return Topology(nodes, links)

    def close(self) -> None:
        """Let go of NVML; another reading opens it again."""
        self.lost = ()
        self._known.clear()
        if self._open:
            self._open = False
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _init(self) -> None:
        if self._sim_dir is not None:
            path = self._sim_dir / SIM_LIBRARY
            assert pynvml.nvmlLib is None or pynvml.nvmlLib._name == str(path)
            try:
                pynvml.nvmlLib = pynvml.nvmlLib or ctypes.CDLL(str(path))
            except OSError as error:
                raise HamirtError(f"the simulated driver {path} can't be loaded ({error}): run make build") from None
        try:
            pynvml.nvmlInit()
            self._open = True
            self._version = _text(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            self.close()
            raise HamirtError(_why_no_driver(error)) from None

    def _numa_node(self, card: "_Known") -> int | None:
        """Return a card's NUMA node by sysfs; that of this machine says nothing of simulated cards."""
        if self._sim_dir is None:
            with suppress(pynvml.NVMLError, OSError, ValueError):
                address = _text(pynvml.nvmlDeviceGetPciInfo(card.handle).busId).lower()[-_PCI_ADDRESS_CHARS:]
                node = int((_PCI_DEVICES / address / "numa_node").read_text())
                return node if node >= 0 else None
        return None

    def _card(self, index: int) -> Card | str:
        """Return a card, or why it doesn't answer while others may."""
        try:
            known = self._known.get(index)
            if known is None:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
                known = self._known[index] = _Known(handle, _text(uuid), _text(name))
            return _card(index, known)
        except pynvml.NVMLError as error:
            if error.value not in _CARD_IS_GONE:
                raise
            return f"GPU {index} doesn't answer ({error}): see what nvidia-smi and the kernel's log say"


@dataclass(frozen=True, slots=True)
class _Known:
    """What doesn't change of a card while NVML is open."""

    handle: Any
    uuid: str
    name: str


def read_driver(sim_dir: Path | None = None) -> Driver:
    """Return the driver and its cards as they are now, of the simulated driver in `sim_dir` if one is named.

    Raises HamirtError where no driver answers, or a card does not.
    """
    with Session(sim_dir) as session:
        driver = session.read()
        if session.lost:
            raise HamirtError("\n".join(session.lost))
        return driver


def _card(index: int, known: _Known) -> Card:
    memory = _memory(known.handle)
    return Card(
        index=index,
        uuid=known.uuid,
        name=known.name,
        total_bytes=memory.total,
        used_bytes=memory.used,
        busy_ratio=_busy(known.handle),
        mig=_mig(known.handle),
        processes=_processes(known.handle),
    )


def _link(one: Any, other: Any) -> Link | None:
    with suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK:
            return Link.NVLINK
    with suppress(pynvml.NVMLError):
        return _LINKS.get(pynvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    return None


def _memory(handle: Any) -> Any:
    # version 2 leaves what the driver keeps for itself out of `used`, as nvidia-smi does
    with _where_there_is():
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _busy(handle: Any) -> float | None:
    with _where_there_is():
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    return None


def _mig(handle: Any) -> bool:
    with _where_there_is():
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
        return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)
    return False


def _processes(handle: Any) -> tuple[CardProcess, ...]:
    found: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics"):
        for version in ("v3", "v2"):  # the older one for drivers before 510
            with _where_there_is():
                found |= _list(f"nvmlDeviceGet{kind}RunningProcesses_{version}", handle)
                break
    return tuple(CardProcess(pid, used) for pid, used in sorted(found.items()))


def _list(name: str, handle: Any) -> dict[int, int | None]:
    """Return a list of processes with what each holds. pynvml's own function asks twice, once for the length."""
    ask = getattr(pynvml.nvmlLib, name, None)
    if ask is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    count = ctypes.c_uint(_ROOM)
    infos = (pynvml.c_nvmlProcessInfo_v2_t * count.value)()  # version 3 has the same layout
    while (code := ask(handle, ctypes.byref(count), infos)) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
        count.value = 2 * max(count.value, _ROOM)  # more may come until we ask again
        infos = (pynvml.c_nvmlProcessInfo_v2_t * count.value)()
    if code != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(code)
    unknown = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
    sizes = ((info.pid, info.usedGpuMemory) for info in infos[: count.value])
    return {pid: None if size == unknown else size for pid, size in sizes}


@contextmanager
def _where_there_is() -> Iterator[None]:
    """Pass over what this driver or card doesn't have; a card that fails is not one without processes, and raises."""
    try:
        yield
    except pynvml.NVMLError as error:
        if error.value in _FAILURES:
            raise


def _why_no_driver(error: Any) -> str:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return f"{NO_DRIVER} (libnvidia-ml.so.1 was not found): install it, or try --sim"
    if error.value in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_NO_PERMISSION):
        return f"{NO_DRIVER} ({error}): load its kernel module, or give this container the devices; or try --sim"
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return f"{NO_DRIVER} ({error}): it was replaced under running programs; start them again, hamirt's daemon too"
    return f"{NO_DRIVER} (NVML says: {error}); see what nvidia-smi says, or try --sim"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
