"""What the programs that are measured or compared share: optional frameworks, result lines, hashes."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from typing import Any, NoReturn

NOT_AVAILABLE = 77
"""Exit status of a program whose framework this machine lacks."""


def need(name: str) -> Any:
    """Import a framework; where it can't be used, say so in the result and end with status 77."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        not_available(f"{name}: {error!r}")


def not_available(reason: str) -> NoReturn:
    """End with status 77 and the reason where runners look for it."""
    print("HMRESULT " + json.dumps({"not_available": reason}), flush=True)
    sys.exit(NOT_AVAILABLE)


def show(program: str, **values: Any) -> None:
    """Print a line that has to be the same in every run of the program."""
    print("RESULT", program, *(f"{name}={value}" for name, value in values.items()), flush=True)


def digest(*parts: bytes) -> str:
    """Return the first 16 digits of the SHA-256 of all parts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
