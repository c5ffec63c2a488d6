"""What containers are given: limits as they ask for them, on cards that fit, or a sentence."""

import os
import signal
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from hamirt import config, region, tenants
from hamirt.model import LatencyClass, Limit
from hamirt.units import GIB
from tests.node.conftest import Node
from tests.node.containers import CAP, Container, made, put, remove
from tests.node.daemons import CARD_MIB, UUIDS, Daemon, as_user, wish
from tests.support import wait_for

HALF = {"hamirt.io/memory": "40GiB"}
OTHER_USER = 1234


def test_a_container_gets_what_it_asks_for(daemon: Daemon) -> None:
    container = Container(daemon.node)
    asked = CAP | {"hamirt.io/sm": "30", "hamirt.io/weight": "7", "hamirt.io/class": "batch", "hamirt.io/colour": "red"}

    answer = made(daemon, "0123456789abcdef", container, asked, gpu=UUIDS[1])

    folder = Path(answer["folder"])
    shown = "hamirt.io/memory, hamirt.io/sm, hamirt.io/weight, hamirt.io/class, hamirt.io/name, hamirt.io/gpu"
    assert answer == {
        "id": folder.name,
        "name": "0123456789ab",
        "folder": f"{daemon.root}/tenants/{folder.name}",
        "library": str(config.shim_path()),
        "uuids": [UUIDS[1]],
        "warnings": [
            f"there is no annotation 'hamirt.io/colour', so it does nothing: there are {shown}, hamirt.io/policy"
        ],
        "simulated": True,
        "sim": {"libraries": str(config.sim_dir()), "state": f"{daemon.root}/sim"},
    }
    assert tenants.name_in(folder.name) == "0123456789ab"
    card_bytes = CARD_MIB << 20
    assert region.read_limits(folder / "ro" / "limits").devices == (
        Limit(UUIDS[1], 8 * GIB, card_bytes, None, 30, 7, LatencyClass.BATCH),
    )
    modes = {
        str(path.relative_to(daemon.root)): (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid)
        for path in [folder, folder / "ro" / "limits", folder / "rw" / "usage", folder / "alive"]
    }
    own, at = os.geteuid(), f"tenants/{folder.name}"
    assert modes == {
        at: (0o700, own), f"{at}/ro/limits": (0o644, own), f"{at}/rw/usage": (0o666, own), f"{at}/alive": (0o600, own),
    }  # fmt: skip


def test_the_same_request_again_gives_the_same_answer_and_another_is_refused(daemon: Daemon) -> None:
    container, pid = Container(daemon.node), 0
    pid = container.init.pid

    first = made(daemon, "web", container, CAP, gpu="count=1")

    assert made(daemon, "web", container, CAP, gpu="count=1") == first
    assert made(daemon, "web", container, CAP) == first  # a second hook of the same container, which knows less
    daemon.end(signal.SIGKILL)
    daemon.start()
    assert made(daemon, "web", container, CAP, gpu="count=1") == first
    assert put(daemon, "web", pid, CAP, gpu="1") == (409, {
        "error": "web was set up already, with another hamirt.io/gpu: "
        "give a container one hamirt.io/vgpu device, or all in its annotations"
    })  # fmt: skip
    assert daemon.ids() == [first["id"]]


def test_who_asks_for_nothing_gets_nothing(daemon: Daemon) -> None:
    container = Container(daemon.node)

    nothing = put(daemon, "web", container.init.pid, {"org.other": "x" * 200_000})
    misspelt = put(daemon, "web", container.init.pid, {"hamirt.io/memroy": "8GiB"})

    assert nothing == (200, {"id": None, "warnings": []})
    assert (misspelt[0], misspelt[1]["id"], len(misspelt[1]["warnings"])) == (200, None, 1)
    assert daemon.ids() == []
    assert remove(daemon, "web") == (200, {"id": None})


ME = "its own pid"


@pytest.mark.parametrize(
    ("container", "body", "status", "says"),
    [
        ("web", {"annotations": CAP}, 400, "pid is missing"),
        ("web", {"pid": 1, "annotations": CAP}, 400, "pid has to be a whole number from 2 to"),
        ("web", {"pid": True, "annotations": CAP}, 400, "pid has to be a whole number"),
        ("web", {"pid": ME, "colour": "red"}, 400, "there is no field 'colour'; there are: pid, annotations, settings"),
        ("web", {"pid": ME, "annotations": {"a": 1}}, 400, "annotations has to be an object of texts"),
        ("web", {"pid": ME, "settings": []}, 400, "settings has to be an object of texts"),
        ("web", b"{", 400, "the request's body is no JSON"),
        ("web", b" " * (1 << 20) + b"{}", 413, "a body has 1048576 bytes at most"),
        ("-web", {"pid": ME, "annotations": CAP}, 400, "can't be a container's id"),
        ("w" * 256, {"pid": ME, "annotations": CAP}, 400, "can't be a container's id"),
        ("a%2Fb", {"pid": ME, "annotations": CAP}, 400, "can't be a container's id"),
        ("web", {"pid": 1 << 22, "annotations": CAP}, 409, "the daemon sees no process 4194304"),
        ("web", {"pid": ME, "annotations": {"hamirt.io/memory": "0"}}, 400, "hamirt.io/memory: a cap of '0'"),
        ("web", {"pid": ME, "annotations": {"hamirt.io/memory": "81GiB"}}, 400, "has 81559MiB in all; GPU 1"),
        ("web", {"pid": ME, "annotations": {"hamirt.io/memory": "80MiB"}}, 400, "needs a cap of more than 672MiB"),
        ("web", {"pid": ME, "annotations": {"hamirt.io/gpu": "2"}}, 400, "there is no GPU '2' on this node"),
        ("web", {"pid": ME, "annotations": {"hamirt.io/gpu": "count=3"}}, 400, "no place for 3 GPUs"),
        ("web", {"pid": ME, "annotations": CAP | {"nvidia.com/use-gputype": "V100"}}, 400, "is none of nvidia.com/use"),
        ("web", {"pid": ME, "annotations": CAP, "settings": {"hamirt.io/memory": "9GiB"}}, 400, "'8GiB' by annotation"),
        ("web", {"pid": ME, "annotations": CAP, "settings": {"colour": "red"}}, 400, "there is no setting 'colour'"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing_behind(
    daemon: Daemon, container: str, body: Any, status: int, says: str
) -> None:
    if isinstance(body, dict) and body.get("pid") is ME:
        body = body | {"pid": os.getpid()}

    answer = daemon.ask("PUT", f"/v1/containers/{container}", body)

    assert answer[0] == status
    assert list(answer[1]) == ["error"]
    assert says in answer[1]["error"]
    assert daemon.ids() == []


def test_the_daemon_is_nobodys_init(daemon: Daemon) -> None:
    assert daemon.process is not None

    assert put(daemon, "web", daemon.process.pid, CAP)[0] == 409
    assert remove(daemon, "web", "?force=1") == (400, {"error": "DELETE takes pid=PID and nothing else"})


def test_a_missing_library_refuses_the_container(node: Node, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "sim").symlink_to(config.sim_dir())
    daemon = Daemon(node).start(**{config.NATIVE_VARIABLE: str(tmp_path / "native")})

    status, answer = put(daemon, "web", os.getpid(), CAP)

    assert (status, answer["error"].partition(":")[0]) == (503, f"{tmp_path}/native/libhamirt.so is missing")
    assert daemon.ids() == []


def test_cards_are_chosen_by_what_is_left_of_them(daemon: Daemon) -> None:
    alive = Container(daemon.node)

    def cards(name: str, annotations: dict[str, str]) -> list[int]:
        return [UUIDS.index(uuid) for uuid in made(daemon, name, alive, annotations)["uuids"]]

    assert cards("a", {"hamirt.io/memory": "30GiB"}) == [0]
    assert cards("b", CAP) == [1]  # the emptier one
    assert cards("c", CAP | {"hamirt.io/policy": "binpack"}) == [0]  # the fuller one
    assert cards("d", CAP | {"hamirt.io/policy": "spread"}) == [1]
    assert cards("e", CAP | {"hamirt.io/gpu": "count=2"}) == [0, 1]
    assert cards("f", HALF) == [1]  # the only one with room
    status, refused = put(daemon, "g", alive.init.pid, HALF)
    model = "NVIDIA H100 80GB HBM3"
    assert (status, refused["error"]) == (
        409,
        f"no place for a GPU with hamirt.io/memory 40GiB: GPU 0 ({model}) has {CARD_MIB - (46 << 10)}MiB left of "
        f"81559MiB; GPU 1 ({model}) has {CARD_MIB - (64 << 10)}MiB left of 81559MiB: "
        "ask for less, or end or shrink another tenant",
    )
    assert put(daemon, "h", alive.init.pid, {"hamirt.io/sm": "50"})[0] == 409  # without a cap it takes a whole card


def test_names(daemon: Daemon) -> None:
    alive = Container(daemon.node)
    daemon.ask("PUT", "/v1/tenants/web-000001", wish(1024))
    pod = {
        "io.kubernetes.container.name": "main",
        "io.kubernetes.pod.name": "train",
        "io.kubernetes.pod.namespace": "ml",
    }

    names = [
        made(daemon, container, alive, CAP | annotations)["name"]
        for container, annotations in (
            ("a", {"hamirt.io/name": "web"}),  # taken
            ("web", {}),
            ("b", pod),
            ("c", pod),
            ("0123456789abcdef", {}),
        )
    ]

    assert names == ["web-1", "web-2", "main", "main-1", "0123456789ab"]
    wait_for(lambda: len(daemon.client.node()["tenants"]) == 6, "a sample with all")
    shown = {one["name"]: (one["container"], one["pod"]) for one in daemon.client.node()["tenants"]}
    assert (shown["main"], shown["web-2"]) == (("b", "ml/train"), ("web", None))


def test_only_administrators_say_what_containers_get(node: Node, root_user: None) -> None:
    with tempfile.TemporaryDirectory(prefix="hamirt-test-") as folder:
        os.chmod(folder, 0o711)
        node.root = Path(folder) / "root"
        node.env["HAMIRT_ROOT"] = str(node.root)
        daemon = Daemon(node).start()
        container = Container(node)
        identity = made(daemon, "web", container, CAP)["id"]

        def tries() -> list[tuple[int, Any]]:
            return [put(daemon, "x", container.init.pid, CAP), remove(daemon, "web"), remove(daemon, "x/../web")]

        answers = as_user(OTHER_USER, tries)

        error = {"error": "only administrators may say what a container gets: ask as root"}
        assert answers[:2] == [(403, error)] * 2
        assert answers[2][0] == 404
        assert daemon.ids() == [identity]
        assert (daemon.root / "tenants" / identity).stat().st_mode & 0o777 == 0o700
        daemon.end()
