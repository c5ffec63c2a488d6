"""Prints where ctypes finds the names of standard input: the linker's route as Python programs use it."""

import ctypes
import sys


class DlInfo(ctypes.Structure):
    """What dladdr tells: the file, its base, the nearest symbol and its address."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def main() -> None:
    """Look every name up with CDLL on the library, and on the whole program."""
    libraries = {"cu": ctypes.CDLL("libcuda.so.1"), "nv": ctypes.CDLL("libnvidia-ml.so.1")}
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(DlInfo)]
    for name in sys.stdin.read().split():
        pointer = ctypes.cast(getattr(libraries[name[:2]], name), ctypes.c_void_p).value
        info = DlInfo()
        if pointer is None or not dladdr(pointer, ctypes.byref(info)):
            print("ctypes", name, "-", "-")
            continue
        print("ctypes", name, info.file.decode().rsplit("/", 1)[-1], f"{pointer - info.base:x}")


if __name__ == "__main__":
    main()
