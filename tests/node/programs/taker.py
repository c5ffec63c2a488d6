"""An ordinary program of the CUDA driver API: takes memory of the first card that it sees and holds it.

    python taker.py MIB [ignore]

It prints its pid and what cuMemAlloc answered, and goes on until its standard input is closed. With `ignore` it ignores
SIGTERM.
"""

import ctypes
import os
import signal
import sys

if sys.argv[2:] == ["ignore"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
cuda = ctypes.CDLL("libcuda.so.1")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
for call, *arguments in (
    ("cuInit", 0),
    ("cuDeviceGet", ctypes.byref(device), 0),
    ("cuDevicePrimaryCtxRetain", ctypes.byref(context), device),
    ("cuCtxSetCurrent", context),
):
    code = getattr(cuda, call)(*arguments)
    if code != 0:
        sys.exit(f"{call} answered {code}")
answer = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(int(sys.argv[1]) << 20))
print(os.getpid(), answer, flush=True)
sys.stdin.read()
