"""The driver-API programs and the measuring programs on the simulated card: the same sources as on hardware."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.machine import MeasureError, Setup, environment, sim_folder
from bench.process import run
from hamirt.region import RESERVE_BYTES
from tests.gpu.compare import compare, results
from tests.gpu.contained import run_contained
from tests.gpu.table import PROGRAMS, Entry
from tests.support import need

SIMULATED = [entry for entry in PROGRAMS if entry.sim]


@pytest.fixture
def setup(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Return a setup on a simulated card of its own."""
    if not (sim_folder() / "libcuda.so.1").exists():
        pytest.skip("the simulated driver is not built: make build")
    monkeypatch.setenv("HAMIRT_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("HAMIRT_SIM_STATE", raising=False)
    (tmp_path / "root").mkdir(mode=0o700)
    return Setup(programs, tmp_path, 0, True, time.monotonic() + 600)


def measured(setup: Setup, name: str, *options: str) -> dict[str, Any]:
    """Run a measuring program and return what it wrote; its bars may be missed, but it has to come to its end."""
    argv = [sys.executable, "-m", f"bench.{name}", "--sim", "--out", str(setup.out), "--programs", str(setup.programs)]
    ended = run([*argv, *options], environment(setup), 300)
    written = setup.out / f"{name}.json"
    assert written.exists(), ended.stdout + ended.stderr
    document: dict[str, Any] = json.loads(written.read_text())
    return document


@pytest.mark.parametrize("entry", SIMULATED, ids=lambda entry: entry.name)
def test_same_output_in_a_tenant(setup: Setup, entry: Entry) -> None:
    try:
        outcome = compare(setup, entry)
    except MeasureError as error:
        pytest.fail(str(error))

    if outcome.reason.startswith("not available"):
        pytest.skip(outcome.reason)
    assert outcome.verdict == "pass", (outcome.reason, results(outcome.native))


def test_accuracy_of_a_small_cap(setup: Setup) -> None:
    document = measured(setup, "accuracy", "--only", "cuMemAlloc,cuMemCreate", "--caps", "2")

    broken = [row for row in document["rows"] if row["broken"]]
    assert broken == []
    assert {bar["name"]: bar["verdict"] for bar in document["bars"]}["negative control: no cap"] == "pass"
    assert all(row["peak_bytes"] <= row["cap_bytes"] for row in document["rows"] if row["capped"])


def test_pressure_and_storm(setup: Setup) -> None:
    options = ["--seconds", "3", "--processes", "3", "--threads", "2", "--cap-gib", "4", "--kills", "20"]

    document = measured(setup, "stress", *options)

    failed = [bar for bar in document["bars"] if bar["verdict"] == "fail"]
    assert failed == []
    assert document["malloc"]["counted"]["refusals"] > 0


def test_threads_that_allocate_from_one_pool_never_exceed_the_cap(setup: Setup) -> None:
    document = measured(setup, "stress", "--seconds", "6", "--only", "pools")

    found = document["pools"]
    assert found["counted"]["refusals"] > 0
    assert found["peak_card_bytes"] <= found["cap_bytes"] - RESERVE_BYTES


def test_overhead_comes_to_its_end(setup: Setup) -> None:
    options = ["--rounds", "1", "--context-rounds", "2", "--nvml-runs", "1"]

    document = measured(setup, "overhead", *options)

    assert document["failed"] == []
    assert len(document["rounds"]["context"]["H"]) == 2


def test_two_containers_on_one_card(setup: Setup) -> None:
    need("root", os.geteuid() == 0)
    need("runc", shutil.which("runc") is not None)

    status = run_contained(setup)

    document = json.loads((setup.out / "containers.json").read_text())
    assert [bar for bar in document["bars"] if bar["verdict"] != "pass"] == []
    assert status == 0
    assert str(setup.out) not in json.dumps(document)
