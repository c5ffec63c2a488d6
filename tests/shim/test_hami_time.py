"""What HAMi's variables say of GPU time, and what comes of it in the limits page."""

from __future__ import annotations

from pathlib import Path

import pytest

from hamirt import region
from hamirt.model import LatencyClass
from tests.shim.conftest import Node
from tests.shim.test_hami import ask, variables_of

NORMAL, LATENCY = LatencyClass.NORMAL, LatencyClass.LATENCY
SHARES: list[tuple[dict[str, str], list[tuple[int | None, LatencyClass]]]] = [
    ({}, [(30, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT": "0"}, [(None, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT": "100"}, [(None, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT": "99"}, [(99, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT_0": "70"}, [(70, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT_0": "0"}, [(30, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT_0": "100"}, [(None, NORMAL)]),
    ({"CUDA_DEVICE_SM_LIMIT_1": "70", "NVIDIA_VISIBLE_DEVICES": "all"}, [(30, NORMAL), (70, NORMAL)]),
    ({"CUDA_TASK_PRIORITY": "0"}, [(30, LATENCY)]),
    ({"CUDA_TASK_PRIORITY": "1"}, [(30, NORMAL)]),
    ({"GPU_CORE_UTILIZATION_POLICY": "default"}, [(30, NORMAL)]),
    ({"GPU_CORE_UTILIZATION_POLICY": "FORCE"}, [(30, NORMAL)]),
    ({"GPU_CORE_UTILIZATION_POLICY": "disable"}, [(None, NORMAL)]),
]


@pytest.mark.parametrize(("variables", "shares"), SHARES, ids=str)
def test_shares_of_gpu_time(
    node: Node, tmp_path: Path, variables: dict[str, str], shares: list[tuple[int | None, LatencyClass]]
) -> None:
    node.cards = len(shares)
    cache = tmp_path / "time.cache"

    _, log = ask(node, variables_of(cache) | variables, "cuda.cuInit(0)")

    devices = region.read_limits(cache.with_suffix(".hamirt") / "ro" / "limits").devices
    assert [(device.time_percent, device.latency_class) for device in devices] == shares
    assert {device.weight for device in devices} == {100}
    assert ("GPU time is NOT limited" in log) == ("disable" in variables.values())


@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_DEVICE_SM_LIMIT": "0"},
        {"CUDA_DEVICE_SM_LIMIT_0": "100"},
        {"CUDA_DEVICE_SM_LIMIT": "50", "CUDA_TASK_PRIORITY": "0", "GPU_CORE_UTILIZATION_POLICY": "FORCE"},
    ],
)
def test_a_share_of_the_time_alone_leaves_the_memory_open(
    node: Node, tmp_path: Path, variables: dict[str, str]
) -> None:
    extra = {"CUDA_DEVICE_MEMORY_SHARED_CACHE": str(tmp_path / "time.cache"), **variables}

    answers, log = ask(node, extra, "context()", "alloc(70000)")

    assert answers == ["0", "0"]
    assert "memory of device 0 is NOT limited" in log
