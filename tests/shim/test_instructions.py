"""The launch path is as short as it is said to be: counted, not timed, by the bench's own code."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.instructions import CASES, MODES, Case, Count, count, count_of
from bench.machine import Setup
from tests.shim.conftest import SANITIZER, TIMEOUT_S, TOP, Build

pytestmark = pytest.mark.skipif(bool(SANITIZER), reason="instrumented code is longer")
BARRED = [case for case in CASES if case.barred]


@pytest.fixture(scope="module")
def setup(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("instructions")
    source, include = TOP / "bench/probes/instructions.c", f"-I{TOP}/bench/probes"
    (folder / "instructions").symlink_to(build(source, include, driver=False))
    (folder / "instructions_linked").symlink_to(build(source, include, "-DHM_LINKED"))
    return Setup(folder, Path(folder), 0, True, time.monotonic() + TIMEOUT_S)


@pytest.mark.parametrize("case", BARRED, ids=Case.title)
def test_a_launch_takes_fewer_instructions_than_its_bar(setup: Setup, case: Case) -> None:
    found = count(setup, case)

    assert found.plain < MODES[case.mode][1], found


def test_launches_with_a_mark_are_counted_apart() -> None:
    launches = [(140, 1), (142, 1), (500, 2), (530, 3), (140, 1)]

    assert count_of(launches) == Count(plain=142, usual=140, launches=3, marking=530)
