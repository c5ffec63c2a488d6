"""What tests share that is no fixture: deadlines, missing components, and the tenants of a made-up node."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 30.0


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
