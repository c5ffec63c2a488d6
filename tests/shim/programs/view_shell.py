"""Evaluates a Python expression per line of standard input, with the functions below at hand; answers in JSON.

It reaches CUDA and NVML as Python programs do, through ctypes and pynvml.
"""

import ctypes
import json
import os
import struct
import sys
import threading

import pynvml

MIB = 1 << 20
HEAD_BYTES = 4
SIZES = {"_v2": 24, "_v3": 24, "": 16}  # of an entry in NVML's process lists, by version

libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
cuda = ctypes.CDLL("libcuda.so.1")
nvml = ctypes.CDLL("libnvidia-ml.so.1")
handles = {}


def env(name):
    """Return what C code of this process sees of a variable."""
    value = libc.getenv(name.encode())
    return None if value is None else value.decode()


def child_env(name):
    """Return what a program started through C sees of a variable."""
    with os.popen(f"printf '%s' \"${{{name}-unset}}\"") as pipe:
        return pipe.read()


def devices():
    """Return the UUIDs of CUDA's devices, in its order; an error of cuInit as its number."""
    code, count = cuda.cuInit(0), ctypes.c_int()
    if code:
        return code
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return [_uuid(i) for i in range(count.value)]


def _uuid(ordinal):
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetUuid_v2(uuid, device)
    text = bytes(uuid).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def init_together(threads):
    """Call cuInit from several threads at once; return the set of their answers."""
    barrier, codes = threading.Barrier(threads), []

    def one():
        barrier.wait()
        codes.append(cuda.cuInit(0))

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(set(codes))


def init_beside(action):
    """Call cuInit, and action while it runs."""
    codes = []
    worker = threading.Thread(target=lambda: codes.append(cuda.cuInit(0)))
    worker.start()
    threading.Event().wait(0.1)
    seen = action()
    worker.join()
    return [codes[0], seen]


def context(ordinal=0, version="_v2"):
    """Make a context on a device and leave it current."""
    device, handle = ctypes.c_int(), ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    return getattr(cuda, "cuCtxCreate" + version)(ctypes.byref(handle), 0, device)


def alloc(mib):
    """Allocate device memory in the current context."""
    pointer = ctypes.c_uint64()
    return cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(mib * MIB))


def total(ordinal=0):
    """Return a device's size by CUDA."""
    device, size = ctypes.c_int(), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    code = cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return -code if code else size.value


def total_32(ordinal=0):
    """Return a device's size by CUDA's first version of the call."""
    device, size = ctypes.c_int(), ctypes.c_uint()
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    code = cuda.cuDeviceTotalMem(ctypes.byref(size), device)
    return -code if code else size.value


def info(want_free=True, want_total=True, version="_v2"):
    """Return code, free and total of the current context's device."""
    integer = ctypes.c_size_t if version else ctypes.c_uint
    free, whole = integer(), integer()
    code = getattr(cuda, "cuMemGetInfo" + version)(
        ctypes.byref(free) if want_free else None, ctypes.byref(whole) if want_total else None
    )
    return [code, free.value, whole.value]


def nv(call, *arguments):
    """Call a function of pynvml; return what it gives, or the number of its error."""
    try:
        return getattr(pynvml, call)(*arguments)
    except pynvml.NVMLError as error:
        return -error.value


def handle(index=0):
    """Return NVML's handle of a device, by its index."""
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def uuid_of(found):
    """Return the UUID of a handle; an error number as it is."""
    return found if isinstance(found, int) else pynvml.nvmlDeviceGetUUID(found)


def enumerate_nvml():
    """Return the UUID and the index of each of NVML's devices."""
    handles = [handle(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [[pynvml.nvmlDeviceGetUUID(h), pynvml.nvmlDeviceGetIndex(h)] for h in handles]


def memory(index=0):
    """Return NVML's figures: total, used and free of version 1; total, used, free and reserved of version 2."""
    one = pynvml.nvmlDeviceGetMemoryInfo(handle(index))
    two = pynvml.nvmlDeviceGetMemoryInfo(handle(index), version=pynvml.nvmlMemory_v2)
    return [[one.total, one.used, one.free], [two.total, two.used, two.free, two.reserved]]


def processes(kind="Compute", version="_v3", room=64, buffer=True, index=0):
    """Ask NVML for a process list; return the code, the count, and pid and bytes of each entry."""
    size, count = SIZES[version], ctypes.c_uint(room)
    entries = ctypes.create_string_buffer(size * max(room, 1))
    code = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}")(
        handle(index), ctypes.byref(count), entries if buffer else None
    )
    got = range(count.value if code == 0 and buffer else 0)
    return [code, count.value, sorted(list(struct.unpack_from("=I4xQ", entries, i * size)) for i in got)]


def details(room=64, buffer=True, mode=0, version=pynvml.nvmlProcessDetailList_v1, index=0):
    """The same for the list with details."""
    entries = (pynvml.c_nvmlProcessDetail_v1_t * max(room, 1))()
    plist = pynvml.c_nvmlProcessDetailList_v1_t(version, mode, room)
    if buffer:
        plist.procArray = ctypes.cast(entries, ctypes.POINTER(pynvml.c_nvmlProcessDetail_v1_t))
    code = nvml.nvmlDeviceGetRunningProcessDetailList(handle(index), ctypes.byref(plist))
    got = plist.numProcArrayEntries if code == 0 and buffer else 0
    return [code, plist.numProcArrayEntries, sorted([e.pid, e.usedGpuMemory] for e in entries[:got])]


def neighbours(call, *first, room=0, buffer=True):
    """Ask NVML for a list of devices; return the code, the count and the UUIDs."""
    found, count = (ctypes.c_void_p * max(room, 1))(), ctypes.c_uint(room)
    code = getattr(nvml, call)(*first, ctypes.byref(count), found if buffer else None)
    got = [uuid_of(ctypes.c_void_p(found[i])) for i in range(count.value if code == 0 and room else 0)]
    return [code, count.value, got]


def by_uuid(uuid):
    """Return NVML's handle of a device, by its UUID."""
    found = ctypes.c_void_p()
    nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(found))
    return found


def sampled(index=0):
    """Return the pids of NVML's utilization samples, by both calls; an error as its number."""
    samples = nv("nvmlDeviceGetProcessUtilization", handle(index), 0)
    infos = nv("nvmlDeviceGetProcessesUtilizationInfo", handle(index), 0)
    return [found if isinstance(found, int) else sorted({s.pid for s in found}) for found in (samples, infos)]


def main():
    """Answer until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(eval(line)), flush=True)


if __name__ == "__main__":
    main()
