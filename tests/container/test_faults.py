"""A hook that fails or is killed at any of its steps leaves no tenant and no mount, and no container without limits.

HAMIRT_FAULT_STARTS is how many containers are started in all, 120 by default: as many steps are taken evenly, and every
step where there are enough.
"""

import os
import sys

import pytest

from tests.container.conftest import PROGRAMS, Bundle, Runtime
from tests.container.test_runc import CAPPED

STARTS = int(os.environ.get("HAMIRT_FAULT_STARTS", "120"))
CASES = [("error", "create"), ("kill", "create"), ("error", "remove"), ("kill", "remove")]
SHARES = {"create": 0.3, "remove": 0.05}  # remove has few steps


def faulty(runc: Runtime, verb: str, place: str, *args: str, options: tuple[str, ...] = ()) -> Bundle:
    """Return a container whose hook of this verb has a fault."""
    bundle = runc.bundle(*args, options=options)
    stage = {"create": "createRuntime", "remove": "poststop"}[verb]
    (hook,) = bundle.config["hooks"][stage]
    steps = str(runc.tmp / "steps")
    hook["args"] = [sys.executable, str(PROGRAMS / "faulty_hook.py"), place, steps, *hook["args"][1:]]
    hook["path"] = sys.executable
    return bundle


def places(starts: int, steps: int) -> list[int]:
    """Return the step at which the fault of each start is to be."""
    return [1 + (start * steps // starts if starts < steps else start % steps) for start in range(starts)]


@pytest.mark.parametrize(("kind", "verb"), CASES)
def test_a_fault_at_any_step_leaves_nothing(runc: Runtime, kind: str, verb: str) -> None:
    assert runc.run(faulty(runc, verb, f"{kind}:0", "/inmate", "views")).stdout.startswith(CAPPED)
    steps = int((runc.tmp / "steps").read_text())
    starts = int(STARTS * SHARES[verb])

    faults = 0
    for step in places(starts, steps):
        bundle = faulty(runc, verb, f"{kind}:{step}", "/inmate", "views")
        ended = runc.run(bundle)
        assert ended.stdout.startswith(CAPPED) or (ended.returncode != 0 and ended.stdout == ""), (step, ended)
        faults += ended.stdout == "" or "a fault at step" in ended.stderr or "signal: killed" in ended.stderr
        runc("delete", "--force", bundle.id)
        runc.bundles.remove(bundle)

    assert faults > starts // 2


def test_where_the_node_allows_it_a_container_with_a_fault_gets_all_or_nothing(runc: Runtime) -> None:
    # The mounts: the folder, two pages, the library, the simulator's two, the preload. Then the links of the limits
    # page: none where its tenant is gone.
    script = "grep -c -e ' /run/hamirt' -e /ld.so.preload /proc/self/mountinfo; stat -c %h /run/hamirt/ro/limits"
    words = ("/bin/sh", "-c", script)
    limited, unlimited = "7\n1\n", "0\n"
    assert runc.run(faulty(runc, "create", "error:0", *words)).stdout == limited
    steps = int((runc.tmp / "steps").read_text())

    found = set()
    for step in places(int(STARTS * SHARES["create"]), steps):
        bundle = faulty(runc, "create", f"error:{step}", *words, options=("--on-error=allow",))
        found.add((runc.run(bundle).stdout, step))
        runc.bundles.remove(bundle)

    # a fault in the very last steps ends the hook, and so the container
    assert {(said, step) for said, step in found if said not in (limited, unlimited, "")} == set()
    assert unlimited in {said for said, _step in found}
