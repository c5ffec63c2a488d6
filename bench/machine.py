"""Where a measurement runs and how it starts programs: natively or as a tenant, on a card or on the simulated one."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Bar
from bench.nvml import Nvml, NvmlError
from bench.process import TOP

SCHEMA = 1
MIB = 1 << 20
GIB = 1 << 30


class MeasureError(Exception):
    """Why nothing can be measured, in a sentence for whoever started it."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What every measuring program is told: its folders, the card, whether it is simulated, and its time."""

    programs: Path
    out: Path
    gpu: int
    sim: bool
    deadline: float
    """time.monotonic() after which nothing new is started."""

    def left_s(self) -> float:
        """Return the seconds left, never below 0."""
        return max(0.0, self.deadline - time.monotonic())

    def program(self, name: str) -> str:
        """Return the path of a compiled program. Raises MeasureError where it was not built."""
        path = self.programs / name
        if not path.exists():
            raise MeasureError(f"{path} is missing: build it with `python3 -m bench.build --out {self.programs}`")
        return str(path)

    def nvml(self) -> Nvml:
        """Return NVML of the card or of the simulated one. Raises MeasureError where there is none."""
        try:
            return Nvml(sim_folder() if self.sim else None)
        except NvmlError as error:
            raise MeasureError(f"{error}; is there an NVIDIA driver? Without one, use --sim") from None


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all measuring programs share."""
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path("results"), help="folder for the JSON files")
    options.add_argument("--programs", type=Path, default=TOP / "bin", help="folder of the compiled programs")
    options.add_argument("--gpu", type=int, default=0, help="nvidia-smi's index of the card")
    options.add_argument("--sim", action="store_true", help="measure on the simulated card")
    options.add_argument("--budget", type=float, default=450.0, help="seconds after which nothing new is started")
    return options


def setup_of(options: argparse.Namespace) -> Setup:
    """Return the setup that the shared options name; makes the output folder."""
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + float(options.budget)
    return Setup(options.programs.resolve(), options.out.resolve(), int(options.gpu), bool(options.sim), deadline)


def package_folder() -> Path:
    """Return the folder of the installed hamirt package. Raises MeasureError where it is not installed."""
    spec = importlib.util.find_spec("hamirt")
    if spec is None or spec.origin is None:
        raise MeasureError("hamirt is not installed for this Python: `pip install .` or set PYTHONPATH")
    return Path(spec.origin).parent


def sim_folder() -> Path:
    """Return the folder of the simulated driver."""
    return package_folder() / "_native" / "sim"


def environment(setup: Setup, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment for programs: they find these modules, and the stand-in libraries where simulated."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOP), env.get("PYTHONPATH")]))
    if setup.sim:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(sim_folder()), env.get("LD_LIBRARY_PATH")]))
    env.update(extra or {})
    return env


def tenant_argv(setup: Setup, command: Sequence[str], mem: str | None, name: str) -> list[str]:
    """Return the command line that runs `command` as a tenant; without `mem` its memory is not capped."""
    argv = [sys.executable, "-m", "hamirt", "run", "--gpu", str(setup.gpu), "--name", name]
    argv += ["--mem", mem] if mem is not None else []
    argv += ["--sim"] if setup.sim else []
    return [*argv, "--", *command]


def mem_option(size_bytes: int) -> str:
    """Return bytes as --mem takes them."""
    return f"{size_bytes // MIB}MiB"


def commit() -> str:
    """Return the commit that is measured: from HAMIRT_COMMIT, the bundle's note, or git; else "unknown"."""
    named = os.environ.get("HAMIRT_COMMIT")
    if named:
        return named
    note = TOP / "bundle.json"
    if note.exists():
        return str(json.loads(note.read_text()).get("commit", "unknown"))
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=TOP,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def about(setup: Setup) -> dict[str, Any]:
    """Return the head of every JSON file: what was measured on what, when."""
    with setup.nvml() as nvml:
        handle = nvml.handle(setup.gpu)
        device = {
            "name": nvml.name(handle),
            "uuid": nvml.uuid(handle),
            "memory_bytes": nvml.memory(handle).total,
            "driver": nvml.driver(),
        }
    return {
        "schema": SCHEMA,
        "simulated": setup.sim,
        "device": device,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "command": sys.argv,
    }


def write(setup: Setup, name: str, bars: Iterable[Bar], body: dict[str, Any]) -> Path:
    """Write NAME.json with the head, the bars and the raw samples; return its path."""
    path = setup.out / f"{name}.json"
    document = {"name": name, **about(setup), "bars": [bar.as_dict() for bar in bars], **body}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Return a plain text table with aligned columns."""
    lines = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def print_bars(bars: Sequence[Bar], sim: bool) -> None:
    """Print the bars as a table; what was simulated says so."""
    if sim:
        print("SIMULATED GPU: these figures say nothing about a card")
    print(table([[b.name, b.bar, b.measured, b.verdict, b.detail] for b in bars], ["what", "bar", "measured", "", ""]))


def main_of(measure: Any) -> None:
    """Call a program's main function; a MeasureError or NvmlError is one line on stderr and exit status 1.

    What it has started ends with it, also where it is terminated.
    """
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        raise SystemExit(measure())
    except (MeasureError, NvmlError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
