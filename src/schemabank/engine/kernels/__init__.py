"""Fused operations, in Triton on a GPU: attention over short rows, LoRA with dropout, the loss."""
