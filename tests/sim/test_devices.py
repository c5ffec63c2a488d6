"""Which cards a process sees, and as what."""

from __future__ import annotations

from ctypes import byref, c_char, c_int, c_size_t, c_uint, c_void_p

import pytest

from tests.sim.conftest import Side, Sim
from tests.sim.driver import INVALID_CONTEXT, NO_DEVICE, NOT_INITIALIZED, SUCCESS, Library

U = "GPU-5a1e0000-0000-4000-8000-00000000000"


def seen(side: Side) -> list[int] | int:
    code = side.cuda.code("cuInit", 0)
    return [int(uuid[-2:], 16) for uuid in side.cuda.uuids()] if code == SUCCESS else code


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("0", [0]),
        ("2,0", [2, 0]),
        (f"{U}1", [1]),
        (f"{U}2,0", [2, 0]),
        (f"{U[:-1].lower()}", NO_DEVICE),
        ("GPU-5a1e", NO_DEVICE),
        ("1,7,0", [1]),
        ("1,-1,0", [1]),
        ("nonsense", NO_DEVICE),
        ("", NO_DEVICE),
        (" 1 , 2", [1, 2]),
    ],
)
def test_visible_devices(sim: Sim, variable: str, expected: object) -> None:
    assert sim.run(seen, HAMIRT_SIM="3", CUDA_VISIBLE_DEVICES=variable) == expected


def test_uuid_prefix_of_one_card(sim: Sim) -> None:
    assert sim.run(seen, HAMIRT_SIM="1", CUDA_VISIBLE_DEVICES="GPU-5a1e") == [0]


def test_all_cards_without_variable(sim: Sim) -> None:
    assert sim.run(seen, HAMIRT_SIM="3") == [0, 1, 2]


def test_number_of_cards_is_fixed_by_the_first(sim: Sim) -> None:
    sim.run(seen, HAMIRT_SIM="2")

    assert sim.run(seen, HAMIRT_SIM="5") == [0, 1]


def test_nothing_before_init(sim: Sim) -> None:
    def early(side: Side) -> list[int]:
        return [side.cuda.code("cuDeviceGetCount", byref(c_int())), side.cuda.code("cuCtxSynchronize")]

    assert sim.run(early) == [NOT_INITIALIZED, NOT_INITIALIZED]


def test_no_context(sim: Sim) -> None:
    def contextless(side: Side) -> int:
        side.cuda("cuInit", 0)
        return side.cuda.code("cuMemAlloc_v2", byref(c_void_p()), c_size_t(1))

    assert sim.run(contextless) == INVALID_CONTEXT


def text(library: Library, name: str, *arguments: object) -> str:
    out = (c_char * 96)()
    library(name, *arguments, out, c_uint(96))
    return out.value.decode()


def test_both_libraries_tell_the_same(sim: Sim) -> None:
    def identity(side: Side) -> tuple[str, ...]:
        device = side.nvml.device(1)
        side.cuda("cuInit", 0)
        name = (c_char * 96)()
        side.cuda("cuDeviceGetName", name, 96, 1)
        bus = (c_char * 32)()
        side.cuda("cuDeviceGetPCIBusId", bus, 32, 1)
        by_bus = c_void_p()
        side.nvml("nvmlDeviceGetHandleByPciBusId_v2", bus, byref(by_bus))
        assert by_bus.value == device.value
        assert name.value.decode() == text(side.nvml, "nvmlDeviceGetName", device)
        return (
            text(side.nvml, "nvmlDeviceGetName", device),
            text(side.nvml, "nvmlDeviceGetUUID", device),
            bus.value.decode(),
            text(side.nvml, "nvmlSystemGetDriverVersion"),
        )

    assert sim.run(identity, HAMIRT_SIM="2") == ("NVIDIA H100 80GB HBM3", f"{U}1", "0000:02:00.0", "580.159.04")


def test_versions(sim: Sim) -> None:
    def versions(side: Side) -> tuple[int, int]:
        side.nvml("nvmlInit_v2")
        return side.cuda.get(c_int, "cuDriverGetVersion"), side.nvml.get(c_int, "nvmlSystemGetCudaDriverVersion")

    assert sim.run(versions) == (13000, 13000)


def test_destroyed_context_is_no_handle(sim: Sim) -> None:
    def destroyed(side: Side) -> int:
        side.cuda("cuInit", 0)
        context = c_void_p(side.cuda.get(c_void_p, "cuCtxCreate_v2", 0, 0))
        side.cuda("cuCtxDestroy_v2", context)
        return side.cuda.code("cuCtxSetCurrent", context)

    assert sim.run(destroyed) == INVALID_CONTEXT
