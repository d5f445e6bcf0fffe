"""Executors that capture on a CPU, without anything of CUDA."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from schemabank.engine import execute
from schemabank.engine.execute import Executor

Captured = Callable[[Executor, Callable[[], Tensor], object], Callable[[], Tensor]]


def capturing(monkeypatch: pytest.MonkeyPatch, captured: Captured, notes: list[str]) -> Executor:
    """An executor that captures by ``captured``."""
    monkeypatch.setattr(execute, "_BROKEN_POOLS", [])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", nullcontext)
    monkeypatch.setattr(Executor, "_captured", captured)
    executor = Executor(torch.device("cpu"), capture=False, explain=notes.append)
    executor.capture, executor._pool = True, object()
    return executor
