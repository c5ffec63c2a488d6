"""What clients may ask, read from JSON and checked: anything else is a sentence that names the field. Pure."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hamirt.daemon.refusal import BAD_REQUEST, RefusalError
from hamirt.errors import HamirtError
from hamirt.model import DEFAULT_WEIGHT, LatencyClass
from hamirt.plan import time_cap
from hamirt.region import DEVICES
from hamirt.tenants import check_name

MOST_BODY_BYTES = 1 << 16
MOST_CONTAINMENT_BYTES = 1 << 20  # Kubernetes allows 256 KiB of annotations, and engines add theirs
_MOST_BYTES = 1 << 50  # as units.parse_cap
_MOST_WEIGHT = 10_000
_MOST_TEXT = 4096
_MOST_UUID = 47  # region.h: HM_UUID_BYTES
_MOST_PID = 1 << 22  # PID_MAX_LIMIT of linux/threads.h
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}")


@dataclass(frozen=True, slots=True)
class WishedDevice:
    """What a tenant is to have of one card."""

    uuid: str
    memory_bytes: int | None = None
    time_percent: int | None = None
    weight: int = DEFAULT_WEIGHT
    latency_class: LatencyClass = LatencyClass.NORMAL


@dataclass(frozen=True, slots=True)
class Creation:
    """A tenant that is asked for; without a `name` the daemon finds one."""

    devices: tuple[WishedDevice, ...]
    name: str | None = None
    command: tuple[str, ...] = ()
    simulated: bool = False
    allow_on_error: bool = False
    unenforced: str | None = None
    cgroup: str | None = None
    container: str | None = None
    pod: str | None = None


@dataclass(frozen=True, slots=True)
class Containment:
    """A container that is about to start: the pid of its init process on the node, and what it and its devices say."""

    pid: int
    annotations: Mapping[str, str]
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """By UUID the fields of model.Limit that are to change, and to what."""

    devices: Mapping[str, Mapping[str, Any]]


def read_creation(body: bytes) -> Creation:
    """Read the body of PUT /v1/tenants/ID.

    Raises RefusalError for what is not right.
    """
    fields = _fields(_object(body), "", _CREATION)
    if "devices" not in fields:
        raise _bad("devices is missing: name the GPUs that the tenant is to have")
    uuids = [device.uuid for device in fields["devices"]]
    if len(set(uuids)) < len(uuids):
        raise _bad("devices names a GPU twice: name each GPU once")
    return Creation(**fields)


def read_change(body: bytes) -> Change:
    """Read the body of PATCH /v1/tenants/TENANT.

    Raises RefusalError for what is not right.
    """
    fields = _fields(_object(body), "", {"devices": lambda value, place: value})
    devices = fields.get("devices")
    if not isinstance(devices, dict) or not devices:
        raise _bad("devices has to be an object with a GPU's UUID for each change")
    return Change({uuid: _fields(value, f"devices[{uuid[:_MOST_UUID]!r}].", _LIMIT) for uuid, value in devices.items()})


def check_container_id(identity: str) -> None:
    """Raise RefusalError unless this can be the id of an OCI container."""
    if not _CONTAINER_ID.fullmatch(identity):
        raise _bad(
            f"{identity[:80]!r} can't be a container's id: that is letters, digits and '_.+-', "
            "255 at most, with a letter or a digit first"
        )


def read_containment(body: bytes) -> Containment:
    """Read the body of PUT /v1/containers/CONTAINER.

    Raises RefusalError for what is not right.
    """
    fields = _fields(_object(body), "", _CONTAINMENT)
    if "pid" not in fields:
        raise _bad("pid is missing: it is that of the container's init process, in the OCI state")
    return Containment(**{"annotations": {}, "settings": {}, **fields})


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _bad("the request's body is no JSON") from None
    if not isinstance(value, dict):
        raise _bad("the request's body has to be a JSON object")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(text)


_Read = Callable[[Any, str], Any]


def _fields(value: object, prefix: str, known: Mapping[str, _Read]) -> dict[str, Any]:
    """Read an object's fields; those that `known` lacks are refused by name."""
    if not isinstance(value, dict):
        raise _bad(f"{prefix.rstrip('.') or 'the body'} has to be an object")
    for name in value:
        if name not in known:
            raise _bad(f"there is no field {prefix}{name[:80]!r}; there are: {', '.join(known)}")
    return {name: known[name](item, f"{prefix}{name}") for name, item in value.items()}


def _whole(least: int, most: int) -> _Read:
    def read(value: Any, place: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _bad(f"{place} has to be a whole number from {least} to {most}")
        return value

    return read


def _or_none(read: _Read) -> _Read:
    return lambda value, place: None if value is None else read(value, place)


def _text(most: int) -> _Read:
    def read(value: Any, place: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable():
            raise _bad(f"{place} has to be printable text, {most} characters at most")
        return value

    return read


def _time_percent(value: Any, place: str) -> int | None:
    return time_cap(_or_none(_whole(1, 100))(value, place))


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(f"{place} has to be true or false")
    return value


def _name(value: Any, place: str) -> str:
    try:
        check_name(_text(_MOST_TEXT)(value, place))
    except HamirtError as error:
        raise _bad(str(error)) from None
    return str(value)


def _class(value: Any, place: str) -> LatencyClass:
    for one in LatencyClass:
        if value == one.value:
            return one
    raise _bad(f"{place} has to be {', '.join(one.value for one in LatencyClass)}")


def _words(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise _bad(f"{place} has to be a list of texts")
    return tuple(value)


def _texts(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _bad(f"{place} has to be an object of texts")
    return value


def _devices(value: Any, place: str) -> tuple[WishedDevice, ...]:
    if not isinstance(value, list) or not value:
        raise _bad(f"{place} has to be a list with an object for each GPU")
    if len(value) > DEVICES:
        raise _bad(f"a tenant can have {DEVICES} GPUs at most, not {len(value)}")
    found = []
    for index, item in enumerate(value):
        fields = _fields(item, f"{place}[{index}].", {"uuid": _text(_MOST_UUID), **_LIMIT})
        if "uuid" not in fields:
            raise _bad(f"{place}[{index}].uuid is missing")
        found.append(WishedDevice(**fields))
    return tuple(found)


def _bad(message: str) -> RefusalError:
    return RefusalError(BAD_REQUEST, message)


_LIMIT: dict[str, _Read] = {
    "memory_bytes": _or_none(_whole(1, _MOST_BYTES)),
    "time_percent": _time_percent,
    "weight": _whole(1, _MOST_WEIGHT),
    "latency_class": _class,
}
_CONTAINMENT: dict[str, _Read] = {"pid": _whole(2, _MOST_PID), "annotations": _texts, "settings": _texts}
_CREATION: dict[str, _Read] = {
    "name": _or_none(_name),
    "command": _words,
    "simulated": _flag,
    "allow_on_error": _flag,
    "unenforced": _or_none(_text(_MOST_TEXT)),
    "cgroup": _or_none(_text(_MOST_TEXT)),
    "container": _or_none(_text(_MOST_TEXT)),
    "pod": _or_none(_text(_MOST_TEXT)),
    "devices": _devices,
}
