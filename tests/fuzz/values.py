"""What mutations are made of: numbers at the edges, texts that mean ill, and ways to spoil bytes. All by a seed."""

import random
from collections.abc import Callable

NUMBERS = (
    0, 1, 2, 7, 8, 9, 16, 17, 255, 511, 512, 513, 65535, 65536,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 48) - 1, 1 << 48, (1 << 48) + 1,
    (1 << 53) + 1, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip

TEXTS = (
    "", " ", ".", "..", "../..", "/", "a/b", "/etc/passwd", ".hidden", "-", "a-", "-000000", "x-00000g",
    "a" * 63, "a" * 64, "a" * 300, "a" * 5000, "nul\x00nul", "line\nbreak", "\r\nX: y", "\x1b[31mred\x1b[0m", "\x7f",
    "\u202eleft", "\u00e9", "\u65e5\u672c", "\U0001f600" * 20, "\ufeff", "\ud800", "a\udfff", "%00", "%2e%2e%2f",
    "{}", "null", "NaN", "' OR 1=1 --", "${HOME}", "$(id)", "\\", "\"", "GPU-", "CON", "a\u0301", "\u0130",
)  # fmt: skip


def spoil(rng: random.Random, content: bytes) -> bytes:
    """Return the bytes with one thing wrong with them."""
    return rng.choice(_WAYS)(rng, content)


def flip(rng: random.Random, content: bytes) -> bytes:
    """Flip a bit or a few."""
    spoiled = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if spoiled else 0):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def _noise(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    noise = rng.randbytes(rng.choice((1, 4, 16, 64)))
    return content[:start] + noise + content[start + len(noise) :]


def _insert(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice((b"\0", b"\n", b"\xff", b"\xc3\x28", rng.randbytes(3))) + content[start:]


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _leave_out(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 2, 8)) :]


def _repeat(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    part = content[start : start + rng.choice((1, 8, 64))]
    return content[:start] + part * rng.choice((1, 2, 50)) + content[start:]


_WAYS: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip, flip, _noise, _insert, _cut, _leave_out, _repeat)
