"""How much later a container starts and ends for hamirt's hooks: the same container of runc with and without them.

    python3 -m bench.container_start --sim [--rounds N] [--hook PROGRAM] [--out DIR]

Each round runs it without hooks (N), with them (H) and without again (A), in an order that changes, with a pause before
each, and 0.2 s in the container, for the daemon's look at what has changed. Two times of each: until the program in the
container has spoken, and until runc has ended, which the second hook is part of. It takes root, runc and a static
busybox.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import MeasureError, Setup, main_of, parser, print_bars, setup_of, write
from bench.measure import Bar, compare, judge, orders
from bench.supervisor_daemon import Daemon
from hamirt import ocispec

BAR_MS = 60.0
TIMEOUT_S = 30.0
MEMORY = {"hamirt.io/memory": "8GiB"}
SCRIPT = "echo running; exec /bin/busybox sleep 0.2"
WHAT = {"started": "until its program runs", "ended": "until it has ended, the second hook included"}


def measure_starts() -> int:
    """Measure what the options ask for and write container-start.json; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=60)
    options.add_argument("--pause", type=float, default=0.3, help="seconds before each start")
    options.add_argument("--hook", type=Path, help="hamirt-oci-hook (default: the one beside this Python)")
    asked = options.parse_args()
    setup = setup_of(asked)
    hook = (asked.hook or Path(sys.executable).parent / "hamirt-oci-hook").absolute()
    for program in (str(hook), "runc", "busybox"):
        if shutil.which(program) is None:
            raise MeasureError(f"{program} is missing: install it")
    with tempfile.TemporaryDirectory(prefix="hamirt-bench-") as name:
        folder = Path(name)
        os.environ.update({"HAMIRT_SIM": "1", "HAMIRT_SIM_STATE": f"{name}/sim"} if setup.sim else {})
        (folder / "root").mkdir(mode=0o700)
        with Daemon(setup, folder / "root"):
            bundles = {role: _bundle(folder / role, hook if role == "H" else None, folder / "root") for role in "NHA"}
            samples = _rounds(setup, bundles, asked.rounds, asked.pause)
        bars, comparisons = [], {}
        for key, what in WHAT.items():
            native, shimmed, again = ([sample[key] for sample in samples[role]] for role in "NHA")
            comparison = compare(native, shimmed, again, "difference")
            verdict, reason = judge(comparison, BAR_MS)
            comparisons[key] = comparison.as_dict()
            measured = (
                f"{comparison.figure.median:.1f} ms more [{comparison.figure.low:.1f}, {comparison.figure.high:.1f}]"
            )
            detail = f"{comparison.native.median:.1f} ms without; {reason}"
            bars.append(Bar(f"container start, {what}", f"at most {BAR_MS:g} ms more", measured, verdict, detail))
        body: dict[str, Any] = {
            "command": ["bench/container_start.py", "--rounds", str(asked.rounds), "--pause", str(asked.pause)],
            "runc": subprocess.run(["runc", "--version"], capture_output=True, text=True).stdout.splitlines()[0],
            "processors": platform.processor() or platform.machine(),
            "load_average": os.getloadavg(),
            "differences_ms": comparisons,
            "samples_ms": samples,
        }
        path = write(setup, "container-start", bars, body)
    print_bars(bars, setup.sim)
    print(path)
    return 0 if all(bar.verdict == "pass" for bar in bars) else 1


def _bundle(folder: Path, hook: Path | None, root: Path) -> Path:
    """Make the bundle of a container that says one word and ends."""
    busybox = folder / "rootfs" / "bin" / "busybox"
    busybox.parent.mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), busybox)
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "annotations": MEMORY,
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", "sh", "-c", SCRIPT], "cwd": "/"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
    }
    if hook is not None:
        config = ocispec.add_hooks(config, str(hook), ["--root", str(root)])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _rounds(setup: Setup, bundles: dict[str, Path], rounds: int, pause: float) -> dict[str, list[dict[str, float]]]:
    samples: dict[str, list[dict[str, float]]] = {role: [] for role in bundles}
    for role in bundles:  # files come into memory
        _start(bundles[role], 0.0)
    for order in orders(rounds):
        if setup.left_s() == 0:
            break
        found = {role: _start(bundles[role], pause) for role in order}
        for role, sample in found.items():
            samples[role].append(sample)
    return samples


def _start(bundle: Path, pause: float) -> dict[str, float]:
    """Run a container to its end; return the milliseconds."""
    time.sleep(pause)
    command = [
        "runc",
        "--root",
        str(bundle / "state"),
        "run",
        "--bundle",
        str(bundle),
        f"bench-{os.getpid()}-{bundle.name}",
    ]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        started = time.perf_counter()
        _rest, errors = process.communicate(timeout=TIMEOUT_S)
    ended = time.perf_counter()
    if line != b"running\n" or process.returncode != 0:
        raise MeasureError(f"runc failed: {errors.decode(errors='replace')[-500:]}")
    return {"started": (started - begin) * 1e3, "ended": (ended - begin) * 1e3}


if __name__ == "__main__":
    main_of(measure_starts)
