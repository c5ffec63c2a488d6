"""`hamirt doctor`'s checks: each thing that can be wrong, with what is said of it."""

import os
from pathlib import Path

import pytest

from hamirt import __version__
from hamirt.cli import doctor
from hamirt.cli.doctor import Check, Probe
from hamirt.errors import HamirtError
from hamirt.model import Card, CardProcess, Driver, Supervisor
from hamirt.units import GIB, MIB

CARD = Card(0, "GPU-aa", "H100", 80 * GIB, 0, None, False, (CardProcess(7, None), CardProcess(8, None)))
DRIVER = Driver("580", (CARD,), simulated=False)
SILENT = HamirtError("no NVIDIA driver answers on this machine")
HELD = Probe(True, "100", "it ended with 0")
X86, ARM = (
    b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\x00" + bytes(44),
    b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\x00" + bytes(44),
)
DAEMON = Supervisor(__version__, 77, 1.0, "report")
V1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
REINSTALL = "run make build, or install hamirt again"


def level(check: Check) -> tuple[str, str]:
    """Return the level and the advice, after holding every check to what all have in common."""
    assert check.finding
    assert (check.advice is None) == (check.level == "ok")
    return check.level, check.advice or ""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(X86)
    return path


def test_driver() -> None:
    mig = Driver("580", (Card(0, "GPU-aa", "H100", 80 * GIB, 0, None, True, ()),), simulated=True)

    assert doctor.check_driver(DRIVER) == Check("driver", "ok", "driver 580: GPU 0 H100")
    assert doctor.check_driver(SILENT) == Check(
        "driver", "bad", str(SILENT), "nvidia-smi says more; --sim looks at simulated cards"
    )
    assert doctor.check_driver(Driver("580", (), simulated=False)) == Check(
        "driver", "bad", "driver 580: no GPU", "see what nvidia-smi -L says, and give this container the devices"
    )
    assert doctor.check_driver(mig) == Check(
        "driver", "warning", "SIMULATED driver 580: GPU 0 H100",
        "GPUs in MIG mode are not divided: turn it off with nvidia-smi -mig 0",
    )  # fmt: skip


def test_pids() -> None:
    idle = Driver("580", (), simulated=False)

    assert doctor.check_pids(DRIVER, {7, 8}.__contains__).finding == (
        "the 2 processes that NVML names are in this PID namespace"
    )
    assert doctor.check_pids(DRIVER, {7}.__contains__) == Check(
        "pids", "bad", "1 of 2 pids that NVML names are none here, such as 8",
        "run hamirt in the host's PID namespace (--pid=host, hostPID: true)",
    )  # fmt: skip
    assert level(doctor.check_pids(idle, {7}.__contains__)) == ("ok", "")
    assert level(doctor.check_pids(SILENT, {7}.__contains__)) == ("warning", "see driver")


def test_library(tmp_path: Path, program: Path) -> None:
    shim, foreign, text = tmp_path / "libhamirt.so", tmp_path / "foreign.so", tmp_path / "text.so"
    shim.write_bytes(X86)
    foreign.write_bytes(ARM)
    text.write_text("not a library")
    old = Probe(True, "802", "limits is of version 9")

    assert level(doctor.check_library(shim, program, HELD)) == ("ok", "")
    assert doctor.check_library(tmp_path / "none.so", program, HELD) == Check(
        "library", "bad", f"{tmp_path}/none.so can't be read (No such file or directory)", REINSTALL
    )
    for wrong in (foreign, text):
        assert doctor.check_library(wrong, program, HELD) == Check(
            "library", "bad", f"{wrong} is not built for this machine", REINSTALL
        )
    assert doctor.check_library(shim, program, old) == Check(
        "library", "bad",
        f"{shim} does not know the pages of hamirt {__version__} (limits is of version 9)", REINSTALL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shim", "probe", "expected"),
    [
        ("/a/libhamirt.so", HELD, ("ok", "")),
        ("/a b/libhamirt.so", HELD, ("bad", "install hamirt elsewhere")),
        ("/a/libhamirt.so", Probe(False, "0", "ld.so: ignored"), ("bad", f"no cap would hold: {REINSTALL}")),
        ("/a/libhamirt.so", Probe(True, None, "no libcuda.so.1"), ("warning", REINSTALL)),
        ("/a/libhamirt.so", Probe(True, "0", "it ended with 0"), ("bad", f"no cap would hold: {REINSTALL}")),
    ],
)
def test_preload(shim: str, probe: Probe, expected: tuple[str, str]) -> None:
    assert level(doctor.check_preload(Path(shim), probe)) == expected


def test_ld_so_preload(tmp_path: Path, program: Path) -> None:
    shim, foreign = tmp_path / "libhamirt.so", tmp_path / "foreign.so"
    shim.write_bytes(X86)
    foreign.write_bytes(ARM)
    preload = tmp_path / "ld.so.preload"

    def checked(text: str) -> Check:
        preload.write_text(text)
        return doctor.check_ld_so_preload(preload, program)

    assert level(doctor.check_ld_so_preload(preload, program)) == ("ok", "")
    assert level(checked("")) == ("ok", "")
    assert checked(f"# ours\n{shim} # the shim\n").finding.endswith("so clearing LD_PRELOAD does not lose it")
    assert checked(f"{program}\n").finding == f"{preload} names 1 libraries, and not the shim"
    advice = "put the right file there, or take the line out"
    for named, why in (
        (tmp_path / "gone.so", "No such file or directory"),
        (foreign, "it is not built for this machine"),
        (tmp_path, "Is a directory"),
    ):
        finding = f"{preload} names {named}, and programs start without it ({why})"
        assert checked(f"{shim}:{named}\n") == Check("ld.so.preload", "bad", finding, advice)


def test_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o700)

    def room(_path: Path) -> int:
        return 10 * GIB

    me = os.getuid()
    assert doctor.check_root(root, room) == Check("root", "ok", f"{root} of user {me}, 10GiB free")
    assert doctor.check_root(root / "new", room) == Check("root", "ok", f"{root}/new will be made for the first tenant")
    assert doctor.check_root(root, lambda _path: 3 * MIB + 5) == Check(
        "root", "bad", f"{root} of user {me}, 3MiB free",
        "each tenant takes 1MiB there: free some, or name another folder with HAMIRT_ROOT",
    )  # fmt: skip
    root.chmod(0o777)
    assert doctor.check_root(root, room) == Check(
        "root", "bad", f"other users can write to {root}", f"run chmod 700 {root}, or name another HAMIRT_ROOT"
    )
    (tmp_path / "file").touch()
    assert level(doctor.check_root(tmp_path / "file", room)) == ("bad", "name another one with HAMIRT_ROOT")
    assert level(doctor.check_root(tmp_path / "file" / "below", room)) == (
        "bad",
        "name another folder with HAMIRT_ROOT",
    )


def test_root_of_another_user(tmp_path: Path, root_user: None) -> None:
    os.chown(tmp_path, 12345, -1)

    check = doctor.check_root(tmp_path, lambda _path: GIB)

    assert check == Check(
        "root", "bad", f"{tmp_path} belongs to user 12345, not to you", "name another one with HAMIRT_ROOT"
    )


def test_root_that_we_may_not_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write everywhere

    there = doctor.check_root(tmp_path, lambda _path: GIB)
    missing = doctor.check_root(tmp_path / "new", lambda _path: GIB)

    assert level(there) == ("warning", "hamirt run needs a supervisor, or name another folder with HAMIRT_ROOT")
    assert level(missing) == ("bad", "name another folder with HAMIRT_ROOT")


@pytest.mark.parametrize(
    ("mounts", "files", "check"),
    [
        (V2, {}, Check("cgroups", "ok", "v2, no memory limit here")),
        (V2, {"/sys/fs/cgroup/a/b/memory.max": "max\n"}, Check("cgroups", "ok", "v2, no memory limit here")),
        (V2, {"/sys/fs/cgroup/a/b/memory.max": "1073741824\n"},
         Check("cgroups", "ok", "v2, a memory limit of 1GiB here")),
        # in a container's cgroup namespace the path is another's, and the mount shows our own at its top
        (V2, {"/sys/fs/cgroup/memory.max": "33554432\n"},
         Check("cgroups", "warning", "v2, a memory limit of 32MiB here", "give the supervisor 128MiB")),
        (V1, {"/sys/fs/cgroup/memory/c/memory.limit_in_bytes": "9223372036854771712\n"},
         Check("cgroups", "ok", "v1, no memory limit here")),
        (V1 + V2, {"/sys/fs/cgroup/memory/c/memory.limit_in_bytes": "67108864\n"},
         Check("cgroups", "warning", "v1 and v2, a memory limit of 64MiB here", "give the supervisor 128MiB")),
        ("proc /proc proc rw 0 0\nshort\n", {}, Check("cgroups", "warning", "no cgroups are mounted",
         "mount /sys/fs/cgroup here, or a container's processes are known by their parents only")),
    ],
)  # fmt: skip
def test_cgroups(mounts: str, files: dict[str, str], check: Check) -> None:
    own = "4:memory:/c\n1:cpu:/d\n0::/a/b\nnonsense\n"

    assert doctor.check_cgroups(mounts, own, lambda path: files.get(str(path))) == check


def test_clock() -> None:
    stands = doctor.check_clock((5, 5), [], supervised=False)
    late = doctor.check_clock((0, 10_000_000_000), [11_000_000_000, 7_500_000_000, 9_000_000_000], supervised=True)

    assert stands == Check(
        "clock", "bad", "CLOCK_MONOTONIC stands still",
        "leases would never end: dmesg says what is wrong with this machine's clock source",
    )  # fmt: skip
    assert late == Check(
        "clock", "bad", "2 of 3 leases ran out, the first one 2.5 s ago",
        "the supervisor hangs: start it again; tenants do not notice",
    )  # fmt: skip
    assert doctor.check_clock((0, 9), [10], supervised=True).finding == "CLOCK_MONOTONIC runs, 1 leases are fresh"
    assert level(doctor.check_clock((0, 9), [1], supervised=False)) == ("ok", "")


def test_daemon() -> None:
    root = Path("/run/hamirt")
    old = Supervisor("0.0.1", 77, 1.0, "kill")
    restart = "see its log, then end it and start it again; tenants do not notice"

    assert doctor.check_daemon(root, DAEMON) == Check("daemon", "ok", f"version {__version__}, pid 77, policy report")
    assert doctor.check_daemon(root, HamirtError("it hangs")) == Check("daemon", "bad", "it hangs", restart)
    assert doctor.check_daemon(root, None) == Check(
        "daemon", "warning", "no supervisor answers at /run/hamirt",
        "start hamirt daemon for fair shares of GPU time, live limits and metrics; caps hold without it",
    )  # fmt: skip
    assert doctor.check_daemon(root, old) == Check(
        "daemon", "warning", f"version 0.0.1, pid 77, policy kill; this is {__version__}",
        "start it again; tenants do not notice",
    )  # fmt: skip


def test_metrics() -> None:
    url = "http://127.0.0.1:9395/metrics"

    assert doctor.check_metrics(url, None) == Check("metrics", "ok", "none without a supervisor")
    assert doctor.check_metrics(url, b"# TYPE hamirt_build_info gauge\n") == Check("metrics", "ok", f"{url} answers")
    assert doctor.check_metrics(url, b"<html>") == Check(
        "metrics", "bad", f"{url} is not hamirt's", "another program has that port: see metrics_address"
    )
    assert doctor.check_metrics(url, OSError("refused")) == Check(
        "metrics", "bad", f"{url} does not answer (refused)",
        "see metrics_address in its settings and what its log says; --metrics names another URL",
    )  # fmt: skip


def test_a_pipe_gets_one_line_and_a_terminal_wraps() -> None:
    check = Check("root", "bad", "other users can write to /run/hamirt", "run chmod 700 /run/hamirt")

    assert doctor.draw(check, None, colour=False) == [
        "bad      root           other users can write to /run/hamirt; run chmod 700 /run/hamirt"
    ]
    assert doctor.draw(check, 52, colour=False) == [
        "bad      root           other users can write to",
        "                        /run/hamirt",
        "                        run chmod 700 /run/hamirt",
    ]
    first, second = doctor.draw(check, 80, colour=True)
    assert first == "\x1b[31m\x1b[1mbad      \x1b[0mroot           other users can write to /run/hamirt"
    assert second == "\x1b[2m                        run chmod 700 /run/hamirt\x1b[0m"
    assert doctor.draw(Check("clock", "ok", "runs"), 1, colour=False) == ["ok       clock          runs"]
