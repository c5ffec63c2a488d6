"""Packs what a GPU machine without network needs to test and measure hamirt, into one folder that can be copied.

    python3 bench/bundle.py [--out build/gpu-bundle] [--wheel FILE] [--python-version 3.12]

The folder: wheels/ (hamirt and what it needs), bin/ (the compiled programs), bench/ and tests/gpu/, bundle.json (commit
and date), run.sh. On the GPU machine `run.sh --part smoke --out DIR` installs into a folder of its own and runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from bench import build as programs  # noqa: E402
from bench.machine import commit  # noqa: E402

LIMIT_BYTES = 50 << 20
# What hamirt imports, and two tools whose views the tests compare. PyTorch and the like are on the machine.
REQUIREMENTS = ("aiohttp", "cffi", "click", "nvidia-ml-py", "prometheus-client", "psutil", "rich", "nvitop", "blessed")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_12_x86_64")
OLD_PLATFORMS = ("manylinux2010_x86_64", "manylinux1_x86_64", "manylinux_2_5_x86_64")
FROM_SOURCE = ("gpustat",)  # pure Python, published as source only; it needs blessed
TIMEOUT_S = 900
RUN = """\
#!/bin/sh
# Installs the wheels of this folder beside nothing else and runs the GPU tests: run.sh --part PART --out DIR ...
# HAMIRT_SITE names the folder to install into (default: one in /tmp); a complete one is used again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
site=${HAMIRT_SITE:-/tmp/hamirt-gpu-site}
if ! cmp -s "$here/bundle.json" "$site/bundle.json"; then
    rm -rf "$site"
    python3 -m pip install -q --no-index --no-deps --no-cache-dir --disable-pip-version-check \\
        --root-user-action ignore --target "$site" "$here"/wheels/*.whl
    cp "$here/bundle.json" "$site/bundle.json"
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
chmod +x "$here"/bin/* 2>/dev/null || true
exec python3 "$here/tests/gpu/run.py" --programs "$here/bin" "$@"
"""


class BundleError(Exception):
    """Why there is no bundle, in a sentence."""


def make(out: Path, wheel: Path | None, python_version: str) -> None:
    """Make the bundle. Raises BundleError."""
    if out.exists():
        shutil.rmtree(out)
    (out / "wheels").mkdir(parents=True)
    _hamirt_wheel(out / "wheels", wheel, python_version)
    _download(out / "wheels", python_version)
    try:
        missing = programs.build(out / "bin", programs.headers())
    except programs.BuildError as error:
        raise BundleError(str(error)) from None
    if missing:
        raise BundleError(f"there is no nvcc to build {', '.join(missing)}: install CUDA 13's compiler")
    ignore = shutil.ignore_patterns("__pycache__", "results", ".*")
    shutil.copytree(TOP / "bench", out / "bench", ignore=ignore)
    shutil.copytree(TOP / "tests" / "gpu", out / "tests" / "gpu", ignore=ignore)
    (out / "tests" / "__init__.py").touch()
    note = {"commit": commit(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    (out / "bundle.json").write_text(json.dumps(note) + "\n")
    script = out / "run.sh"
    script.write_text(RUN)
    script.chmod(0o755)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _hamirt_wheel(folder: Path, given: Path | None, python_version: str) -> None:
    """Put hamirt's wheel into the folder: the one given, or one built from this tree."""
    if given is not None:
        shutil.copy(given, folder)
    else:
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(TOP))
    wheels = list(folder.glob("hamirt-*.whl"))
    if len(wheels) != 1:
        raise BundleError(f"{folder} should hold one wheel of hamirt, but holds {len(wheels)}")
    tag = wheels[0].stem.split("-")[2:4]
    if "abi3" not in tag and tag[0] != "cp" + python_version.replace(".", ""):
        raise BundleError(f"{wheels[0].name} does not install on Python {python_version}: it has to be an abi3 wheel")


def _download(folder: Path, python_version: str) -> None:
    """Fetch the other wheels, for the machine's Python and not for ours."""
    target = ["--only-binary=:all:", "--python-version", python_version, "--implementation", "cp"]
    target += ["--abi", "cp" + python_version.replace(".", ""), "--abi", "abi3", "--abi", "none"]
    for platform in (*PLATFORMS, *OLD_PLATFORMS):
        target += ["--platform", platform]
    _pip("download", *target, "--dest", str(folder), *REQUIREMENTS)
    for name in FROM_SOURCE:
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), name)
    foreign = [p.name for p in folder.glob("*.whl") if not p.stem.endswith(("any", "x86_64"))]
    if foreign:
        raise BundleError(f"wheels for another platform: {', '.join(foreign)}")


def _pip(*arguments: str) -> None:
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    _run(argv)


def _run(argv: Sequence[str]) -> None:
    env = {key: value for key, value in os.environ.items() if key != "HAMIRT_BUILD"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"{argv[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        raise BundleError(f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> int:
    """Make the bundle that the options ask for; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", type=Path, default=TOP / "build" / "gpu-bundle")
    options.add_argument("--wheel", type=Path, help="a wheel of hamirt that was built already")
    options.add_argument("--python-version", default="3.12", help="of the GPU machine")
    asked = options.parse_args()
    try:
        make(asked.out.resolve(), asked.wheel, asked.python_version)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = size_of(asked.out)
    print(f"{asked.out}: {size / (1 << 20):.1f} MiB")
    if size > LIMIT_BYTES:
        print(f"error: more than {LIMIT_BYTES >> 20} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
