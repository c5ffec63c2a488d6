"""Graphs: built by hand and captured, launched, updated; and the memory they hold."""

from __future__ import annotations

from ctypes import addressof, byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

from tests.sim.conftest import Side, Sim
from tests.sim.driver import (
    CONTEXT_MIB,
    DEVICE_LOCATION,
    INVALID_VALUE,
    MIB,
    NOT_SUPPORTED,
    SUCCESS,
    AllocNodeParams,
    PoolProps,
)

US = 1000
USED, RESERVED = 0, 2
KERNEL, EMPTY, CHILD, MEM_ALLOC, MEM_FREE = 0, 5, 4, 10, 11
AUTO_FREE = 1


class KernelParams:
    """CUDA_KERNEL_NODE_PARAMS of one thread, as nine words."""

    def __init__(self, function: c_void_p, *values: object) -> None:
        self.values = values
        self.pointers = (c_void_p * max(len(values), 1))(*[addressof(value) for value in values])  # type: ignore[arg-type]
        ones = 1 | 1 << 32  # two dimensions in a word; shared memory and its padding are the fifth
        self.words = (c_uint64 * 9)(function.value or 0, ones, ones, ones, 0, addressof(self.pointers), 0, 0, 0)


def instantiate(side: Side, graph: c_void_p, flags: int = 0) -> c_void_p:
    return c_void_p(side.cuda.get(c_void_p, "cuGraphInstantiateWithFlags", graph, c_uint64(flags)))


def graph_number(side: Side, attribute: int) -> int:
    value = c_uint64()
    side.cuda("cuDeviceGetGraphMemAttribute", 0, attribute, byref(value))
    return value.value // MIB


def types(side: Side, graph: c_void_p) -> list[int]:
    count = c_size_t(32)
    nodes = (c_void_p * 32)()
    side.cuda("cuGraphGetNodes", graph, nodes, byref(count))
    found = []
    for node in nodes[: count.value]:
        kind = c_int()
        side.cuda("cuGraphNodeGetType", c_void_p(node), byref(kind))
        found.append(kind.value)
    return found


def test_kernel_nodes_run_in_order(sim: Sim) -> None:
    def build(side: Side) -> list[object]:
        side.cuda.context()
        fill = side.cuda.function(side.cuda.module(), "hm_fill")
        target = side.cuda.alloc(64)
        graph = c_void_p(side.cuda.get(c_void_p, "cuGraphCreate", 0))
        second = KernelParams(fill, target, c_uint(2), c_uint64(1))
        first = KernelParams(fill, target, c_uint(1), c_uint64(2))
        late, early = c_void_p(), c_void_p()
        side.cuda("cuGraphAddKernelNode_v2", byref(late), graph, None, c_size_t(0), second.words)
        side.cuda("cuGraphAddKernelNode_v2", byref(early), graph, None, c_size_t(0), first.words)
        side.cuda("cuGraphAddDependencies", graph, byref(early), byref(late), c_size_t(1))
        executable = instantiate(side, graph)
        side.cuda("cuGraphLaunch", executable, None)
        data = side.cuda.read(target, 3)
        third = KernelParams(fill, target, c_uint(3), c_uint64(1))
        side.cuda("cuGraphExecKernelNodeSetParams_v2", executable, late, third.words)
        side.cuda("cuGraphLaunch", executable, None)
        return [types(side, graph), data, side.cuda.read(target, 3)]

    assert sim.run(build) == [[KERNEL, KERNEL], b"\x02\x01\x00", b"\x03\x01\x00"]


def test_captured_time(sim: Sim) -> None:
    def capture(side: Side) -> float:
        side.cuda.context()
        spin = side.cuda.function(side.cuda.module(), "hm_spin")
        stream, start, end = side.cuda.stream(), side.cuda.event(), side.cuda.event()
        side.cuda("cuStreamBeginCapture_v2", stream, 2)
        for _ in range(5):
            side.cuda.launch(spin, stream, c_uint64(200 * US))
        graph = c_void_p()
        side.cuda("cuStreamEndCapture", stream, byref(graph))
        executable = instantiate(side, graph)
        side.cuda("cuEventRecord", start, stream)
        for _ in range(3):
            side.cuda("cuGraphLaunch", executable, stream)
        side.cuda("cuEventRecord", end, stream)
        side.cuda("cuStreamSynchronize", stream)
        return side.cuda.elapsed_ms(start, end)

    assert sim.run(capture, HAMIRT_SIM_CLOCK="virtual") == 3.0


def test_memory_nodes_reserve_until_trimmed(sim: Sim) -> None:
    def memory(side: Side) -> list[object]:
        side.cuda.context()
        graph = c_void_p(side.cuda.get(c_void_p, "cuGraphCreate", 0))
        params = AllocNodeParams(pool=PoolProps(type=1, location=DEVICE_LOCATION), bytes=50 * MIB)
        alloc, free = c_void_p(), c_void_p()
        side.cuda("cuGraphAddMemAllocNode", byref(alloc), graph, None, c_size_t(0), byref(params))
        side.cuda("cuGraphAddMemFreeNode", byref(free), graph, byref(alloc), c_size_t(1), c_uint64(params.address))
        executable = instantiate(side, graph)
        seen = [side.cuda.used_mib()]
        for _ in range(2):
            side.cuda("cuGraphLaunch", executable, None)
            side.cuda("cuCtxSynchronize")
        seen += [side.cuda.used_mib(), graph_number(side, RESERVED), graph_number(side, USED)]
        side.cuda("cuDeviceGraphMemTrim", 0)
        return [types(side, graph), *seen, side.cuda.used_mib()]

    assert sim.run(memory) == [[MEM_ALLOC, MEM_FREE], CONTEXT_MIB, CONTEXT_MIB + 50, 50, 0, CONTEXT_MIB]


def test_captured_allocation_outlives_its_graph(sim: Sim) -> None:
    def outlive(side: Side) -> list[int]:
        side.cuda.context()
        stream, pointer, graph = side.cuda.stream(), c_uint64(), c_void_p()
        side.cuda("cuStreamBeginCapture_v2", stream, 2)
        side.cuda("cuMemAllocAsync", byref(pointer), c_size_t(10 * MIB), stream)
        side.cuda("cuStreamEndCapture", stream, byref(graph))
        executable = instantiate(side, graph)
        side.cuda("cuGraphLaunch", executable, stream)
        again = side.cuda.code("cuGraphLaunch", executable, stream)
        side.cuda("cuGraphExecDestroy", executable)
        side.cuda("cuGraphDestroy", graph)
        used = graph_number(side, USED)
        side.cuda("cuMemFreeAsync", pointer, stream)
        return [again, used, graph_number(side, USED), side.cuda.code("cuMemFree_v2", pointer)]

    assert sim.run(outlive) == [INVALID_VALUE, 10, 0, INVALID_VALUE]


def test_auto_free_on_launch(sim: Sim) -> None:
    def relaunch(side: Side) -> list[int]:
        side.cuda.context()
        stream, pointer, graph = side.cuda.stream(), c_uint64(), c_void_p()
        side.cuda("cuStreamBeginCapture_v2", stream, 2)
        side.cuda("cuMemAllocAsync", byref(pointer), c_size_t(10 * MIB), stream)
        side.cuda("cuStreamEndCapture", stream, byref(graph))
        executable = instantiate(side, graph, AUTO_FREE)
        codes = [side.cuda.code("cuGraphLaunch", executable, stream) for _ in range(3)]
        return [*codes, graph_number(side, USED), graph_number(side, RESERVED)]

    assert sim.run(relaunch) == [SUCCESS, SUCCESS, SUCCESS, 10, 10]


def test_child_graphs_and_clones(sim: Sim) -> None:
    def child(side: Side) -> list[object]:
        side.cuda.context()
        fill = side.cuda.function(side.cuda.module(), "hm_fill")
        target = side.cuda.alloc(64)
        inner = c_void_p(side.cuda.get(c_void_p, "cuGraphCreate", 0))
        node, nested = c_void_p(), c_void_p()
        params = KernelParams(fill, target, c_uint(4), c_uint64(1))
        side.cuda("cuGraphAddKernelNode_v2", byref(node), inner, None, c_size_t(0), params.words)
        outer = c_void_p(side.cuda.get(c_void_p, "cuGraphCreate", 0))
        side.cuda("cuGraphAddChildGraphNode", byref(nested), outer, None, c_size_t(0), inner)
        side.cuda("cuGraphDestroy", inner)
        clone = c_void_p(side.cuda.get(c_void_p, "cuGraphClone", outer))
        found = c_void_p()
        side.cuda("cuGraphNodeFindInClone", byref(found), nested, clone)
        side.cuda("cuGraphLaunch", instantiate(side, clone), None)
        return [types(side, clone), side.cuda.read(target, 1)]

    assert sim.run(child) == [[CHILD], b"\x04"]


def test_nodes_of_any_type(sim: Sim) -> None:
    def generic(side: Side) -> list[object]:
        side.cuda.context()
        fill = side.cuda.function(side.cuda.module(), "hm_fill")
        target, node = side.cuda.alloc(64), c_void_p()
        graph = c_void_p(side.cuda.get(c_void_p, "cuGraphCreate", 0))
        kernel = KernelParams(fill, target, c_uint(6), c_uint64(2))
        params = (c_uint64 * 32)(KERNEL, 0, *kernel.words)
        side.cuda("cuGraphAddNode", byref(node), graph, None, c_size_t(0), params)
        side.cuda("cuGraphLaunch", instantiate(side, graph), None)
        unknown = (c_uint64 * 32)(99)
        return [
            side.cuda.read(target, 3),
            side.cuda.code("cuGraphAddNode", byref(node), graph, None, c_size_t(0), unknown),
        ]

    assert sim.run(generic) == [b"\x06\x06\x00", NOT_SUPPORTED]
