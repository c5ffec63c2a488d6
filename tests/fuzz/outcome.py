"""What a fuzzer counts and finds, and what a process under it holds."""

import json
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MOST_FINDINGS = 20
MIB = 1 << 20


class TooManyFindings(Exception):  # noqa: N818  # it ends a run, which is no error of the fuzzer's
    """There is enough to look at."""


@dataclass
class Outcome:
    """Counts by heading and name, and the findings, each with what it takes to make the first of its kind again."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, heading: str, name: str) -> None:
        """Count one more."""
        self.counts.setdefault(heading, Counter())[name] += 1

    def found(self, case: int, what: str, how: str, detail: str = "") -> None:
        """Note that there was `what` should not be. Raises TooManyFindings."""
        first = {"what": what, "times": 0, "case": case, "detail": detail[:600], "how": how[:1000]}
        self.findings.setdefault(what, first)["times"] += 1
        if len(self.findings) >= MOST_FINDINGS:
            raise TooManyFindings

    def crashed(self, case: int, error: BaseException, how: str) -> None:
        """Note an exception that is none of hamirt's refusals, with where it was raised."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        self.found(case, f"{error!r} at {Path(place.filename).name}:{place.lineno}", how)

    def write(self, path: Path, **more: Any) -> None:
        """Write it all as JSON."""
        counts = {heading: dict(sorted(counter.items())) for heading, counter in self.counts.items()}
        path.write_text(json.dumps({**more, "counts": counts, "findings": [*self.findings.values()]}, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds of the machine."""

    descriptors: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Holdings":
        """Look at a living process."""
        process = psutil.Process(pid)
        return cls(process.num_fds(), process.memory_info().rss)


def growth(before: Holdings, after: Holdings) -> dict[str, float]:
    """Return what grew from one look to another, for the report."""
    return {
        "descriptors": after.descriptors - before.descriptors,
        "resident_mib": round((after.resident_bytes - before.resident_bytes) / MIB, 2),
    }
