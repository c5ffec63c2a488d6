"""The table of programs on a real GPU, one test each; skipped with its reason where there is none.

    python3 -m pytest tests/gpu/test_gpu.py

HAMIRT_GPU_PROGRAMS names the folder of the compiled programs (default: bin/ of the bundle, else they are built).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench import build
from bench.machine import MeasureError, Setup
from bench.nvml import Nvml, NvmlError
from bench.process import TOP
from tests.gpu.compare import compare
from tests.gpu.table import PROGRAMS, Entry

pytestmark = pytest.mark.gpu


def why_not() -> str | None:
    """Return why there is no GPU to test on, None where there is one."""
    try:
        with Nvml() as nvml:
            return None if nvml.count() else "NVML shows no GPU"
    except NvmlError as error:
        return f"no NVIDIA GPU: {error}"


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Return a setup with all programs built."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    named = os.environ.get("HAMIRT_GPU_PROGRAMS")
    programs = Path(named) if named else TOP / "bin"
    if not programs.exists():
        programs = tmp_path_factory.mktemp("programs")
        try:
            build.build(programs, build.headers())
        except build.BuildError as error:
            pytest.fail(str(error))
    return Setup(programs, tmp_path_factory.mktemp("out"), 0, False, time.monotonic() + 3600)


@pytest.mark.parametrize("entry", PROGRAMS, ids=lambda entry: entry.name)
def test_same_output_in_a_tenant(setup: Setup, entry: Entry) -> None:
    try:
        outcome = compare(setup, entry)
    except MeasureError as error:
        pytest.fail(str(error))

    if outcome.reason.startswith("not available"):
        pytest.skip(outcome.reason)
    assert outcome.verdict == "pass", outcome.reason
