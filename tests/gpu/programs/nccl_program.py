"""NCCL through torch.distributed: one rank for each card that is visible."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.guest import digest, need, show

torch = need("torch")


def rank_main(rank: int, world: int, meeting: str, answers: Any) -> None:
    """Join the group and take part in some collectives."""
    distributed = torch.distributed
    torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl", init_method=f"file://{meeting}", rank=rank, world_size=world, device_id=torch.device("cuda", rank)
    )
    values = torch.arange(1 << 16, device="cuda") * (rank + 1)
    distributed.all_reduce(values)
    gathered = [torch.empty(8, device="cuda", dtype=torch.int64) for _ in range(world)]
    distributed.all_gather(gathered, values[:8] + rank)
    distributed.broadcast(values, 0)
    distributed.barrier()
    torch.cuda.synchronize()
    found = (rank, digest(values.cpu().numpy().tobytes()), [int(part.sum()) for part in gathered])
    distributed.destroy_process_group()
    answers.put(found)


def main() -> int:
    """Print the results of all ranks in order; return the exit status."""
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    if not torch.distributed.is_nccl_available():
        print("PyTorch was built without NCCL", file=sys.stderr)
        return 1
    spawn = torch.multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with tempfile.TemporaryDirectory(prefix="hamirt-nccl-") as folder:
        world = min(2, torch.cuda.device_count())
        meeting = str(Path(folder) / "meeting")
        children = [spawn.Process(target=rank_main, args=(rank, world, meeting, answers)) for rank in range(world)]
        for child in children:
            child.start()
        for rank, values, gathered in sorted(answers.get(timeout=150) for _ in children):
            show("nccl", world=world, rank=rank, values=values, gathered=gathered)
        for child in children:
            child.join(60)
    return 0 if all(child.exitcode == 0 for child in children) else 1


if __name__ == "__main__":
    sys.exit(main())
