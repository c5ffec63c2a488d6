"""The traps of marks: events that go with their contexts, streams that go and come again, and captures, which a query
or a record at the wrong moment ends.
"""

from __future__ import annotations

import pytest

from tests.shim.conftest import Build, Node
from tests.shim.gates import WINDOW_NS, gated_trap

MODES = pytest.mark.parametrize("window_ns", [None, WINDOW_NS], ids=["free", "windowed"])


@MODES
@pytest.mark.parametrize(
    ("scenario", "mode"),
    [
        # a record on the legacy stream while a blocking stream captures ends the capture, in any mode
        ("legacy_tail", "global"),
        ("legacy_tail", "thread"),
        ("legacy_tail", "relaxed"),
        # what was launched on a stream before it captures: its mark must not go into the graph
        ("same_stream_tail", "global"),
        ("same_stream_tail", "thread"),
        ("same_stream_tail", "relaxed"),
        # our queries, and our records in threads that launch meanwhile
        ("global_beside", "global"),
        # a handle may be another stream's by now
        ("made_again", ""),
        # events and streams go with their contexts
        ("streams_destroyed", ""),
        ("contexts_destroyed", ""),
        ("many_streams", ""),
        ("two_contexts", ""),
        ("primary_reset", ""),
    ],
)
def test_a_mark_is_made_where_it_does_no_harm(
    scenario: str, mode: str, window_ns: int | None, node: Node, build: Build
) -> None:
    """...and what follows is still waited for."""
    program = gated_trap(node, build, "trap_mark", scenario, mode, window_ns=window_ns)

    program.say()
    ends_ns = program.hear("launched")

    assert program.drain() >= ends_ns
    program.gates.open()
    program.say()
    program.hear("over")
