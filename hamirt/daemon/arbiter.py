"""The daemon's native thread that hands out GPU time, and its one user of hamirt/_arbitrate.h."""

import os
import threading
import time
from collections.abc import Sequence
from itertools import count

from hamirt.errors import HamirtError
from hamirt.region import ffi, lib

_SILENT_SECONDS = 5.0  # a thread that has not looked for so long does not arbitrate any more


class Arbiter:
    """Arbitrates the cards of the node from `start` to `stop`. It knows tenants by numbers that `add` returns."""

    def __init__(self) -> None:
        """Make one; a process has at most one.

        Raises HamirtError where there is no memory for it.
        """
        self._native = lib.hm_arbiter_new()
        if self._native == ffi.NULL:
            raise HamirtError("there is no memory for the thread that hands out GPU time")
        self._thread = threading.Thread(target=lib.hm_arbiter_run, args=(self._native,), daemon=True)
        self._cards: dict[str, int] = {}
        self._numbers = count(1)

    def start(self) -> None:
        """Begin to arbitrate."""
        self._thread.start()

    def stop(self) -> None:
        """Arbitrate no more."""
        if self._thread.is_alive():
            lib.hm_arbiter_stop(self._native)
            self._thread.join()

    def lives(self) -> bool:
        """Return whether the thread has looked at the cards of late."""
        silent = time.monotonic() - lib.hm_arbiter_beat_ns(self._native) / 1e9
        return self._thread.is_alive() and silent < _SILENT_SECONDS

    def handover_seconds(self) -> dict[str, float]:
        """Return what went to changes from one tenant to the next, by the card's UUID."""
        return {uuid: lib.hm_arbiter_handover_ns(self._native, at) / 1e9 for uuid, at in self._cards.items()}

    def open_cards(self) -> tuple[str, ...]:
        """Return the UUIDs of the cards whose tenants take no turns at present."""
        return tuple(uuid for uuid, at in self._cards.items() if lib.hm_arbiter_is_open(self._native, at))

    def add(self, limits_fd: int, usage_fd: int, uuids: Sequence[str]) -> int:
        """Arbitrate for a tenant, whose lease is valid, and return its number.

        Raises OSError where its pages can't be mapped.
        """
        number = next(self._numbers)
        cards = [self._cards.setdefault(uuid, len(self._cards)) for uuid in uuids]
        failure = lib.hm_arbiter_add(self._native, number, limits_fd, usage_fd, cards, len(cards))
        if failure:
            raise OSError(-failure, os.strerror(-failure))
        return number

    def remove(self, number: int) -> None:
        """Arbitrate for a tenant no more."""
        lib.hm_arbiter_remove(self._native, number)

    def changed(self, number: int) -> None:
        """Look at a tenant's limits again: they were changed, or its lease was renewed after it had run out."""
        lib.hm_arbiter_changed(self._native, number)

    def is_hostile(self, number: int) -> bool:
        """Return whether the tenant truncated its usage page."""
        return bool(lib.hm_arbiter_is_hostile(self._native, number))
