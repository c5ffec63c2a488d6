"""A node as JSON, the schema of docs/status-json.md: what the supervisor's API sends and `hamirt status --json` prints.

All that model.Node holds is in it, under the model's names but for a few places that are written out here. A reader
passes over fields that it does not know, and takes the model's default for one that is missing.
"""

import dataclasses
import types
import typing
from enum import Enum
from functools import cache
from typing import Any

from hamirt import __version__
from hamirt.errors import HamirtError
from hamirt.model import Node, TenantCard

SCHEMA = 1


def node_to_json(node: Node) -> dict[str, Any]:
    """Return the node as JSON's own types."""
    driver = node.driver
    return {
        "schema": SCHEMA,
        "hamirt": __version__,
        "supervisor": _encode(node.supervisor),
        "simulated": driver is not None and driver.simulated,
        "inside_tenant": node.inside,
        "driver": driver.version if driver else None,
        "problem": node.problem,
        "gpu_time": "metered",
        "cards": _encode(driver.cards) if driver else [],
        "tenants": _encode(node.tenants),
    }


def node_from_json(value: object) -> Node:
    """Read what `node_to_json` returned, after it went through JSON.

    Raises HamirtError for anything else, naming the place.
    """
    top = _object(value, "the answer")
    if top.get("schema") != SCHEMA:
        raise HamirtError(f"{_NO_SENSE} at schema, which is not {SCHEMA}: {_ASK}")
    driver = {**top, "version": top["driver"]} if top.get("driver") is not None else None
    node: Node = _decode(Node, {**top, "driver": driver, "inside": top.get("inside_tenant")}, "the answer")
    return node


_NO_SENSE = "the supervisor's answer makes no sense"
_ASK = "does another version of hamirt run there?"


def _encode(value: Any) -> Any:
    kind = type(value)
    if kind in (int, str, float, bool, types.NoneType):
        return value
    if kind is tuple:
        return [_encode(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if kind is TenantCard:
        return _encode_on_card(value)
    return {name: _encode(getattr(value, name)) for name in kind.__dataclass_fields__}


def _encode_on_card(on: TenantCard) -> dict[str, Any]:
    """Return a tenant on a card: its sums beside what they are made of, and its enforcement in one place."""
    fields = {name: _encode(getattr(on, name)) for name in TenantCard.__dataclass_fields__}
    memory, time = on.enforcement, fields.pop("time_enforcement")
    fields["enforcement"] = {
        "memory": memory.level.value,
        "reason": memory.reason,
        "gpu_time": time and time["level"],
        "gpu_time_reason": time and time["reason"],
    }
    return {"used_bytes": on.used_bytes, "over_bytes": on.over_bytes, **fields}


def _decode_on_card(value: object, place: str) -> dict[str, Any]:
    fields = dict(_object(value, place))
    stated = _object(fields.get("enforcement"), f"{place}.enforcement")
    fields["enforcement"] = {"level": stated.get("memory"), "reason": stated.get("reason")}
    if stated.get("gpu_time") is not None:
        fields["time_enforcement"] = {"level": stated["gpu_time"], "reason": stated.get("gpu_time_reason")}
    return fields


def _decode(kind: Any, value: Any, place: str) -> Any:
    """Return `value` as a `kind`, one of those that the model is made of."""
    if isinstance(kind, types.UnionType):  # X | None: there are no others
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, _decode_on_card(value, place) if kind is TenantCard else value, place)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list):
            item = typing.get_args(kind)[0]
            return tuple(_decode(item, one, f"{place}[{index}]") for index, one in enumerate(value))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        if any(value == one.value for one in kind):
            return kind(value)
    elif kind is float:
        if type(value) in (int, float):
            return float(value)
    elif type(value) is kind:  # a bool is no int here
        return value
    raise HamirtError(f"{_NO_SENSE} at {place}: {_ASK}")


def _decode_fields(kind: Any, value: object, place: str) -> Any:
    given = _object(value, place)
    fields = _fields(kind)
    try:
        return kind(**{name: _decode(fields[name], given[name], f"{place}.{name}") for name in fields if name in given})
    except TypeError:
        raise HamirtError(f"{_NO_SENSE} at {place}, of which a part is missing: {_ASK}") from None


def _object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HamirtError(f"{_NO_SENSE} at {place}: {_ASK}")
    return value


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
