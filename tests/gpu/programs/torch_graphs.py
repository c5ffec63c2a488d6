"""CUDA graphs in PyTorch: captured with its private memory pool, replayed with new input."""

from __future__ import annotations

from bench.guest import digest, need, show

torch = need("torch")


def main() -> None:
    """Print the results."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(7)
    weight = torch.randn(256, 256, device="cuda")
    static = torch.zeros(256, 256, device="cuda")
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for _ in range(3):
            (static @ weight).relu()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden = (static @ weight).relu()
        answer = hidden @ weight.t() + torch.full_like(hidden, 0.5)
    for turn in range(4):
        static.copy_(torch.randn(256, 256, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        show("torch_graphs", turn=turn, answer=digest(answer.cpu().numpy().tobytes()))


if __name__ == "__main__":
    main()
