"""A node through JSON and back; and no answer is more than a sentence."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamirt.errors import HamirtError
from hamirt.model import (
    Card,
    CardProcess,
    Driver,
    Enforcement,
    GateState,
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
from hamirt.wire import node_from_json, node_to_json

BARE = CardProcess(8, 3, Standing.UNSHIMMED, "t-1", "sneak")
ON = TenantCard(
    index=0,
    uuid="GPU-aa",
    cap_bytes=100,
    card_bytes=1000,
    allocation_bytes=70,
    pool_bytes=20,
    overhead_bytes=15,
    footprint_bytes=None,
    denials=4,
    over=True,
    enforcement=Enforcement(Level.PARTIAL, "why"),
    processes=(ProcessView(7, 1, "python", 105, None),),
    time_percent=25,
    weight=300,
    latency_class=LatencyClass.BATCH,
    busy_ratio=0.25,
    busy_source=ShareSource.METERED,
    throttled_seconds=1.5,
    bus_bytes=1 << 60,
    unshimmed=(BARE,),
    time_enforcement=Enforcement(Level.NONE, "not now"),
    metering=Metering(GateState.WINDOWED, True, 1.5, 1.0, 0.5, 7, 1, True, True, 2, (0, 3, 1), 2e-6, None),
)
NODE = Node(
    driver=Driver("580", (Card(0, "GPU-aa", "H100", 1000, 200, None, False, (BARE, CardProcess(9, None))),), True),
    tenants=(Tenant("t-1", "t", True, None, (ON, replace(ON, time_enforcement=None, metering=None)), "box", "pod"),),
    inside=False,
    problem=None,
    supervisor=Supervisor("0.1.0", 12, 3.5, "kill", ("GPU-aa",)),
)


def sent(node: Node) -> Any:
    return json.loads(json.dumps(node_to_json(node)))


nothing = Node(driver=None, tenants=(), inside=True, problem="no driver")


@pytest.mark.parametrize("node", [NODE, nothing], ids=["full", "empty"])
def test_a_node_comes_back_as_it_was(node: Node) -> None:
    assert node_from_json(sent(node)) == node


def test_sums_and_enforcement_are_spelled_out() -> None:
    on = sent(NODE)["tenants"][0]["cards"][0]

    assert (on["used_bytes"], on["over_bytes"]) == (105, 5)
    assert on["enforcement"] == {"memory": "partial", "reason": "why", "gpu_time": "none", "gpu_time_reason": "not now"}


def test_what_a_newer_supervisor_adds_is_passed_over() -> None:
    answer = sent(NODE)
    answer["new"] = answer["tenants"][0]["new"] = answer["tenants"][0]["cards"][0]["new"] = [1]

    assert node_from_json(answer) == NODE


def test_what_an_older_supervisor_lacks_is_the_models_default() -> None:
    answer = sent(NODE)
    for name in ("weight", "unshimmed", "busy_ratio", "metering"):
        del answer["tenants"][0]["cards"][0][name]

    older = replace(ON, weight=100, unshimmed=(), busy_ratio=None, metering=None)
    assert node_from_json(answer).tenants[0].cards[0] == older


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("schema",), 2, "schema"),
        (("tenants",), None, "the answer.tenants"),
        (("tenants", 0), 3, "the answer.tenants[0]"),
        (("tenants", 0, "name"), 3, "the answer.tenants[0].name"),
        (("tenants", 0, "cards", 0, "denials"), True, "the answer.tenants[0].cards[0].denials"),
        (("tenants", 0, "cards", 0, "latency_class"), "soon", "the answer.tenants[0].cards[0].latency_class"),
        (("tenants", 0, "cards", 0, "enforcement"), [], "the answer.tenants[0].cards[0].enforcement"),
        (("tenants", 0, "cards", 0, "busy_source"), "guessed", "the answer.tenants[0].cards[0].busy_source"),
        (("tenants", 0, "cards", 0, "metering", "waits", 1), -0.5, "the answer.tenants[0].cards[0].metering.waits[1]"),
        (("cards", 0, "busy_ratio"), "much", "the answer.driver.cards[0].busy_ratio"),
    ],
)
def test_nonsense_is_named_with_its_place(path: tuple[str | int, ...], value: object, place: str) -> None:
    answer = sent(NODE)
    inner = answer
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value

    with pytest.raises(HamirtError) as raised:
        node_from_json(answer)
    assert f"makes no sense at {place}" in str(raised.value)


def test_a_missing_part_is_named() -> None:
    answer = sent(NODE)
    del answer["tenants"][0]["id"]

    with pytest.raises(HamirtError, match=r"at the answer.tenants\[0\], of which a part is missing"):
        node_from_json(answer)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.data())
def test_a_mutated_answer_is_a_node_or_a_sentence(data: st.DataObject) -> None:
    answer = sent(NODE)
    for _ in range(data.draw(st.integers(1, 3))):
        inner = answer
        while True:
            keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(inner[key], (dict, list)) and data.draw(st.booleans()):
                inner = inner[key]
                continue
            inner[key] = data.draw(anything)
            break

    try:
        node = node_from_json(answer)
    except HamirtError:
        return
    assert node_from_json(sent(node)) == node
