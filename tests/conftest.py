"""Fixtures of all tests: components that CI may not lack."""

import os
import shutil
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.support import need

# A shell's background job ignores it, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first text in a fresh clone takes a second, for a table of Unicode that is made then: no strategy's fault.
settings.register_profile("hamirt", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hamirt")


@pytest.fixture
def root_user() -> None:
    """The test needs to be root."""
    need("root", os.geteuid() == 0)


@pytest.fixture
def unshare(root_user: None) -> str:
    """The unshare command, with the right to make a PID namespace."""
    path = shutil.which("unshare")
    need("unshare", path is not None)
    assert path is not None
    return path
