"""What of a node's tenants must be the same after a daemon was killed: their pages, their ids, caps and processes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hamirt.region import DEVICES, ffi

_GATE_BYTES = ffi.sizeof("struct hm_gate")
_LIVE_LIMITS = ("lease_ns", "epoch", "measure")
_LIVE_USAGE = ("trim", "bell")
_LIVE_TIME = frozenset({"busy_ratio", "busy_source", "metering", "throttled_seconds"})
_LIVE_FIGURES = frozenset(
    {"used_bytes", "over_bytes", "over", "allocation_bytes", "pool_bytes", "overhead_bytes", "footprint_bytes"}
    | {
        "charged_bytes",
        "card_bytes",
        "denials",
        "throttled_seconds",
        "busy_ratio",
        "busy_source",
        "metering",
        "bus_bytes",
    }
)

Pages = Mapping[str, bytes]
"""By file name what a tenant's folder holds, without what changes by itself."""


def read_pages(folder: Path, still: bool) -> Pages:
    """Return a tenant's limits page and record, and with `still`, where nobody allocates, its usage page.

    What can't be read is missing.
    """
    files: dict[str, tuple[str, Iterable[str]]] = {
        "ro/limits": ("struct hm_limits", _LIVE_LIMITS),
        "tenant.json": ("", ()),
    }
    if still:
        files["rw/usage"] = ("struct hm_usage", _LIVE_USAGE)
    pages = {}
    for name, (kind, live) in files.items():
        with contextlib.suppress(OSError):
            pages[name] = _masked((folder / name).read_bytes(), kind, live)
    return pages


def shown(node: Mapping[str, Any], identity: str, still: bool) -> Any:
    """Return what the node says of a tenant, without figures that change unless it is `still`; None: nothing."""
    for one in node["tenants"]:
        if one["id"] == identity:
            return _without(one, _LIVE_TIME if still else _LIVE_FIGURES)
    return None


def differences(name: str, before: Any, after: Any, place: str = "") -> Iterable[str]:
    """Yield where two states of a tenant differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(name, before.get(key), after.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(name, one, other, f"{place}[{index}]")
    elif before != after:
        yield f"{name}: {place or 'it'} was {_short(before)}, is {_short(after)}"


def _masked(page: bytes, kind: str, fields: Iterable[str]) -> bytes:
    content = bytearray(page)
    for at in range(DEVICES if kind == "struct hm_limits" else 0):
        gate = ffi.offsetof(kind, "device", at, "gate")
        content[gate : gate + _GATE_BYTES] = bytes(_GATE_BYTES)
    for name in fields:
        at, size = ffi.offsetof(kind, name), ffi.sizeof(dict(ffi.typeof(kind).fields)[name].type)
        content[at : at + size] = bytes(size)
    return bytes(content)


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, list):
        return [_without(one, names) for one in value]
    if isinstance(value, dict):
        return {key: _without(one, names) for key, one in value.items() if key not in names}
    return value


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} other bytes"
    return json.dumps(value)[:80]
