"""Edits of OCI configurations: whole values in, whole values out."""

import os
import stat
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hamirt import ocispec

HOOK = "/opt/bin/hamirt-oci-hook"
ENV = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
CDI = {
    "containerEdits": {
        "deviceNodes": [{"path": "/dev/nvidiactl"}],
        "mounts": [
            {"hostPath": "/lib/libcuda.so.1", "containerPath": "/usr/lib/libcuda.so.1", "options": ["ro", "bind"]}
        ],
        "env": ["A=1", "B=2"],
    },
    "devices": [
        {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "permissions": "rw"}]}},
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia7"}]}},
    ],
}


def look(path: str) -> os.stat_result:
    minor = {"/dev/nvidiactl": 255, "/dev/nvidia0": 0}[path]
    return cast(os.stat_result, SimpleNamespace(st_rdev=os.makedev(195, minor), st_mode=stat.S_IFCHR | 0o666))


def hook(verb: str, *words: str) -> dict[str, Any]:
    return {"path": HOOK, "args": ["hamirt-oci-hook", verb, *words], "env": ENV, "timeout": 10}


def test_hooks_come_behind_those_that_are_there() -> None:
    other = {"path": "/bin/other"}
    config = {"ociVersion": "1.0.2", "hooks": {"createRuntime": [other], "prestart": [other]}}

    assert ocispec.add_hooks(config, HOOK, ["--root", "/r"]) == {
        "ociVersion": "1.0.2",
        "hooks": {
            "createRuntime": [other, hook("create", "--root", "/r")],
            "prestart": [other],
            "poststop": [hook("remove", "--root", "/r")],
        },
    }
    assert config["hooks"] == {"createRuntime": [other], "prestart": [other]}


@pytest.mark.parametrize("config", [{}, {"hooks": None}, {"hooks": {"poststop": None}}])
def test_hooks_are_added_once(config: dict[str, Any]) -> None:
    once = ocispec.add_hooks(config, HOOK, [])

    assert once["hooks"] == {"createRuntime": [hook("create")], "poststop": [hook("remove")]}
    assert ocispec.add_hooks(once, "/elsewhere/hamirt-oci-hook", ["--root", "/r"]) == once


def test_the_gpu_is_that_of_the_device_all() -> None:
    config = {"process": {"args": ["x"], "env": ["B=3"]}, "linux": {"resources": {"devices": [{"allow": False}]}}}
    device = {"type": "c", "major": 195}
    node = {"fileMode": 0o666, "uid": 0, "gid": 0}

    assert ocispec.add_gpu(config, CDI, look) == {
        "process": {"args": ["x"], "env": ["B=3", "A=1"]},
        "mounts": [
            {
                "destination": "/usr/lib/libcuda.so.1", "type": "bind", "source": "/lib/libcuda.so.1",
                "options": ["ro", "bind"],
            }
        ],
        "linux": {
            "devices": [
                {"path": "/dev/nvidiactl", **device, "minor": 255, **node},
                {"path": "/dev/nvidia0", **device, "minor": 0, **node},
            ],
            "resources": {
                "devices": [
                    {"allow": False},
                    {"allow": True, **device, "minor": 255, "access": "rw"},
                    {"allow": True, **device, "minor": 0, "access": "rw"},
                ]
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"linux": {"devices": [{"path": "/dev/nvidia1"}]}},
        {"mounts": [{"destination": "/dev/nvidiactl"}]},
        {"hooks": {"prestart": [{"path": "/usr/bin/nvidia-container-runtime-hook"}]}},
        {"hooks": {"createContainer": [{"path": "/usr/bin/nvidia-ctk"}]}},
    ],
)
def test_a_gpu_that_somebody_else_gives_is_not_given_again(config: dict[str, Any]) -> None:
    assert ocispec.add_gpu(config, CDI, look) == config


@pytest.mark.parametrize(
    "name", ["nvidia-container-runtime-hook", "nvidia-container-toolkit", "nvidia-ctk", "nvidia-cdi-hook"]
)
def test_nvidias_hooks_are_known(name: str) -> None:
    config = {"hooks": {"prestart": [{"path": f"/usr/bin/{name}"}]}}

    assert ocispec.add_gpu(config, CDI, look) == config


def test_a_node_that_is_gone_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        ocispec.add_gpu({}, CDI, os.stat)


@pytest.mark.parametrize(
    ("line", "bundle"),
    [
        ("create --bundle /b one", "/b"),
        ("create --bundle=/b one", "/b"),
        ("create -b /b one", "/b"),
        ("run one", "."),
        ("--root /r --log /l --log-format json --systemd-cgroup create --pid-file /p --bundle /b one", "/b"),
        ("--root=/r --debug run --bundle /b one", "/b"),
        ("-root /create run -b /b one", "/b"),
        ("restore --image-path /i --bundle /b one", "/b"),
        ("--cgroup-manager cgroupfs --log-level debug create --bundle /b one", "/b"),
        ("--root create start one", None),
        ("start one", None),
        ("exec one create --bundle /b", None),
        ("delete --force run", None),
        ("--version", None),
        ("--root", None),
        ("", None),
    ],
)
def test_the_bundle_is_found_where_a_container_is_made(line: str, bundle: str | None) -> None:
    assert ocispec.bundle_of(line.split()) == bundle


def test_the_log_is_that_of_the_runtime() -> None:
    assert ocispec.log_of(["--log", "/l", "create", "--log", "/x", "one"]) == "/l"
    assert ocispec.log_of(["--log=/l", "state", "one"]) == "/l"
    assert ocispec.log_of(["create", "--log", "/x", "one"]) is None
