"""Two ranks that reduce over NCCL, eagerly and in CUDA graphs, until a file says so: the load of bench/gang.py.

    python3 -m bench.gang_torch FILE

Some matrix products, of another size on each rank, then an all-reduce whose result is known; every second round both
are one graph. A wrong result, or a rank that fails, is the exit status 1. FILE is laid out as in gang_rank.c.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any

from bench.guest import need, not_available

torch = need("torch")

RANKS = 2
END, ROUNDS = 8, 16
NUMBERS = 1 << 20
AHEAD = 4
"""Rounds that are queued."""


class Rank:
    """One process on one card."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        side = 1024 * (1 + rank)
        self.matrix = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
        self.numbers = torch.empty(NUMBERS, device="cuda", dtype=torch.int64)
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.round()
        stream.synchronize()
        with torch.cuda.graph(self.graph):
            self.round()

    def round(self) -> None:
        """Work, and reduce."""
        torch.mm(self.matrix, self.matrix)
        self.numbers.fill_(self.rank + 1)
        torch.distributed.all_reduce(self.numbers)

    def is_right(self) -> bool:
        """Wait, and tell whether the last result is what it has to be."""
        return bool((self.numbers == RANKS * (RANKS + 1) // 2).all())

    def run(self, file: mmap.mmap) -> bool:
        """Go on until the file's last round; tell whether all results were right."""
        number, right = 0, True
        while number < struct.unpack_from("Q", file, END)[0]:
            number += 1
            if number % 2:
                self.round()
            else:
                self.graph.replay()
            if number % AHEAD == 0:
                right &= self.is_right()
            struct.pack_into("Q", file, ROUNDS + 8 * self.rank, number)
        return right and self.is_right()


def rank_main(rank: int, path: str) -> None:
    """Be one of the ranks; end with status 1 where something was wrong."""
    torch.cuda.set_device(rank)
    meeting = f"file://{path}.meeting"
    torch.distributed.init_process_group(
        "nccl", init_method=meeting, rank=rank, world_size=RANKS, device_id=torch.device("cuda", rank)
    )
    with open(path, "r+b") as file:
        right = Rank(rank).run(mmap.mmap(file.fileno(), 0))
    torch.distributed.destroy_process_group()
    sys.exit(0 if right else 1)


def main() -> int:
    """Start the ranks; return the exit status."""
    if torch.cuda.device_count() < RANKS:
        not_available(f"{torch.cuda.device_count()} GPUs")
    if not torch.distributed.is_nccl_available():
        not_available("PyTorch without NCCL")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    spawn = torch.multiprocessing.get_context("spawn")
    path = str(Path(sys.argv[1]).absolute())
    ranks: list[Any] = [spawn.Process(target=rank_main, args=(rank, path)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return 0 if all(rank.exitcode == 0 for rank in ranks) else 1


if __name__ == "__main__":
    sys.exit(main())
