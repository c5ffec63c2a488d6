"""Does what the policy decided: tells of violations, and ends processes through a pidfd after looking at them again."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from hamirt import members
from hamirt.daemon.policy import Action, Kill, Kind, Report
from hamirt.members import Anchor
from hamirt.model import Standing


@dataclass(frozen=True, slots=True)
class Event:
    """Something to be logged and counted.

    Its kinds: `violation` and `violation_ended`; `killed`, when a process is asked to end; `kill_forced`, when it gets
    SIGKILL because it did not; `kill_failed`.
    """

    kind: str
    tenant: str
    text: str


def carry_out(actions: Sequence[Action], anchors: Sequence[Anchor]) -> tuple[Event, ...]:
    """Do what was decided on the sample that these anchors belong to, and return what happened."""
    return tuple(_report(action) if isinstance(action, Report) else _kill(action, anchors) for action in actions)


def _report(action: Report) -> Event:
    violation = action.violation
    return Event("violation_ended" if action.ended else "violation", violation.tenant, violation.text)


def _kill(action: Kill, anchors: Sequence[Anchor]) -> Event:
    failure = end(action, anchors)
    whom = f"process {action.pid} ({action.command}), {_WHY[action.kind]}"
    if failure is not None:
        return Event("kill_failed", action.tenant, f"{whom}: {failure}")
    if action.force:
        return Event("kill_forced", action.tenant, f"SIGKILL to {whom}")
    return Event("killed", action.tenant, f"SIGTERM to {whom}")


_WHY = {Kind.UNSHIMMED: "which the shim is not in", Kind.OVER: "whose tenant is over its cap"}


def end(action: Kill, anchors: Sequence[Anchor]) -> str | None:
    """Send the signal, and return None; or return why it was not sent.

    Once the pidfd is open the pid can't pass to another process unnoticed: what is judged afterwards, and has the start
    time that the policy saw, is what gets the signal.
    """
    if action.pid <= 1 or action.pid == os.getpid():
        return "hamirt never ends that one"
    try:
        fd = os.pidfd_open(action.pid)
    except OSError as error:
        return f"it can't be reached ({error.strerror})"
    try:
        verdict = members.judge_now(anchors, action.pid)
        if verdict is None or verdict.process.start != action.start:
            return "it has ended"
        if verdict.tenant != action.tenant or action.tenant not in verdict.members:
            return "it is no member of that tenant any more"
        if action.kind is Kind.UNSHIMMED and verdict.standing is not Standing.UNSHIMMED:
            return "the shim is in it by now"
        signal.pidfd_send_signal(fd, signal.SIGKILL if action.force else signal.SIGTERM)
    except OSError as error:
        return f"it can't be ended ({error.strerror})"
    finally:
        os.close(fd)
    return None
