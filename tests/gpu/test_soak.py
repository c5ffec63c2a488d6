"""bench.soak itself; `make test` runs it as `make soak` for some seconds."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from bench.process import TOP
from tests.support import wait_for


def test_nothing_goes_on_where_it_is_terminated(programs: Path, tmp_path: Path) -> None:
    words = ["--sim", "--programs", str(programs), "--out", str(tmp_path), "--seconds", "600"]
    soak = subprocess.Popen([sys.executable, "-m", "bench.soak", *words], cwd=TOP, env=os.environ, text=True)

    def tenants() -> list[psutil.Process]:
        return [one for one in psutil.Process(soak.pid).children(recursive=True) if one.name() == "load"]

    wait_for(tenants, "a tenant")
    started = psutil.Process(soak.pid).children(recursive=True)
    soak.send_signal(signal.SIGTERM)

    assert soak.wait(60) == 128 + signal.SIGTERM
    assert [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
