"""The one child of `hamirt run`, and what its parent owes it: signals, the terminal, a reaper for its orphans.

The child is in the parent's process group, and the kernel hands it the terminal's signals together with the rest of
a script or a pipeline; where the parent leads the foreground group of a terminal alone, the child gets a group of its
own and the terminal with it, as in a shell.
"""

import ctypes
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hamirt.errors import NOT_EXECUTABLE, NOT_FOUND, HamirtError

_FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGALRM, signal.SIGWINCH, signal.SIGTSTP,
}  # fmt: skip
_WATCHED = _FORWARDED | {signal.SIGCHLD, signal.SIGCONT, signal.SIGTTIN, signal.SIGTTOU}
_TERMINAL_STOPS = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_SI_KERNEL = 128  # siginfo.si_code of a signal that the terminal sent to the whole foreground group
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Ended:
    """How the child ended: the exit code to end with, and whether processes that it started live on."""

    exit_code: int
    survivors: bool


@contextmanager
def signals_kept() -> Iterator[set[int]]:
    """Keep the signals that come from here on for the child; yield the mask that it is to start with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask: set[int] = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def run(path: str, argv: Sequence[str], env: Mapping[str, str], mask: set[int]) -> Ended:
    """Start the program at `path` with this signal mask, serve it until it ends, and say how it ended.

    Call it within `signals_kept`. As pid 1 the rest of the namespace ends with the program. Raises HamirtError, 126 or
    127, where it can't be executed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    terminal = _own_terminal()
    pid = _start(path, argv, env, mask, terminal)
    try:
        exit_code = _Parent(pid, terminal).serve()
    finally:
        _take_back(terminal, pid)
    return Ended(exit_code, _end_orphans())


def _own_terminal() -> int | None:
    """Return a descriptor of the terminal if it is ours alone to hand on: we lead its foreground group.

    In a pipeline or a script other processes share that group, and taking the terminal away would stop them.
    """
    try:
        alone = os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp() == os.getpid()
        return fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3) if alone else None
    except OSError:
        return None


def _start(path: str, argv: Sequence[str], env: Mapping[str, str], mask: set[int], terminal: int | None) -> int:
    """Fork and execute; the child tells through a pipe, closed by a good exec, why it could not."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            if terminal is not None:
                os.setpgid(0, 0)
                os.tcsetpgrp(terminal, os.getpid())
            for ignored in _IGNORED_BY_PYTHON:
                signal.signal(ignored, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _execute(path, argv, env)
        except OSError as error:
            os.write(writing, str(error.errno).encode())
        finally:
            os._exit(NOT_EXECUTABLE)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        _take_back(terminal, pid)
        number = int(failure)
        code = NOT_FOUND if number == errno.ENOENT else NOT_EXECUTABLE
        raise HamirtError(f"{path} can't be executed: {os.strerror(number)}", code)
    return pid


def _execute(path: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
    try:
        os.execve(path, list(argv), dict(env))
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["sh", path, *argv[1:]], dict(env))  # a script without #!, as execvp does


class _Parent:
    """Waits for signals and for the child, one after the other; no handler runs in between."""

    def __init__(self, pid: int, terminal: int | None) -> None:
        self._pid = pid
        self._terminal = terminal

    def serve(self) -> int:
        """Return the child's exit code once it has ended."""
        while True:
            info = signal.sigwaitinfo(_WATCHED)
            if info.si_signo == signal.SIGCHLD:
                exit_code = self._reap()
                if exit_code is not None:
                    return exit_code
            elif info.si_signo == signal.SIGCONT:
                self._resume()
            elif info.si_signo in _FORWARDED and not self._reached_child_too(info):
                self._send(info.si_signo)

    def _reap(self) -> int | None:
        """Collect every process that has changed its state, orphans of the child among them."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return None
            if pid != self._pid:
                continue
            if not os.WIFSTOPPED(status):
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            self._stopped(os.WSTOPSIG(status))

    def _stopped(self, number: int) -> None:
        """Stop with a child that the terminal stopped, so that the shell above sees a stopped job.

        Without a shell above the child goes on. A SIGSTOP of somebody's own is between him and the child.
        """
        if number not in _TERMINAL_STOPS:
            return
        if _is_alone():
            self._send(signal.SIGCONT)
            return
        _take_back(self._terminal, self._pid)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _resume(self) -> None:
        if self._terminal is not None:
            with suppress(OSError):
                if os.tcgetpgrp(self._terminal) == os.getpgrp():
                    os.tcsetpgrp(self._terminal, self._pid)
        self._send(signal.SIGCONT)

    def _reached_child_too(self, info: signal.struct_siginfo) -> bool:
        return self._terminal is None and info.si_code == _SI_KERNEL

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self._terminal is not None and number == signal.SIGCONT:
                os.killpg(self._pid, number)
            else:
                os.kill(self._pid, number)


def _is_alone() -> bool:
    """Return whether nobody would wake us if we stopped: no shell of our session is above us."""
    parent = os.getppid()
    try:
        return parent == 0 or os.getpid() == 1 or os.getsid(parent) != os.getsid(0)
    except ProcessLookupError:
        return True


def _take_back(terminal: int | None, child_group: int) -> None:
    """Make our group the terminal's foreground again where the child's still is, or one that is gone."""
    if terminal is None:
        return
    with suppress(OSError):
        foreground = os.tcgetpgrp(terminal)
        if foreground == child_group or not _group_exists(foreground):
            os.tcsetpgrp(terminal, os.getpgrp())


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _end_orphans() -> bool:
    """Reap what has ended; return whether descendants live on. As pid 1 none may: the kernel would kill them."""
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        options = 0
    else:
        options = os.WNOHANG
    try:
        while os.waitpid(-1, options)[0] != 0:
            pass
    except ChildProcessError:
        return False
    return True
