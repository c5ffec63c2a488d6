"""The build: what it says when it can't, and that a wheel carries everything."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from hamirt import _build
from tests.support import TOP

TIMEOUT_SECONDS = 300


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hamirt._build", "--out", str(tmp_path)]

    ended = subprocess.run(
        command, env=os.environ | {"CC": "no-such-cc"}, cwd=TOP, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "there is no C compiler called no-such-cc: install gcc" in ended.stderr


def test_a_wheel_carries_the_shim_and_the_simulated_driver(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("hamirt", "shim", "simgpu"):
        shutil.copytree(TOP / name, tree / name, ignore=shutil.ignore_patterns("_native", "*.so", "__pycache__"))
    for path in TOP.iterdir():
        if path.is_file():
            shutil.copy(path, tree)

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), "."],
        cwd=tree, check=True, timeout=TIMEOUT_SECONDS, capture_output=True,
    )  # fmt: skip

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.split("-")[2:4] == ["cp310", "abi3"]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hamirt/{name}" for name in _build.ARTEFACTS} <= names
    assert "hamirt/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "shim/", "simgpu/", "build/"))]
