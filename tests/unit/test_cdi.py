"""CDI devices: what is given by which name, by the rules of the specification that runtimes check."""

import re
from pathlib import Path
from typing import Any

import pytest

from hamirt import cdi
from hamirt.errors import HamirtError
from hamirt.model import Card
from hamirt.units import MIB

UUIDS = ("GPU-5a1e0000-0000-4000-8000-000000000000", "GPU-5a1e0000-0000-4000-8000-000000000001")
CARDS = tuple(Card(index, uuid, "H100", 81559 * MIB, 0, None, False, ()) for index, uuid in enumerate(UUIDS))
HOOK = cdi.Hook(Path("/usr/bin/hamirt-oci-hook"), Path("/run/hamirt"), "deny")
# the minors are not in nvidia-smi's order here
NODE = cdi.Node(
    CARDS,
    {UUIDS[0]: "/dev/nvidia1", UUIDS[1]: "/dev/nvidia0"},
    ("/dev/nvidiactl", "/dev/nvidia-uvm"),
    ("/usr/lib/libcuda.so.1", "/usr/bin/nvidia-smi"),
    simulated=False,
)
ENV = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


def generate(*profiles: str, node: cdi.Node = NODE, **defaults: str) -> dict[str, Any]:
    return cdi.specification(node, HOOK, cdi.parse_settings(defaults), [cdi.parse_profile(text) for text in profiles])


def device(spec: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each["containerEdits"] for each in spec["devices"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


def check_edits(edits: dict[str, Any]) -> None:
    """Check what CDI 0.5.0 says of containerEdits, and that nothing else is in there."""
    assert edits
    assert set(edits) <= {"env", "deviceNodes", "mounts", "hooks"}
    assert [] not in edits.values()
    for variable in edits.get("env", []):
        assert re.fullmatch("[A-Z_]+=.+", variable)
    for node in edits.get("deviceNodes", []):
        assert set(node) == {"path", "permissions"}
        assert node["path"].startswith("/")
        assert set(node["permissions"]) <= set("rwm")
    for mount in edits.get("mounts", []):
        assert set(mount) == {"hostPath", "containerPath", "options"}
        assert mount["hostPath"].startswith("/")
        assert mount["containerPath"].startswith("/")
    for hook in edits.get("hooks", []):
        assert set(hook) == {"hookName", "path", "args", "env", "timeout"}
        assert hook["hookName"] in ("createRuntime", "createContainer", "startContainer", "poststart", "poststop")
        assert hook["path"].startswith("/")
        assert hook["env"] == ENV
        assert hook["timeout"] > 0


@pytest.mark.parametrize("simulated", [False, True])
def test_all_of_it_keeps_the_rules_of_cdi(simulated: bool) -> None:
    node = cdi.Node(CARDS, {}, (), (), simulated=True) if simulated else NODE

    spec = generate("small=mem:8GiB,sm:30", "a.b_c:d=weight:300", "pair=gpus:2", node=node)

    assert set(spec) == {"cdiVersion", "kind", "devices", "containerEdits"}
    assert (spec["cdiVersion"], spec["kind"]) == ("0.5.0", "hamirt.io/vgpu")
    names = [each["name"] for each in spec["devices"]]
    assert len(set(names)) == len(names) == 5 + 5 + 5 + 1
    for each in spec["devices"]:
        assert set(each) == {"name", "containerEdits"}
        assert re.fullmatch(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]", each["name"])
        check_edits(each["containerEdits"])
    check_edits(spec["containerEdits"])


def test_a_profile_on_any_card_has_the_nodes_of_all() -> None:
    edits = device(generate("small=mem:8GiB,sm:30"), "small")

    assert edits == {
        "deviceNodes": [
            {"path": "/dev/nvidia1", "permissions": "rw"},
            {"path": "/dev/nvidia0", "permissions": "rw"},
        ],
        "hooks": [
            {
                "hookName": "createRuntime",
                "path": "/usr/bin/hamirt-oci-hook",
                "args": [
                    "hamirt-oci-hook", "create", "--root", "/run/hamirt", "--on-error", "deny",
                    "--set=hamirt.io/gpu=count=1", "--set=hamirt.io/memory=8GiB", "--set=hamirt.io/sm=30",
                ],
                "env": ENV,
                "timeout": 10,
            }
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["1", UUIDS[1], "small-1", f"small-{UUIDS[1]}"])
def test_a_card_by_name_has_its_own_node(name: str) -> None:
    edits = device(generate("small=mem:8GiB"), name)

    assert edits["deviceNodes"] == [{"path": "/dev/nvidia0", "permissions": "rw"}]
    assert f"--set=hamirt.io/gpu={UUIDS[1]}" in edits["hooks"][0]["args"]


def test_what_every_device_brings_is_there_once() -> None:
    assert generate()["containerEdits"] == {
        "deviceNodes": [
            {"path": "/dev/nvidiactl", "permissions": "rw"},
            {"path": "/dev/nvidia-uvm", "permissions": "rw"},
        ],
        "mounts": [
            {"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]}
            for path in ("/usr/lib/libcuda.so.1", "/usr/bin/nvidia-smi")
        ],
        "hooks": [
            {
                "hookName": "poststop",
                "path": "/usr/bin/hamirt-oci-hook",
                "args": ["hamirt-oci-hook", "remove", "--root", "/run/hamirt", "--on-error", "deny"],
                "env": ENV,
                "timeout": 10,
            }
        ],
    }


def test_simulated_cards_have_no_nodes() -> None:
    spec = generate(node=cdi.Node(CARDS, {}, (), (), simulated=True))

    assert "deviceNodes" not in device(spec, "all")
    assert spec["containerEdits"]["env"] == [
        "HAMIRT_SIM_STATE=/run/hamirt/sim-state",
        "LD_LIBRARY_PATH=/run/hamirt/sim",
    ]
    assert set(spec["containerEdits"]) == {"env", "hooks"}


def test_what_is_listed_is_what_was_generated() -> None:
    spec = generate("small=mem:50%", "pair=gpus:2,class:latency", sm="40", mem="8GiB")

    assert cdi.describe(spec) == [
        ("hamirt.io/vgpu=all", {"hamirt.io/gpu": "count=1", "hamirt.io/memory": "8GiB", "hamirt.io/sm": "40"}),
        ("hamirt.io/vgpu=0", {"hamirt.io/gpu": UUIDS[0], "hamirt.io/memory": "8GiB", "hamirt.io/sm": "40"}),
        (f"hamirt.io/vgpu={UUIDS[0]}", {"hamirt.io/gpu": UUIDS[0], "hamirt.io/memory": "8GiB", "hamirt.io/sm": "40"}),
        ("hamirt.io/vgpu=1", {"hamirt.io/gpu": UUIDS[1], "hamirt.io/memory": "8GiB", "hamirt.io/sm": "40"}),
        (f"hamirt.io/vgpu={UUIDS[1]}", {"hamirt.io/gpu": UUIDS[1], "hamirt.io/memory": "8GiB", "hamirt.io/sm": "40"}),
        ("hamirt.io/vgpu=small", {"hamirt.io/gpu": "count=1", "hamirt.io/memory": "50%", "hamirt.io/sm": "40"}),
        ("hamirt.io/vgpu=small-0", {"hamirt.io/gpu": UUIDS[0], "hamirt.io/memory": "50%", "hamirt.io/sm": "40"}),
        (
            f"hamirt.io/vgpu=small-{UUIDS[0]}",
            {"hamirt.io/gpu": UUIDS[0], "hamirt.io/memory": "50%", "hamirt.io/sm": "40"},
        ),
        ("hamirt.io/vgpu=small-1", {"hamirt.io/gpu": UUIDS[1], "hamirt.io/memory": "50%", "hamirt.io/sm": "40"}),
        (
            f"hamirt.io/vgpu=small-{UUIDS[1]}",
            {"hamirt.io/gpu": UUIDS[1], "hamirt.io/memory": "50%", "hamirt.io/sm": "40"},
        ),
        (
            "hamirt.io/vgpu=pair",
            {
                "hamirt.io/gpu": "count=2",
                "hamirt.io/memory": "8GiB",
                "hamirt.io/sm": "40",
                "hamirt.io/class": "latency",
            },
        ),
    ]


@pytest.mark.parametrize("spec", [{}, {"kind": "k", "devices": [{"name": "a", "containerEdits": {}}]}, {"devices": 3}])
def test_a_file_of_somebody_elses_is_a_sentence(spec: dict[str, Any]) -> None:
    with pytest.raises(HamirtError, match="hamirt cdi generate"):
        cdi.describe(spec)


@pytest.mark.parametrize("profiles", [["all=mem:1GiB"], ["0=mem:1GiB"], ["a=sm:1", "a=sm:2"], ["a=sm:1", "a-0=sm:2"]])
def test_two_devices_of_one_name_are_refused(profiles: list[str]) -> None:
    with pytest.raises(HamirtError, match="two devices would be called"):
        generate(*profiles)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("small", "NAME=KEY:VALUE"),
        ("=mem:8GiB", "NAME=KEY:VALUE"),
        ("-x=mem:8GiB", "NAME=KEY:VALUE"),
        ("x-=mem:8GiB", "NAME=KEY:VALUE"),
        ("a/b=mem:8GiB", "NAME=KEY:VALUE"),
        ("gr\u00f6\u00dfe=mem:8GiB", "NAME=KEY:VALUE"),
        ("small=", "KEY:VALUE, or is there twice"),
        ("small=mem", "KEY:VALUE, or is there twice"),
        ("small=mem:1GiB,mem:2GiB", "KEY:VALUE, or is there twice"),
        ("small=memory:8GiB", "there are mem, sm, weight"),
        ("small=mem:0", "leaves no memory"),
        ("small=mem:8Gib!", "is not a size"),
        ("small=mem:0=8GiB", "is not a size"),
        ("small=sm:0", "hamirt.io/sm: '0' is not a whole number from 1 to 100"),
        ("small=sm:101", "from 1 to 100"),
        ("small=sm:\u0663", "from 1 to 100"),
        ("small=weight:0", "from 1 to 10000"),
        ("small=class:fast", "none of latency, normal, batch"),
        ("small=policy:best", "none of binpack, spread"),
        ("small=gpus:17", "from 1 to 16"),
    ],
)
def test_what_is_no_profile(text: str, says: str) -> None:
    with pytest.raises(HamirtError, match=says) as caught:
        cdi.parse_profile(text)

    assert repr(text) in str(caught.value)


def test_libraries_are_this_machines_and_the_first_that_the_linker_would_take() -> None:
    said = """231 libs found in cache `/etc/ld.so.cache'
\tlibnvidia-ml.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
\tlibnvidia-ml.so.1 (libc6) => /usr/lib/i386-linux-gnu/libnvidia-ml.so.1
\tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcudart.so.12
\tlibcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64) => /opt/a b/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1
\tlibcuda.so (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so
Cache generated by: ldconfig (Debian GLIBC 2.36-9+deb12u10) stable release version 2.36
"""

    assert cdi.find_libraries(said, "x86_64") == {
        "libnvidia-ml.so.1": "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        "libcuda.so.1": "/opt/a b/libcuda.so.1",
        "libcuda.so": "/usr/lib/x86_64-linux-gnu/libcuda.so",
    }
    assert cdi.find_libraries(said, "aarch64") == {}


def test_a_cards_node_is_by_its_minor() -> None:
    information = (
        f"Model: \t\t NVIDIA H100\nGPU UUID: \t {UUIDS[0]}\nBus Location: \t 0000:0a:00.0\nDevice Minor: \t 3\n"
    )

    assert cdi.card_node(information) == (UUIDS[0], "/dev/nvidia3")
    assert cdi.card_node("Model: x\n") is None
