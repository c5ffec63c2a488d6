"""Sizes as people write them. Inside hamirt everything is integer bytes."""

import re
from dataclasses import dataclass
from fractions import Fraction

from hamirt.errors import HamirtError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# A single letter counts in 1024s, as in docker's --memory, HAMi's variables and nvidia-smi's MiB; only the SI
# spelling counts in 1000s.
_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": TIB, "tib": TIB, "tb": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*|%)")
_MAX_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Cap:
    """A memory cap as it was asked for: a number of bytes, or a part of the card."""

    text: str
    size_bytes: int | None
    ratio: Fraction | None

    def resolve(self, card_bytes: int) -> int:
        """Return the cap in bytes on a card of `card_bytes`."""
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.ratio is not None
        return int(card_bytes * self.ratio)


def parse_cap(text: str) -> Cap:
    """Read `8GiB`, `8g`, `8GB`, `1.5GiB`, bare bytes or `50%`.

    Raises HamirtError for anything else, for zero and for more than 100%.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match.group(2).lower() if match else ""
    if match is None or (unit != "%" and unit not in _FACTORS):
        raise HamirtError(f"{text!r} is not a size: write 8GiB, 8192MiB, 8g, a number of bytes, or 50% of the card")
    number = Fraction(match.group(1))
    if unit == "%":
        if number > 100:
            raise HamirtError(f"{text!r} is more than the card has: 100% is the whole card")
        cap = Cap(text, None, number / 100)
    else:
        cap = Cap(text, int(number * _FACTORS[unit]), None)
    if number == 0 or cap.size_bytes == 0:
        raise HamirtError(f"a cap of {text!r} leaves no memory: give more, or leave --mem out for the whole card")
    if cap.size_bytes is not None and cap.size_bytes > _MAX_BYTES:
        raise HamirtError(f"{text!r} is more than any card has")
    return cap


def format_mib(size_bytes: int) -> str:
    """Return whole MiB without the unit, as nvidia-smi rounds them (down)."""
    return str(size_bytes // MIB)


def format_size(size_bytes: int) -> str:
    """Return a size for a sentence: `8GiB`, `584MiB`, or bytes where it is no whole number of MiB."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes} bytes" if size_bytes < MIB else f"{size_bytes / MIB:.1f}MiB"
