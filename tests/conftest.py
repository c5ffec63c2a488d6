"""What all tests share: where things are, roots of their own, and missing components that CI does not forgive."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 20.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until `condition()` holds; fail with `what` was waited for after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(0.005)


def need(component: str, there: bool) -> None:
    """Skip the test where `component` is missing, or fail it if HAMIRT_REQUIRE names the component."""
    if there:
        return
    if component in os.environ.get("HAMIRT_REQUIRE", "").split():
        pytest.fail(f"{component} is missing, and HAMIRT_REQUIRE names it")
    pytest.skip(f"{component} is missing")


@pytest.fixture
def root_user() -> None:
    """The test needs to be root."""
    need("root", os.geteuid() == 0)


@pytest.fixture
def unshare() -> str:
    """The unshare command, with the right to make a PID namespace."""
    path = shutil.which("unshare")
    need("unshare", path is not None)
    need("root", os.geteuid() == 0)
    assert path is not None
    return path
