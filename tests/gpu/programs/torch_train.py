"""A few training steps with PyTorch, every bit of them repeatable; PYTORCH_CUDA_ALLOC_CONF chooses the allocator."""

from __future__ import annotations

from bench.guest import digest, need, show

torch = need("torch")


def train() -> tuple[str, list[float]]:
    """Train five steps; return the hash of all parameters and the losses."""
    torch.manual_seed(7)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16384, 10),
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(16, 3, 32, 32, device="cuda")
    labels = torch.arange(16, device="cuda") % 10
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return digest(*(p.detach().cpu().numpy().tobytes() for p in model.parameters())), losses


def tensors() -> str:
    """Return the hash of a chain of tensor operations."""
    left = torch.randn(512, 512, device="cuda")
    product = (left @ left).softmax(1)
    order = torch.sort(product, stable=True).indices
    spectrum = torch.fft.rfft(left).abs()
    half = (left.to(torch.bfloat16) @ left.to(torch.bfloat16)).float()
    return digest(*(t.cpu().numpy().tobytes() for t in (product, order, spectrum, half)))


def main() -> None:
    """Print the results."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    parameters, losses = train()
    show("torch_train", backend=torch.cuda.get_allocator_backend(), parameters=parameters)
    show("torch_train", losses=[loss.hex() for loss in losses])
    show("torch_train", tensors=tensors())
    big = torch.full((64 << 20,), 3, dtype=torch.int32, device="cuda")
    del big
    torch.cuda.empty_cache()
    show("torch_train", sum=int(torch.arange(1 << 24, device="cuda").sum()))


if __name__ == "__main__":
    main()
