"""`hamirt demo`, on simulated cards: what a person sees in their first minute."""

import re

from hamirt import config
from tests.node.conftest import Node
from tests.support import need


def test_one_tenant_meets_its_cap_and_the_other_goes_on(node: Node) -> None:
    need("the shim (make build)", config.shim_path().exists())

    ended = node.hamirt("demo", "--sim")

    assert (ended.returncode, ended.stderr) == (0, "")
    shown = ended.stdout
    assert "SIMULATED" in shown.splitlines()[0]
    assert "greedy | asks for 256 MiB more: CUDA_ERROR_OUT_OF_MEMORY" in shown
    assert "greedy | sees a GPU with" in shown
    assert "of 2048 MiB free" in shown
    after = shown.split("OUT_OF_MEMORY", 1)[1]
    assert re.search(r"steady \| step +\d+ on 1024 MiB done", after)
    table = shown.split("$ hamirt status", 1)[1]
    assert re.search(r"greedy .* 2048 .* 1 +- +- +0 +full", table)
    assert re.search(r"steady .* 4096 .* 0 +- +- +0 +full", table)
    assert "greedy met its cap" in shown.splitlines()[-1]
    assert not node.root.exists()
