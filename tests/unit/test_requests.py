"""Requests: read as they are meant, or refused; no bytes make anything else of them."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hamirt.daemon.refusal import RefusalError
from hamirt.daemon.requests import (
    Change,
    Containment,
    Creation,
    WishedDevice,
    read_change,
    read_containment,
    read_creation,
)
from hamirt.model import LatencyClass
from hamirt.units import GIB

FULL = {
    "name": "web",
    "command": ["train", "--fast"],
    "simulated": True,
    "allow_on_error": True,
    "unenforced": "static",
    "cgroup": "/a",
    "container": "c",
    "pod": "p",
    "devices": [
        {"uuid": "GPU-a", "memory_bytes": 8 * GIB, "time_percent": 30, "weight": 7, "latency_class": "batch"},
        {"uuid": "GPU-b"},
    ],
}
CHANGE = {
    "devices": {"GPU-a": {"memory_bytes": 8 * GIB, "time_percent": None, "weight": 1, "latency_class": "latency"}}
}
CONTAINMENT = {"pid": 123, "annotations": {"hamirt.io/memory": "8GiB", "x": ""}, "settings": {"hamirt.io/gpu": "0"}}


def test_a_request_for_a_container() -> None:
    assert read_containment(json.dumps(CONTAINMENT).encode()) == Containment(
        123, {"hamirt.io/memory": "8GiB", "x": ""}, {"hamirt.io/gpu": "0"}
    )
    assert read_containment(b'{"pid": 2}') == Containment(2, {}, {})


def test_a_request_for_a_tenant() -> None:
    assert read_creation(json.dumps(FULL).encode()) == Creation(
        devices=(WishedDevice("GPU-a", 8 * GIB, 30, 7, LatencyClass.BATCH), WishedDevice("GPU-b")),
        name="web",
        command=("train", "--fast"),
        simulated=True,
        allow_on_error=True,
        unenforced="static",
        cgroup="/a",
        container="c",
        pod="p",
    )


def test_a_request_for_a_change() -> None:
    change = {"memory_bytes": 8 * GIB, "time_percent": None, "weight": 1, "latency_class": LatencyClass.LATENCY}

    assert read_change(json.dumps(CHANGE).encode()) == Change({"GPU-a": change})


def test_all_of_the_time_is_no_cap() -> None:
    whole = {"devices": {"GPU-a": {"time_percent": 100}}}

    assert read_change(json.dumps(whole).encode()) == Change({"GPU-a": {"time_percent": None}})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """A valid request in which a value was replaced, a field added, or bytes were changed."""
    request = json.loads(json.dumps(valid))
    at: Any = request
    while isinstance(at, dict | list) and at:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if draw(st.booleans()) or not isinstance(at[key], dict | list):
            at[key] = draw(json_values)
            break
        at = at[key]
    if isinstance(at, dict) and draw(st.booleans()):
        at[draw(st.text(max_size=8))] = draw(json_values)
    content = bytearray(json.dumps(request).encode())
    for position, byte in draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=3)):
        content[position] = byte
    return bytes(content)


@given(mutated(FULL))
def test_a_mutated_request_for_a_tenant_is_one_or_a_sentence(body: bytes) -> None:
    try:
        creation = read_creation(body)
    except RefusalError as error:
        assert (error.status, bool(str(error))) == (400, True)
        return
    assert creation.devices
    assert all(1 <= device.weight <= 10_000 for device in creation.devices)


@given(mutated(CHANGE))
def test_a_mutated_change_is_one_or_a_sentence(body: bytes) -> None:
    try:
        change = read_change(body)
    except RefusalError as error:
        assert (error.status, bool(str(error))) == (400, True)
        return
    fields = {name for device in change.devices.values() for name in device}
    assert fields <= {"memory_bytes", "time_percent", "weight", "latency_class"}


@given(mutated(CONTAINMENT))
def test_a_mutated_request_for_a_container_is_one_or_a_sentence(body: bytes) -> None:
    try:
        asked = read_containment(body)
    except RefusalError as error:
        assert (error.status, bool(str(error))) == (400, True)
        return
    assert 2 <= asked.pid <= 1 << 22
    assert all(isinstance(text, str) for said in (asked.annotations, asked.settings) for text in said.values())
