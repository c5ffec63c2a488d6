"""The program that measures vLLM's engines: its verdicts, and its parts against stand-ins on the simulated card."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import build, vllm_models
from bench.machine import MIB, MeasureError, Setup
from bench.nvml import Busy, Nvml
from bench.process import TOP, can_unshare, run
from bench.share_tenants import simulated_card
from bench.supervisor_daemon import wait_until
from bench.vllm_bars import busy_bar, kill_bars, kv_bars, latency_bars, look_bars, rag_bars, share_bars, tp_bars
from bench.vllm_chain import tenant
from bench.vllm_models import EMBED, GENERATORS, RERANK, VOCABULARY
from bench.vllm_node import Node
from bench.vllm_serve import SERVER, Plan, Site

STAND_IN = f"{sys.executable} -m tests.gpu.vllm_fake"
QUICK = ("--queries=24", "--native-queries=12", "--corpus=40", "--window=1", "--settle=0.5", "--rounds=1")
CAPS = {"h1": 25, "h2": 75}


def verdicts(bars: list[Any]) -> list[str]:
    return [bar.verdict for bar in bars]


SMI = """\
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:00:1E.0 Off |                    0 |
| N/A   38C    P0            118W /  700W |    {used}MiB /  {total}MiB |      0%      Default |
|    0   N/A  N/A              12      C   {name}                       {used}MiB |
"""


@pytest.mark.parametrize(
    ("total", "name", "held", "expected"),
    [
        (14000, "python3", [1858], ["pass", "pass"]),
        (81559, "python3", [1858], ["fail", "pass"]),
        (14000, "[Not Found]", [1858], ["pass", "fail"]),
        (14000, "python3", [1858, 1842], ["pass", "fail"]),
        (14000, "python3", [900], ["pass", "fail"]),
        (14000, "python3", None, ["pass", "not resolved"]),
    ],
)
def test_nvidia_smi_in_a_tenant(total: int, name: str, held: list[int] | None, expected: list[str]) -> None:
    bars = look_bars("embed", SMI.format(used=1858, total=total, name=name), 14000, held)

    assert verdicts(bars) == expected


@pytest.mark.parametrize(
    ("done", "failed", "peak_mib", "hz", "expected"),
    [
        (100, 0, 14000, 51.0, ["pass", "pass"]),
        (100, 1, 13000, 51.0, ["fail", "pass"]),
        (90, 0, 14001, 51.0, ["not resolved", "fail"]),
        (100, 0, 13000, 49.0, ["pass", "not resolved"]),
    ],
)
def test_chain(done: int, failed: int, peak_mib: int, hz: float, expected: list[str]) -> None:
    blocks = [
        {"side": "hamirt", "queries": done + failed, "failed": failed, "errors": {"embed: HTTP 500": 1}},
        {"side": "native", "queries": 50, "failed": 50, "errors": {}},
    ]
    footprints = {"embed": {"peak_bytes": peak_mib * MIB, "cap_bytes": 14000 * MIB, "hz": hz}}

    assert verdicts(rag_bars(blocks, 100, footprints)) == expected


@pytest.mark.parametrize(("tokens", "verdict"), [(98_100, "pass"), (97_900, "fail"), (102_100, "fail")])
def test_kv_cache(tokens: int, verdict: str) -> None:
    assert verdicts(kv_bars([{"native": 100_000, "hamirt": 100_000}, {"native": 100_000, "hamirt": tokens}])) == [
        verdict
    ]
    assert verdicts(kv_bars([])) == ["not resolved"]


def test_busy() -> None:
    assert busy_bar("n1", {"engine": 0.951, "sm": 0.8}, "").verdict == "pass"
    assert busy_bar("n1", {"engine": 0.949, "sm": 0.9}, "").verdict == "fail"
    assert busy_bar("n1", None, "").verdict == "not resolved"


@pytest.mark.parametrize(
    ("equal", "native", "caps", "again", "expected"),
    [
        ((48.5, 49.5), (45, 45), (25, 74), 100, ["pass", "pass", "pass", "pass"]),
        ((47.0, 50.0), (45, 45), (22, 78), 100, ["fail", "pass", "fail", "fail"]),
        ((44.0, 44.0), (45, 45), (25, 75), 100, ["pass", "fail", "pass", "pass"]),
        ((44.0, 44.0), (45, 45), (25, 79), 103, ["not resolved", "not resolved", "not resolved", "not resolved"]),
        ((30.0, 50.0), (45, 45), (25, 85), 103, ["fail", "fail", "not resolved", "fail"]),
    ],
)
def test_share(
    equal: tuple[float, float],
    native: tuple[float, float],
    caps: tuple[float, float],
    again: float,
    expected: list[str],
) -> None:
    one = {
        "native": dict(zip(("n1", "n2"), native, strict=True)),
        "equal": dict(zip(("h1", "h2"), equal, strict=True)),
        "caps": dict(zip(("h1", "h2"), caps, strict=True)),
    }

    assert verdicts(share_bars([{**one, "alone": {"n1": 100.0}}, {**one, "alone": {"n1": again}}], CAPS)) == expected


def test_one_round_resolves_nothing() -> None:
    one = {"alone": {"n1": 100.0}, "native": {"n1": 45.0, "n2": 45.0}, "equal": {"h1": 49.0, "h2": 49.0}}

    assert set(verdicts(share_bars([{**one, "caps": {"h1": 25.0, "h2": 75.0}}], CAPS))) == {"not resolved"}
    assert verdicts(share_bars([], CAPS)) == ["not resolved"]


@pytest.mark.parametrize(
    ("with_class", "errors", "expected"), [(20.0, 0, ["pass", "pass"]), (60.0, 1, ["fail", "fail"])]
)
def test_latency(with_class: float, errors: int, expected: list[str]) -> None:
    def step(tail: float) -> dict[str, Any]:
        return {"taken_ms": [10.0] * 98 + [tail] * 2, "errors": errors, "tokens_per_s": 3000.0}

    assert (
        verdicts(latency_bars([{"alone": step(12.0), "normal": step(50.0), "latency": step(with_class)}])) == expected
    )


TAKER = {
    "code": "2",
    "answer": "CUDA_ERROR_OUT_OF_MEMORY",
    "peak_bytes": 2000 * MIB,
    "cap_bytes": 2000 * MIB,
    "obtained_bytes": 1400 * MIB,
    "errors": 0,
    "answered": 30,
}
KILLED = {"freed_s": 0.2, "card_s": 0.2, "ledger_s": 0.1, "held_bytes": 1, "errors": 0, "answered": 9, "again_s": 40.0}


@pytest.mark.parametrize(
    ("taker", "killed", "fails"),
    [
        ({}, {}, []),
        ({"code": "0"}, {}, [0]),
        ({"peak_bytes": 2001 * MIB}, {}, [1]),
        ({"errors": 1}, {}, [2]),
        ({"answered": 0}, {}, [2]),
        ({}, {"freed_s": 1.01}, [3]),
        ({}, {"freed_s": None}, [3]),
        ({}, {"errors": 1}, [4]),
        ({}, {"again_s": None}, [5]),
    ],
)
def test_kill(taker: dict[str, Any], killed: dict[str, Any], fails: list[int]) -> None:
    bars = kill_bars({**TAKER, **taker}, {**KILLED, "again": "", **killed})

    assert [number for number, bar in enumerate(bars) if bar.verdict != "pass"] == fails


def test_two_cards() -> None:
    found = {"cap_bytes": 100, "tokens_per_s": {"hamirt": 9.0, "native": 10.0}}

    assert verdicts(tp_bars({**found, "cards": [{"peak_bytes": 100}, {"peak_bytes": 90}]})) == ["pass"]
    assert verdicts(tp_bars({**found, "cards": [{"peak_bytes": 101}, {"peak_bytes": 90}]})) == ["fail"]
    assert verdicts(tp_bars({**found, "cards": [{"peak_bytes": 100}, {"peak_bytes": 0}]})) == ["fail"]
    assert verdicts(tp_bars(None)) == ["not resolved"]


def test_models_agree_with_their_tokenizers() -> None:
    files = vllm_models.files()

    for model in (EMBED, RERANK, *GENERATORS):
        config, tokenizer = files[f"{model}/config.json"], files[f"{model}/tokenizer.json"]
        vocabulary = tokenizer["model"]["vocab"]
        assert sorted(vocabulary.values()) == list(range(VOCABULARY))
        assert config["vocab_size"] >= VOCABULARY
        special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        assert special.items() <= vocabulary.items()
        assert (config["bos_token_id"], config["eos_token_id"]) == (special["<s>"], special["</s>"])


GPM = """
#include <nvml.h>
#include <stddef.h>
static int live;
nvmlReturn_t nvmlInit_v2(void) { return NVML_SUCCESS; }
nvmlReturn_t nvmlShutdown(void) { return live == 0 ? NVML_SUCCESS : NVML_ERROR_UNKNOWN; }
nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *out) { live++; *out = (nvmlGpmSample_t)0x1000; return NVML_SUCCESS; }
nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t one) { live--; return NVML_SUCCESS; }
nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t one) { return NVML_SUCCESS; }
nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
    if (get->version != NVML_GPM_METRICS_GET_VERSION || get->sample1 == NULL || get->sample2 == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < get->numMetrics; i++) {
        get->metrics[i].nvmlReturn = FAILING ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        get->metrics[i].value = get->metrics[i].metricId == NVML_GPM_METRIC_SM_UTIL ? 81.5 : 97.25;
    }
    return NVML_SUCCESS;
}
"""


@pytest.mark.parametrize(("failing", "expected"), [(0, Busy(0.9725, 0.815)), (1, None)])
def test_busy_share_of_a_card(tmp_path: Path, failing: int, expected: Busy | None) -> None:
    source = tmp_path / "gpm.c"
    source.write_text(GPM)
    flags = [f"-DFAILING={failing}", "-shared", "-fPIC", "-I", str(build.headers())]
    subprocess.run(["gcc", *flags, str(source), "-o", str(tmp_path / "libnvidia-ml.so.1")], check=True, timeout=60)

    with Nvml(tmp_path) as nvml:
        marks = nvml.busy_mark(None), nvml.busy_mark(None)
        assert nvml.busy_between(*marks) == expected
        assert nvml.busy_between(None, nvml.busy_mark(None)) is None


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="--site is missing"):
        Site.of(None, tmp_path, SERVER)
    with pytest.raises(MeasureError, match="there is no vLLM in"):
        Site.of(tmp_path, tmp_path, SERVER)


def measured(programs: Path, out: Path, *parts: str) -> tuple[dict[str, Any], str]:
    """Measure parts against stand-ins; return the JSON document and the engines' logs."""
    argv = [sys.executable, "-m", "bench.vllm", "--sim", "--server", STAND_IN, "--programs", str(programs)]
    argv += ["--out", str(out), *QUICK, "--estimate=0.1", "--only", *parts]

    ended = run(argv, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)}, 240)

    name = "-".join(["vllm", *parts])
    assert (out / f"{name}.json").exists(), ended.stdout + ended.stderr
    document = json.loads((out / f"{name}.json").read_text())
    reasons = {one["reason"] for one in document["unmeasured"]}
    assert list(document["parts"]) == list(parts), ended.stdout + ended.stderr
    assert reasons == {"not asked for"}
    assert str(out) not in json.dumps(document)
    return document, (out / f"{name}.log").read_text()


def test_engines_at_their_caps_on_the_simulated_card(programs: Path, tmp_path: Path) -> None:
    document, log = measured(programs, tmp_path, "start", "rag", "kill", "kv")

    found = {bar["name"]: bar for bar in document["bars"]}
    late = found.pop("an engine killed with -9")  # within a second, where the machine does nothing else
    assert late["measured"] != "never"
    unresolved = {name for name, bar in found.items() if bar["verdict"] == "not resolved"}
    alone = set() if can_unshare() else {"processes in embed", "processes in rerank"}
    assert unresolved == alone
    assert [bar for bar in found.values() if bar["verdict"] == "fail"] == []
    parts = document["parts"]
    assert parts["rag"]["footprints"]["embed"]["peak_bytes"] > 1100 * MIB
    sides = [block["side"] for block in parts["rag"]["blocks"]]
    assert sides == ["hamirt", "native", "native", "hamirt"] * 2
    assert [block["queries"] for block in parts["rag"]["blocks"] if block["side"] == "native"] == [3] * 4
    assert parts["kill"]["killed"]["held_bytes"] > 1100 * MIB
    assert parts["kv"]["rounds"][0]["hamirt"] > 60_000
    assert log.count("== embed:") == 2  # it was killed, and started again
    assert "GPU KV cache size: " in log


def test_generators_share_the_simulated_card(programs: Path, tmp_path: Path) -> None:
    document, _ = measured(programs, tmp_path, "share", "latency", "tp2")

    parts = document["parts"]
    (one,) = parts["share"]["rounds"]
    rates = {step: made["rates"] for step, made in one.items()}
    engines = {step: sorted(made) for step, made in rates.items()}
    assert engines == {
        "alone": ["n1"],
        "native": ["n1", "n2"],
        "tenant": ["h1"],
        "equal": ["h1", "h2"],
        "caps": ["h1", "h2"],
    }
    assert rates["caps"]["h1"] < rates["caps"]["h2"]
    (ranked,) = parts["latency"]["rounds"]
    assert {step: (len(made["taken_ms"]) > 5, made["errors"]) for step, made in ranked.items()} == dict.fromkeys(
        ("alone", "native", "normal", "latency"), (True, 0)
    )
    assert (ranked["alone"]["tokens_per_s"] == 0) != (ranked["latency"]["tokens_per_s"] == 0)
    assert [bar["measured"] for bar in document["bars"] if bar["name"] == "tensor parallel 2"] == ["not measured"]


def test_nothing_is_begun_without_time_for_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench.vllm", "--sim", "--server", STAND_IN, "--budget", "9", "--out", str(tmp_path)]

    ended = run([*argv, "--only", "kv"], {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP)}, 60)

    assert ended.status == 1
    assert "kv: not measured: " in ended.stdout
    assert json.loads((tmp_path / "vllm-kv.json").read_text())["parts"] == {}


@pytest.fixture
def node(tmp_path: Path) -> Any:
    asked = argparse.Namespace(name="test", window=1.0, settle=0.1)
    setup = Setup(tmp_path, tmp_path, 0, True, time.monotonic() + 120)
    with simulated_card(setup, tmp_path):
        site = Site.of(None, tmp_path / "models", STAND_IN)
        with Node(setup, site, tmp_path, asked) as one:
            yield one


def test_a_look_from_a_namespace_shows_its_own_processes(node: Node, unshare: str) -> None:
    embed, rerank = node.start(tenant(node, "embed"), tenant(node, "rerank"))

    for engine, cap_mib in ((embed, 14_000), (rerank, 8_000)):
        bars = look_bars(engine.name, engine.look(), cap_mib, [1100 + 522])
        assert verdicts(bars) == ["pass", "pass"], bars
    names = ("embed", "rerank")
    wait_until(lambda: min(map(node.ledger_bytes, names)) > 1100 * MIB, 20, "the ledger has nothing")
    embed.kill()
    wait_until(lambda: node.ledger_bytes("embed") == 0, 20, "what a killed engine held was not free")
    assert node.ledger_bytes("rerank") > 1100 * MIB


def test_an_engine_that_does_not_come_up_says_why(node: Node) -> None:
    with pytest.raises(MeasureError, match=r"small ended while it started: .*CUDA_ERROR|answered 2"):
        node.start(Plan("small", EMBED, (), ("--mem", "1000MiB")))


@pytest.mark.parametrize(("script", "cap"), [("embed.sh", "14000MiB"), ("rerank.sh", "8000MiB")])
def test_the_examples_start_scripts(tmp_path: Path, script: str, cap: str) -> None:
    """A `vllm` that looks at the card, started as a user would, but on the simulated card."""
    bin_folder = Path(sys.executable).parent
    stand_ins = {
        "hamirt": f'#!/bin/sh\nshift\nexec {bin_folder}/hamirt run --sim "$@"\n',
        "vllm": f'#!/bin/sh\necho "$@"\nexec {sys.executable} -m bench.vllm_serve look\n',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(TOP), "HAMIRT_ROOT": str(tmp_path / "root")}

    ended = run([str(TOP / "examples" / "vllm" / script), "--enforce-eager"], env, 60)

    assert ended.status == 0, ended.stderr
    assert f"/ {cap} |" in ended.stdout
    words = ended.stdout.splitlines()[0].split()
    assert ("--gpu-memory-utilization", "0.85") in itertools.pairwise(words)
    assert words[-1] == "--enforce-eager"
