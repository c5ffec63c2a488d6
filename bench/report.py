"""Reads the JSON files of a run and prints the bars as a markdown table.

python3 -m bench.report [FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ORDER = ("smoke", "accuracy", "stress", "overhead", "programs", "views")


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the documents of a folder that carry bars, in the order of the issue's table."""
    documents = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            continue
        if isinstance(document, dict) and "bars" in document:
            documents.append(document)
    return sorted(documents, key=lambda document: _place(str(document.get("name"))))


def markdown(documents: Sequence[dict[str, Any]]) -> str:
    """Return the table, below it the exceeders and where the figures come from."""
    lines = ["| bar | asked | measured | verdict | |", "|---|---|---|---|---|"]
    for document in documents:
        mark = " (simulated)" if document.get("simulated") else ""
        for bar in document["bars"]:
            cells = [bar["name"] + mark, bar["bar"], bar["measured"], f"**{bar['verdict']}**", bar["detail"]]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += _exceeders(documents)
    return "\n".join([*lines, "", *sorted({_source(document) for document in documents})])


def _exceeders(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of what was tried to take memory behind the allocators' backs."""
    tried = [(document, found) for document in documents for found in document.get("exceeders", [])]
    if not tried:
        return []
    lines = ["", "| tried on a full tenant | footprint before | at its peak | above the cap | answer |"]
    lines.append("|---|---|---|---|---|")
    for document, found in tried:
        mark = " (simulated)" if document.get("simulated") else ""
        sizes = [f"{found[key] / (1 << 20):.0f} MiB" for key in ("full_bytes", "peak_bytes", "over_cap_bytes")]
        lines.append("| " + " | ".join(_cell(cell) for cell in [found["name"] + mark, *sizes, found["answer"]]) + " |")
    return lines


def _source(document: dict[str, Any]) -> str:
    device = document["device"]
    return (
        f"{document['name']}: {device['name']}, driver {device['driver']}, commit {document['commit'][:12]}, "
        f"{document['date']}"
    )


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _place(name: str) -> tuple[int, str]:
    base = name.partition("-")[0]
    return (ORDER.index(base) if base in ORDER else len(ORDER), name)


def main() -> int:
    """Print the report of the folder that the command line names; return the exit status."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("folder", nargs="?", type=Path, default=HERE / "results")
    documents = load(options.parse_args().folder)
    if not documents:
        print("no measurements there", file=sys.stderr)
        return 1
    print(markdown(documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
