"""What a container asks for in its annotations, read and checked. Decides, and touches nothing.

`hamirt.io/...` are ours, and `nvidia.com/...gputype` and `...gpuuuid` HAMi's. Settings are annotations too, written by
who wrote the hook's entry (a CDI device): a container may not say otherwise.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from hamirt.errors import HamirtError
from hamirt.model import DEFAULT_WEIGHT, LatencyClass
from hamirt.placement import GPU, MEMORY, NO_TYPE, NO_UUID, USE_TYPE, USE_UUID, Filters, Policy, Wanted
from hamirt.plan import time_cap
from hamirt.region import DEVICES
from hamirt.tenants import base_name, check_name
from hamirt.units import Cap, parse_cap

OURS = "hamirt.io/"
SM, WEIGHT, CLASS, NAME, POLICY = (OURS + name for name in ("sm", "weight", "class", "name", "policy"))
_KNOWN = (MEMORY, SM, WEIGHT, CLASS, NAME, GPU, POLICY)
_HAMIS = (USE_TYPE, NO_TYPE, USE_UUID, NO_UUID)
_MOST_WEIGHT = 10_000
_MOST_CHARS = 4096
_COUNT = re.compile(r"count=([0-9]{1,6})")
_GPU = re.compile(r"[0-9]{1,4}|(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}", re.IGNORECASE)

# CRI-O's, containerd's. A pod's sandbox carries the pod's annotations and runs nothing.
_CONTAINER_NAMES = ("io.kubernetes.container.name", "io.kubernetes.cri.container-name")
_POD_NAMES = ("io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name")
_POD_NAMESPACES = ("io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace")
_CONTAINER_TYPES = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri.container-type")

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a container asks for: its cards with the cap on each, its GPU time, and what it is to be called."""

    cards: Wanted
    time_percent: int | None = None
    weight: int = DEFAULT_WEIGHT
    latency_class: LatencyClass = LatencyClass.NORMAL
    name: str | None = None
    pod: str | None = None


def ours(annotations: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return what is said to hamirt, empty if that is nothing: then the container has nothing to do with it.

    Raises HamirtError where a container's annotation says something else than a setting.
    """
    for key, value in settings.items():
        if key not in (*_KNOWN, *_HAMIS):
            raise HamirtError(f"there is no setting {key[:80]!r}: there are {', '.join((*_KNOWN, *_HAMIS))}")
        own = annotations.get(key, value)
        if own.strip() != value.strip():
            raise HamirtError(
                f"{key} is {own[:80]!r} by annotation and {value[:80]!r} by the device: leave one of them out"
            )
    if any(annotations.get(key) == "sandbox" for key in _CONTAINER_TYPES):
        return {}
    said = {**annotations, **settings}
    if not any(key in said for key in _KNOWN):
        return {}
    return {key: said[key].strip() for key in (*_KNOWN, *_HAMIS) if key in said}


def warnings(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each annotation that looks like ours and is none."""
    unknown = sorted(key for key in annotations if key.startswith(OURS) and key not in _KNOWN)
    return tuple(
        f"there is no annotation {key[:80]!r}, so it does nothing: there are {', '.join(_KNOWN)}" for key in unknown[:8]
    )


def read(said: Mapping[str, str], annotations: Mapping[str, str]) -> Wish:
    """Return what `said`, of `ours`, asks for; all `annotations` may tell which container and pod it is.

    Raises HamirtError that names the annotation which is wrong, or the two that contradict each other.
    """
    for key, value in said.items():
        if not value or len(value) > _MOST_CHARS or not value.isprintable():
            raise HamirtError(f"{key} has to be printable text, {_MOST_CHARS} characters at most: or leave it out")
    container = _first(annotations, _CONTAINER_NAMES)
    name = None if container is None else base_name(container)
    pod, namespace = _first(annotations, _POD_NAMES), _first(annotations, _POD_NAMESPACES)
    return Wish(
        cards=_cards(said),
        time_percent=time_cap(_read(said, SM, lambda text: _number(text, 100), None)),
        weight=_read(said, WEIGHT, lambda text: _number(text, _MOST_WEIGHT), DEFAULT_WEIGHT),
        latency_class=_read(said, CLASS, lambda text: _one_of(LatencyClass, text), LatencyClass.NORMAL),
        name=_read(said, NAME, _name, name),
        pod=pod if pod is None or namespace is None else f"{namespace}/{pod}",
    )


def _cards(said: Mapping[str, str]) -> Wanted:
    filters = Filters(*(_list(said.get(key, "")) for key in _HAMIS))
    for use, no, wanted, unwanted in (
        (USE_TYPE, NO_TYPE, filters.use_types, filters.no_types),
        (USE_UUID, NO_UUID, filters.use_uuids, filters.no_uuids),
    ):
        both = {word.lower() for word in wanted} & {word.lower() for word in unwanted}
        if both:
            raise HamirtError(f"{use} and {no} contradict each other: both have {', '.join(sorted(both))[:200]}")
    one_card: tuple[int, tuple[str, ...]] = (1, ())
    count, named = _read(said, GPU, _gpus, one_card)
    by_uuid = Filters(use_uuids=filters.use_uuids, no_uuids=filters.no_uuids)
    for name in named:
        objection = None if name.isdigit() else by_uuid.objection(name, "")
        if objection is not None:
            raise HamirtError(f"{GPU} contradicts what else is said: {name} {objection}")
    policy = _read(said, POLICY, lambda text: _one_of(Policy, text), Policy.SPREAD)
    return Wanted(count, named, _read(said, MEMORY, _memory, None), filters, policy)


def _read(said: Mapping[str, str], key: str, parse: Callable[[str], _T], default: _T) -> _T:
    if key not in said:
        return default
    try:
        return parse(said[key])
    except HamirtError as error:
        raise HamirtError(f"{key}: {error}") from None


def _memory(text: str) -> Cap | None:
    if "=" in text:
        raise HamirtError(f"{text!r} is not a size: write one size for all GPUs of the container, such as 8GiB or 50%")
    try:
        return parse_cap(text)
    except HamirtError as error:
        raise HamirtError(str(error).replace("--mem", "it")) from None


def _number(text: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise HamirtError(f"{text[:80]!r} is not a whole number from 1 to {most}")
    return int(text)


def _one_of(kind: type[_E], text: str) -> _E:
    for one in kind:
        if one.value == text:
            return one
    raise HamirtError(f"{text[:80]!r} is none of {', '.join(str(one.value) for one in kind)}")


def _name(text: str) -> str | None:
    check_name(text)
    return text


def _list(text: str) -> tuple[str, ...]:
    return tuple(word for piece in text.split(",") if (word := piece.strip()))


def _gpus(text: str) -> tuple[int, tuple[str, ...]]:
    """Return how many GPUs, and which if they are named."""
    match = _COUNT.fullmatch(text)
    if match is not None:
        count = _number(match.group(1), DEVICES)
        return count, ()
    names = tuple(piece.strip() for piece in text.split(","))
    for name in names:
        if not _GPU.fullmatch(name):
            raise HamirtError(f"{name[:80]!r} is no GPU: write count=2 for any two, or indexes or UUIDs, such as 0,1")
        if name.upper().startswith("MIG-"):
            raise HamirtError(f"{name} is a MIG instance, which hamirt can't divide further for now: name a whole GPU")
    if len({name.lower() for name in names}) < len(names):
        raise HamirtError(f"{text[:80]!r} names a GPU twice: name each GPU once")
    if len(names) > DEVICES:
        raise HamirtError(f"a tenant can have {DEVICES} GPUs at most, not {len(names)}")
    return len(names), names


def _first(annotations: Mapping[str, str], keys: tuple[str, ...]) -> str | None:
    found = next((annotations[key] for key in keys if annotations.get(key)), None)
    return found if found is not None and len(found) <= 512 and found.isprintable() else None
