"""hook_capture.c counts the captures in progress: never one too few, and no longer than can be told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.shim.conftest import Build, Node

Steps = Callable[[str], list[str]]

# CUresult
OK, INVALID_VALUE, INVALID_CONTEXT, ILLEGAL_STATE = 0, 1, 201, 401
UNSUPPORTED, INVALIDATED, UNMATCHED, WRONG_THREAD = 900, 901, 903, 908


@pytest.fixture
def steps(node: Node, build: Build) -> Steps:
    """Run a scenario of capture_steps.c, and return its lines: what was done, the driver's answer, the count then."""
    return lambda scenario: node.run([build("capture_steps"), scenario], shim=False).stdout.splitlines()


def test_from_the_beginning_to_the_end(steps: Steps) -> None:
    assert steps("plain") == [
        "nothing 0 0",
        f"legacy {UNSUPPORTED} 0",
        "begun 0 1",
        "1 0",  # the stream captures, and not another one
        f"again {ILLEGAL_STATE} 1",
        f"other ended {INVALID_VALUE} 1",
        "ended 0 0",
        "0",
        "to graph 0 1",
        "ended 0 0",
    ]


def test_an_end_that_is_refused_is_none_and_a_broken_capture_ends(steps: Steps) -> None:
    assert steps("broken") == [
        f"without a context {INVALID_CONTEXT} 1",
        f"elsewhere {WRONG_THREAD} 1",
        f"joined {UNMATCHED} 1",
        f"invalidated {INVALIDATED} 0",
    ]


def test_a_stream_that_is_destroyed_takes_its_capture_along(steps: Steps) -> None:
    assert steps("destroyed") == ["begun 0 2", "gone 0 1", "ended 0 0"]


def test_captures_that_are_too_many_to_know_stay_counted(steps: Steps) -> None:
    assert steps("many") == ["begun 0 40", "ended 0 8", "0"]


def test_each_thread_has_a_stream_of_its_own(steps: Steps) -> None:
    assert steps("threads") == [
        "begun 0 1",
        "begun too 0 2",
        "1",
        "ended 0 1",
        f"again {INVALID_VALUE} 1",
        "ended 0 0",
    ]


def test_a_fork_child_has_no_captures(steps: Steps) -> None:
    assert steps("forked") == ["begun 0 1", "child 0 1", "parent 0 1"]


def test_none_begins_while_the_lock_is_held(steps: Steps) -> None:
    assert steps("locked") == ["0"]
