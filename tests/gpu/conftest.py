"""What the tests of measuring programs share: the compiled programs."""

from pathlib import Path

import pytest

from bench import build


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the programs, built here."""
    folder = tmp_path_factory.mktemp("programs")
    build.build(folder, build.headers())
    return folder
