"""Who is who, told from what this very process holds open and mapped."""

import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hamirt import members
from hamirt.members import Anchor, Inode, judge_now
from hamirt.model import Standing

ME = os.getpid()
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def inode(path: Path) -> Inode:
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def make(folder: Path, name: str, pid: int | None = None, cgroup: str | None = None) -> tuple[Anchor, Path, Path]:
    """Return a tenant's anchor, its usage page and its `alive`."""
    usage, alive = folder / f"{name}-usage", folder / f"{name}-alive"
    usage.write_bytes(bytes(4096))
    alive.touch()
    return Anchor(name, inode(usage), inode(alive), pid, cgroup), usage, alive


def judged(*anchors: Anchor) -> tuple[Standing | None, str | None, tuple[str, ...]]:
    verdict = judge_now(anchors, ME)
    assert verdict is not None
    return verdict.standing, verdict.tenant, verdict.members


def test_a_process_is_known_by_its_start() -> None:
    me = members.read_process(ME)

    assert me is not None
    assert (me.pid, me.parent) == (ME, os.getppid())
    parent = members.read_process(os.getppid())
    assert parent is not None
    assert parent.start <= me.start
    assert members.read_process(1 << 22) is None


def test_a_descendant_is_registered_by_holding_the_page_open(tmp_path: Path) -> None:
    anchor, usage, alive = make(tmp_path, "t", pid=ME)

    with opened(alive):
        assert judged(anchor) == (Standing.UNSHIMMED, "t", ("t",))
        with opened(usage):
            assert judged(anchor) == (Standing.REGISTERED, "t", ("t",))


def test_an_init_process_is_known_by_its_start_alone(tmp_path: Path) -> None:
    me = members.read_process(ME)
    assert me is not None
    anchor = replace(make(tmp_path, "t", pid=ME)[0], start=me.start)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        child = judge_now((anchor,), program.pid)
        later = judge_now((replace(anchor, start=me.start - 1),), program.pid)

    assert child is not None
    assert (child.members, judged(anchor)[2]) == (("t",), ("t",))
    assert later is not None
    assert later.standing is Standing.FOREIGN


def test_what_lives() -> None:
    me = members.read_process(ME)
    assert me is not None

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        process = members.read_process(program.pid)
        assert process is not None
        assert members.lives(program.pid, process.start)
        program.kill()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert not members.lives(program.pid, process.start)  # a zombie does not
    assert not members.lives(ME, me.start + 1)


def test_cgroups_with_somebody_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "cgroups_of", lambda pid: ("/a/b", "", "/c") if pid == ME else ())

    assert members.living_cgroups() == {"/a", "/a/b", "/c"}


def test_a_mapping_is_enough(tmp_path: Path) -> None:
    anchor, usage, alive = make(tmp_path, "t", pid=ME)
    with opened(usage) as fd:
        address = LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)  # Python's mmap keeps a descriptor

    try:
        with opened(alive):
            assert judged(anchor) == (Standing.REGISTERED, "t", ("t",))
    finally:
        LIBC.munmap(address, 4096)


def test_a_file_name_that_imitates_a_mapping_of_the_page(tmp_path: Path) -> None:
    _, usage, _ = make(tmp_path, "t")
    device, number = inode(usage)
    liar = tmp_path / f"x {os.major(device):02x}:{os.minor(device):02x} {number} y"
    liar.write_bytes(bytes(4096))

    with opened(liar) as fd, mmap.mmap(fd, 4096):
        assert liar.name in Path("/proc/self/maps").read_text()
        assert members.held_of(ME, frozenset((inode(usage),))) == frozenset()


def test_a_pid_that_passed_to_another_process_makes_nobody_a_member(tmp_path: Path) -> None:
    anchor, _, _ = make(tmp_path, "t", pid=ME)

    assert judged(anchor) == (Standing.FOREIGN, None, ())


def test_a_process_without_a_living_parent_is_its_pages(tmp_path: Path) -> None:
    mine, usage, _ = make(tmp_path, "mine")
    other, others_usage, _ = make(tmp_path, "other")

    with opened(usage):
        assert judged(mine, other) == (Standing.REGISTERED, "mine", ())
        with opened(others_usage):
            assert judged(mine, other) == (Standing.FOREIGN, None, ())


def test_a_member_that_opens_its_neighbours_page_stays_its_own_tenants(tmp_path: Path) -> None:
    mine, _, alive = make(tmp_path, "mine", pid=ME)
    other, others_usage, _ = make(tmp_path, "other")

    with opened(alive), opened(others_usage):
        assert judged(mine, other) == (Standing.UNSHIMMED, "mine", ("mine",))


@pytest.mark.parametrize(
    ("cgroup", "found"),
    [
        ("/kube/pod1", ("t",)),
        ("/kube/pod1/", ("t",)),
        ("/kube/pod1/c1", ("t",)),
        ("/kube/pod", ()),
        ("/kube/pod1/c2", ()),
        ("/", ()),
        ("", ()),
    ],
)
def test_a_cgroup_makes_members_of_all_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, found: tuple[str, ...]
) -> None:
    anchor, _, _ = make(tmp_path, "t", cgroup=cgroup)
    monkeypatch.setattr(members, "cgroups_of", lambda pid: ("", "/kube/pod1/c1"))

    assert judged(anchor)[2] == found


def test_of_two_tenants_the_one_whose_page_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer, _, _ = make(tmp_path, "outer", cgroup="/kube")
    inner, usage, alive = make(tmp_path, "inner", pid=ME)
    monkeypatch.setattr(members, "cgroups_of", lambda pid: ("/kube/pod1",))

    with opened(alive):
        assert judged(outer, inner) == (Standing.UNSHIMMED, "outer", ("outer", "inner"))
        with opened(usage):
            assert judged(outer, inner) == (Standing.REGISTERED, "inner", ("outer", "inner"))


def test_where_we_may_not_look_nothing_is_concluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member, _, _ = make(tmp_path, "t", pid=ME, cgroup="/kube")
    monkeypatch.setattr(members, "cgroups_of", lambda pid: ("/kube",))
    monkeypatch.setattr(members, "held_of", lambda pid, wanted: None)

    assert judged(member) == (None, "t", ("t",))
    monkeypatch.setattr(members, "cgroups_of", lambda pid: ())
    assert judged(member) == (Standing.FOREIGN, None, ())


def test_a_process_that_is_gone_has_no_verdict(tmp_path: Path) -> None:
    anchor, _, _ = make(tmp_path, "t")

    assert judge_now((anchor,), 1 << 22) is None
    assert members.held_of(1 << 22, frozenset((inode(tmp_path),))) is None


def test_a_process_that_ends_is_not_taken_for_one_without_the_shim(tmp_path: Path) -> None:
    anchor, _, alive = make(tmp_path, "t", pid=ME)

    with opened(alive), subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        process = members.read_process(program.pid)
        assert process is not None
        assert program.stdin is not None
        program.stdin.close()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)  # it shows neither files nor memory any more
        verdict = members.Look((anchor,), {}).judge(process)

    assert (verdict.standing, verdict.members) == (None, ("t",))


def test_own_cgroups_are_paths() -> None:
    assert all(path == "" or path.startswith("/") for path in members.cgroups_of(ME))
