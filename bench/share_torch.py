"""PyTorch as a load, training or eager inference: counts its steps in the file that bench/share_load.py reads.

    python3 -m bench.share_torch FILE

A training step is mixed-precision forward, backward and AdamW of a small transformer, large enough to keep the card
busy. A step of inference is the forward pass of a smaller one, in hundreds of kernels of a few microseconds, which the
processor launches more slowly than the card works. Two steps are under way at a time, as in any loop that looks at its
loss late.
"""

from __future__ import annotations

import collections
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.guest import need, not_available
from bench.share_load import FINISHED, FROM_NS, JOB, KERNELS, PID, QUIT, UNTIL_NS, LoadFile

torch = need("torch")

WIDTH, LAYERS, HEADS, BATCH, LENGTH, WORDS = 1024, 6, 16, 32, 256, 4096
SMALL_WIDTH, SMALL_LAYERS, SMALL_BATCH, SMALL_LENGTH = 256, 24, 4, 32
STEP_WORK_NS = 10_000_000
"""What a step counts as work; a share does not depend on it."""
HELD_NS = 300_000
"""A shorter pause counts as holding the card."""
WARM_STEPS = 5
UNDER_WAY = 2
POLL_S = 0.002


def transformer(width: int, layers: int) -> Any:
    """Return a model on the card; without its dropout it computes the same in training and out of it."""
    make = torch.nn
    torch.manual_seed(1)
    one = make.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True)
    parts = make.Embedding(WORDS, width), make.TransformerEncoder(one, layers), make.Linear(width, WORDS)
    return make.Sequential(*parts).cuda()


class Training:
    """The model, and a step of it."""

    def __init__(self) -> None:
        self.network = transformer(WIDTH, LAYERS)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4)
        self.words = torch.randint(0, WORDS, (BATCH, LENGTH), device="cuda")

    def step(self) -> tuple[Any, Any]:
        """Queue one step; return the events before and after it."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        with torch.autocast("cuda", torch.bfloat16):
            guessed = self.network(self.words)
        loss = torch.nn.functional.cross_entropy(guessed.float().flatten(0, 1), self.words.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        after.record()
        return before, after


class Inference:
    """Another, of which no step is large; out of training its layers would be one fused kernel each."""

    def __init__(self) -> None:
        self.network = transformer(SMALL_WIDTH, SMALL_LAYERS).half()
        self.words = torch.randint(0, WORDS, (SMALL_BATCH, SMALL_LENGTH), device="cuda")

    def step(self) -> tuple[Any, Any]:
        """Queue one step; return the events before and after it."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        with torch.no_grad():
            self.network(self.words)
        after.record()
        return before, after


class Account:
    """Steps done and the time that they held the card, by the card's own clock."""

    def __init__(self, file: LoadFile) -> None:
        self.file = file
        self.steps = 0
        self.held_ns = 0
        self.last: Any = None

    def note(self) -> None:
        """Note the totals as of now."""
        self.file.note(time.monotonic_ns(), self.steps * STEP_WORK_NS, self.steps, self.held_ns)

    def count(self, before: Any, after: Any) -> None:
        """Wait for a step and count it; a short pause before it counts as held."""
        after.synchronize()
        self.held_ns += int(before.elapsed_time(after) * 1e6)
        pause_ns = int(self.last.elapsed_time(before) * 1e6) if self.last is not None else 0
        self.held_ns += pause_ns if pause_ns < HELD_NS else 0
        self.steps += 1
        self.last = after
        self.note()


def work(model: Training | Inference, account: Account) -> None:
    """Do the job that the file names."""
    file, queue = account.file, collections.deque[tuple[Any, Any]]()
    time.sleep(max(0.0, (file.word(FROM_NS) - time.monotonic_ns()) / 1e9))
    account.last = None
    account.note()
    while time.monotonic_ns() < file.word(UNTIL_NS):
        queue.append(model.step())
        if len(queue) == UNDER_WAY:
            account.count(*queue.popleft())
    while queue:
        account.count(*queue.popleft())


def main() -> None:
    """Do one job after the other until the file says to quit."""
    if not torch.cuda.is_available():
        not_available("torch.cuda.is_available() is False")
    file = LoadFile(Path(sys.argv[1]))
    training, inference = Training(), Inference()
    for _ in range(WARM_STEPS):
        training.step()
        inference.step()
    torch.cuda.synchronize()
    account = Account(file)
    file.set(PID, os.getpid())
    while file.word(QUIT) == 0:
        job = file.word(JOB)
        if job == file.word(FINISHED):
            time.sleep(POLL_S)
            continue
        work(inference if file.word(KERNELS) > 1 else training, account)
        file.set(FINISHED, job)


if __name__ == "__main__":
    main()
