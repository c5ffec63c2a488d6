"""A stand-in for a program under the shim: takes a slot of its tenant's usage page and holds it.

    python holder.py SLOT POSITION USED_MIB POOL_MIB OVERHEAD_MIB DENIALS [TENANT_FOLDER]

It says "ready" and goes on until its standard input is closed.
"""

import fcntl
import os
import struct
import sys

from hamirt._region import ffi, lib

MIB = 1 << 20
slot, position, used, pool, overhead, denials = map(int, sys.argv[1:7])
folder = sys.argv[7] if len(sys.argv) > 7 else os.environ["HAMIRT_TENANT_DIR"]
fd = os.open(f"{folder}/rw/usage", os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, lib.HM_LOCK_SLOTS + slot, 1, 0))
page = ffi.new("struct hm_usage *")
ffi.buffer(page)[:] = os.pread(fd, ffi.sizeof(page[0]), 0)
page.high_slot = max(page.high_slot, slot + 1)
entry = page.slot[slot]
entry.taken, entry.pid, entry.pid_ns, entry.command = 1, os.getpid(), os.stat("/proc/self/ns/pid").st_ino, b"holder"
use = entry.use[position]
units = (used + pool) * MIB // lib.HM_UNIT_BYTES
use.grant = units << 32 | units
use.kind_bytes[lib.HM_LINEAR], use.kind_bytes[lib.HM_POOL] = used * MIB, pool * MIB
use.overhead_bytes, use.denials, use.contexts = overhead * MIB, denials, 1
page.device[position].context_bytes = overhead * MIB
os.pwrite(fd, bytes(ffi.buffer(page)), 0)
print("ready", flush=True)
sys.stdin.read()
