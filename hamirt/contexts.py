"""How large a context was when one was last measured, by driver and card; kept below the root between tenants."""

import json
import os
from contextlib import suppress
from pathlib import Path

from hamirt.model import Card, Driver
from hamirt.units import GIB, MIB

_FILE = "contexts.json"
_LEAST_BYTES, _MOST_BYTES = 16 * MIB, 16 * GIB  # outside of this no measurement is believed


def read(root: Path) -> dict[str, int]:
    """Return the measured sizes by `key`; what can't be read was never measured."""
    try:
        sizes = json.loads((root / _FILE).read_text())["context_bytes"]
        return {str(key): size for key, size in sizes.items() if isinstance(size, int) and _is_credible(size)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def note(root: Path, measured: dict[str, int]) -> None:
    """Remember measured sizes for the tenants to come. A failure costs no more than a worse prediction."""
    known = read(root)
    updated = known | {key: size for key, size in measured.items() if _is_credible(size)}
    if updated == known:
        return
    partial = root / f".{_FILE}.{os.urandom(4).hex()}"
    with suppress(OSError):
        try:
            partial.write_text(json.dumps({"schema": 1, "context_bytes": updated}, indent=1, sort_keys=True) + "\n")
            os.replace(partial, root / _FILE)
        finally:
            partial.unlink(missing_ok=True)


def key(driver: Driver, card: Card) -> str:
    """Return what a context's size depends on."""
    return f"{'simulated ' if driver.simulated else ''}{driver.version} {card.name}"


def _is_credible(size: int) -> bool:
    return _LEAST_BYTES <= size <= _MOST_BYTES
