"""How close cards are, by what NVML and sysfs say; what they don't say is unknown and no error."""

from pathlib import Path
from typing import Any, NamedTuple

import pynvml
import pytest

from hamirt import nvml
from hamirt.topology import Link, Topology


class Pci(NamedTuple):
    busId: str  # noqa: N815  # as NVML calls it


def fail(*_: object) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def lost(*_: object) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nvml.Session:
    """A session that has read three cards, of which NVML says nothing more."""
    for name in ("nvmlDeviceGetP2PStatus", "nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetPciInfo"):
        monkeypatch.setattr(pynvml, name, fail)
    monkeypatch.setattr(nvml, "_PCI_DEVICES", tmp_path)
    made = nvml.Session()
    made._known.update({index: nvml._Known(f"card {index}", f"GPU-{index}", "H100") for index in range(3)})
    return made


def pair(one: int, other: int) -> frozenset[str]:
    return frozenset((f"GPU-{one}", f"GPU-{other}"))


@pytest.mark.parametrize("answer", [fail, lost])
def test_what_nvml_does_not_say_is_unknown(
    session: nvml.Session, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetP2PStatus", answer)

    assert session.topology() == Topology()
    assert session.topology().link("GPU-0", "GPU-1") is Link.UNKNOWN


def test_nvlink_comes_before_what_is_between_the_cards_on_the_bus(
    session: nvml.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(one: str, other: str, index: int) -> int:
        linked = {one, other} == {"card 0", "card 2"} and index == pynvml.NVML_P2P_CAPS_INDEX_NVLINK
        status: int = pynvml.NVML_P2P_STATUS_OK if linked else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED
        return status

    monkeypatch.setattr(pynvml, "nvmlDeviceGetP2PStatus", status)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTopologyCommonAncestor", lambda *_: pynvml.NVML_TOPOLOGY_SYSTEM)

    assert session.topology().links == {pair(0, 1): Link.ACROSS, pair(0, 2): Link.NVLINK, pair(1, 2): Link.ACROSS}


@pytest.mark.parametrize(
    ("level", "link"),
    [
        (pynvml.NVML_TOPOLOGY_INTERNAL, Link.SWITCH),
        (pynvml.NVML_TOPOLOGY_SINGLE, Link.SWITCH),
        (pynvml.NVML_TOPOLOGY_MULTIPLE, Link.SWITCH),
        (pynvml.NVML_TOPOLOGY_HOSTBRIDGE, Link.BRIDGE),
        (pynvml.NVML_TOPOLOGY_NODE, Link.NODE),
        (pynvml.NVML_TOPOLOGY_SYSTEM, Link.ACROSS),
        (77, Link.UNKNOWN),
    ],
)
def test_levels(session: nvml.Session, monkeypatch: pytest.MonkeyPatch, level: int, link: Link) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTopologyCommonAncestor", lambda *_: level)

    assert session.topology().link("GPU-1", "GPU-2") is link


def test_numa_nodes(session: nvml.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for address, node in (("0000:17:00.0", "1\n"), ("0000:ca:00.0", "-1\n")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "numa_node").write_text(node)
    buses = {"card 0": "00000000:17:00.0", "card 1": "00000000:CA:00.0", "card 2": "00000000:FF:00.0"}
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPciInfo", lambda handle: Pci(buses[handle]))

    assert session.topology().nodes == {"GPU-0": 1}
