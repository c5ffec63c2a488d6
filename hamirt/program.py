"""The program that `hamirt run` is to start: found as env finds it, and checked for what a preload can't reach."""

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from hamirt.errors import NOT_EXECUTABLE, NOT_FOUND, HamirtError

_HEAD_BYTES = 4096
_PT_INTERP = 3
_MOST_INTERPRETERS = 4  # as many as the kernel follows


@dataclass(frozen=True, slots=True)
class Program:
    """A program's file, and why the shim can't be preloaded into it, None where it can."""

    path: str
    unreachable: str | None


def find(command: str, search_path: str, shim: Path) -> Program:
    """Find `command` as the shell would and look at what kind of file it is.

    Raises HamirtError with exit code 127 where there is none, and 126 where it can't be executed.
    """
    path = shutil.which(command, path=search_path)
    if path is None:
        raise _why_not_found(command, search_path)
    return Program(path, _why_unreachable(path, _machine(shim), _MOST_INTERPRETERS))


def _why_not_found(command: str, search_path: str) -> HamirtError:
    if not command:
        return HamirtError("the command is an empty word: name a program after --", NOT_FOUND)
    folders = [""] if "/" in command else search_path.split(os.pathsep)
    for folder in folders:
        candidate = os.path.join(folder, command)
        if os.path.isdir(candidate) and "/" in command:
            return HamirtError(f"{command} is a folder: name a program", NOT_EXECUTABLE)
        if os.path.isfile(candidate):
            return HamirtError(f"{candidate} is not executable: run chmod +x {candidate}", NOT_EXECUTABLE)
    where = "there is no such file" if "/" in command else "it is in no folder of PATH"
    return HamirtError(f"{command} was not found: {where}", NOT_FOUND)


def _why_unreachable(path: str, machine: bytes | None, depth: int) -> str | None:
    """Return why the dynamic linker will not preload the shim into the program at `path`.

    A script is as reachable as its interpreter. A file that can't be read is taken for an ordinary program.
    """
    reason = _why_privileged(path)
    if reason is not None:
        return reason
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(b"#!"):
                words = head.splitlines()[0][2:].decode("utf-8", "replace").split()
                return _why_unreachable(words[0], machine, depth - 1) if words and depth else None
            if not head.startswith(b"\x7fELF"):
                return None
            if machine is not None and head[4:6] + head[18:20] != machine:
                return f"{path} is built for another kind of processor than hamirt's library"
            interpreter = _interpreter(file.fileno(), head)
    except (OSError, struct.error):
        return None
    if interpreter is None:
        return f"{path} is statically linked, so nothing can be preloaded into it"
    if "musl" in interpreter:
        return f"{path} is linked with musl, and hamirt's library needs glibc"
    return None


def _why_privileged(path: str) -> str | None:
    """Return why the dynamic linker goes into secure mode, in which it ignores LD_PRELOAD."""
    try:
        status = os.stat(path)
        mode = status.st_mode
        if mode & 0o4000 and status.st_uid != os.getuid():
            return f"{path} is setuid, and the dynamic linker preloads nothing into such programs"
        if mode & 0o2000 and mode & 0o0010 and status.st_gid not in (os.getgid(), *os.getgroups()):
            return f"{path} is setgid, and the dynamic linker preloads nothing into such programs"
        if os.getuid() != 0 and "security.capability" in os.listxattr(path):
            return f"{path} has file capabilities, and the dynamic linker preloads nothing into such programs"
    except OSError:
        pass
    return None


def _machine(shim: Path) -> bytes | None:
    """Return class, byte order and machine of the shim's ELF file."""
    try:
        with open(shim, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    return head[4:6] + head[18:20] if head.startswith(b"\x7fELF") else None


def _interpreter(fd: int, head: bytes) -> str | None:
    """Return the dynamic linker that an ELF program names, None if it names none (ELF-64, little-endian)."""
    (table,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    for index in range(count):
        entry = os.pread(fd, size, table + index * size)
        kind, _flags, offset, _address, _physical, length = struct.unpack_from("<IIQQQQ", entry)
        if kind == _PT_INTERP:
            return os.pread(fd, min(length, _HEAD_BYTES), offset).rstrip(b"\0").decode("utf-8", "replace")
    return None
