"""hamirt: one GPU, several containers, each with a hard memory cap and a share of GPU time."""

__version__ = "0.1.0"
