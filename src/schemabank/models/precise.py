"""Giving a model all digits for a while, to tell rounding from what a model really does."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

ROUNDED = (torch.bfloat16, torch.float16)


def can_be_precise(model: PreTrainedModel) -> bool:
    """Whether all weights are plain numbers of few digits, not quantised ones."""
    return all(parameter.dtype in ROUNDED for parameter in model.parameters())


@contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Give a model float32 weights for a while; afterwards it has the very same as before."""
    rounded = [t for t in (*model.parameters(), *model.buffers()) if t.dtype in ROUNDED]
    before = [tensor.data for tensor in rounded]
    try:
        for tensor in rounded:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(rounded, before, strict=True):
            tensor.data = data
