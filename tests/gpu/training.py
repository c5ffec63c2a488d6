"""A PyTorch training loop of changing shapes: its caching allocator grows, and kernels and libraries load as they come.

    python3 -m tests.gpu.training SECONDS

Prints "TRAINING" once it runs, and the number of steps at the end.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from bench.guest import need

torch = need("torch")
STEPS_OF_A_SIZE = 15
BATCHES = (4, 16, 48, 8, 64, 32)


def model(width: int) -> Any:
    """Return a small network of convolutions, attention and a linear head."""
    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(3, width, 7, stride=4, padding=3),
        layers.BatchNorm2d(width),
        layers.GELU(),
        layers.Flatten(2),
        layers.TransformerEncoderLayer(256, 8, 1024, batch_first=True),
        layers.LayerNorm(256),
        layers.Flatten(1),
        layers.Linear(width * 256, 100),
    ).cuda()


def main(seconds: float) -> None:
    """Train on noise for so long."""
    torch.manual_seed(1)
    network = model(128)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    print("TRAINING", flush=True)
    deadline, steps = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        batch = BATCHES[steps // STEPS_OF_A_SIZE % len(BATCHES)]
        images = torch.randn(batch, 3, 64, 64, device="cuda")
        labels = torch.randint(0, 100, (batch,), device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=steps // 100 % 2 == 1):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % (STEPS_OF_A_SIZE * len(BATCHES)) == 0:
            torch.cuda.empty_cache()
    torch.cuda.synchronize()
    print(f"{steps} steps", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
