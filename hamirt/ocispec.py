"""Edits of a container's OCI configuration, and the command line of a runtime. Decides, and touches nothing.

Source: the OCI runtime specification, 1.0.2; CDI's containerEdits are in hamirt/cdi.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOOK_ENV = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)  # a hook without one may be given the container's (CVE-2025-23266)
HOOK_SECONDS = 10  # the hook has two seconds of its own; this ends one that was stopped

_MAKING = ("create", "run", "restore")
# Of runc's and crun's options before the verb.
_WITH_VALUE = ("--root", "--log", "--log-format", "--log-level", "--criu", "--rootless", "--cgroup-manager")
_BUNDLE = ("--bundle", "-bundle", "-b", "--b")


def add_hooks(config: Mapping[str, Any], program: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the configuration with our two hooks, once: `program` is the hook's absolute path."""
    hooks = dict(config.get("hooks") or {})
    for stage, verb in (("createRuntime", "create"), ("poststop", "remove")):
        there = list(hooks.get(stage) or [])
        if not any(_is_ours(hook, verb, program) for hook in there):
            args = [os.path.basename(program), verb, *words]
            there.append({"path": program, "args": args, "env": list(HOOK_ENV), "timeout": HOOK_SECONDS})
        hooks[stage] = there
    return {**config, "hooks": hooks}


def add_gpu(config: Mapping[str, Any], cdi: Mapping[str, Any], look: Callable[[str], os.stat_result]) -> dict[str, Any]:
    """Return the configuration with the GPU's nodes and driver files that a CDI file lists, unless another gives them.

    They are those of its device "all": which card a container gets is not known yet, and the shim hides the others.
    `look` is os.stat. Raises OSError for a node that is not there.
    """
    edits = [cdi.get("containerEdits") or {}]
    edits += [device.get("containerEdits") or {} for device in cdi.get("devices") or [] if device.get("name") == "all"]
    if _has_gpu(config):
        return dict(config)
    process, linux = dict(config.get("process") or {}), dict(config.get("linux") or {})
    resources, mounts = dict(linux.get("resources") or {}), list(config.get("mounts") or [])
    devices, rules = list(linux.get("devices") or []), list(resources.get("devices") or [])
    env = list(process.get("env") or [])
    for edit in edits:
        for node in edit.get("deviceNodes") or []:
            status = look(node["path"])
            numbers = {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
            mode = stat.S_IMODE(status.st_mode)
            devices.append({"path": node["path"], "type": "c", **numbers, "fileMode": mode, "uid": 0, "gid": 0})
            rules.append({"allow": True, "type": "c", **numbers, "access": node.get("permissions", "rw")})
        for mount in edit.get("mounts") or []:
            mounts.append(
                {
                    "destination": mount["containerPath"],
                    "type": "bind",
                    "source": mount["hostPath"],
                    "options": mount.get("options") or ["ro", "bind"],
                }
            )
        named = {variable.partition("=")[0] for variable in env}
        env += [variable for variable in edit.get("env") or [] if variable.partition("=")[0] not in named]
    edited = {**config, "process": {**process, "env": env}, "mounts": mounts}
    return {**edited, "linux": {**linux, "devices": devices, "resources": {**resources, "devices": rules}}}


def bundle_of(arguments: Sequence[str]) -> str | None:
    """Return the bundle of which a runtime called so makes a container, None where it makes none."""
    verb = _verb_at(arguments)
    if verb is None or arguments[verb] not in _MAKING:
        return None
    return _value(arguments[verb + 1 :], _BUNDLE) or "."


def log_of(arguments: Sequence[str]) -> str | None:
    """Return the log that a runtime called so writes to."""
    return _value(arguments[: _verb_at(arguments)], ("--log", "-log"))


def _verb_at(arguments: Sequence[str]) -> int | None:
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        at += 2 if "-" + arguments[at].lstrip("-") in {option[1:] for option in _WITH_VALUE} else 1
    return at if at < len(arguments) else None


def _value(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the value of an option that has one of these names, in either of the two ways to write it."""
    for at, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(arguments[at + 1 :]), None)
    return None


def _is_ours(hook: Mapping[str, Any], verb: str, program: str) -> bool:
    own = os.path.basename(program), "hamirt-oci-hook"
    return os.path.basename(hook.get("path", "")) in own and verb in (hook.get("args") or [])


def _has_gpu(config: Mapping[str, Any]) -> bool:
    """Return whether somebody gives the container a GPU: the engine by its nodes, or NVIDIA's toolkit by its hook."""
    linux, hooks = config.get("linux") or {}, config.get("hooks") or {}
    paths = [device.get("path", "") for device in linux.get("devices") or []]
    paths += [mount.get("destination", "") for mount in config.get("mounts") or []]
    programs = [os.path.basename(hook.get("path", "")) for stage in hooks.values() for hook in stage or []]
    return any(path.startswith("/dev/nvidia") for path in paths) or any("nvidia-c" in name for name in programs)
