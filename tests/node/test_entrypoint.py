"""hooks/entrypoint.sh under the shells that images have: what the variables say is what `hamirt run` does."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.node.conftest import TIMEOUT_SECONDS, Node
from tests.support import TOP, need

ENTRYPOINT = TOP / "hooks" / "entrypoint.sh"
CAP = (
    "import ctypes; driver = ctypes.CDLL('libnvidia-ml.so.1'); driver.nvmlInit_v2(); device = ctypes.c_void_p(); "
    "driver.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)); memory = (ctypes.c_uint64 * 3)(); "
    "driver.nvmlDeviceGetMemoryInfo(device, memory); count = ctypes.c_uint(); "
    "driver.nvmlDeviceGetCount_v2(ctypes.byref(count)); print(memory[0] >> 20, count.value)"
)


@pytest.fixture(params=["dash", "bash", "busybox sh"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """A POSIX shell."""
    words: list[str] = request.param.split()
    need(words[0], shutil.which(words[0]) is not None)
    return words


@pytest.fixture
def with_hamirt(node: Node, tmp_path: Path) -> dict[str, str]:
    """The node's environment, with `hamirt` in PATH."""
    program = tmp_path / "bin" / "hamirt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hamirt "$@"\n')
    program.chmod(0o755)
    return node.env | {"PATH": f"{program.parent}:{node.env['PATH']}"}


def start(shell: list[str], env: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
    words = [*shell, str(ENTRYPOINT), *command]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


def outcome(ended: "subprocess.CompletedProcess[str]") -> tuple[int, str, str]:
    return ended.returncode, ended.stdout, ended.stderr


def test_the_variables_are_the_options(shell: list[str], with_hamirt: dict[str, str]) -> None:
    wished = {"HAMIRT_MEM": "8GiB", "HAMIRT_SM": "40", "HAMIRT_GPU": "1,0", "HAMIRT_NAME": "web"}

    ended = start(shell, with_hamirt | wished, sys.executable, "-c", CAP)

    assert outcome(ended) == (0, "8192 2\n", "")


def test_one_gpu_of_two(shell: list[str], with_hamirt: dict[str, str]) -> None:
    ended = start(shell, with_hamirt | {"HAMIRT_MEM": "50%", "HAMIRT_GPU": "1"}, sys.executable, "-c", CAP)

    assert outcome(ended) == (0, "40779 1\n", "")


def test_words_and_status_pass_through(shell: list[str], with_hamirt: dict[str, str]) -> None:
    words = ["sh", "-c", 'printf "[%s]" "$@"; exit 7', "sh", "a b", "", "--mem", "*"]

    capped = start(shell, with_hamirt | {"HAMIRT_MEM": "8GiB"}, *words)
    without = start(shell, {key: value for key, value in with_hamirt.items() if key != "HAMIRT_SIM"}, *words)

    assert outcome(capped) == outcome(without) == (7, "[a b][][--mem][*]", "")


def test_a_signal_reaches_the_program(shell: list[str], with_hamirt: dict[str, str], node: Node, line_of: Any) -> None:
    program = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print('up', flush=True); signal.pause()"  # noqa: E501
    words = [*shell, str(ENTRYPOINT), sys.executable, "-c", program]
    process = subprocess.Popen(words, env=with_hamirt | {"HAMIRT_MEM": "8GiB"}, stdout=subprocess.PIPE, text=True)
    node.started.append(process)
    assert line_of(process) == "up"

    process.send_signal(signal.SIGTERM)

    assert process.wait(TIMEOUT_SECONDS) == 9
    assert node.folders() == []


@pytest.mark.parametrize(
    ("wished", "says"),
    [
        ({"HAMIRT_MEM": ""}, "'' is not a size"),
        ({"HAMIRT_MEM": "8Gb!"}, "'8Gb!' is not a size"),
        ({"HAMIRT_GPU": ""}, "there is no GPU ''"),
        ({"HAMIRT_GPU": "0,"}, "there is no GPU ''"),
        ({"HAMIRT_CLASS": "fast"}, "--class"),
    ],
)
def test_a_variable_that_says_nothing_sensible_starts_nothing(
    wished: dict[str, str], says: str, with_hamirt: dict[str, str]
) -> None:
    ended = start(["sh"], with_hamirt | wished, "echo", "started")

    assert (ended.returncode, ended.stdout) == (125, "")
    assert says in ended.stderr


def test_without_hamirt_in_the_image_it_says_so(shell: list[str], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "busybox", "bash", "dash", "echo"):
        if (found := shutil.which(name)) is not None:
            (tmp_path / "bin" / name).symlink_to(found)
    env = {"PATH": str(tmp_path / "bin")}

    ended = start(shell, env | {"HAMIRT_MEM": "8GiB", "HAMIRT_SM": "30"}, "echo", "started")

    assert outcome(ended) == (
        125,
        "",
        "hamirt: the image has no hamirt, which HAMIRT_MEM HAMIRT_SM needs: "
        "install it in the image, or take the variables out\n",
    )
    assert outcome(start(shell, env, "echo", "started")) == (0, "started\n", "")


def test_in_a_tenant_of_the_nodes_the_program_is_started_as_it_is(shell: list[str]) -> None:
    env = {"PATH": "/usr/bin:/bin", "HAMIRT_TENANT_DIR": "/tenant"}

    assert outcome(start(shell, env, "echo", "started")) == (0, "started\n", "")
    assert outcome(start(shell, env | {"HAMIRT_MEM": "8GiB"}, "echo", "started")) == (
        0,
        "started\n",
        "hamirt: the node has set this container's limits: HAMIRT_MEM changes nothing\n",
    )


def test_no_command_is_a_sentence(shell: list[str]) -> None:
    assert outcome(start(shell, {"PATH": "/usr/bin:/bin"})) == (
        125,
        "",
        "hamirt: the container names no program: give it a command\n",
    )
