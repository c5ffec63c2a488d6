"""A walk through a program of programs/steps.h: what it printed, and what the ledger said at each of its stops."""

from __future__ import annotations

from dataclasses import dataclass

from hamirt.model import KindBytes, Slot, Use
from tests.shim.conftest import MIB, TIMEOUT_S, Build, Node, Tenant

NO_USE = Use(0, 0, 0, KindBytes(*(0 for _ in KindBytes.__slots__)), 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the program: how much free memory fell by at a stop, or how a call was answered."""

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

    def __init__(self, steps: list[Step], stderr: str) -> None:
        super().__init__((step.name, step) for step in steps)
        self.steps, self.stderr = steps, stderr

    def told(self) -> list[tuple[str, int | None, str]]:
        """What the program itself saw."""
        return [(step.name, step.fell_kib, step.answer) for step in self.steps]

    def mib(self, kind: str) -> dict[str, int]:
        """What the ledger held of a kind at each stop, in whole MiB."""
        return {
            step.name: getattr(step.use.kinds, kind) // MIB for step in self.steps if step.fell_kib is not None
        }


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
    process.stdin.close()
    assert process.wait(TIMEOUT_S) == 0
    return Walk(steps, "")
