"""Fused operations, with Triton on a GPU: attention of short rows, masked LoRA, the loss."""
