"""The metrics: what each says of a rich node, what stays absent, and that no text of a tenant's can break a scrape."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hamirt import __version__, exporter, metrics
from hamirt.model import (
    Card,
    CardProcess,
    Driver,
    Enforcement,
    GateState,
    Health,
    LatencyClass,
    Level,
    Metering,
    Node,
    ProcessView,
    ShareSource,
    Standing,
    Supervisor,
    Tenant,
    TenantCard,
)
from hamirt.units import GIB, MIB
from tests.support import TOP

CARDS = (
    Card(0, "GPU-aa", "H100", 80 * GIB, 20 * GIB, 0.25, False, (
        CardProcess(10, 9 * GIB, Standing.REGISTERED, "train-1-aaa", "python"),
        CardProcess(11, 2 * GIB, Standing.UNSHIMMED, "train-1-aaa", "python"),
        CardProcess(12, 3 * GIB, Standing.FOREIGN, None, "Xorg"),
    )),
    Card(1, "GPU-bb", "H100", 80 * GIB, 0, None, True, ()),
)  # fmt: skip
TRAIN = TenantCard(
    index=0,
    uuid="GPU-aa",
    cap_bytes=8 * GIB,
    card_bytes=80 * GIB,
    allocation_bytes=6 * GIB,
    pool_bytes=GIB,
    overhead_bytes=520 * MIB,
    footprint_bytes=11 * GIB,
    denials=4,
    over=True,
    enforcement=Enforcement(Level.PARTIAL, "process 11 (python) holds 2048 MiB without the shim"),
    processes=(ProcessView(10, 1, "python", 7 * GIB + 520 * MIB, 9 * GIB),),
    time_percent=30,
    weight=200,
    latency_class=LatencyClass.LATENCY,
    busy_ratio=0.125,
    busy_source=ShareSource.METERED,
    throttled_seconds=1.5,
    bus_bytes=GIB,
    unshimmed=(CARDS[0].processes[1],),
    time_enforcement=Enforcement(Level.FULL, None),
    metering=Metering(
        GateState.WINDOWED,
        True,
        12.5,
        12.0,
        3.5,
        700,
        2,
        unpreemptible=True,
        ganged=True,
        waiting=3,
        waits=(4, 0, 2, 1),
    ),
)
BARE = TenantCard(
    index=0,
    uuid="GPU-aa",
    cap_bytes=None,
    card_bytes=80 * GIB,
    allocation_bytes=0,
    pool_bytes=0,
    overhead_bytes=0,
    footprint_bytes=None,
    denials=0,
    over=False,
    enforcement=Enforcement(Level.NONE, "uncapped"),
    processes=(),
    busy_ratio=0.5,
    busy_source=ShareSource.SAMPLED,
)
NODE = Node(
    driver=Driver("580.159.04", CARDS, simulated=False),
    tenants=(
        Tenant("train-1-aaa", "train-1", False, None, (TRAIN,), container="c0ffee", pod="lab/train-0"),
        Tenant("bare-bbb", "bare", False, "the page /x is damaged", (BARE,)),
    ),
    inside=False,
    problem=None,
    supervisor=Supervisor(__version__, 77, 12.5, "kill", (CARDS[1].uuid,)),
)
HEALTH = Health(
    started_unix_seconds=1_800_000_000.25,
    nvml_answers=True,
    samples=100,
    sample_failures=2,
    sample_seconds=0.75,
    last_sample_unix_seconds=1_800_000_050.5,
    requests={"200": 7, "404": 1},
    events={"tenant_created": 2, "violation": 1},
    handover_seconds={"GPU-aa": 2.5},
)
NOTHING = Node(None, (), False, "no driver", None)
UNBORN = replace(
    HEALTH, nvml_answers=False, samples=0, last_sample_unix_seconds=None, requests={}, events={}, handover_seconds={}
)

Samples = dict[tuple[str, ...], float]


def scrape(node: Node = NODE, health: Health = HEALTH, *, hami: bool = False) -> dict[str, Samples]:
    """Return what Prometheus reads, by the metric's name and the values of its labels as the table orders them."""
    order: dict[str, tuple[str, ...]] = {}
    for metric in (*exporter.METRICS, *exporter.HAMI_METRICS):
        names = [metric.name]
        if metric.type == "histogram":
            names = [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
        order |= {name: (*metric.labels, *(("le",) if name.endswith("_bucket") else ())) for name in names}
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(exporter.render(node, health, hami=hami).decode()):
        for sample in family.samples:
            labels = tuple(sample.labels.pop(name) for name in order[sample.name])
            assert sample.labels == {}
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def named(found: Mapping[str, Samples], prefix: str) -> dict[str, Samples]:
    return {name.removeprefix(prefix): samples for name, samples in found.items() if name.startswith(prefix)}


def test_the_cards() -> None:
    a, b = ("GPU-aa", "0"), ("GPU-bb", "1")

    assert named(scrape(), "hamirt_gpu_") == {
        "info": {(*a, "H100"): 1, (*b, "H100"): 1},
        "memory_total_bytes": {a: 80 * GIB, b: 80 * GIB},
        "memory_used_bytes": {a: 20 * GIB, b: 0},
        "memory_caps_bytes": {a: 88 * GIB, b: 0},
        "memory_foreign_bytes": {a: 3 * GIB, b: 0},
        "memory_unclaimed_bytes": {a: -11 * GIB, b: 80 * GIB},
        "busy_ratio": {a: 0.25},
        "handover_seconds_total": {a: 2.5},
        "mig_enabled": {a: 0, b: 1},
        "open": {a: 0, b: 1},
        "processes": {
            (*a, "registered"): 1, (*a, "unshimmed"): 1, (*a, "foreign"): 1,
            (*b, "registered"): 0, (*b, "unshimmed"): 0, (*b, "foreign"): 0,
        },
    }  # fmt: skip


def test_the_tenants_and_what_is_not_known_of_them() -> None:
    train, bare = ("train-1-aaa", "GPU-aa"), ("bare-bbb", "GPU-aa")

    assert named(scrape(), "hamirt_tenant_") == {
        "memory_used_bytes": {
            (*train, "allocations"): 6 * GIB, (*train, "pools"): GIB, (*train, "overhead"): 520 * MIB,
            (*bare, "allocations"): 0, (*bare, "pools"): 0, (*bare, "overhead"): 0,
        },
        "memory_cap_bytes": {train: 8 * GIB},
        "memory_footprint_bytes": {train: 11 * GIB},
        "memory_drift_bytes": {train: 4 * GIB - 520 * MIB},
        "memory_over_bytes": {train: 3 * GIB},
        "gpu_time_cap_ratio": {train: 0.3},
        "gpu_time_share_ratio": {train: 0.125, bare: 0.5},
        "gpu_time_share_sampled": {train: 0, bare: 1},
        "gpu_time_seconds_total": {train: 12.5},
        "gate_free_seconds_total": {train: 3.5},
        "slots_total": {train: 700},
        "slot_misses_total": {train: 2},
        "unpreemptible": {train: 1},
        "ganged": {train: 1},
        "waiting_threads": {train: 3},
        "launch_wait_seconds_bucket": {
            (*train, "1e-06"): 4, (*train, "2e-06"): 4, (*train, "4e-06"): 6, (*train, "+Inf"): 7,
        },
        "launch_wait_seconds_count": {train: 7},
        "launch_wait_seconds_sum": {train: 1.5},
        "weight": {train: 200, bare: 100},
        "throttled_seconds_total": {train: 1.5, bare: 0},
        "bus_bytes_total": {train: GIB, bare: 0},
        "denials_total": {train: 4, bare: 0},
        "processes": {train: 1, bare: 0},
        "unshimmed_processes": {train: 1, bare: 0},
        "enforcement_info": {(*train, "partial", "unshimmed"): 1, (*bare, "none", "uncapped"): 1},
        "gpu_time_enforcement_info": {(*train, "full", "enforced"): 1},
        "info": {
            ("train-1-aaa", "train-1", "c0ffee", "lab/train-0", "latency", "false"): 1,
            ("bare-bbb", "bare", "", "", "normal", "false"): 1,
        },
        "problem": {("train-1-aaa",): 0, ("bare-bbb",): 1},
    }  # fmt: skip


def test_the_supervisor() -> None:
    found = scrape()

    assert {name: found[name] for name in found if not name.startswith(("hamirt_gpu_", "hamirt_tenant_"))} == {
        "hamirt_build_info": {(__version__,): 1},
        "hamirt_supervisor_info": {("kill",): 1},
        "hamirt_supervisor_start_time_seconds": {(): 1_800_000_000.25},
        "hamirt_supervisor_up": {(): 1},
        "hamirt_nvml_up": {(): 1},
        "hamirt_driver_info": {("580.159.04", "false"): 1},
        "hamirt_samples_total": {(): 100},
        "hamirt_sample_failures_total": {(): 2},
        "hamirt_sample_seconds_total": {(): 0.75},
        "hamirt_last_sample_timestamp_seconds": {(): 1_800_000_050.5},
        "hamirt_api_requests_total": {("200",): 7, ("404",): 1},
        "hamirt_events_total": {
            ("killed",): 0,
            ("tenant_changed",): 0,
            ("tenant_created",): 2,
            ("tenant_removed",): 0,
            ("violation",): 1,
        },
        "hamirt_tenants": {(): 2},
    }


def test_an_empty_node_is_absent_and_not_0() -> None:
    found = scrape(NOTHING, UNBORN, hami=True)

    assert sorted(found) == [
        "hamirt_build_info", "hamirt_events_total", "hamirt_nvml_up", "hamirt_sample_failures_total",
        "hamirt_sample_seconds_total", "hamirt_samples_total", "hamirt_supervisor_start_time_seconds",
        "hamirt_supervisor_up", "hamirt_tenants",
    ]  # fmt: skip
    assert (found["hamirt_nvml_up"], found["hamirt_supervisor_up"]) == ({(): 0}, {(): 0})


@pytest.mark.parametrize("unknown", [CardProcess(12, None, Standing.FOREIGN), CardProcess(12, 3 * GIB, None)])
def test_foreign_memory_that_is_not_fully_known_is_absent(unknown: CardProcess) -> None:
    card = replace(CARDS[0], processes=(*CARDS[0].processes[:2], unknown))

    found = named(scrape(replace(NODE, driver=Driver("580", (card,), simulated=False))), "hamirt_gpu_")

    assert "memory_foreign_bytes" not in found
    assert "memory_unclaimed_bytes" not in found
    assert ("processes" in found) == (unknown.standing is not None)


def test_a_simulated_tenant_does_not_claim_a_real_card() -> None:
    node = replace(NODE, tenants=(replace(NODE.tenants[0], simulated=True),))

    assert scrape(node)["hamirt_gpu_memory_caps_bytes"][("GPU-aa", "0")] == 0


def test_names_that_would_break_the_format_are_quoted_or_replaced() -> None:
    hostile = 'a"b\\c\nd} 1\n# TYPE x\x00\ud800é' + "x" * 1000
    shown = 'a"b\\c?d} 1?# TYPE x??é' + "x" * 1000

    node = replace(NODE, tenants=(replace(NODE.tenants[0], id=hostile, pod=hostile),))

    assert list(scrape(node, hami=True)["hamirt_tenant_problem"]) == [(shown[:255],)]


@given(st.text(), st.text(), st.dictionaries(st.text(), st.integers(0)))
def test_no_text_costs_the_scrape(name: str, other: str, counts: dict[str, int]) -> None:
    tenant = replace(
        NODE.tenants[0], id=name, name=other, container=other, pod=name, cards=(replace(TRAIN, uuid=name),)
    )
    node = replace(NODE, tenants=(tenant, replace(tenant, id=other)), supervisor=Supervisor(name, 1, 0.0, other))

    found = scrape(node, replace(HEALTH, requests=counts), hami=True)

    assert len(found["hamirt_tenant_denials_total"]) in (1, 2)


def test_two_tenants_of_one_id_give_one_series() -> None:
    twin = replace(NODE.tenants[1], id="train-1-aaa")

    node = replace(NODE, tenants=(NODE.tenants[0], twin))

    assert scrape(node)["hamirt_tenant_denials_total"] == {("train-1-aaa", "GPU-aa"): 4}
    text = exporter.render(node, HEALTH, hami=True).decode().splitlines()
    series = [line.rsplit(" ", 1)[0] for line in text if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_the_table_is_consistent() -> None:
    metrics = (*exporter.METRICS, *exporter.HAMI_METRICS)

    assert len({metric.name for metric in metrics}) == len(metrics)
    assert all(metric.name.startswith("hamirt_") for metric in exporter.METRICS)
    assert [metric.name for metric in metrics if metric.name.endswith("_total") != (metric.type == "counter")] == []
    assert [metric.name for metric in metrics if "_ratio" in metric.name and not metric.name.endswith("_ratio")] == []


def test_the_documentation_names_every_metric_and_no_other() -> None:
    text = (TOP / "docs" / "metrics.md").read_text()

    described = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) - set(metrics.REASONS)
    assert {name for name in described if name.startswith("hamirt_")} == {m.name for m in exporter.METRICS}
    assert [metric.name for metric in exporter.HAMI_METRICS if f"| `{metric.name}` |" not in text] == []
    assert [code for code in (*metrics.REASONS, *metrics.EVENTS) if f"`{code}`" not in text] == []


def test_hami_names_are_only_exported_when_asked_for() -> None:
    ours = set(scrape())

    assert {name for name in scrape(hami=True) if name not in ours} == {metric.name for metric in exporter.HAMI_METRICS}


def test_hami_metrics_have_its_labels_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_NAME", "node-7")
    host = [("vGPU", "node-7", "0", "GPU-aa", "NVIDIA-H100"), ("vGPU", "node-7", "1", "GPU-bb", "NVIDIA-H100")]
    train = ("vGPU", "lab", "train-0", "c0ffee", "0", "GPU-aa")
    bare = ("vGPU", "hamirt", "bare", "bare-bbb", "0", "GPU-aa")
    used, limit = {train: 7 * GIB + 520 * MIB, bare: 0}, {train: 8 * GIB, bare: 80 * GIB}

    found = scrape(hami=True)

    assert {name: found[name] for name in found if not name.startswith("hamirt_")} == {
        "hami_host_gpu_memory_used_bytes": {host[0]: 20 * GIB, host[1]: 0},
        "hami_host_gpu_utilization_ratio": {host[0]: 25},
        "HostGPUMemoryUsage": {host[0]: 20 * GIB, host[1]: 0},
        "HostCoreUtilization": {host[0]: 25},
        "hami_vgpu_memory_used_bytes": used,
        "hami_vgpu_memory_limit_bytes": limit,
        "hami_container_device_memory_bytes": used,
        "hami_container_device_utilization_ratio": {train: 12.5, bare: 50},
        "vGPU_device_memory_usage_in_bytes": used,
        "vGPU_device_memory_limit_in_bytes": limit,
        "Device_memory_desc_of_container": used,
        "Device_utilization_desc_of_container": {train: 12.5, bare: 50},
        "hami_gpu_memory_limit_bytes": {host[0]: 80 * GIB, host[1]: 80 * GIB},
        "hami_gpu_memory_allocated_bytes": {(*host[0], "100"): 88 * GIB, (*host[1], "100"): 0},
        "hami_node_gpu_memory_allocated_ratio": {host[0][:4]: 1.1, host[1][:4]: 0},
        "hami_gpu_core_allocated_ratio": {host[0]: 30, host[1]: 0},
        "hami_gpu_shared_count": {host[0]: 2, host[1]: 0},
    }


def test_the_node_is_named_by_the_machine_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_NAME", raising=False)

    (name,) = {labels[1] for labels in scrape(hami=True)["hami_gpu_shared_count"]}

    assert name == os.uname().nodename
