"""`hamirt run` on a terminal: the program has it, control-C and control-Z do what they do without hamirt."""

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.conftest import HAMIRT, Node

RUN = " ".join([*HAMIRT, "run", "--sim", "--"])
CONTROL_C, CONTROL_Z = b"\x03", b"\x1a"
DEADLINE_SECONDS = 30.0


class Terminal:
    """A program on a terminal of its own, as a person would use it."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, env | {"TERM": "dumb", "PS1": "$ "})

    def type(self, keys: str | bytes) -> None:
        os.write(self.fd, keys.encode() if isinstance(keys, str) else keys)

    def expect(self, pattern: str) -> "re.Match[str]":
        """Read until `pattern` has appeared, and forget all up to there."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (match := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                pytest.fail(f"waited for {pattern!r} and saw {self.seen!r}")
            try:
                self.seen += os.read(self.fd, 65536).decode()
            except OSError:  # the terminal's last process has ended
                pytest.fail(f"waited for {pattern!r}, saw {self.seen!r} and the end")
        self.seen = self.seen[match.end() :]
        return match

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.fd)


@pytest.fixture
def shell(node: Node) -> Iterator[Terminal]:
    """An interactive shell with job control."""
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"], node.env)
    terminal.expect(r"\$ ")
    yield terminal
    terminal.close()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that says what it gets from the terminal; it ends with the word end."""
    path = tmp_path / "program.py"
    path.write_text(
        "import os, select, signal, sys\n"
        "names = {signal.SIGINT: '<int>', signal.SIGCONT: '<cont>'}\n"
        "signals, writing = os.pipe()\n"
        "os.set_blocking(writing, False)\n"
        "signal.set_wakeup_fd(writing)\n"
        "for number in names: signal.signal(number, lambda *_: None)\n"
        "print('<up>', os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n"
        "while True:\n"
        "    ready, _, _ = select.select([0, signals], [], [])\n"
        "    for number in os.read(signals, 64) if signals in ready else b'': print(names[number], flush=True)\n"
        "    line = os.read(0, 64).decode().strip() if 0 in ready else ''\n"
        "    if line: print('<line>', line, flush=True)\n"
        "    if line == 'end': sys.exit(6)\n"
    )
    return path


def test_the_program_has_the_terminal_and_the_shell_gets_it_back(shell: Terminal, script: Path) -> None:
    shell.type(f"{RUN} {sys.executable} {script}; echo '<code>' $?\n")
    shell.expect("<up> True")
    shell.type("hello\n")
    shell.expect("<line> hello")

    shell.type(CONTROL_C)
    shell.expect("<int>")
    shell.type("end\n")

    shell.expect("<code> 6")
    shell.type("echo shell-$((40 + 2))\n")
    shell.expect("shell-42")


def test_control_c_ends_an_ordinary_program(shell: Terminal) -> None:
    shell.type(f"{RUN} sh -c 'echo up-$((1 + 1)); exec sleep 1000'\n")
    shell.expect("up-2")

    shell.type(CONTROL_C)
    shell.expect(r"\$ $")

    shell.type("echo $?\n")
    shell.expect("130")


def test_control_z_stops_the_job_and_fg_goes_on(shell: Terminal, script: Path) -> None:
    shell.type(f"{RUN} {sys.executable} {script}\n")
    shell.expect("<up> True")

    shell.type(CONTROL_Z)
    shell.expect("Stopped")
    shell.expect(r"\$ ")
    shell.type("echo shell-$((40 + 2))\n")
    shell.expect("shell-42")
    shell.type("fg\n")
    shell.expect("<cont>")
    shell.type("again\n")
    shell.expect("<line> again")
    shell.type(CONTROL_C)
    shell.expect("<int>")

    shell.type("end\n")
    shell.expect(r"\$ ")
    shell.type("echo code-$?\n")
    shell.expect("code-6")


def test_in_the_background_it_stops_when_it_reads_and_can_be_fetched(shell: Terminal) -> None:
    shell.type(f"{RUN} sh -c 'echo up-$((1 + 1)); while read x; do echo got-$x; done'\n")
    shell.expect("up-2")
    shell.type(CONTROL_Z)
    shell.expect("Stopped")

    shell.type("bg\n")
    shell.type("jobs\n")
    while shell.expect("Running|Stopped")[0] == "Running":
        shell.type("jobs\n")
    shell.type("echo shell-$((40 + 2))\n")
    shell.expect("shell-42")
    shell.type("fg\n")
    shell.expect("while read")

    shell.type("word\n")
    shell.expect("got-word")


def test_in_a_pipeline_the_others_keep_the_terminal(shell: Terminal, script: Path) -> None:
    # given a pipeline whose last member reads the terminal itself
    reader = "sh -c 'cat >/dev/null & read line </dev/tty; echo \"<reader> $line\"; wait'"
    shell.type(f"{RUN} sh -c 'exec sleep 1000' | {reader}\n")

    shell.type("typed\n")
    shell.expect("<reader> typed")

    shell.type(CONTROL_C)
    shell.expect(r"\$ ")
    shell.type("echo shell-$((40 + 2))\n")
    shell.expect("shell-42")


def test_in_a_script_control_c_reaches_the_program_once(shell: Terminal, script: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f"{RUN} {sys.executable} {script}\necho '<wrapped>' $?\n")
    shell.type(f"sh {wrapper}\n")
    shell.expect("<up> True")

    shell.type(CONTROL_C)
    shell.expect("<int>")
    shell.type("end\n")

    seen = shell.expect("<line> end")
    assert "<int>" not in seen.string[: seen.start()]


def test_alone_on_a_terminal_it_cannot_be_stopped_for_good(node: Node, script: Path) -> None:
    # given a session whose leader is hamirt run, as docker run -t makes one: there is no shell to say fg
    terminal = Terminal([*HAMIRT, "run", "--sim", "--", sys.executable, str(script)], node.env)
    try:
        terminal.expect("<up> True")

        terminal.type(CONTROL_Z)

        terminal.expect("<cont>")
        terminal.type("end\n")
        terminal.expect("<line> end")
        assert terminal.wait() == 6
    finally:
        terminal.close()
    assert node.folders() == []
