"""Runs inside the tenant of bench/storm.py: starts victims, kills them at random moments, keeps some alive.

    python3 -m bench.storm_host VICTIM FILE SURVIVORS BYTES KILLS SIDE_BY_SIDE SEED

Never touches the GPU itself. Writes JSON lines to stdout and after each waits for a line on stdin.
Victims end by SIGKILL only: at any moment from their exec on, in threads, while they become another program, in a PID
namespace of their own (there the outer process, the inner one or both are hit first).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.process import can_unshare, descendants, state_of

GONE_S = 60.0
CHECK_EVERY = 50
NEXT_STARTS = 5
NEXT_START_S = 60.0
READY_S = 60.0

PR_SET_CHILD_SUBREAPER = 36

MODES = ("early", "loop", "threads", "exec", "fork", "namespace", "namespace-exec")
LONGEST_S = {"early": 0.3}
USUAL_S = 1.2


@dataclass
class Storm:
    """What the storm did so far. Changed under `lock`."""

    victim: str
    seed: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    kills: int = 0
    started: int = 0
    by_mode: dict[str, int] = field(default_factory=dict)
    ended_alone: int = 0
    slowest_gone_s: float = 0.0
    stuck: list[str] = field(default_factory=list)


class Heart:
    """The survivors' heartbeats in the shared file; notes the longest pause of any."""

    def __init__(self, path: str, survivors: int) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self._count = survivors
        self._stop = threading.Event()
        self.longest_pause_s = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def beats(self) -> list[int]:
        """Return how often each survivor has beaten."""
        return [int(struct.unpack_from("<Q", self._map, 8 * (i + 1))[0]) for i in range(self._count)]

    def watch(self) -> None:
        """Start noting pauses."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch, and tell the survivors to beat no more."""
        self._stop.set()
        self._thread.join()
        struct.pack_into("<Q", self._map, 0, 1)

    def _watch(self) -> None:
        last, since = self.beats(), [time.monotonic()] * self._count
        while not self._stop.wait(0.02):
            now, beats = time.monotonic(), self.beats()
            for index, beat in enumerate(beats):
                if beat != last[index]:
                    since[index] = now
                self.longest_pause_s = max(self.longest_pause_s, now - since[index])
            last = beats


def command_of(mode: str, victim: str) -> list[str]:
    """Return the command line of a victim."""
    inner = {"early": "loop", "namespace": "loop", "namespace-exec": "exec"}.get(mode, mode)
    outer = ["unshare", "--pid", "--fork", "--mount-proc", "--"] if mode.startswith("namespace") else []
    return [*outer, victim, inner]


def one_victim(storm: Storm, number: int, modes: tuple[str, ...]) -> None:
    """Start a victim, kill it with all it started at a random moment, and wait until it is gone."""
    luck = random.Random(storm.seed * 100003 + number)
    mode = modes[number % len(modes)]
    process = subprocess.Popen(
        command_of(mode, storm.victim), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(luck.uniform(0, LONGEST_S.get(mode, USUAL_S)))
    pids = [process.pid, *descendants(process.pid)]
    if luck.random() < 0.5:
        pids.reverse()
    alive = process.poll() is None
    for pid in pids:
        _kill(pid)
    start = time.monotonic()
    gone = _wait_gone(process, pids)
    with storm.lock:
        storm.started += 1
        storm.kills += alive
        storm.ended_alone += not alive
        storm.by_mode[mode] = storm.by_mode.get(mode, 0) + alive
        storm.slowest_gone_s = max(storm.slowest_gone_s, time.monotonic() - start)
        if not gone:
            storm.stuck.append(f"{mode}: {[(pid, state_of(pid)) for pid in pids]}")


def run_storm(storm: Storm, kills: int, side_by_side: int, modes: tuple[str, ...]) -> None:
    """Kill until there were `kills` in all, or 4 times as many tries."""
    numbers = iter(range(storm.started, storm.started + 4 * kills))

    def hand() -> None:
        while True:
            with storm.lock:
                number = next(numbers, None) if storm.kills < kills and len(storm.stuck) < 5 else None
            if number is None:
                return
            one_victim(storm, number, modes)

    hands = [threading.Thread(target=hand) for _ in range(side_by_side)]
    for thread in hands:
        thread.start()
    for thread in hands:
        thread.join()


def next_starts(victim: str) -> list[float | None]:
    """Return how long fresh processes take to make a context, allocate and end, in seconds; None: it did not."""
    took: list[float | None] = []
    for _ in range(NEXT_STARTS):
        start = time.monotonic()
        try:
            done = subprocess.run([victim, "once"], capture_output=True, timeout=NEXT_START_S, check=False)
            took.append(round(time.monotonic() - start, 4) if done.returncode == 0 else None)
        except subprocess.TimeoutExpired:
            took.append(None)
    return took


def say(event: str, **more: Any) -> None:
    """Write one line for the process outside and wait for its answer."""
    print(json.dumps({"event": event, **more}), flush=True)
    sys.stdin.readline()


def adopt_orphans() -> None:
    """Become the parent of whatever a killed victim leaves behind."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(survivors: list[int]) -> int:
    """Kill what victims left behind, such as a child forked just as its parent was killed; return how many."""
    ended = 0
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        left = [pid for pid in descendants(os.getpid()) if pid not in survivors]
        if not left:
            break
        for pid in left:
            ended += state_of(pid) not in (None, "Z", "X")
            _kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    return ended


def main() -> int:
    """Run the storm and report; return the exit status."""
    victim, path, survivors, size, kills, side_by_side, seed = sys.argv[1:8]
    storm = Storm(victim, int(seed))
    adopt_orphans()
    namespaces = can_unshare()
    modes = MODES if namespaces else tuple(mode for mode in MODES if not mode.startswith("namespace"))
    before = next_starts(victim)
    heart = Heart(path, int(survivors))
    living = [
        subprocess.Popen([victim, "hold", path, str(index + 1), size], stdin=subprocess.DEVNULL)
        for index in range(int(survivors))
    ]
    deadline = time.monotonic() + READY_S
    while not all(heart.beats()) and time.monotonic() < deadline:
        time.sleep(0.05)
    heart.watch()
    pids = [process.pid for process in living]

    orphans = 0
    say("check", kills=0, pids=pids, beating=True)
    for goal in [*range(CHECK_EVERY, int(kills), CHECK_EVERY), int(kills)]:
        run_storm(storm, goal, int(side_by_side), modes)
        orphans += end_orphans(pids)
        say("check", kills=storm.kills, pids=pids, beating=True)
    heart.stop()
    after = next_starts(victim)
    say("check", kills=storm.kills, pids=pids, beating=False)
    say(
        "end",
        kills=storm.kills,
        started=storm.started,
        ended_alone=storm.ended_alone,
        by_mode=storm.by_mode,
        namespaces=namespaces,
        slowest_gone_s=round(storm.slowest_gone_s, 3),
        stuck=storm.stuck,
        orphans=orphans,
        longest_pause_s=round(heart.longest_pause_s, 3),
        survivors_alive=sum(process.poll() is None for process in living),
        next_start_before_s=before,
        next_start_after_s=after,
    )
    for process in living:
        process.kill()
    return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_gone(process: subprocess.Popen[bytes], pids: list[int]) -> bool:
    """Wait until none of the processes exists any more; a zombie counts as gone, its memory is."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        process.poll()
        if all(state_of(pid) in (None, "Z", "X") for pid in pids):
            process.wait()
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    # Only what was started here is to be killed: this file runs nothing without its arguments.
    if len(sys.argv) != 8 or not Path(sys.argv[1]).exists():
        print("usage: storm_host VICTIM FILE SURVIVORS BYTES KILLS SIDE_BY_SIDE SEED", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main())
