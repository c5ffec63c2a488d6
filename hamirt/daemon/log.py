"""The daemon's log: events, not ticks; a line each on standard error, which systemd or the container's engine keeps."""

import json
import sys
import time
from collections.abc import Callable
from typing import TextIO


class Log:
    """Writes events as a JSON object a line, or as text for people."""

    def __init__(self, style: str, stream: TextIO | None = None, clock: Callable[[], float] = time.time) -> None:
        self.style = style
        self._stream = stream or sys.stderr
        self._clock = clock

    def event(self, kind: str, message: str, **fields: object) -> None:
        """Tell that something happened: `kind` is for programs, `message` for people. None is left out."""
        known = {name: value for name, value in fields.items() if value is not None}
        now = self._clock()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        if self.style == "json":
            line = json.dumps({"time": stamp, "event": kind, "message": message, **known}, default=str)
        else:
            pairs = "".join(f" {name}={value!r}" for name, value in known.items())
            line = f"{stamp} {kind}: {message}{pairs}"
        try:
            self._stream.write(line.replace("\n", " ") + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more; the tenants still need us
            return
