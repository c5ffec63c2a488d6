"""Arrays: padded sizes, deferred mapping, data by row."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char, c_size_t, c_uint, c_void_p

from tests.sim.conftest import Side, Sim
from tests.sim.driver import CONTEXT_MIB, INVALID_VALUE, MIB, SUCCESS

UINT8, UINT32 = 1, 3
DEFERRED = 0x80


class Descriptor(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR."""

    _fields_ = (
        ("width", c_size_t),
        ("height", c_size_t),
        ("depth", c_size_t),
        ("format", c_uint),
        ("channels", c_uint),
        ("flags", c_uint),
    )


class Requirements(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("alignment", c_size_t), ("reserved", c_uint * 4))


def test_sizes(sim: Sim) -> None:
    def sizes(side: Side) -> list[int]:
        side.cuda.context()
        array = c_void_p()
        side.cuda("cuArray3DCreate_v2", byref(array), byref(Descriptor(1000, 1000, 10, UINT32, 4, 0)))
        held = side.cuda.used_mib() - CONTEXT_MIB
        side.cuda("cuArrayDestroy", array)
        return [held, side.cuda.used_mib() - CONTEXT_MIB]

    # Rows of 16000 bytes take 16384; 10 layers of 1000 rows.
    assert sim.run(sizes) == [158, 0]


def test_deferred_arrays_take_nothing_but_tell_their_size(sim: Sim) -> None:
    def deferred(side: Side) -> list[object]:
        side.cuda.context()
        answers: list[object] = []
        for flags in (DEFERRED, 0):
            array, need = c_void_p(), Requirements()
            side.cuda("cuArray3DCreate_v2", byref(array), byref(Descriptor(512, 4096, 0, UINT32, 1, flags)))
            code = side.cuda.code("cuArrayGetMemoryRequirements", byref(need), array, 0)
            answers.append((code, need.size // MIB, side.cuda.used_mib() - CONTEXT_MIB))
        return answers

    assert sim.run(deferred) == [(SUCCESS, 8, 0), (INVALID_VALUE, 0, 8)]


def test_bytes_of_an_array(sim: Sim) -> None:
    def copy(side: Side) -> list[object]:
        side.cuda.context()
        array, out = c_void_p(), (c_char * 4)()
        side.cuda("cuArray3DCreate_v2", byref(array), byref(Descriptor(8, 0, 0, UINT8, 1, 0)))
        side.cuda("cuMemcpyHtoA_v2", array, c_size_t(2), b"abcd", c_size_t(4))
        side.cuda("cuMemcpyAtoH_v2", out, array, c_size_t(3), c_size_t(4))
        return [out.raw, side.cuda.code("cuMemcpyHtoA_v2", array, c_size_t(5), b"abcd", c_size_t(4))]

    assert sim.run(copy) == [b"bcd\x00", INVALID_VALUE]
