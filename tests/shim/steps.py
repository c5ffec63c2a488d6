"""A walk through a program of programs/steps.h: what it printed, and what the ledger said at each of its stops."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hamirt import pages, region
from hamirt.model import KindBytes, Slot, Use
from tests.shim.conftest import MIB, TIMEOUT_S, Build, Node, Tenant

CONTEXT_BYTES = 520 * MIB  # of the simulated card
RESERVE_BYTES = region.RESERVE_BYTES
NO_USE = Use(0, 0, 0, KindBytes(*(0 for _ in KindBytes.__slots__)), 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the program: by how much the free memory fell at a stop, or how a call was answered."""

    name: str
    fell_kib: int | None
    answer: str
    slots: tuple[Slot, ...]

    @property
    def use(self) -> Use:
        """What the only process holds of the first device."""
        return self.slots[0].uses[0] if self.slots else NO_USE


class Walk(dict[str, Step]):
    """The steps of a program by name, in their order; of several with one name the last."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__((step.name, step) for step in steps)
        self.steps = steps

    def told(self) -> list[tuple[str, int | None, str]]:
        """What the program itself saw."""
        return [(step.name, step.fell_kib, step.answer) for step in self.steps]

    def answers(self) -> list[str]:
        """How calls were answered, as "what: answer"."""
        return [f"{step.name}: {step.answer}" for step in self.steps if step.answer]

    def mib(self, kind: str) -> dict[str, float]:
        """What the ledger held of a kind at each stop, in MiB."""
        return {step.name: getattr(step.use.kinds, kind) / MIB for step in self.steps if step.fell_kib is not None}


def tenant_of(node: Node, mem: int) -> Tenant:
    """Make a tenant for which the size of a context is known, so that free memory moves with allocations only."""
    tenant = node.tenant(mem)
    devices = (dataclasses.replace(tenant.limits.devices[0], context_bytes=CONTEXT_BYTES),)
    limits = dataclasses.replace(tenant.limits, devices=devices)
    tenant.limits_page.unlink()
    pages.create_limits(tenant.limits_page, limits)
    return Tenant(tenant.folder, limits)


def walk(node: Node, build: Build, program: str, *arguments: str, tenant: Tenant | None) -> Walk:
    """Run a program to its end, without the shim if there is no tenant."""
    process = node.start([build(program), *arguments], tenant, shim=tenant is not None)
    steps = []
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        name, *rest = line.split()
        stop = len(rest) == 1 and rest[0].lstrip("-").isdigit()
        slots = tenant.usage().slots if tenant is not None else ()
        steps.append(Step(name, int(rest[0]) if stop else None, "" if stop else " ".join(rest), slots))
        if stop:
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.wait(TIMEOUT_S) == 0
    return Walk(steps)
