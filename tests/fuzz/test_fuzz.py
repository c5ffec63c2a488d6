"""Both fuzzers, for a short while: what `make fuzz` does for long."""

import subprocess
import sys
from pathlib import Path

import pytest

from hamirt import config
from tests.support import TOP, need

TIMEOUT_SECONDS = 300


@pytest.mark.realtime
def test_no_page_and_no_request_is_more_than_a_refusal(tmp_path: Path) -> None:
    need("the simulated driver (make build)", (config.sim_dir() / "libnvidia-ml.so.1").exists())
    command = [sys.executable, "-m", "tests.fuzz", "--count", "1500", "--out", str(tmp_path / "fuzz.json")]

    ended = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
