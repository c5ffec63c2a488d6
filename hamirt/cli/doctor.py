"""`hamirt doctor`: what hamirt needs of this machine, each thing looked at once, and what to do about it.

A check judges what was found out and touches nothing but the files it is named; `examine` finds it out.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import click

from hamirt import __version__, client, config, nvml, pages, region, wire
from hamirt.errors import REFUSED, HamirtError
from hamirt.model import Driver, Limits, Supervisor
from hamirt.units import MIB, format_size

Level = Literal["ok", "warning", "bad"]
T = TypeVar("T")

_METRICS_URL = "http://127.0.0.1:9395/metrics"  # of the default metrics_address
_COLOURS: dict[Level, str] = {"ok": "green", "warning": "yellow", "bad": "red"}
_LEAST_ROOM_BYTES = 16 * MIB  # a tenant's pages take one MiB
_LEAST_MEMORY_BYTES = 128 * MIB  # the supervisor keeps below 80 MiB
_NO_LIMIT_BYTES = 1 << 60  # what cgroups v1 calls unlimited is about 1 << 63
_PROBE_SECONDS = 20
_FETCH_SECONDS = 2
_CUDA_NO_DEVICE, _CUDA_NOT_READY = "100", "802"  # cuda.h: CUDA_ERROR_NO_DEVICE, CUDA_ERROR_SYSTEM_NOT_READY
_PROGRAM = (
    "import ctypes; maps = open('/proc/self/maps').read(); print('libhamirt.so' in maps, flush=True); "
    "print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
)
_REINSTALL = "run make build, or install hamirt again"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what was found, and what to do unless all is well."""

    name: str
    level: Level
    finding: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What a program that was started with the shim, in a tenant without devices, said of itself."""

    mapped: bool
    cuda_result: str | None
    """Of cuInit of the simulated driver; None where it could not be asked."""
    message: str


def check_driver(found: Driver | HamirtError) -> Check:
    if isinstance(found, HamirtError):
        return Check("driver", "bad", str(found), "nvidia-smi says more; --sim looks at simulated cards")
    cards = ", ".join(f"GPU {card.index} {card.name}" for card in found.cards)
    text = f"{'SIMULATED ' if found.simulated else ''}driver {found.version}: {cards or 'no GPU'}"
    if not found.cards:
        return Check("driver", "bad", text, "see what nvidia-smi -L says, and give this container the devices")
    if any(card.mig for card in found.cards):
        return Check("driver", "warning", text, "GPUs in MIG mode are not divided: turn it off with nvidia-smi -mig 0")
    return Check("driver", "ok", text)


def check_pids(driver: Driver | HamirtError, exists: Callable[[int], bool]) -> Check:
    """Judge whether the processes that NVML names are in our PID namespace."""
    if isinstance(driver, HamirtError):
        return Check("pids", "warning", "not compared, since NVML does not answer", "see driver")
    shown = sorted({process.pid for card in driver.cards for process in card.processes})
    missing = [pid for pid in shown if not exists(pid)]
    if missing:
        text = f"{len(missing)} of {len(shown)} pids that NVML names are none here, such as {missing[0]}"
        return Check("pids", "bad", text, "run hamirt in the host's PID namespace (--pid=host, hostPID: true)")
    if not shown:
        return Check("pids", "ok", "NVML names no process now, so there is nothing to compare")
    return Check("pids", "ok", f"the {len(shown)} processes that NVML names are in this PID namespace")


def check_library(shim: Path, program: Path, probe: Probe) -> Check:
    """Judge the shim's file; `program` is one that runs on this machine."""
    try:
        built, machine = _machine(shim), _machine(program)
    except OSError as error:
        return Check("library", "bad", f"{shim} can't be read ({error.strerror})", _REINSTALL)
    if built != machine:
        return Check("library", "bad", f"{shim} is not built for this machine", _REINSTALL)
    if probe.cuda_result == _CUDA_NOT_READY:
        text = f"{shim} does not know the pages of hamirt {__version__} ({probe.message})"
        return Check("library", "bad", text, _REINSTALL)
    return Check("library", "ok", f"{shim}, for version {region.lib.HM_VERSION} of the pages")


def check_preload(shim: Path, probe: Probe) -> Check:
    """Judge whether a program under LD_PRELOAD is held to its tenant's limits, by a tenant that has no device."""
    if any(char in str(shim) for char in " :"):
        text = f"LD_PRELOAD can't name {shim}, which has a space or a colon in its path"
        return Check("preload", "bad", text, "install hamirt elsewhere")
    if not probe.mapped:
        text = f"a program started with the shim did not load it ({probe.message})"
        return Check("preload", "bad", text, f"no cap would hold: {_REINSTALL}")
    if probe.cuda_result is None:
        text = f"a program loads the shim, and it could not be tried on the simulated driver ({probe.message})"
        return Check("preload", "warning", text, _REINSTALL)
    if probe.cuda_result != _CUDA_NO_DEVICE:
        text = f"a tenant without devices got {probe.cuda_result} from cuInit, not {_CUDA_NO_DEVICE} ({probe.message})"
        return Check("preload", "bad", text, f"no cap would hold: {_REINSTALL}")
    return Check("preload", "ok", "a program started with the shim is held to its tenant's limits")


def check_ld_so_preload(path: Path, program: Path) -> Check:
    """Judge the dynamic linker's own list: what can't be loaded of it is left out, with a line on stderr at most."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return Check("ld.so.preload", "ok", f"no {path}: the shim comes by LD_PRELOAD alone")
    except OSError as error:
        return Check("ld.so.preload", "bad", f"{path} can't be read ({error.strerror})", f"run chmod 644 {path}")
    named = [Path(word) for line in lines for word in line.split("#", 1)[0].replace(":", " ").split()]
    for library in named:
        try:
            if _machine(library) == _machine(program):
                continue
            problem = "it is not built for this machine"
        except OSError as error:
            problem = str(error.strerror)
        text = f"{path} names {library}, and programs start without it ({problem})"
        return Check("ld.so.preload", "bad", text, "put the right file there, or take the line out")
    if any(library.name == "libhamirt.so" for library in named):
        return Check("ld.so.preload", "ok", f"{path} names the shim, so clearing LD_PRELOAD does not lose it")
    return Check("ld.so.preload", "ok", f"{path} names {len(named)} libraries, and not the shim")


def check_root(root: Path, room: Callable[[Path], int]) -> Check:
    """Judge the folder of the node's state; `room` tells the bytes that are free at a path."""
    elsewhere = f"name another folder with {config.ROOT_VARIABLE}"
    try:
        config.check_root(root)
        owner, free = root.stat().st_uid, room(root)
    except FileNotFoundError:
        parent = next(folder for folder in root.parents if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return Check("root", "bad", f"{root} is missing, and {parent} is not writable", elsewhere)
        return Check("root", "ok", f"{root} will be made for the first tenant")
    except HamirtError as error:
        finding, _, advice = str(error).partition(": ")
        return Check("root", "bad", finding, advice)
    except OSError as error:
        return Check("root", "bad", f"{root} can't be read ({error.strerror})", elsewhere)
    text = f"{root} of user {owner}, {format_size(free // MIB * MIB)} free"
    if free < _LEAST_ROOM_BYTES:
        return Check("root", "bad", text, f"each tenant takes 1MiB there: free some, or {elsewhere}")
    if not os.access(root, os.W_OK | os.X_OK):
        return Check(
            "root", "warning", f"{text}, not writable for you", f"hamirt run needs a supervisor, or {elsewhere}"
        )
    return Check("root", "ok", text)


def check_cgroups(mounts: str, own: str, read: Callable[[Path], str | None]) -> Check:
    """Judge /proc/self/mounts and /proc/self/cgroup, and the memory limit of our own cgroup."""
    places: dict[str, Path] = {}
    for words in map(str.split, mounts.splitlines()):
        if len(words) > 3 and words[2] == "cgroup2":
            places.setdefault("", Path(words[1]))
        elif len(words) > 3 and words[2] == "cgroup" and "memory" in words[3].split(","):
            places.setdefault("memory", Path(words[1]))
    if not places:
        advice = "mount /sys/fs/cgroup here, or a container's processes are known by their parents only"
        return Check("cgroups", "warning", "no cgroups are mounted", advice)
    version = "v2" if "memory" not in places else "v1 and v2" if "" in places else "v1"
    controller, name = ("memory", "memory.limit_in_bytes") if "memory" in places else ("", "memory.max")
    groups = {words[1]: words[2].lstrip("/") for line in own.splitlines() if len(words := line.split(":", 2)) == 3}
    place = places[controller]
    text = read(place / groups.get(controller, "") / name) or read(place / name) or ""
    limit = int(text) if text.strip().isdigit() else _NO_LIMIT_BYTES
    if limit >= _NO_LIMIT_BYTES:
        return Check("cgroups", "ok", f"{version}, no memory limit here")
    finding = f"{version}, a memory limit of {format_size(limit)} here"
    if limit < _LEAST_MEMORY_BYTES:
        return Check("cgroups", "warning", finding, f"give the supervisor {format_size(_LEAST_MEMORY_BYTES)}")
    return Check("cgroups", "ok", finding)


def check_clock(readings_ns: tuple[int, int], leases_ns: Sequence[int], *, supervised: bool) -> Check:
    """Judge two readings of CLOCK_MONOTONIC, the later one last, and the leases that a supervisor has to renew."""
    first, now = readings_ns
    if now <= first:
        advice = "leases would never end: dmesg says what is wrong with this machine's clock source"
        return Check("clock", "bad", "CLOCK_MONOTONIC stands still", advice)
    late = [now - lease for lease in leases_ns if lease < now]
    if not supervised:
        return Check("clock", "ok", "CLOCK_MONOTONIC runs")
    if late:
        text = f"{len(late)} of {len(leases_ns)} leases ran out, the first one {max(late) / 1e9:.1f} s ago"
        return Check("clock", "bad", text, "the supervisor hangs: start it again; tenants do not notice")
    return Check("clock", "ok", f"CLOCK_MONOTONIC runs, {len(leases_ns)} leases are fresh")


def check_daemon(root: Path, found: Supervisor | HamirtError | None) -> Check:
    """Judge what the supervisor said of itself; None is a supervisor that is not there."""
    if isinstance(found, HamirtError):
        return Check("daemon", "bad", str(found), "see its log, then end it and start it again; tenants do not notice")
    if found is None:
        advice = "start hamirt daemon for fair shares of GPU time, live limits and metrics; caps hold without it"
        return Check("daemon", "warning", f"no supervisor answers at {root}", advice)
    text = f"version {found.version}, pid {found.pid}, policy {found.policy}"
    if found.version != __version__:
        return Check("daemon", "warning", f"{text}; this is {__version__}", "start it again; tenants do not notice")
    return Check("daemon", "ok", text)


def check_metrics(url: str, answer: bytes | OSError | None) -> Check:
    """Judge what `url` answered; None where there is no supervisor that should."""
    if answer is None:
        return Check("metrics", "ok", "none without a supervisor")
    if isinstance(answer, OSError):
        advice = "see metrics_address in its settings and what its log says; --metrics names another URL"
        return Check("metrics", "bad", f"{url} does not answer ({answer})", advice)
    if b"hamirt_build_info" not in answer:
        return Check("metrics", "bad", f"{url} is not hamirt's", "another program has that port: see metrics_address")
    return Check("metrics", "ok", f"{url} answers")


def examine(sim: bool, url: str) -> list[Check]:
    """Look at this machine, as the user who asks."""
    started_ns = time.monotonic_ns()
    root, shim, program = config.root_path(), config.shim_path(), Path(sys.executable)
    if sim:
        with suppress(HamirtError):  # check_root says it
            config.make_root(root)
        os.environ.setdefault(config.SIM_STATE_VARIABLE, str(config.sim_state_path(root)))
    driver = _outcome(lambda: nvml.read_driver(config.sim_dir() if sim else None))
    probe = _probe(shim)
    supervisor = _outcome(lambda: _supervisor(root))
    answers = isinstance(supervisor, Supervisor)
    leases_ns = _leases(root) if answers else []
    return [
        check_driver(driver),
        check_pids(driver, lambda pid: Path(f"/proc/{pid}").exists()),
        check_library(shim, program, probe),
        check_preload(shim, probe),
        check_ld_so_preload(Path("/etc/ld.so.preload"), program),
        check_root(root, lambda path: shutil.disk_usage(path).free),
        check_cgroups(_text(Path("/proc/self/mounts")) or "", _text(Path("/proc/self/cgroup")) or "", _text),
        check_clock((started_ns, time.monotonic_ns()), leases_ns, supervised=answers),
        check_daemon(root, supervisor),
        check_metrics(url, _fetch(url) if answers else None),
    ]


@click.command("doctor")
@click.option("--sim", is_flag=True, help="Look at the simulated GPUs.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of checks.")
@click.option("--metrics", "url", default=_METRICS_URL, show_default=True, metavar="URL", help="Where the metrics are.")
def command(sim: bool, as_json: bool, url: str) -> int:
    """Look at all that hamirt needs of this machine, and say what to do about what is not well.

    Ends with 1 if anything is bad.
    """
    inside = config.tenant_dir()
    if inside is not None:
        raise HamirtError(f"this runs in a tenant ({inside}), which sees its own GPUs only: ask on the node")
    checks = examine(sim, url)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        on_terminal = sys.stdout.isatty()
        columns = shutil.get_terminal_size().columns if on_terminal else None
        colour = on_terminal and not os.environ.get("NO_COLOR")
        for check in checks:
            click.echo("\n".join(draw(check, columns, colour=colour)), color=colour)
    return REFUSED if any(check.level == "bad" for check in checks) else 0


def draw(check: Check, columns: int | None, *, colour: bool) -> list[str]:
    """Return a check's lines for a terminal of so many columns, or its one line for a pipe."""
    level, name = f"{check.level:<9}", f"{check.name:<15}"
    if columns is None:
        return [level + name + "; ".join(filter(None, (check.finding, check.advice)))]
    indent = " " * len(level + name)
    finding, advice = (
        textwrap.wrap(
            text or "",
            max(columns, 2 * len(indent)),
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        for text in (check.finding, check.advice)
    )
    head = click.style(level, fg=_COLOURS[check.level], bold=True) if colour else level
    finding[0] = head + name + finding[0].removeprefix(indent)
    return [*finding, *(click.style(line, dim=True) if colour else line for line in advice)]


def _outcome(ask: Callable[[], T]) -> T | HamirtError:
    try:
        return ask()
    except HamirtError as error:
        return error


def _supervisor(root: Path) -> Supervisor | None:
    reach = client.reach(root)
    if reach is client.Reach.SILENT:
        raise HamirtError(f"the supervisor of {root} is there and does not answer")
    return wire.node_from_json(client.Client(root).node()).supervisor if reach is client.Reach.ANSWERS else None


def _probe(shim: Path) -> Probe:
    """Start a program with the shim and the simulated driver, in a tenant of its own that has no device."""
    try:
        with tempfile.TemporaryDirectory(prefix="hamirt-doctor-") as folder:
            tenant = Path(folder)
            for part in ("ro", "rw"):
                (tenant / part).mkdir()
            pages.create_limits(tenant / "ro" / "limits", Limits("doctor", False, 1, ()))
            pages.create_usage(tenant / "rw" / "usage")
            env = {
                "LD_PRELOAD": str(shim),
                "LD_LIBRARY_PATH": str(config.sim_dir()),
                config.TENANT_VARIABLE: folder,
                config.SIM_STATE_VARIABLE: str(tenant / "sim"),
            }
            words = [sys.executable, "-I", "-S", "-c", _PROGRAM]
            ended = subprocess.run(
                words, env=env, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(False, None, str(error))
    said = ended.stdout.split()
    message = ended.stderr.strip().rpartition("\n")[2] or f"it ended with {ended.returncode}"
    return Probe(said[:1] == ["True"], said[1] if len(said) > 1 else None, message)


def _machine(path: Path) -> bytes:
    """Return an ELF file's class, byte order and machine; of any other file what is in their place."""
    with open(path, "rb") as file:
        head = file.read(20)
    return head[:6] + head[18:20]


def _leases(root: Path) -> list[int]:
    """Return the leases of the tenants whose limits we may read."""
    leases = []
    with suppress(OSError):
        for folder in (root / "tenants").iterdir():
            with suppress(HamirtError):
                lease = region.read_limits(folder / "ro" / "limits").lease_ns
                leases += [lease] if lease is not None else []
    return leases


def _fetch(url: str) -> bytes | OSError:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_FETCH_SECONDS) as response:
            content: bytes = response.read()
            return content
    except ValueError as error:  # no URL at all
        return OSError(str(error))
    except OSError as error:
        return error


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
