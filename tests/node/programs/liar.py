"""A tenant's program that writes its neighbour's pid and huge numbers into slots of its own usage page, and locks them.

    python liar.py PID

It says "ready" and goes on until its standard input is closed.
"""

import fcntl
import os
import struct
import sys

from hamirt._region import ffi, lib

fd = os.open(os.environ["HAMIRT_TENANT_DIR"] + "/rw/usage", os.O_RDWR)
page = ffi.new("struct hm_usage *")
ffi.buffer(page)[:] = os.pread(fd, ffi.sizeof(page[0]), 0)
page.high_slot = 3
for index in range(page.high_slot):
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, lib.HM_LOCK_SLOTS + index, 1, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    slot = page.slot[index]
    slot.taken, slot.pid, slot.pid_ns = 1, int(sys.argv[1]), os.stat("/proc/self/ns/pid").st_ino
    slot.command = b"liar"
    use = slot.use[0]
    units = 1 << 31
    use.grant = units << 32 | units
    use.denials, use.contexts, use.overhead_bytes = 1 << 40, 1, 1 << 47
os.pwrite(fd, bytes(ffi.buffer(page)), 0)
print("ready", flush=True)
sys.stdin.read()
