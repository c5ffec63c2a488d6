"""The node's cards and sizes as CDI devices, `--device hamirt.io/vgpu=NAME`. Decides, and touches nothing.

Source: the Container Device Interface specification, 0.5.0. https://github.com/cncf-tags/container-device-interface
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hamirt import annotations, ocispec
from hamirt.errors import HamirtError
from hamirt.model import Card
from hamirt.placement import GPU, MEMORY

KIND = "hamirt.io/vgpu"
FILE_NAME = "hamirt.json"
WHOLE = "all"  # the device without a profile that is on any card
KEYS = {
    "mem": MEMORY,
    "sm": annotations.SM,
    "weight": annotations.WEIGHT,
    "class": annotations.CLASS,
    "policy": annotations.POLICY,
    "gpus": GPU,
    "name": annotations.NAME,
}
"""The annotations that a profile sets, by what it calls them; `gpus` is a number of cards."""

# The driver's libraries that a program which computes loads; what else an image needs NVIDIA's toolkit gives.
DRIVER_LIBRARIES = (
    "libcuda.so",
    "libcuda.so.1",
    "libnvidia-ml.so.1",
    "libnvidia-nvvm.so.4",
    "libnvidia-ptxjitcompiler.so.1",
)
NEEDED_LIBRARIES = frozenset({"libcuda.so.1", "libnvidia-ml.so.1"})

_VERSION = "0.5.0"  # the newest that podman 4.3 takes
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_ONE_CARD = "count=1"
_LDCONFIG_ARCH = {"x86_64": "libc6,x86-64", "aarch64": "libc6,AArch64"}
_SIM_ENV = ("HAMIRT_SIM_STATE=/run/hamirt/sim-state", "LD_LIBRARY_PATH=/run/hamirt/sim")

Settings = Mapping[str, str]
"""The annotations that `hamirt-oci-hook create --set` is given."""


@dataclass(frozen=True, slots=True)
class Node:
    """What containers are given of this node."""

    cards: tuple[Card, ...]
    card_nodes: Mapping[str, str]
    """A card's device node by UUID; none where the cards are simulated."""
    common_nodes: tuple[str, ...]
    """The device nodes that go with every card."""
    driver_files: tuple[str, ...]
    """The driver's libraries and programs, which a container sees at the same paths."""
    simulated: bool


@dataclass(frozen=True, slots=True)
class Hook:
    """How the runtime is to call hamirt-oci-hook."""

    path: Path
    root: Path
    on_error: str


def parse_settings(given: Mapping[str, str]) -> Settings:
    """Check sizes by the short names that KEYS has, and return them as annotations.

    Raises HamirtError for a name or a value that the daemon would refuse for every container.
    """
    settings = {}
    for key, value in given.items():
        if key not in KEYS:
            raise HamirtError(f"{key!r} is no size: there are {', '.join(KEYS)}")
        settings[KEYS[key]] = f"count={value}" if key == "gpus" else value
    annotations.read(settings, {})
    return settings


def parse_profile(text: str) -> tuple[str, Settings]:
    """Read `small=mem:8GiB,sm:30`. Raises HamirtError for anything else."""
    name, equals, rest = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise HamirtError(
            f"--profile {text!r}: write NAME=KEY:VALUE,… such as small=mem:8GiB,sm:30, "
            "where NAME has letters, digits and _.:- between them"
        )
    given: dict[str, str] = {}
    for part in rest.split(","):
        key, colon, value = (word.strip() for word in part.partition(":"))
        if not colon or key in given:
            raise HamirtError(f"--profile {text!r}: {part!r} is no KEY:VALUE, or is there twice")
        given[key] = value
    try:
        return name, parse_settings(given)
    except HamirtError as error:
        raise HamirtError(f"--profile {text!r}: {error}") from None


def specification(
    node: Node, hook: Hook, defaults: Settings, profiles: Sequence[tuple[str, Settings]]
) -> dict[str, Any]:
    """Return the CDI specification: each size on any card, on each card by index, and by UUID.

    `defaults` hold where a profile says nothing else. Raises HamirtError where two devices would have one name.
    """
    devices: list[dict[str, Any]] = []
    for profile, own in [("", {}), *profiles]:
        settings = {GPU: _ONE_CARD, **defaults, **own}
        devices.append(_device(profile or WHOLE, node, hook, settings, node.cards))
        if settings[GPU] != _ONE_CARD:
            continue  # one card can't be several
        for card in node.cards:
            pinned = {**settings, GPU: card.uuid}
            for name in (str(card.index), card.uuid):
                devices.append(_device("-".join(filter(None, (profile, name))), node, hook, pinned, [card]))
    names = [device["name"] for device in devices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise HamirtError(f"two devices would be called {twice[0]}: call the profile something else")
    return {
        "cdiVersion": _VERSION,
        "kind": KIND,
        "devices": devices,
        # for a container with any of the devices, once
        "containerEdits": _without_empty(
            env=list(_SIM_ENV) if node.simulated else [],
            deviceNodes=[_node(path) for path in node.common_nodes],
            mounts=[_mount(path) for path in node.driver_files],
            hooks=[_hook("poststop", hook, "remove")],
        ),
    }


def describe(spec: Mapping[str, Any]) -> list[tuple[str, Settings]]:
    """Return the devices of a specification that we wrote: the full name of each, and what it sets.

    Raises HamirtError for any other file.
    """
    try:
        return [
            (f"{spec['kind']}={device['name']}", _settings(device["containerEdits"]["hooks"][0]["args"]))
            for device in spec["devices"]
        ]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise HamirtError("it is not a file of hamirt's: run hamirt cdi generate again") from None


def find_libraries(ldconfig: str, machine: str) -> dict[str, str]:
    """Return the paths of the driver's libraries in what `ldconfig -p` says, by name."""
    arch = _LDCONFIG_ARCH.get(machine, "libc6")
    found: dict[str, str] = {}
    for line in ldconfig.splitlines():
        match = re.fullmatch(r"\s*(\S+) \(([^)]*)\) => (/.*)", line)
        if match and match[1] in DRIVER_LIBRARIES and match[2].startswith(arch):
            found.setdefault(match[1], match[3])
    return found


def card_node(information: str) -> tuple[str, str] | None:
    """Return a card's UUID and device node from /proc/driver/nvidia/gpus/*/information."""
    lines = (line.partition(":") for line in information.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    uuid, minor = fields.get("GPU UUID", ""), fields.get("Device Minor", "")
    return (uuid, f"/dev/nvidia{minor}") if uuid.startswith("GPU-") and minor.isdecimal() else None


def _device(name: str, node: Node, hook: Hook, settings: Settings, cards: Sequence[Card]) -> dict[str, Any]:
    words = [f"--set={key}={value}" for key, value in sorted(settings.items())]
    nodes = [_node(node.card_nodes[card.uuid]) for card in cards if card.uuid in node.card_nodes]
    edits = _without_empty(deviceNodes=nodes, hooks=[_hook("createRuntime", hook, "create", *words)])
    return {"name": name, "containerEdits": edits}


def _hook(when: str, hook: Hook, verb: str, *words: str) -> dict[str, Any]:
    args = [hook.path.name, verb, "--root", str(hook.root), "--on-error", hook.on_error, *words]
    return {
        "hookName": when,
        "path": str(hook.path),
        "args": args,
        "env": list(ocispec.HOOK_ENV),
        "timeout": ocispec.HOOK_SECONDS,
    }


def _node(path: str) -> dict[str, Any]:
    return {"path": path, "permissions": "rw"}  # not m: it makes no nodes of its own


def _mount(path: str) -> dict[str, Any]:
    return {"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]}


def _without_empty(**edits: list[Any]) -> dict[str, Any]:
    return {key: value for key, value in edits.items() if value}


def _settings(args: Sequence[str]) -> Settings:
    words = [word.removeprefix("--set=") for word in args if word.startswith("--set=")]
    return {key: value for key, _, value in (word.partition("=") for word in words)}
