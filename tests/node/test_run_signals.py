"""`hamirt run` hands signals on, and reaps what its program leaves behind."""

import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from tests.node.conftest import HAMIRT, PROGRAMS, Node
from tests.support import wait_for

NAMES = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "WINCH")


def child_of(process: "subprocess.Popen[str]") -> psutil.Process:
    """Return the program that a `hamirt run` has started."""
    (child,) = psutil.Process(process.pid).children()
    return child


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_reaches_the_program_once(node: Node, line_of: Any, name: str) -> None:
    script = (
        "import signal, sys\n"
        f"watched = [signal.Signals['SIG' + name] for name in {NAMES}]\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, watched)\n"
        "print('ready', flush=True)\n"
        "print(signal.sigwaitinfo(watched).si_signo, flush=True)\n"
        "sys.stdin.read()\n"
        "print(signal.sigpending())"
    )
    process = node.start("--", sys.executable, "-c", script)
    assert line_of(process) == "ready"
    number = signal.Signals[f"SIG{name}"]

    process.send_signal(number)

    assert line_of(process) == str(int(number))
    assert process.communicate("", timeout=30)[0] == "set()\n"
    assert process.returncode == 0


def test_a_program_that_a_signal_ends(node: Node, line_of: Any) -> None:
    process = node.start("--", "sh", "-c", "echo ready; exec sleep 1000")
    assert line_of(process) == "ready"

    process.terminate()

    assert process.wait(30) == 128 + signal.SIGTERM
    assert node.folders() == []


def test_an_ignored_hangup_stays_ignored(node: Node, line_of: Any) -> None:
    process = subprocess.Popen(
        ["nohup", *HAMIRT, "run", "--sim", "--", "sh", "-c", "echo ready; read line; echo alive"],
        env=node.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    node.started.append(process)
    assert line_of(process) == "ready"

    process.send_signal(signal.SIGHUP)

    assert process.communicate("\n", timeout=30)[0] == "alive\n"
    assert process.returncode == 0


def test_a_stopped_program_is_left_to_the_one_who_stopped_it(node: Node, line_of: Any) -> None:
    process = node.start("--", "sh", "-c", "echo ready; read line; exit 5")
    assert line_of(process) == "ready"
    child = child_of(process)

    child.suspend()
    wait_for(lambda: child.status() == psutil.STATUS_STOPPED, "the program to stop")

    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
    child.resume()
    process.communicate("\n", timeout=30)
    assert process.returncode == 5


def test_orphans_are_reaped_while_the_program_runs(node: Node, line_of: Any) -> None:
    # given a program whose grandchild outlives the child in between
    process = node.start("--", "sh", "-c", '(sh -c "echo \\$\\$; exec sleep 1000" &); read line')
    orphan = psutil.Process(int(line_of(process)))
    wait_for(lambda: orphan.ppid() == process.pid, "the orphan to come to hamirt run")

    orphan.kill()

    wait_for(lambda: not orphan.is_running(), "the orphan to be reaped")
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def test_a_tenant_ends_with_its_last_process(node: Node) -> None:
    # given a program that leaves a process behind
    ended = node.run("--name", "t", "--", "sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!")
    survivor = psutil.Process(int(ended.stdout))
    try:
        # then the tenant lives on with that process
        assert ended.returncode == 0
        assert [tenant["name"] for tenant in node.status()["tenants"]] == ["t"]
    finally:
        survivor.kill()
    wait_for(lambda: not survivor.is_running() or survivor.status() == psutil.STATUS_ZOMBIE, "the survivor to end")

    # and the next command sweeps it away
    assert node.status()["tenants"] == []
    assert node.folders() == []


def test_a_tenant_whose_parent_was_killed_is_swept_once_its_program_ends(node: Node, line_of: Any) -> None:
    process = node.start("--name", "t", "--", "sh", "-c", "echo ready; read line")
    assert line_of(process) == "ready"
    child = child_of(process)

    process.kill()
    process.wait(30)

    assert [tenant["name"] for tenant in node.status()["tenants"]] == ["t"]
    child.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the program to end")
    assert node.run("--name", "t", "--", "true").returncode == 0
    assert node.folders() == []


def test_a_slot_keeps_a_tenant_whose_environment_says_nothing(node: Node, line_of: Any) -> None:
    # given an orphan without any environment that holds a slot
    holder = f"exec env -i {sys.executable} {PROGRAMS / 'holder.py'} 0 0 1 0 0 0 $HAMIRT_TENANT_DIR"
    process = node.start("--name", "t", "--", "sh", "-c", holder)
    assert line_of(process) == "ready"
    child = child_of(process)

    process.kill()
    process.wait(30)

    assert [tenant["name"] for tenant in node.status()["tenants"]] == ["t"]
    child.kill()
    wait_for(lambda: not node.status()["tenants"], "the tenant to be swept")


def test_half_a_tenant_is_swept(node: Node) -> None:
    node.run("--", "true")
    (node.root / "tenants" / ".t-123456").mkdir()
    (node.root / "tenants" / "u-123456" / "ro").mkdir(parents=True)

    node.status()

    assert node.folders() == []


def test_tenants_set_up_and_swept_at_once_do_not_meet(node: Node) -> None:
    # given many that come and go while others sweep
    runs = [node.start("--", "sh", "-c", 'test -s "$HAMIRT_TENANT_DIR/rw/usage"') for _ in range(12)]
    looks = [node.hamirt("status", "--sim", "--json").returncode for _ in range(4)]

    assert [process.wait(60) for process in runs] == [0] * 12
    assert looks == [0] * 4
    assert node.folders() == []


def test_as_pid_1_it_reaps_and_ends_with_its_program(node: Node, unshare: str) -> None:
    # given a namespace in which hamirt run is pid 1, and a program that leaves a process and a zombie's parent behind
    script = "setsid sleep 1000 & (sh -c true &); echo $PPID; exit 9"
    command = [unshare, "--pid", "--fork", "--mount-proc", *HAMIRT, "run", "--sim", "--", "sh", "-c", script]

    ended = subprocess.run(command, env=node.env, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (9, "1\n", "")
    assert node.folders() == []


def test_as_pid_1_it_hands_signals_on(node: Node, unshare: str, line_of: Any) -> None:
    script = "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
    command = [unshare, "--pid", "--fork", "--kill-child", *HAMIRT, "run", "--sim", "--", "sh", "-c", script]
    process = subprocess.Popen(command, env=node.env, stdout=subprocess.PIPE, text=True)
    node.started.append(process)
    assert line_of(process) == "ready"

    child_of(process).send_signal(signal.SIGTERM)

    assert line_of(process) == "term"
    assert process.wait(30) == 4
    assert node.folders() == []
