"""The hook with one fault: at its Nth step, counted from 1, the step fails, or the hook is killed.

    python faulty_hook.py PLACE STEPS_FILE create|remove [OPTION...]

PLACE is KIND:N. KIND is `error` or `kill`; N is 0 for no fault: then the number of steps is written to STEPS_FILE.
Steps are the beginning and the end of each function of the hook's modules, and of each call from them into the
operating system: at its end it has been done, and whoever called it does not know.
"""

import errno
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from hamirt import hook_io, mounts, oci

SOURCES = (oci.__file__, mounts.__file__, hook_io.__file__)
SYSTEM = ("posix", "select", "_socket", "_io")
place, steps_file, *words = sys.argv[1:]
kind, number = place.split(":")
count = 0


def step(frame: FrameType, event: str, argument: Any) -> None:
    global count
    if frame.f_code.co_filename not in SOURCES:
        return
    if event.startswith("c_"):
        owner = type(getattr(argument, "__self__", None)).__module__
        if argument.__module__ not in SYSTEM and owner not in SYSTEM:
            return
    count += 1
    if count != int(number):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.EIO, f"a fault at step {count}, {event} in {frame.f_code.co_name}")


sys.setprofile(step)
status = oci.main(words)
sys.setprofile(None)
if number == "0":
    Path(steps_file).write_text(str(count))
sys.exit(status)
