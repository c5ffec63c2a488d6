"""Puts a tenant into a container that is being created: mounts below its root file system, in its mount namespace.

    /run/hamirt                     a small tmpfs, read-only, so that this folder is all that is made in the image
    /run/hamirt/ro, /run/hamirt/rw  the tenant's pages
    /run/hamirt/lib/libhamirt.so    the library
    /run/hamirt/sim, sim-state      the simulated driver's libraries and its cards, where the daemon serves those
    /etc/ld.so.preload              our line, and behind it the image's own

Paths in the image are walked as the kernel walks them for a process in the container (openat2(2), RESOLVE_IN_ROOT), so
that no symbolic link of it leads outside. It takes Linux 5.12.

The hook that uses this must start quickly: nothing is imported that costs a millisecond, `dataclasses` included.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Sequence

from hamirt.errors import HamirtError

_PLACE = "run/hamirt"
_LIBRARY = "lib/libhamirt.so"
_PRELOAD = "etc/ld.so.preload"
_LINE = f"/{_PLACE}/{_LIBRARY}\n".encode()
_MOST_PRELOAD_BYTES = 1 << 16

# The C library may be too old to know these; their numbers are the same on x86-64 and aarch64.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 437, 442
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_EMPTY_PATHS = 0x04 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_RESOLVE_IN_ROOT = 0x10
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_MS_PRIVATE = 1 << 18
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # MOUNT_ATTR_*
_DATA = _NOSUID | _NODEV | _NOEXEC

_libc = ctypes.CDLL(None, use_errno=True)

Source = tuple[str, str, int]
"""A path of the node, where it is to be seen below /run/hamirt, and with which attributes of a mount."""


def sources(folder: str, library: str, sim_libraries: str | None = None, sim_state: str | None = None) -> list[Source]:
    """Return what a container gets whose tenant is in `folder`."""
    found = [
        (f"{folder}/ro", "ro", _RDONLY | _DATA),
        (f"{folder}/rw", "rw", _DATA),
        (library, _LIBRARY, _RDONLY | _NOSUID | _NODEV),
    ]
    if sim_libraries is not None and sim_state is not None:
        found += [(sim_libraries, "sim", _RDONLY | _NOSUID | _NODEV), (sim_state, "sim-state", _DATA)]
    return found


class Namespace:
    """The mount namespace of a container's first process, which has not changed its root yet."""

    def __init__(self, pid: int) -> None:
        """Raises HamirtError where there is no such process, or its namespace is the node's own."""
        try:
            self._theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        except OSError as error:
            raise HamirtError(f"the container's process {pid} can't be entered: {error.strerror}") from None
        self._ours = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        if os.path.sameopenfile(self._theirs, self._ours):
            raise HamirtError(f"process {pid} has no mount namespace of its own: give the container one")

    def __enter__(self) -> None:
        """Be in it. This process must have a single thread."""
        _checked(_libc.setns(self._theirs, _CLONE_NEWNS))

    def __exit__(self, *_: object) -> None:
        _checked(_libc.setns(self._ours, _CLONE_NEWNS))


def attach(namespace: Namespace, rootfs: str, wanted: Sequence[Source], mounted: list[int]) -> None:
    """Mount all of `wanted` and the preload file below `rootfs`; once is enough.

    What is mounted is noted in `mounted`, for `detach` if this or a later step fails. Raises HamirtError or OSError.
    """
    limits = os.stat(f"{wanted[0][0]}/limits")
    trees = [(_clone(path, attributes), place) for path, place, attributes in wanted]
    small = _small_tree(wanted)
    with namespace:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY)
        if _has(root, limits):
            return
        _keep_local(root, "its root file system")
        place, preload = _folder(root, _PLACE), _file(root, _PRELOAD)
        for fd, name in ((place, _PLACE), (preload, _PRELOAD)):
            _keep_local(fd, f"/{name}")
        _write(small, "ld.so.preload", _LINE + _others(preload))
        _set_attributes(small, set_=_RDONLY | _DATA)
        mounted.append(small)
        _move(small, place)
        for tree, name in trees:
            _move(tree, _open_in(root, f"{_PLACE}/{name}"))
        lines = _open_in(root, f"{_PLACE}/ld.so.preload")
        lines = _call(_OPEN_TREE, lines, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH)
        mounted.append(lines)
        _move(lines, preload)


def detach(namespace: Namespace, mounted: Sequence[int]) -> None:
    """Take away what `attach` has mounted, and all that is mounted on it."""
    with namespace:
        for tree in mounted:
            _libc.umount2(f"/proc/self/fd/{tree}".encode(), _MNT_DETACH)  # fails where it was not mounted yet


def _has(root: int, limits: os.stat_result) -> bool:
    """Return whether an earlier hook of this container has mounted the tenant with these limits."""
    try:
        return os.path.samestat(os.fstat(_open_in(root, f"{_PLACE}/ro/limits")), limits)
    except OSError:
        return False


def _small_tree(wanted: Sequence[Source]) -> int:
    """Return a tmpfs that is mounted nowhere yet, with a mount point for each source."""
    context = _call(_FSOPEN, b"tmpfs", 1)
    for key, value in ((b"source", b"hamirt"), (b"mode", b"755"), (b"size", b"256k")):
        _call(_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)
    _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
    tree = _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, _DATA)
    for path, place, _attributes in wanted:
        folder, _slash, _name = place.rpartition("/")
        if folder:
            os.mkdir(folder, dir_fd=tree)
        if os.path.isdir(path):
            os.mkdir(place, dir_fd=tree)
        else:
            _write(tree, place, b"")
    return tree


def _write(folder: int, name: str, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    os.write(fd, content)
    os.close(fd)


def _folder(root: int, path: str) -> int:
    """Open a folder of the image, made where it is missing."""
    parent, _slash, name = path.rpartition("/")
    fd = _find(root, path)
    if fd is None:
        above = _folder(root, parent) if parent else root
        advice = "have the engine mount a tmpfs on /run (podman and docker: --tmpfs /run)"
        _make(path, advice, lambda: os.mkdir(name, dir_fd=above))
        fd = _open_in(root, path)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise HamirtError(f"/{path} of the container's image is no folder: correct the image")
    return fd


def _file(root: int, path: str) -> int:
    """Open a file of the image, empty where it is missing."""
    parent, _slash, name = path.rpartition("/")
    fd = _find(root, path)
    if fd is None:
        above = _folder(root, parent)
        _make(path, f"add an empty file /{path} to the image", lambda: _write(above, name, b""))
        fd = _open_in(root, path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise HamirtError(f"/{path} of the container's image is no file: correct the image")
    return fd


def _find(root: int, path: str) -> int | None:
    """Open a path of the image, None where nothing is there."""
    try:
        return _open_in(root, path)
    except FileNotFoundError:
        return None
    except OSError as error:  # a link that leads through /proc, a file where a folder should be
        raise HamirtError(f"/{path} of the container's image can't be used ({error.strerror}): correct it") from None


def _make(path: str, advice: str, make: Callable[[], None]) -> None:
    """Make a mount point, or say what to do where it can't be made."""
    try:
        make()
    except FileExistsError:
        raise HamirtError(
            f"/{path} of the container's image is a symbolic link to nothing: correct the image"
        ) from None
    except OSError as error:
        raise HamirtError(f"/{path} can't be made in the container ({error.strerror}): {advice}") from None


def _others(preload: int) -> bytes:
    """Return the image's own lines of /etc/ld.so.preload."""
    fd = os.open(f"/proc/self/fd/{preload}", os.O_RDONLY)
    content = os.read(fd, _MOST_PRELOAD_BYTES + 1)
    os.close(fd)
    if len(content) > _MOST_PRELOAD_BYTES:
        raise HamirtError(f"/{_PRELOAD} of the container's image has more than {_MOST_PRELOAD_BYTES} bytes: shorten it")
    return content.replace(_LINE, b"")


def _keep_local(fd: int, what: str) -> None:
    """See to it that nothing mounted below `fd` is seen outside of the container too."""
    with open(f"/proc/self/fdinfo/{fd}") as info:
        number = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo") as table:
        fields = next((words for words in map(str.split, table) if words[0] == number), [])
    if not any(field.startswith("shared:") for field in fields[6 : fields.index("-") if "-" in fields else None]):
        return
    try:
        _set_attributes(fd, propagation=_MS_PRIVATE)
    except OSError:  # EINVAL: it lies below a volume's mount point
        raise HamirtError(f"the container shares {what} with the node: mount that volume rprivate or rslave") from None


def _open_in(root: int, path: str) -> int:
    """Open a path of the container for use in later calls."""
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)  # struct open_how
    return _call(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))


def _clone(path: str, attributes: int) -> int:
    """Return a mount of a path of the node that is mounted nowhere yet."""
    tree = _call(_OPEN_TREE, -1, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    _set_attributes(tree, set_=attributes)
    return tree


def _set_attributes(mount: int, set_: int = 0, propagation: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(set_, 0, propagation, 0)  # struct mount_attr
    _call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))


def _move(tree: int, target: int) -> None:
    """Mount a tree on what `target` is."""
    _call(_MOVE_MOUNT, tree, b"", target, b"", _MOVE_MOUNT_EMPTY_PATHS)


def _call(number: int, *arguments: object) -> int:
    """Make a system call; whole numbers have the width of a register."""
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        if code == errno.ENOSYS:
            raise HamirtError("the node's kernel is too old for containers with hamirt: it takes Linux 5.12")
        raise OSError(code, os.strerror(code))
    return result
