"""Fuzzes the reader of pages and the API of the daemon, side by side, and counts the lines that were reached.

    python -m tests.fuzz [--count N] [--seed N] [--out FILE]

All of it happens on simulated cards in a temporary folder. The same seed is the same run. The exit status is 1 where
something was found, where memory or descriptors grew, or where too few lines were reached.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage

from bench.machine import SCHEMA, commit, table
from bench.measure import Bar
from tests.support import TOP

LEAST_RATIO = 0.9
MOST_GROWTH_MIB = 8.0
MEASURED = {
    "pages": ("hamirt/region.py", "hamirt/daemon/sampler.py"),
    "requests": tuple(
        f"hamirt/daemon/{name}.py" for name in ("api", "requests", "peers", "refusal", "registry", "containers")
    ),
}
"""By fuzzer the modules whose lines are counted: the bar is for all of a fuzzer's together."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the two fuzzers and its files."""

    name: str
    folder: Path

    @property
    def out(self) -> Path:
        """What it writes."""
        return self.folder / "out.json"

    @property
    def data_file(self) -> Path:
        """Where its lines are noted."""
        return self.folder / "coverage"

    def start(self, count: int, seed: int) -> "subprocess.Popen[bytes]":
        """Start it in a root of its own; the lines of the API are counted in the daemon."""
        module = f"tests.fuzz.{self.name}"
        root = self.folder / "root"
        arguments = [f"--count={count}", f"--seed={seed}", f"--root={root}", f"--out={self.out}"]
        if self.name == "requests":
            command = [module, *arguments, f"--data-file={self.data_file}"]
        else:
            command = ["coverage", "run", f"--data-file={self.data_file}", "--include=hamirt/*", "-m", module]
            command += arguments
        foreign = ("HAMIRT_", "CUDA_", "LD_", "NVIDIA_", "COVERAGE_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {"HAMIRT_ROOT": str(root), "HAMIRT_SIM": "2", "HAMIRT_SIM_STATE": str(root / "sim")}
        return subprocess.Popen([sys.executable, "-m", *command], cwd=TOP, env=env)

    def result(self) -> dict[str, Any]:
        """Return what it wrote, and the lines that it reached of each module."""
        result: dict[str, Any] = json.loads(self.out.read_text())
        data = coverage.Coverage(data_file=str(self.data_file))
        data.load()
        return result | {"lines": {name: lines_of(data, name) for name in MEASURED[self.name]}}


def lines_of(data: coverage.Coverage, module: str) -> dict[str, Any]:
    """Return how many lines a module has, how many were reached, and which were not."""
    _, statements, _, missing, told = data.analysis2(str(TOP / module))
    return {"lines": len(statements), "reached": len(statements) - len(missing), "missing": told}


def ratio(lines: Mapping[str, Mapping[str, int]]) -> float:
    """Return the share of all these modules' lines that was reached."""
    return sum(one["reached"] for one in lines.values()) / sum(one["lines"] for one in lines.values())


def bars_of(name: str, result: Mapping[str, Any]) -> list[Bar]:
    """Return what was asked of a fuzzer's run, and what came of it."""
    findings, grown, reached = result["findings"], result["grown"], ratio(result["lines"])
    leaks = grown.get("descriptors", 1) != 0 or grown.get("resident_mib", 1) > MOST_GROWTH_MIB
    held = f"{grown.get('descriptors')} descriptors, {grown.get('resident_mib')} MiB more after {result['cases']}"
    each = ", ".join(f"{Path(module).stem} {ratio({module: one}):.0%}" for module, one in result["lines"].items())
    first = f": {findings[0]['what']} (case {findings[0]['case']})" if findings else ""
    refused = sum(result["counts"].get("refused", {}).values())
    return [
        _bar(f"{name}: findings", "none", f"{len(findings)}{first}", not findings, f"{refused} refused with a reason"),
        _bar(f"{name}: leaks", f"0 descriptors, {MOST_GROWTH_MIB:g} MiB at most", held, not leaks),
        _bar(f"{name}: lines reached", f"{LEAST_RATIO:.0%}", f"{reached:.1%}", reached >= LEAST_RATIO, each),
    ]


def _bar(name: str, asked: str, measured: str, reached: bool, detail: str = "") -> Bar:
    return Bar(name, asked, measured, "pass" if reached else "fail", detail)


def document(results: Mapping[str, Mapping[str, Any]], bars: Sequence[Bar], count: int, seed: int) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "name": "fuzz",
        "schema": SCHEMA,
        "simulated": True,
        "device": {"name": "simulated", "driver": "simulated"},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "command": ["python", "-m", "tests.fuzz", f"--count={count}", f"--seed={seed}"],
        "bars": [bar.as_dict() for bar in bars],
        "parts": results,
    }


def main() -> int:
    """Run both, tell how it went, and return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--count", type=int, default=100_000, help="cases of each")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--out", type=Path, help="write what came of it there, as JSON")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hamirt-fuzz-") as folder:
        os.chmod(folder, 0o711)  # other users ask the daemon too
        parts = [Part(name, Path(folder, name)) for name in MEASURED]
        for part in parts:
            part.folder.mkdir(mode=0o711)
        started = [part.start(chosen.count, chosen.seed) for part in parts]
        codes = [process.wait() for process in started]
        if any(codes):
            return 1
        results = {part.name: part.result() for part in parts}
    bars = [bar for name, result in results.items() for bar in bars_of(name, result)]
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        content = document(results, bars, chosen.count, chosen.seed)
        chosen.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table([[bar.name, bar.bar, bar.measured, bar.verdict, bar.detail] for bar in bars],
                ["what", "bar", "measured", "", ""]))  # fmt: skip
    for finding in (one for result in results.values() for one in result["findings"]):
        print(f"\n{finding['what']}, {finding['times']} times; first in case {finding['case']}:")
        print(f"  {finding['detail']}\n  {finding['how']}")
    return int(any(bar.verdict != "pass" for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
