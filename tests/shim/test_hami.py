"""HAMi's variables: a standalone region, shared by the processes of a container, as HAMi's device plugin sets it up."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hamirt import region
from tests.shim.conftest import CARD_BYTES, MIB, PROGRAMS, TIMEOUT_S, TOP, Node, card_uuid
from tests.shim.tricks import hard_link, link, open_folder
from tests.shim.view import Shell

GIB = 1024 * MIB
NOT_READY = 802
OUT_OF_MEMORY = 2
SHELL = (sys.executable, PROGRAMS / "view_shell.py")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The file that the plugin names: in a folder of its own, which everybody in the container may write."""
    folder = tmp_path / "vgpu"
    folder.mkdir()
    folder.chmod(0o777)
    return folder / "3f1c.cache"


def variables_of(cache: Path) -> dict[str, str]:
    """Return the variables of a container with one GPU, 8000 MB and 30 % of it."""
    return {
        "CUDA_DEVICE_MEMORY_LIMIT_0": "8000m",
        "CUDA_DEVICE_SM_LIMIT": "30",
        "CUDA_DEVICE_MEMORY_SHARED_CACHE": str(cache),
        "NVIDIA_VISIBLE_DEVICES": card_uuid(0),
    }


@pytest.fixture
def plugin(cache: Path) -> dict[str, str]:
    """What the plugin sets."""
    return variables_of(cache)


Open = Callable[..., Shell]


@pytest.fixture
def open_shell(node: Node) -> Iterator[Open]:
    """Start a shell with HAMi's variables; it ends with the test."""
    with ExitStack() as stack:
        yield lambda extra: stack.enter_context(Shell(node.start(SHELL, extra=extra)))


def ask(node: Node, extra: dict[str, str], *questions: str) -> tuple[list[str], str]:
    """Run a shell to its end; return its answers and what it logged."""
    done = subprocess.run(
        [*map(str, SHELL)],
        input="\n".join(questions),
        env=node.env(extra=extra),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


def memory_of(node: Node, extra: dict[str, str], ordinal: int = 0) -> int:
    """Return what CUDA says of a device's size."""
    answers, log = ask(node, extra, "cuda.cuInit(0)", f"total({ordinal})")
    assert answers[0] == "0", log
    return int(answers[1])


def test_a_container_of_the_plugin(node: Node, open_shell: Open, plugin: dict[str, str], cache: Path) -> None:
    one, two = open_shell(plugin), open_shell(plugin)

    assert [one("context()"), two("context()"), one("alloc(5000)")] == [0, 0, 0]
    assert two("total()") == 8000 * MIB
    assert two("alloc(5000)") == OUT_OF_MEMORY
    assert two("pynvml.nvmlInit()") is None
    assert sorted(pid for pid, _ in two("processes()")[2]) == sorted((one.pid, two.pid))
    assert [figures[0] for figures in two("memory()")] == [8000 * MIB] * 2
    assert one("info()") == two("info()")
    assert list(cache.parent.iterdir()) == [cache.with_suffix(".hamirt")]


def test_the_plugins_container_may_have_several_users(plugin: dict[str, str], node: Node, cache: Path) -> None:
    memory_of(node, plugin)

    folder = cache.with_suffix(".hamirt")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert modes == {folder.name: 0o755, "ro": 0o755, "rw": 0o755, "limits": 0o644, "usage": 0o666}


def test_a_folder_of_ones_own_is_closed(plugin: dict[str, str], node: Node, cache: Path) -> None:
    cache.parent.chmod(0o755)

    memory_of(node, plugin)

    folder = cache.with_suffix(".hamirt")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert modes == {folder.name: 0o700, "ro": 0o700, "rw": 0o700, "limits": 0o644, "usage": 0o666}


def test_a_missing_folder_of_the_cache_is_made(plugin: dict[str, str], node: Node, tmp_path: Path) -> None:
    plugin["CUDA_DEVICE_MEMORY_SHARED_CACHE"] = str(tmp_path / "new" / "xyz.cache")

    assert memory_of(node, plugin) == 8000 * MIB
    assert (tmp_path / "new" / "xyz.hamirt" / "ro" / "limits").is_file()


SIZES = [
    ("1073741824", GIB),
    ("1048576k", GIB),
    ("1048576K", GIB),
    ("1024m", GIB),
    ("1024MB", GIB),
    ("1g", GIB),
    ("1G", GIB),
    ("1gb", GIB),
    ("3000000000b", 3_000_000_000),
    ("0", None),
    ("0m", None),
    ("200g", CARD_BYTES),
]


@pytest.mark.parametrize(("value", "cap"), SIZES)
def test_sizes(plugin: dict[str, str], node: Node, cache: Path, value: str, cap: int | None) -> None:
    plugin["CUDA_DEVICE_MEMORY_LIMIT_0"] = value

    _, log = ask(node, plugin, "cuda.cuInit(0)")

    limits = region.read_limits(cache.with_suffix(".hamirt") / "ro" / "limits")
    assert [device.memory_bytes for device in limits.devices] == [cap]
    assert ("NOT limited" in log) == (cap is None)
    assert ("81559 MiB, which is the limit" in log) == (cap == CARD_BYTES)


BAD = [
    ("CUDA_DEVICE_MEMORY_LIMIT", "8X"),
    ("CUDA_DEVICE_MEMORY_LIMIT", ""),
    ("CUDA_DEVICE_MEMORY_LIMIT", "-1"),
    ("CUDA_DEVICE_MEMORY_LIMIT", " 1g"),
    ("CUDA_DEVICE_MEMORY_LIMIT", "1.5g"),
    ("CUDA_DEVICE_MEMORY_LIMIT", "1gg"),
    ("CUDA_DEVICE_MEMORY_LIMIT", "50%"),
    ("CUDA_DEVICE_MEMORY_LIMIT", "18446744073709551616"),
    ("CUDA_DEVICE_MEMORY_LIMIT", "99999999999g"),
    ("CUDA_DEVICE_MEMORY_LIMIT_0", "many"),
    ("CUDA_DEVICE_MEMORY_LIMIT_15", "8X"),
    ("CUDA_DEVICE_SM_LIMIT", "101"),
    ("CUDA_DEVICE_SM_LIMIT", "30%"),
    ("CUDA_DEVICE_SM_LIMIT_0", "-1"),
    ("CUDA_TASK_PRIORITY", "high"),
    ("GPU_CORE_UTILIZATION_POLICY", "sometimes"),
    ("CUDA_DEVICE_MEMORY_SHARED_CACHE", "here.cache"),
    ("CUDA_DEVICE_MEMORY_SHARED_CACHE", "/tmp/"),
    ("CUDA_DEVICE_MEMORY_SHARED_CACHE", "/proc/nothing/here/x.cache"),
    ("NVIDIA_VISIBLE_DEVICES", "MIG-5a1e"),
    ("NVIDIA_VISIBLE_DEVICES", "0:1"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_and_cuda_refused(plugin: dict[str, str], node: Node, name: str, value: str) -> None:
    plugin[name] = value

    answers, log = ask(node, plugin, "cuda.cuInit(0)")

    assert answers == [str(NOT_READY)]
    assert log.count("hamirt: ") == 1
    assert f"{name}={value} {'can' if name.endswith('CACHE') else 'is not'}" in log


def test_a_limit_for_each_device_and_one_for_the_rest(plugin: dict[str, str], node: Node) -> None:
    node.cards = 3
    del plugin["NVIDIA_VISIBLE_DEVICES"]
    plugin |= {"CUDA_DEVICE_MEMORY_LIMIT_0": "1g", "CUDA_DEVICE_MEMORY_LIMIT_2": "0", "CUDA_DEVICE_MEMORY_LIMIT": "2g"}

    assert [memory_of(node, plugin, ordinal) for ordinal in range(3)] == [GIB, 2 * GIB, 2 * GIB]


VISIBLE = [
    ("all", [0, 1, 2]),
    ("void", [0, 1, 2]),
    ("/var/run/nvidia-container-devices", [0, 1, 2]),
    ("7,8,9", [0, 1, 2]),
    (card_uuid(1), [1]),
    (f"{card_uuid(2)},{card_uuid(0)}", [0, 2]),
    ("1,2", [1, 2]),
]


@pytest.mark.parametrize(("value", "cards"), VISIBLE)
def test_the_containers_devices_in_their_order(
    plugin: dict[str, str], node: Node, value: str, cards: list[int]
) -> None:
    node.cards = 3
    plugin |= {"NVIDIA_VISIBLE_DEVICES": value, "CUDA_DEVICE_MEMORY_LIMIT_1": "2g"}

    answers, log = ask(node, plugin, "devices()", "total(0)", "pynvml.nvmlInit()", "pynvml.nvmlDeviceGetCount()")

    assert answers[0] == str([card_uuid(card) for card in cards]).replace("'", '"')
    assert [answers[1], answers[3]] == [str(8000 * MIB), str(len(cards))]
    assert ("CUDA_DEVICE_MEMORY_LIMIT_1 has no effect: the container has 1 device" in log) == (len(cards) == 1)


def test_what_is_not_done_is_said_once(plugin: dict[str, str], node: Node) -> None:
    plugin |= {"CUDA_OVERSUBSCRIBE": "true", "GPU_CORE_UTILIZATION_POLICY": "disable", "CUDA_TASK_PRIORITY": "0"}

    logs = [ask(node, plugin, "cuda.cuInit(0)", "cuda.cuInit(0)")[1] for _ in range(3)]

    assert "CUDA_OVERSUBSCRIBE has no effect" in logs[0]
    assert "GPU time is NOT limited: GPU_CORE_UTILIZATION_POLICY=disable" in logs[0]
    assert "CUDA_TASK_PRIORITY=0 has no effect on others" in logs[0]
    assert logs[1:] == ["", ""]


@pytest.mark.parametrize(
    ("variables", "inert"),
    [
        ({"CUDA_DISABLE_CONTROL": "true"}, True),
        ({"CUDA_DISABLE_CONTROL": "1"}, True),
        ({"CUDA_DISABLE_CONTROL": "True", "CUDA_DEVICE_MEMORY_LIMIT": "8X"}, True),
        ({"CUDA_DISABLE_CONTROL": "false"}, False),
        ({"CUDA_DISABLE_CONTROL": "0"}, False),
        ({"CUDA_DISABLE_CONTROL": "perhaps"}, False),
        ({"CUDA_DISABLE_CONTROL": ""}, False),
    ],
)
def test_the_switch(plugin: dict[str, str], node: Node, cache: Path, variables: dict[str, str], inert: bool) -> None:
    assert (memory_of(node, plugin | variables) > 8000 * MIB) == inert
    assert cache.with_suffix(".hamirt").exists() != inert


def test_variables_that_limit_nothing_make_no_tenant(node: Node, cache: Path) -> None:
    extra = {"CUDA_DEVICE_MEMORY_SHARED_CACHE": str(cache), "CUDA_TASK_PRIORITY": "1", "LIBCUDA_LOG_LEVEL": "4"}

    assert memory_of(node, extra) > 8000 * MIB
    assert list(cache.parent.iterdir()) == []


def test_a_tenants_page_comes_before_the_variables(plugin: dict[str, str], node: Node, cache: Path) -> None:
    tenant = node.tenant(4096 * MIB)

    assert memory_of(node, plugin | {"HAMIRT_TENANT_DIR": str(tenant.folder)}) == 4096 * MIB
    assert list(cache.parent.iterdir()) == []


def test_other_limits_give_way_only_when_nobody_runs(node: Node, open_shell: Open, plugin: dict[str, str]) -> None:
    smaller = plugin | {"CUDA_DEVICE_MEMORY_LIMIT_0": "4000m"}
    first = open_shell(plugin)
    assert first("context()") == 0

    answers, log = ask(node, smaller, "cuda.cuInit(0)", "total()")
    assert answers == ["0", str(8000 * MIB)]
    assert re.search(r"the limits in \S+/3f1c.hamirt hold", log)

    first.process.kill()
    first.process.wait(TIMEOUT_S)
    answers, log = ask(node, smaller, "cuda.cuInit(0)", "total()")
    assert answers == ["0", str(4000 * MIB)]
    assert "hold" not in log


def test_processes_that_start_together_share_one_region(node: Node, open_shell: Open, plugin: dict[str, str]) -> None:
    shells = [open_shell(plugin) for _ in range(12)]
    for shell in shells:
        shell.stdin.write("context()\n")
        shell.stdin.flush()

    codes = [shell.stdout.readline().strip() for shell in shells]

    assert codes == ["0"] * 12
    assert len({tuple(shell("info()")) for shell in shells}) == 1


def test_pages_that_are_broken_are_made_again(node: Node, plugin: dict[str, str], cache: Path) -> None:
    memory_of(node, plugin)
    folder = cache.with_suffix(".hamirt")

    for page, damage in (("ro/limits", b"x" * 8), ("rw/usage", b"x" * 16), ("ro/limits", b"")):
        data = (folder / page).read_bytes()
        (folder / page).write_bytes(damage + data[len(damage) :] if damage else b"")
        assert memory_of(node, plugin) == 8000 * MIB


TRICKS = [
    ("", link, "is in its place"),
    ("", Path.touch, "is in its place"),
    ("", open_folder, "others may change it"),
    ("ro", link, "is in its place"),
    ("ro/limits", link, "a symbolic link"),
    ("rw/usage", hard_link, "something else"),
    ("rw/usage", Path.mkdir, "Is a directory"),
    ("ro/limits", os.mkfifo, "something else"),
]


@pytest.mark.parametrize(("place", "trick", "words"), TRICKS)
def test_tricks_with_the_folder_are_refused(
    node: Node, plugin: dict[str, str], cache: Path, place: str, trick: Callable[[Path], None], words: str
) -> None:
    cache.parent.chmod(0o755)
    path = cache.with_suffix(".hamirt") / place
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in [*path.parents][:2]:
        if folder.is_relative_to(cache.with_suffix(".hamirt")):
            folder.chmod(0o700)
    trick(path)

    answers, log = ask(node, plugin, "cuda.cuInit(0)")

    assert answers == [str(NOT_READY)]
    assert words in log
    victim = cache.parent / "victim"
    assert not victim.exists() or victim.read_text() == "precious"


@pytest.mark.root
def test_a_folder_of_another_user_is_refused(node: Node, plugin: dict[str, str], cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    cache.parent.chmod(0o755)
    cache.with_suffix(".hamirt").mkdir(mode=0o700)
    os.chown(cache.with_suffix(".hamirt"), 12345, 12345)

    answers, log = ask(node, plugin, "cuda.cuInit(0)")

    assert answers == [str(NOT_READY)]
    assert "belongs to another user" in log


def test_a_lock_that_is_never_given_back_does_not_hang(node: Node, plugin: dict[str, str], cache: Path) -> None:
    memory_of(node, plugin)
    folder = os.open(cache.with_suffix(".hamirt"), os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)

    answers, log = ask(node, plugin, "cuda.cuInit(0)")
    os.close(folder)

    assert answers == [str(NOT_READY)]
    assert "locked for five seconds" in log


def test_without_nvml_the_limits_are_not_guessed(node: Node, plugin: dict[str, str]) -> None:
    answers, log = ask(node, plugin | {"HAMIRT_SIM_FAULT": "nvmlInit_v2:*=9"}, "cuda.cuInit(0)")

    assert answers == [str(NOT_READY)]
    assert "NVML does not list them (error 9)" in log


@pytest.mark.root
def test_without_a_cache_the_region_is_the_users_own(node: Node) -> None:
    if os.geteuid() != 0 or TOP.is_relative_to("/tmp"):
        pytest.skip("needs root, and a tree outside of /tmp")
    own = 'mount -t tmpfs none /tmp && mkdir -m 700 /tmp/sim && exec env HAMIRT_ROOT=/tmp/sim "$@"'
    questions = [
        "[context(), total()]",
        "[oct(os.stat(path).st_mode) for path in ('/tmp/hamirt-0', '/tmp/hamirt-0/standalone')]",
        "os.listdir('/tmp/hamirt-0/standalone/ro')",
    ]

    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", own, "sh", *map(str, SHELL)],
        input="\n".join(questions),
        env=node.env(extra={"CUDA_DEVICE_MEMORY_LIMIT": "1g"}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert done.stdout.splitlines() == [f"[0, {GIB}]", '["0o40700", "0o40700"]', '["limits"]'], done.stderr
