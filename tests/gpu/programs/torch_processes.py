"""Several processes with PyTorch: forked before the first CUDA call; spawned, with tensors shared through CUDA IPC."""

from __future__ import annotations

import sys
from typing import Any

from bench.guest import digest, need, show

torch = need("torch")
WAIT_S = 120


def compute(seed: int) -> str:
    """Return the hash of a product on the card."""
    torch.manual_seed(seed)
    left = torch.randn(256, 256, device="cuda")
    return digest((left @ left).cpu().numpy().tobytes())


def forked(seed: int, pipe: Any) -> None:
    """Compute in a forked child."""
    pipe.send(compute(seed))
    pipe.close()


def spawned(taken: Any, answers: Any) -> None:
    """Take a tensor that lives in the parent's memory, read it, change it, say when done."""
    shared = taken.get(timeout=WAIT_S)
    before = int(shared.sum())
    shared.add_(1)
    torch.cuda.synchronize()
    answers.put((before, compute(3)))
    taken.get(timeout=WAIT_S)
    del shared


def main() -> int:
    """Print the results; return the exit status."""
    multiprocessing = torch.multiprocessing
    fork = multiprocessing.get_context("fork")
    for seed in (1, 2):
        mine, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=forked, args=(seed, theirs))
        child.start()
        theirs.close()
        show("torch_processes", forked=seed, hash=mine.recv() if mine.poll(WAIT_S) else "nothing")
        child.join(WAIT_S)

    spawn = multiprocessing.get_context("spawn")
    given, answers = spawn.Queue(), spawn.Queue()
    child = spawn.Process(target=spawned, args=(given, answers))
    child.start()
    shared = torch.arange(1 << 20, device="cuda")
    given.put(shared)
    before, other = answers.get(timeout=WAIT_S)
    torch.cuda.synchronize()
    show("torch_processes", seen=before, changed=int(shared.sum()), spawned=other, own=compute(3))
    given.put("done")
    child.join(WAIT_S)
    return 0 if child.exitcode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
