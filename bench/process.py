"""Starting programs for a measurement, and leaving nothing of them behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

TOP = Path(__file__).resolve().parent.parent
"""The repository, or the bundle. Programs run here: in a bundle no unbuilt hamirt lies beside them."""

RESULT_PREFIX = "HMRESULT "
KILL_WAIT_S = 30.0
UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")
"""Starts a program in a PID namespace of its own, with its own /proc: the driver asks that about itself."""
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that was run: its command, status (negative: minus the signal), output and seconds."""

    argv: tuple[str, ...]
    status: int | None
    """None: it was killed because its time was up, or could not be started."""
    stdout: str
    stderr: str
    seconds: float

    def as_dict(self, limit: int = 4000) -> dict[str, Any]:
        """Return it for the JSON file, the texts cut to their last `limit` characters."""
        return {
            "argv": list(self.argv),
            "status": self.status,
            "stdout": self.stdout[-limit:],
            "stderr": self.stderr[-limit:],
            "seconds": round(self.seconds, 3),
        }

    def result(self) -> dict[str, Any] | None:
        """Return the object of the last HMRESULT line of stdout, None where there is none."""
        for line in reversed(self.stdout.splitlines()):
            if line.startswith(RESULT_PREFIX):
                return _object(line[len(RESULT_PREFIX) :])
        return None

    def why(self) -> str:
        """Return one line that says how it ended: where that was not well, the last line of stderr that names an error,
        behind which PyTorch gives advice, or the very last."""
        lines = self.stderr.strip().splitlines() or ["no output on stderr"]
        last = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
        return "ended well" if self.status == 0 else f"status {self.status}: {last[:300]}"


def can_unshare() -> bool:
    """Tell whether a PID namespace with its own /proc can be made and entered here."""
    if shutil.which(UNSHARE[0]) is None or shutil.which("nsenter") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False, timeout=30).returncode == 0


class Program:
    """A running program, in a session of its own and with its output in files; a context manager."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], cwd: Path = TOP) -> None:
        self.argv = tuple(argv)
        self._out: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._err: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._start = time.monotonic()
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                self.argv,
                stdout=self._out,
                stderr=self._err,
                stdin=subprocess.PIPE,
                env=env,
                cwd=cwd,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self._err.write(f"{argv[0]} cannot be started: {error}")

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    @property
    def pid(self) -> int:
        """Return the program's pid, 0 where it could not be started."""
        return 0 if self._process is None else self._process.pid

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self._process is not None and self._process.poll() is None

    def stdout(self) -> str:
        """Return what it wrote to stdout so far."""
        return Path(f"/proc/self/fd/{self._out.fileno()}").read_text(errors="replace")

    def say(self, line: str) -> None:
        """Write a line to its stdin; it may be gone already."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def send(self, number: int) -> None:
        """Send the program itself a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def finish(self, timeout_s: float) -> Ended:
        """Wait until it ends by itself, or kill it with all its descendants when the time is up."""
        status: int | None = None
        if self._process is not None:
            with contextlib.suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            try:
                status = self._process.wait(timeout=max(0.1, timeout_s))
            except subprocess.TimeoutExpired:
                self.kill()
        texts = []
        for stream in (self._out, self._err):
            stream.flush()
            stream.seek(0)
            texts.append(stream.read())
        return Ended(self.argv, status, texts[0], texts[1], time.monotonic() - self._start)

    def kill(self) -> None:
        """Kill the program, its descendants and its process group, and wait for it."""
        if self._process is None:
            return
        for pid in [*descendants(self._process.pid), self._process.pid] if self.running() else []:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILL_WAIT_S)
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()


def run(argv: Sequence[str], env: dict[str, str], timeout_s: float, cwd: Path = TOP) -> Ended:
    """Run a program to its end; when its time is up it is killed and its status is None."""
    with Program(argv, env, cwd) as program:
        return program.finish(timeout_s)


def descendants(root: int) -> list[int]:
    """Return the pids of all living descendants of a process, parents before children."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            parent = parent_of(int(folder.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    queue = list(children.get(root, ()))
    while queue:
        pid = queue.pop(0)
        found.append(pid)
        queue += children.get(pid, ())
    return found


def start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None: it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def parent_of(pid: int) -> int | None:
    """Return the parent's pid; None: the process is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def state_of(pid: int) -> str | None:
    """Return the process's state letter as ps shows it; None: it is gone."""
    fields = _stat(pid)
    return None if fields is None else fields[0]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command's name, which may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _object(text: str) -> dict[str, Any] | None:
    try:
        loaded = json.loads(text)
    except ValueError:
        return None
    return loaded if isinstance(loaded, dict) else None
